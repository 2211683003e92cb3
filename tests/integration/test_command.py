"""The console command: exit codes, what it prints, and, as its own process, what happens when it is stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli import build_app, main
from tests.support.chaos import victims
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import label, parts
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar

COMMAND = [sys.executable, "-m", "cluster.cli"]
# One actor alone, so that there is something left to do whenever a run is stopped.
OPTIONS = ("--top-k", "3", "--actors", "1", "--model")
# A run of some seconds.
SHARDS, SAMPLES = 24, 250


def shardlabel(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False)


def start(*arguments: object) -> subprocess.Popen[str]:
    # A session of its own, so that the test can send signals as a terminal or an operator would.
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_parts(folder: Path, count: int, pattern: str = "part-*.parquet") -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, "no unit was finished in 120 s"
        time.sleep(0.02)


def test_help_of_each_command_is_a_page_a_stranger_can_work_from():
    page = CliRunner().invoke(build_app(), ["--help"]).output
    assert all(command in page for command in ("label", "evaluate", "models"))

    page = CliRunner().invoke(build_app(), ["label", "--help"]).output
    for option in (
        "--output",
        "--model",
        "--top-k",
        "--decode",
        "--max-error-rate",
        "--overwrite",
        "--json",
        "--address",
    ):
        assert option in page
    assert "Exit codes" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["label", "nowhere/*.tar", "--output", "out"], "SOURCE nowhere/*.tar", id="no-source"),
        pytest.param(["label", "--output", "out"], "SOURCE is missing", id="source-missing"),
        pytest.param(["label", "x.tar"], "--output is missing", id="output-missing"),
        pytest.param(["label", "x.tar", "--output", "out", "--model", "resnet19"], "got 'resnet19'", id="model"),
        pytest.param(["label", "x.tar", "--output", "out", "--top-k", "0"], "--top-k", id="top-k"),
        pytest.param(["label", "x.tar", "--output", "out", "--colour", "red"], "--colour", id="option"),
        pytest.param(["label", "x.tar", "--output", "out", "--device", "cuda"], "", id="device"),
        pytest.param(["evaluate", "x.tar", "--model", "nothing"], "got 'nothing'", id="evaluate-model"),
        pytest.param(["models", "info", "nothing"], "got 'nothing'", id="info"),
        pytest.param(["nonsense"], "nonsense", id="command"),
    ],
)
def test_a_usage_mistake_is_exit_2_and_names_what_is_wrong(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shardlabel", *arguments])
    monkeypatch.setattr("ray.is_initialized", lambda: pytest.fail("a mistake is told before Ray is joined or started"))

    with pytest.raises(SystemExit) as ended:
        main()

    error = capfd.readouterr().err
    assert ended.value.code == 2, error
    assert message in error
    assert "Traceback" not in error


def test_without_network_the_default_model_is_one_error_that_names_the_ways_out(tmp_path):
    colour_shards(tmp_path / "in", shards=1)
    dead = "http://127.0.0.1:9"

    home = str(tmp_path / "home")
    done = shardlabel("label", tmp_path / "in", "--output", tmp_path / "out",
                      http_proxy=dead, https_proxy=dead, SHARDLABEL_HOME=home)  # fmt: skip

    assert done.returncode == 1
    assert "--model efficientnet-lite0 is bundled and needs no network" in done.stderr.splitlines()[0]
    for way_out in ("SHARDLABEL_MODEL_MIRROR", "models pull resnet18-v2 --from"):
        assert way_out in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.ray
def test_the_last_line_is_the_summary_and_a_second_run_does_nothing(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=6)
    arguments = (
        "label",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--model",
        tiny_model,
        "--top-k",
        "2",
        "--json",
    )

    first = shardlabel(*arguments)
    started = time.perf_counter()
    second = shardlabel(*arguments)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    summary = json.loads(first.stdout.splitlines()[-1])
    assert (summary["images"], summary["ok"], summary["units"], summary["status"]) == (12, 12, 2, "done")
    assert json.loads((tmp_path / "out" / "_shardlabel" / "summary.json").read_text()) == summary
    assert json.loads(second.stdout.splitlines()[-1])["units_now"] == 0
    assert "nothing to do" in second.stdout
    assert time.perf_counter() - started < 20
    assert pq.read_table(tmp_path / "out").num_rows == 12


@pytest.mark.ray
def test_a_project_with_folders_called_as_ours_is_not_what_workers_import(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1, samples=4)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "pipeline.py").touch()
    script = Path(sys.executable).with_name("shardlabel")

    done = subprocess.run(
        [script, "label", "in", "--output", "out", *OPTIONS, tiny_model],
        capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "4 ok" in done.stdout


def test_with_every_patch_of_ray_off_the_same_files_are_written(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=5)

    plain = shardlabel("label", tmp_path / "in", "--output", tmp_path / "plain", "--model", tiny_model, "--top-k", "3",
                       "--progress", "none", SHARDLABEL_RAY_PATCHES="off")  # fmt: skip

    assert (plain.returncode, plain.stderr) == (0, "")
    label_without_ray(tmp_path / "in", tmp_path / "aside", tiny_model)
    assert parts(tmp_path / "plain") == parts(tmp_path / "aside") != {}


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_over_the_error_rate_is_exit_3_and_everything_is_written(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", {"a.jpg": colour_jpeg("red"), "b.jpg": b"", "c.jpg": b"", "d.jpg": b""})
    words = ["label", tmp_path / "in", "--output", tmp_path / "out", "--model", tiny_model, "--top-k", "3",
             "--max-error-rate", "0.5"]  # fmt: skip

    done = CliRunner().invoke(build_app(), [*map(str, words)])

    assert done.exit_code == 3, done.output
    assert pq.read_table(tmp_path / "out").num_rows == 4


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(
    "number",
    [
        # Ray has a handler of its own for SIGTERM alone; that both ask for a stop is in tests/unit/pipeline/test_caller.py.
        pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, id="sigterm"),
    ],
)
def test_a_signal_finishes_what_is_in_flight_and_the_same_command_does_the_rest(tmp_path, tiny_model, number):
    colour_shards(tmp_path / "in", shards=SHARDS, samples=SAMPLES)
    process = start("label", tmp_path / "in", "--output", tmp_path / "out", *OPTIONS, tiny_model)
    wait_for_parts(tmp_path / "out", 2)

    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    assert "the same command does the rest" in out
    finished = len(list((tmp_path / "out").glob("*.parquet")))
    assert 2 <= finished < SHARDS
    second = label(tmp_path / "in", tmp_path / "out", tiny_model)
    assert (second.units_now, second.units_done) == (SHARDS - finished, SHARDS)
    assert pq.read_table(tmp_path / "out").num_rows == SHARDS * SAMPLES


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
# What a run makes of the death of its GCS is in test_survival.py too.
@pytest.mark.parametrize("target", [pytest.param("gcs", marks=pytest.mark.long), "raylet"])
def test_a_ray_that_dies_is_an_error_that_says_so_and_the_same_command_does_the_rest(tmp_path, tiny_model, target):
    colour_shards(tmp_path / "in", shards=SHARDS, samples=SAMPLES)
    process = start("label", tmp_path / "in", "--output", tmp_path / "out", *OPTIONS, tiny_model)
    wait_for_parts(tmp_path / "out", 1)

    os.kill(victims(process.pid, target)[0], signal.SIGKILL)
    killed = time.perf_counter()
    out, err = process.communicate(timeout=120)

    assert process.returncode == 1, out + err
    assert time.perf_counter() - killed < 60
    assert "Ray" in out + err
    assert "same command" in out + err
    assert label(tmp_path / "in", tmp_path / "out", tiny_model).images == SHARDS * SAMPLES


@pytest.mark.ray
def test_a_ray_that_does_not_come_up_is_an_error_and_no_hang():
    impatient = "import pipeline.session.local as it; it.START_TIMEOUT_S = 0.1; it.start_local_ray()"

    ended = subprocess.run([sys.executable, "-c", impatient], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("Ray did not come up within 0.1 s; run the same command again")


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_killed_with_kill_9_nothing_is_lost_or_repeated_and_the_files_are_equal(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=SHARDS, samples=SAMPLES)
    process = start("label", tmp_path / "in", "--output", tmp_path / "out", *OPTIONS, tiny_model)
    wait_for_parts(tmp_path / "out", 3)
    wait_for_parts(tmp_path / "out" / "_shardlabel" / "commits", 1, "commits-*")

    process.kill()
    process.communicate()
    assert all(pq.read_table(path).num_rows == SAMPLES for path in (tmp_path / "out").glob("*.parquet"))
    done = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert (done.status, done.units_now < SHARDS) == ("done", True)
    label_without_ray(tmp_path / "in", tmp_path / "whole", tiny_model)
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")
    assert not list((tmp_path / "out" / "_shardlabel" / "tmp").iterdir())
