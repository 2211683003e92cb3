"""Bulk labelling: ours, the bare machine and the peers on the same images, in turns; a table, a JSON line and a plot.

    python -m benchmarks.bulk --images 10000 --runs 5 --source 'samples/*.tar' [--modes decode,int8,fp32]
        [--only ours,bare,daft-own] [--variant 'two-stage=--shape two-stage'] [--into results/FILE.json] [--minutes 8]

Modes: `decode` (a model that costs nothing: what is measured is reading and decoding), `int8` (the bundled model), `fp32`
and `resnet-int8` (ResNet18-v2's graph with made-up weights; a fifth and a half of the images). Spark gets a tenth of each.

For each run: `end_to_end` = images / seconds from the start of the process to its exit; `to_last_label` = images / seconds
from the start to the last label; `steady` = the slope of labelled images over time between 15 % and 90 % of the images;
peak memory (PSS) and CPU seconds of the whole process tree. The tools take turns (A B C A B C ...), and ratios are formed
within one round, for a machine that is shared drifts. A run whose output does not hold every image once is no result.

Results are written after every run; the same command continues where it was stopped (`--minutes` stops by itself). The
last line of output is one JSON object. With matplotlib a plot lies beside the results.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow.dataset as ds

from benchmarks.bulk_inputs import prepare_images, prepare_model
from benchmarks.bulk_summary import summarise, table
from benchmarks.bulk_tools import (
    SHARES,
    TOOLS,
    Run,
    command,
    default_peers_python,
    environment,
    missing,
    parse_variants,
)
from benchmarks.measure import measure
from benchmarks.progress import file_events, read_events, steady_rate

RESULTS = Path(__file__).parent / "results"
# A look at all processes' memory costs 10 to 40 ms of the two cores that are measured.
MEMORY_EVERY_S = 2.0
# A run that takes longer than this, and an image a fifth of a second, hangs.
TIMEOUT_S = 120.0
TIMEOUT_RATE = 5.0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", required=True, help="tars with .jpg members, repeated to --images")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--modes", default="decode,int8,fp32")
    parser.add_argument("--only", default=",".join(TOOLS), help="tools, in the order of their turns")
    parser.add_argument("--variant", action="append", default=[], help="NAME=OPTIONS: ours, with more options")
    parser.add_argument("--into", type=Path, help="results file to begin or go on with (results/DATE-bulk.json)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--work", type=Path, help="folder for images and models, kept (else a temporary one)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of ours and bare")
    parser.add_argument("--peers-python", default=default_peers_python(), help="interpreter of the peers")
    return parser.parse_args()


def check_output(run: Run, images: int) -> str | None:
    """Say what is wrong with a tool's output, or None: every image must be in it once, with a label."""
    if run.tool == "bare":
        return None
    rows = ds.dataset(run.output, format="parquet", exclude_invalid_files=False).to_table(columns=["key", "label"])
    if rows.num_rows != images:
        return f"{rows.num_rows} rows, expected {images}"
    return f"{rows['label'].null_count} images have no label" if rows["label"].null_count else None


def measure_run(run: Run, images: int, home: Path, pythons: tuple[str, str]) -> dict:
    """Run a tool once and return its figures."""
    progress = run.output.with_suffix(".progress")
    log = run.output.with_suffix(".log")
    load = os.getloadavg()[0]
    with log.open("wb") as errors:
        figures = measure(
            command(run, *pythons),
            env=environment(home, progress),
            memory_every_s=MEMORY_EVERY_S,
            stderr=errors,
            timeout_s=TIMEOUT_S + images / TIMEOUT_RATE,
        )
    events = read_events(progress) or file_events(run.output.glob("part-*.parquet"))
    wrong = f"exit code {figures['exit']}" if figures["exit"] else check_output(run, images)
    if wrong is None and sum(count for _, count in events) != images:
        wrong = f"{sum(count for _, count in events)} images were noted, expected {images}"
    result = {
        "images": images,
        "seconds": figures["seconds"],
        "cpu_seconds": figures["cpu_seconds"],
        "peak_memory_mb": figures["peak_memory_mb"],
        "processes": figures["processes"],
        "load_before": round(load, 2),
    }
    if wrong is not None:
        return {**result, "wrong": f"{wrong}: {log.read_text(errors='replace')[-1000:]}"}
    last = events[-1][0] - figures["started"]
    steady = steady_rate(events)
    return {
        **result,
        "end_to_end": round(images / figures["seconds"], 1),
        "to_last_label": round(images / last, 1),
        "first_labels_s": round(events[0][0] - figures["started"], 2),
        "steady": None if steady is None else round(steady, 1),
    }


