"""Where the time goes in a bulk run in steady state: the driver, an actor, and Ray's own processes beside them.

    python -m benchmarks.profile_bulk --source 'samples/*.tar' [--images 5000] [--model efficientnet-lite0] [--seconds 15]
        [--output results/profile] [--svg]

Starts `shardlabel label`, waits until files appear, and samples one actor and the driver with py-spy, native frames
included, for some seconds. Writes a table of the functions whose own code was running (`self`) and of those that were
somewhere on the stack (`total`), in shares of the samples in which the process was on a CPU; `--svg` keeps flame graphs.
Also the CPU seconds of every process over the same time, by kind. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.bulk_inputs import prepare_images
from benchmarks.measure import descendants, process_table

RATE = 50
TOP = 25
# py-spy takes threads that wait in native code for busy ones.
WAITING = re.compile(
    r"PyThread_acquire_lock|clock_nanosleep|pthread_cond_|epoll_wait|poll|select|sem_(timed|clock)?wait|futex"
)
PY_SPY = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


def title(pid: int) -> str:
    """Return what a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kind(pid: int, driver: int) -> str:
    """Return the kind of a process: driver, the actor's class, or which of Ray's services."""
    name = title(pid)
    if pid == driver:
        return "driver"
    if name.startswith("ray::"):
        return re.split(r"[.( ]", name)[0]
    services = ("gcs_server", "raylet/raylet", "dashboard/agent.py", "runtime_env/agent", "log_monitor", "monitor.py")
    return next((f"Ray: {service}" for service in services if service in name), "other")


def cpu_by_kind(driver: int) -> Counter[str]:
    """Return CPU seconds so far, by kind."""
    table = process_table()
    seconds: Counter[str] = Counter()
    for pid in descendants(driver, table):
        seconds[kind(pid, driver)] += table.get(pid, (0, 0.0))[1]
    return seconds


def record(pid: int, seconds: int, path: Path, form: str) -> subprocess.Popen:
    """Sample a process in the background; only what is on a CPU counts. Each look stops it for about a millisecond."""
    command = [PY_SPY, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE), "--native",
               "--format", form, "--output", str(path)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def frame_name(frame: str) -> str:
    """Return a function without its line; of code that has no names, the library alone."""
    name = re.sub(r":\d+\)$", ")", frame)
    return re.sub(r"^0x[0-9a-f]+ \((?:.*/)?(.*)\)$", r"(in \1)", name)


def shares(path: Path) -> dict[str, list]:
    """Return `samples`, and the functions with the largest shares of them, of py-spy's folded stacks."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame_name(frame) for frame in stack.split(";")]
        if any(WAITING.match(frame) for frame in frames[-6:]):
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    samples = max(1, sum(own.values()))

    def top(counter: Counter[str]) -> list:
        return [[name, round(count / samples, 3)] for name, count in counter.most_common(TOP)]

    return {"samples": sum(own.values()), "self": top(own), "total": top(total)}


def wait_for(condition: object, process: subprocess.Popen, what: str) -> None:
    """Wait until a function says yes."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run ended before {what}; give more --images")
        time.sleep(0.2)


def profile(options: argparse.Namespace, work: Path) -> dict:
    """Run, sample, and return the shares."""
    tars = sorted(Path(options.source).parent.glob(Path(options.source).name))
    prepare_images(work / "inputs", tars, options.images)
    output = work / "out"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "cluster.cli", "label", str(work / "inputs" / "shards" / "*.tar"), "--output",
               str(output), "--model", options.model, "--progress", "none", *shlex.split(options.more)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    try:
        # Each actor has published one unit, and is warm.
        cores = len(os.sched_getaffinity(0))
        wait_for(lambda: len(list(output.glob("part-*.parquet"))) >= 2 * cores, process, "it was in steady state")
        actors = [pid for pid in descendants(process.pid) if re.match(r"ray::(?!IDLE)", title(pid))]
        if not actors:
            raise SystemExit("no actor was found among the processes of the run")
        pids = {"driver": process.pid, "actor": max(actors, key=lambda pid: process_table()[pid][1])}
        before, began, files = cpu_by_kind(process.pid), time.perf_counter(), len(list(output.glob("part-*.parquet")))
        sampling = {who: record(pid, options.seconds, work / f"{who}.raw", "raw") for who, pid in pids.items()}
        for who, each in sampling.items():
            errors = each.communicate()[1]
            if each.returncode or not (work / f"{who}.raw").exists():
                raise SystemExit(f"py-spy could not sample the {who} (it needs ptrace, as root has): {errors[-500:]}")
        spent = cpu_by_kind(process.pid) - before
        seconds = time.perf_counter() - began
        done = len(list(output.glob("part-*.parquet"))) - files
        still_running = process.poll() is None
        if options.svg and still_running:
            for who, pid in pids.items():
                path = options.output.with_suffix(f".{who}.svg")
                record(pid, options.seconds, path, "flamegraph").communicate()
    finally:
        process.terminate()
        process.wait(60)
    if not still_running:
        raise SystemExit("the run ended while it was sampled; give more --images")
    return {
        "seconds": round(seconds, 1),
        "files_published_meanwhile": done,
        "cores_used": {name: round(used / seconds, 3) for name, used in spent.most_common()},
        **{who: shares(work / f"{who}.raw") for who in pids},
    }


def text(figures: dict) -> str:
    """Return the shares as a table."""
    lines = [
        f"cores used over {figures['seconds']} s, {figures['files_published_meanwhile']} files published meanwhile"
    ]
    lines += [f"  {cores:6.3f}  {name}" for name, cores in figures["cores_used"].items()]
    for who in ("actor", "driver"):
        for what in ("self", "total"):
            lines.append(f"\n{who}, {what}: share of {figures[who]['samples']} samples")
            lines += [f"  {share:6.1%}  {name}" for name, share in figures[who][what] if share >= 0.005]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="tars with .jpg members, repeated to --images")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--more", default="", help="further options of `shardlabel label`")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "profile")
    parser.add_argument("--svg", action="store_true", help="flame graphs too")
    options = parser.parse_args()
    if PY_SPY is None:
        raise SystemExit("py-spy is not installed (it comes with ray[default] and with the extra `bench`)")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = profile(options, Path(folder))
    table = text(figures)
    options.output.with_suffix(".txt").write_text(table)
    print(table)
    print(json.dumps({"benchmark": "profile_bulk", **figures}))


if __name__ == "__main__":
    main()
