"""The scripts for a GPU run, in tiny sizes: they are for machines that are seldom had, and must not rot meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_feed

PHOTOS = Path(__file__).parents[2] / "models" / "samples" / "photos.tar"

pytestmark = pytest.mark.ray


@pytest.mark.long
def test_every_part_of_the_whole_is_measured_and_kept(tmp_path, tiny_model, capsys):
    output = tmp_path / "figures.json"

    gpu.main([str(PHOTOS), "--model", str(tiny_model), "--images", "30", "--tiny", "--output", str(output)])

    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == json.loads(output.read_text())
    parts = said["parts"]
    assert set(parts) == {"decode", "session", "parity", "profile", "end_to_end_fp16"}
    assert not [part["failed"] for part in parts.values() if "failed" in part]
    assert parts["decode"]["one_core_images_per_s"] > 0
    assert [row["arithmetic"] for row in parts["session"]["rows"]] == ["fp32", "tf32", "fp16"]
    assert all(row["bound"] > 0 and row["plain"] > 0 for row in parts["session"]["rows"])
    assert parts["parity"]["rows"][0]["same_best_label"] == 1.0
    assert parts["parity"]["rows"][0]["largest_score_difference"] < 1e-6
    assert set(parts["profile"]["steps_ms"]) == {"into_pinned", "to_gpu", "compute", "back"}
    assert parts["profile"]["kernels"]
    end = parts["end_to_end_fp16"]
    assert end["precision"] == "simulated"
    assert end["images"] > 8  # several shards
    assert end["images"] % 8 == 0
    assert end["share_of_bound"] > 0


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path):
    figures = gpu.Figures(tmp_path / "new" / "figures.json")

    def fails(arguments: list[str]) -> dict:
        raise SystemExit("no GPU")

    figures.add("one", fails, [])
    figures.add("two", lambda arguments: {"rate": 1}, [])

    kept = json.loads(figures.path.read_text())["parts"]
    assert kept["one"]["failed"] == "SystemExit: no GPU"
    assert kept["two"]["rate"] == 1


@pytest.mark.long
def test_feeding_is_compared_with_decoding_alone(tiny_model, capsys):
    found = gpu_feed.main([str(PHOTOS), "--model", str(tiny_model), "--repeat", "12", "--runs", "1"])

    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert found["rounds"][0]["ours"]["images"] == 96
    assert found["steady_ratio"] > 0
    assert found["end_to_end_ratio"] > 0