def machine() -> dict:
    """Say where and with what this was measured."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "pyarrow", "pillow")},
    }


def peer_versions(python: str) -> dict:
    """Ask the peers' environment for its versions."""
    code = (
        "import json, importlib.metadata as m\nfound = {}\n"
        "for n in ('daft', 'pyspark', 'webdataset', 'torch', 'ray', 'pyarrow', 'onnxruntime-gpu', 'onnxruntime'):\n"
        "    try: found[n] = m.version(n)\n    except m.PackageNotFoundError: pass\nprint(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def load_results(path: Path, settings: dict) -> dict:
    """Return the results so far; those of other images do not go on."""
    if not path.exists():
        return {**settings, "runs": []}
    results = json.loads(path.read_text())
    if results["images"] != settings["images"]:
        raise SystemExit(f"{path} is of {results['images']} images, got --images {settings['images']}; use --into")
    return results


def measure_all(options: argparse.Namespace, path: Path, work: Path) -> dict:
    """Do every run that the results lack, round by round."""
    tars = sorted(Path(name) for pattern in options.source for name in glob.glob(pattern))  # noqa: PTH207 (absolute)
    if not tars:
        raise SystemExit(f"--source: no file matches {' '.join(options.source)}")
    home = work / "home"
    os.environ["SHARDLABEL_HOME"] = str(home)
    pythons = (options.python, options.peers_python)
    settings = {"date": str(datetime.date.today()), "images": options.images, "machine": machine(),
                "peers": peer_versions(options.peers_python)}  # fmt: skip
    results = load_results(path, settings)
    variants = parse_variants(options.variant)
    tools = [*options.only.split(","), *variants]
    reasons = {tool: missing(tool, options.peers_python, environment(home, work)) for tool in tools}
    for tool, reason in reasons.items():
        if reason or tool not in (*TOOLS, *variants):
            print(f"{tool} is left out: {reason or 'no such tool'}", file=sys.stderr)
    tools = [tool for tool in tools if tool in (*TOOLS, *variants) and reasons[tool] is None]
    modes = {name: prepare_model(name, work / "models", tars) for name in options.modes.split(",")}
    deadline = time.monotonic() + 60 * options.minutes
    done = {(run["mode"], run["tool"], run["round"]) for run in results["runs"]}
    for name, mode in modes.items():
        todo = [(r, t) for r in range(options.runs) for t in tools if (name, t, r) not in done]
        for number, tool in todo:
            if time.monotonic() > deadline:
                return results
            wanted = round(options.images * mode.share * SHARES.get(tool, 1.0))
            inputs = work / f"inputs-{wanted}"
            images = prepare_images(inputs, tars, wanted)
            run = Run(tool, mode, inputs, work / "out" / f"{name}-{tool}-{number}", tuple(variants.get(tool, ())))
            figures = _once(run, images, home, pythons)
            results["runs"].append({"mode": name, "tool": tool, "round": number, **figures})
            _save(path, results)
            print(json.dumps(results["runs"][-1]), file=sys.stderr, flush=True)
    return results


def _once(run: Run, images: int, home: Path, pythons: tuple[str, str]) -> dict:
    shutil.rmtree(run.output, ignore_errors=True)
    run.output.parent.mkdir(parents=True, exist_ok=True)
    run.output.with_suffix(".progress").unlink(missing_ok=True)
    try:
        return measure_run(run, images, home, pythons)
    finally:
        shutil.rmtree(run.output, ignore_errors=True)


def _save(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = ",\n    ".join(json.dumps(run) for run in results["runs"])
    head = json.dumps({k: v for k, v in results.items() if k != "runs"}, indent=2)
    path.write_text(f'{head[:-2]},\n  "runs": [\n    {runs}\n  ]\n}}\n')


def main() -> None:
    options = parse_options()
    # As on Ctrl-C: what is running is ended too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    path = options.into or RESULTS / f"{datetime.date.today()}-bulk.json"
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        results = measure_all(options, path, options.work.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="bulk-") as folder:
            results = measure_all(options, path, Path(folder))
    print(table(results))
    plot = [options.peers_python, "-m", "benchmarks.bulk_plot", str(path)]
    if subprocess.run(plot, check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}).returncode:
        print("no plot: matplotlib is in the extra `bench`", file=sys.stderr)
    print(json.dumps({"benchmark": "bulk", "results": str(path), "summary": summarise(results)}))


if __name__ == "__main__":
    main()
