"""The two-stage shape with a card that only takes the time."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from models.errors import ConfigError
from pipeline.cluster_session import connect
from tests.labelling import label, parts
from tests.tiny_model import colour_jpeg, colour_shards, write_tar

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    import ray

    connect(None)
    yield
    ray.shutdown()


def test_both_shapes_write_the_same_bytes_and_no_real_run_resumes_them(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=3, samples=40)
    write_tar(tmp_path / "in" / "z.tar", {"a.jpg": b"no image", "b.png": colour_jpeg("blue"), "c.jpg": b""})

    report = label(tmp_path / "in", tmp_path / "two", tiny_model, device="simulated:10000")
    label(tmp_path / "in", tmp_path / "fused", tiny_model, device="simulated:10000", shape="fused")

    assert (report.images, report.ok, report.precision) == (123, 121, "simulated")
    assert parts(tmp_path / "two") == parts(tmp_path / "fused")
    metadata = pq.ParquetFile(tmp_path / "two" / "part-00000.parquet").schema_arrow.metadata
    assert metadata[b"shardlabel.precision"] == b"simulated"
    with pytest.raises(ConfigError, match="begun with precision simulated, and now it is fp32"):
        label(tmp_path / "in", tmp_path / "two", tiny_model)


def test_the_card_takes_the_time_that_its_rate_says(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=100)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:50")

    assert report.seconds > 200 / 50


def test_embeddings_of_a_simulated_card_are_refused(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="embeddings cannot be had of a simulated device"):
        label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:50", embeddings=True)
