"""What the benchmarks make of what they measured: the steady rate, ratios, the scaling model."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest

from benchmarks import profile_bulk, scaling
from benchmarks.bulk_inputs import prepare_images, prepare_model
from benchmarks.bulk_summary import summarise, table
from benchmarks.bulk_tools import parse_variants
from benchmarks.measure import measure
from benchmarks.progress import read_events, steady_rate
from models.catalog import load_spec
from models.inference.classifier import Classifier
from models.spec import Precision
from tests.support.tiny_model import colour_shards


@pytest.mark.parametrize("step", [16, 100], ids=["batches", "files"])
def test_steady_rate_leaves_out_start_and_end(step):
    # 50 images/s for the first and last tenth, 200 between.
    done = np.arange(step, 10_001, step)
    at = np.interp(done, [0, 1000, 9000, 10_000], [0, 20, 60, 80])

    assert steady_rate([(1e9 + t, step) for t in at]) == pytest.approx(200, rel=0.01)


def test_steady_rate_of_too_few_points_is_none():
    assert steady_rate([]) is None
    assert steady_rate([(0.0, 100), (1.0, 100), (2.0, 100)]) is None


def test_events_of_several_processes_are_put_in_order(tmp_path):
    (tmp_path / "p").write_text("3.5 16\n1.25 16\n")

    assert read_events(tmp_path / "p") == [(1.25, 16), (3.5, 16)]


def _run(tool, number, rate, **more):
    return {"mode": "int8", "tool": tool, "round": number, "images": 10, "seconds": 1.0, "steady": rate,
            "end_to_end": rate, "to_last_label": rate, "cpu_seconds": 1.0, "peak_memory_mb": 1.0, **more}  # fmt: skip


def test_ratios_are_formed_within_one_round():
    # The machine is twice as fast in round 1: medians over all runs would say something else.
    runs = [_run("bare", 0, 100.0), _run("ours", 0, 90.0), _run("bare", 1, 200.0), _run("ours", 1, 180.0),
            _run("bare", 2, 50.0)]  # fmt: skip

    figures = summarise({"runs": runs})["int8"]

    assert figures["ours"]["steady_of_bare"] == {"median": 0.9, "min": 0.9, "max": 0.9, "runs": 2}
    assert figures["bare"]["steady_ours_to"]["median"] == 0.9


def test_a_wrong_run_is_counted_and_gives_no_figure():
    results = {"machine": {"cores": 2}, "runs": [_run("ours", 0, 100.0), _run("ours", 1, 900.0, wrong="9 rows")]}

    figures = summarise(results)["int8"]["ours"]

    assert figures["failed"] == 1
    assert figures["steady"]["max"] == 100.0
    assert "1 FAILED" in table(results)


def test_a_variant_may_not_take_a_tools_name():
    assert parse_variants(["two=--shape two-stage"]) == {"two": ["--shape", "two-stage"]}
    with pytest.raises(SystemExit, match="NAME=OPTIONS"):
        parse_variants(["ours=--shape fused"])


def test_measure_counts_cpu_of_children_and_kills_what_hangs():
    burn = "import time\nwhile time.process_time() < 1.2: pass"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {burn!r}]).wait(); time.sleep(60)"
    began = time.monotonic()

    figures = measure([sys.executable, "-c", code], timeout_s=4)

    assert figures["exit"] == -9
    assert time.monotonic() - began < 15
    assert figures["processes"] == 2
    assert figures["cpu_seconds"] > 0.3


def test_images_are_repeated_by_links_and_whole_shards(tmp_path):
    tars = colour_shards(tmp_path / "in", shards=2, samples=3)

    assert prepare_images(tmp_path / "out", tars, 10) == 12
    assert prepare_images(tmp_path / "out", tars, 10) == 12  # lies there already

    shards = sorted((tmp_path / "out" / "shards").iterdir())
    assert len(shards) == 4
    assert shards[0].stat().st_ino == shards[2].stat().st_ino
    assert len(list((tmp_path / "out" / "images").iterdir())) == 12


def test_the_free_model_labels_as_many_classes_as_a_real_one(tmp_path):
    mode = prepare_model("decode", tmp_path, [])

    classifier = Classifier(load_spec(mode.model), precision=Precision(mode.precision))

    assert classifier.num_classes == 1000
    assert classifier.predict(np.zeros((3, 224, 224, 3), np.uint8)).label_ids.shape == (3, 5)


COSTS = scaling.Costs(core_rate=100.0, driver_s=(0.001, 0.0), gcs_s=0.0, pool_s=0.0, session_s=0.0, commit_s=0.0)


def test_scaling_is_linear_until_something_binds():
    few, _ = scaling.images_per_s(COSTS, scaling.Cluster(1, 16, 10.0), 1000)
    more, _ = scaling.images_per_s(COSTS, scaling.Cluster(4, 16, 10.0), 1000)

    assert few == pytest.approx(1600)
    assert more == pytest.approx(4 * few)


@pytest.mark.parametrize(
    ("cluster", "unit_images", "limit"),
    [
        (scaling.Cluster(400, 16, 10.0), 100, "driver"),  # 6,400 units/s wanted, the driver does 1,000 tasks of 3
        (scaling.Cluster(1, 16, 0.1), 1000, "network"),
        (scaling.Cluster(10_000, 16, 10.0), 100_000, "windows"),  # 160,000 actors, and 65,536 units handed over
    ],
    ids=["driver", "network", "windows"],
)
def test_scaling_names_what_binds(cluster, unit_images, limit):
    rate, found = scaling.images_per_s(COSTS, cluster, unit_images)

    assert found == limit
    assert rate < 0.9 * cluster.actors * COSTS.core_rate


def test_scaling_takes_its_costs_from_the_results_and_updates_the_page(tmp_path):
    pools = [{"actors": a, "driver_cpu_ms": 1 + 0.1 * a, "gcs_cpu_ms": 0.2, "first_result_s": 2.0} for a in (2, 8)]
    driver = {"pools": pools, "commits": {"wall_ms": 0.1}, "session_s": 0.3}
    bulk = {"machine": {"cores": 2}, "runs": [_run("ours", 0, 300.0)]}

    costs = scaling.read_costs(json.loads(json.dumps(driver)), bulk, "int8")

    assert costs.core_rate == 150
    assert costs.driver_s == pytest.approx((0.001, 0.0001))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scaling.BEGIN}\nold\n{scaling.END}\nafter\n")
    scaling.update(page, "new")
    assert page.read_text() == f"before\n{scaling.BEGIN}\nnew\n{scaling.END}\nafter\n"


def test_a_profile_leaves_out_threads_that_wait_and_names_libraries(tmp_path):
    (tmp_path / "raw").write_text(
        "main (a.py:1);decode (b.py:22);0x7f00 (x/libjpeg.so) 6\n"
        "main (a.py:1);decode (b.py:23) 2\n"
        "wait (threading.py:1);PyThread_acquire_lock_timed (libpython.so);0x7f01 (libc.so.6) 92\n"
    )

    found = profile_bulk.shares(tmp_path / "raw")

    assert found["samples"] == 8
    assert found["self"] == [["(in libjpeg.so)", 0.75], ["decode (b.py)", 0.25]]
    assert ["decode (b.py)", 1.0] in found["total"]
