"""The benchmarks of bulk labelling run, at small sizes: no figure is looked at, only that each tool does the whole job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_model import colour_shards

ROOT = Path(__file__).parents[2]
TOOLS = ("bare", "bare-parquet", "ours")
# What the project does not bring, and CI does not install.
OTHERS = ("ray-docs", "ray-published", "daft-own", "daft-pillow", "daft-given", "clip-retrieval", "spark")


def run_benchmark(module, *options):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    colour_shards(folder, shards=2, samples=20)
    return folder / "*.tar"


@pytest.mark.ray
@pytest.mark.long
def test_bulk_runs_each_tool_once_and_goes_on_where_it_stopped(images, tmp_path):
    common = ("--source", images, "--images", 80, "--modes", "decode", "--work", tmp_path / "work",
              "--into", tmp_path / "results.json", "--peers-python", sys.executable)  # fmt: skip

    first, _ = run_benchmark("bulk", *common, "--runs", 1, "--only", "bare,bare-parquet")
    second, done = run_benchmark("bulk", *common, "--runs", 1, "--only", ",".join(TOOLS))

    assert set(first["summary"]["decode"]) == {"bare", "bare-parquet"}
    figures = second["summary"]["decode"]
    assert list(figures) == list(TOOLS)
    assert [(tool, f["failed"], f["seconds"]["runs"]) for tool, f in figures.items()] == [(t, 0, 1) for t in TOOLS]
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == len(TOOLS), "what was measured before is measured again"
    assert "end to end" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tool", OTHERS)
def test_each_peer_labels_every_image(tool, images, tmp_path):
    python = os.environ.get("SHARDLABEL_PEERS_PYTHON")
    if python is None:
        pytest.skip("SHARDLABEL_PEERS_PYTHON names no interpreter with the extra `bench` (see benchmarks/README.md)")

    answer, done = run_benchmark(
        "bulk", "--source", images, "--images", 40, "--modes", "decode", "--runs", 1, "--only", tool,
        "--into", tmp_path / "results.json", "--peers-python", python,
    )  # fmt: skip

    assert answer["summary"]["decode"][tool]["failed"] == 0, done.stderr[-2000:]
    assert (tmp_path / "results.png").stat().st_size > 10_000


@pytest.mark.ray
@pytest.mark.long
def test_the_drivers_cost_per_unit_is_measured(tmp_path):
    answer, _ = run_benchmark("scaling_driver", "--units", 40, "--actors", "1", "--into", tmp_path / "driver.json")

    assert [(pool["actors"], pool["units"]) for pool in answer["pools"]] == [(1, 40)]
    assert all(pool["units_per_s"] > 0 and pool["driver_cpu_ms"] > 0 for pool in answer["pools"])
    assert answer["commits"]["records"] == 800
    assert json.loads((tmp_path / "driver.json").read_text())["pools"] == answer["pools"]


@pytest.mark.ray
@pytest.mark.long
def test_the_drivers_cost_per_image_on_gpus_is_measured():
    answer, _ = run_benchmark("scaling_nodes", "--nodes", 1, "--images", 2000, "--unit-images", 500)

    assert [(run["nodes"], run["images"]) for run in answer["runs"]] == [(1, 1500)]
    assert answer["runs"][0]["driver_us_per_image"] > 0


@pytest.mark.ray
@pytest.mark.long
def test_kinds_of_input_are_measured_in_turns(images):
    answer, _ = run_benchmark("input_kinds", images, "--images", 200, "--rounds", 1, "--only", "one-parquet", "--bare")

    bare, *found = answer["kinds"].items()
    assert bare[0] == "bare"
    assert [(kind, run["images"]) for kind, run in found] == [("even-tars", 200), ("one-parquet", 200)]
    assert found[0][1]["against_even"] == 1
    assert all(0 <= run["idle_in_all"] < 1 for _, run in found)


@pytest.mark.slow
def test_drawing_from_a_made_up_dest_is_measured():
    answer, _ = run_benchmark("review", "--rows", 3000, "--unit-rows", 1000)

    assert answer["dest"]["rows"] == 3000
    assert [draw["draw"] for draw in answer["draws"]] == [1, 2]
    assert all(draw["seconds"] > 0 and draw["peak_mb"] > 0 for draw in (*answer["draws"], answer["score"]))
    assert answer["score"]["interval"][0] < 80 < answer["score"]["interval"][1]
