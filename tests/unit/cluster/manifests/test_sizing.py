from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.sizing import INPUTS, around, sizes, table

DOCS = Path(__file__).parents[4] / "docs"


def inputs(**changes):
    return {**json.loads(INPUTS.read_text()), **changes}


def test_the_table_in_the_docs_is_the_computed_one():
    text = (DOCS / "billion-images.md").read_text().split("<!-- sizing -->")[1].strip()

    assert text == table(sizes(inputs(), images=1e9, hours=24, cores=8, gpus=1, price=None), 24)


def test_nodes_are_images_over_rate_and_time():
    measured = inputs(images_per_s_per_core={"made up": {"value": 100}}, scaling_share={"value": 0.5})

    (size,) = sizes(measured, images=3_600_000, hours=1, cores=2, gpus=1, price=2.0)

    # 1000 images/s, by nodes of 200 that keep half of it
    assert (size.nodes, size.node_hours, size.cost) == (10, 10, 20.0)


def test_a_gpu_is_left_out_until_one_was_measured():
    without = sizes(inputs(images_per_s_per_gpu={"value": None}), images=1e9, hours=24, cores=8, gpus=2, price=None)
    with_one = sizes(inputs(images_per_s_per_gpu={"value": 3820}), images=1e9, hours=24, cores=8, gpus=2, price=None)

    assert len(with_one) == len(without) + 1
    # a GPU takes what ten cores decode, and a node has two
    assert with_one[-1].decode_cores == 20 * with_one[-1].nodes


def test_what_was_not_measured_is_not_invented():
    beside = around(
        inputs(driver_units_per_s={"value": None}, row_bytes={"value": None}), images=1e9, images_per_shard=1000
    )

    assert beside.driver_s is None
    assert beside.output_gb is None
    assert (beside.shards, beside.units) == (1_000_000, 505_000)


@pytest.mark.parametrize("name", ["images_per_s_per_gpu", "image_bytes", "scaling_share", "plan", "row_bytes"])
def test_every_figure_says_where_it_was_measured(name):
    assert "source" in inputs()[name]
