"""Kill a labelling run at random moments, run it again, and compare the result with an undisturbed run.

    python -m tests.support.chaos --kills 30
    python -m tests.support.chaos --kills 10 --s3

A round starts the command, waits for a random moment (one kill in four during the startup, the others between the first
and the last part file), and kills one process with SIGKILL: the driver, an actor that labels, any other Ray worker, the
raylet, or the head's GCS. If the command fails, it is run again until DEST is finished. Meanwhile another thread reads
DEST/*.parquet and counts rows: it must only ever see whole units. When a DEST is finished, every file is compared with
that of the undisturbed run. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.s3_server import BUCKET, S3Server, running_s3
from tests.support.tiny_model import build_tiny_model, colour_shards

TARGETS = ("driver", "actor", "worker", "raylet", "gcs")
# A run that has neither finished nor failed after this time hangs.
HANG_S = 240.0


@dataclass
class Outcome:
    """Counts of the kills and of their effects."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    dests: int = 0
    lost: int = 0
    repeated: int = 0
    differing_files: int = 0
    partial_units_seen: int = 0
    reads: int = 0
    hangs: int = 0
    images_done_again: int = 0


@dataclass(frozen=True)
class Job:
    """The command, how to see its output on this machine (`see`), and the expected output."""

    command: list[str]
    environment: dict[str, str]
    see: Callable[[], Path]
    expected: dict[str, str]
    rows_per_part: dict[str, int]

    @property
    def folder(self) -> Path:
        """Return a folder with the current output."""
        return self.see()


def processes_below(pid: int) -> dict[int, str]:
    """Return the descendants of a process with their command lines, from /proc."""
    parents: dict[int, list[int]] = {}
    lines: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents.setdefault(int(stat[1]), []).append(int(folder.name))
    found, queue = {}, [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            found[child] = lines[child]
            queue.append(child)
    return found


def victims(driver: int, target: str) -> list[int]:
    """Return the driver, or its descendants of a kind."""
    if target == "driver":
        return [driver]
    tests = {
        "actor": lambda line: "ray::MapWorker" in line or "ray::LabelUnits" in line or "LabelUnits" in line,
        "worker": lambda line: line.startswith("ray::") and "LabelUnits" not in line and "Agent" not in line,
        "raylet": lambda line: "/raylet/raylet " in line,
        "gcs": lambda line: "/gcs_server " in line,
    }
    return [pid for pid, line in processes_below(driver).items() if tests[target](line)]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each Parquet file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def watch(job: Job, stop: threading.Event, outcome: Outcome) -> None:
    """Read DEST repeatedly, as a user would, and count reads that see a partial unit."""
    while not stop.wait(0.1):
        for path in list(job.folder.glob("*.parquet")):
            try:
                rows = pq.read_table(path).num_rows
            except FileNotFoundError:
                continue
            except Exception:  # noqa: BLE001 (whatever a reader of half a file may raise)
                rows = -1
            outcome.reads += 1
            outcome.partial_units_seen += rows != job.rows_per_part[path.name]


@dataclass(frozen=True)
class Kill:
    """What is killed, and when: `delay_s` seconds after `parts` part files exist."""

    target: str
    parts: int
    delay_s: float


def choose_kill(chance: random.Random, targets: list[str], parts_now: int, parts: int) -> Kill:
    """Choose a moment during the startup (one in four) or in the remaining work."""
    target = chance.choice(targets)
    if chance.random() < 0.25:
        return Kill(target, 0, chance.uniform(0, 6))
    return Kill(target, chance.randint(min(parts_now + 1, parts), parts), chance.uniform(0, 0.5))


def one_run(job: Job, kill: Kill | None, outcome: Outcome) -> int:
    """Start the command, kill the chosen process at the chosen moment, and return the exit code."""
    process = subprocess.Popen(
        job.command, env=job.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    outcome.runs += 1
    started = time.monotonic()
    if kill is not None:
        due = None
        while process.poll() is None and time.monotonic() - started < HANG_S:
            if due is None and len(list(job.folder.glob("part-*"))) >= kill.parts:
                due = time.monotonic() + kill.delay_s
            if due is not None and time.monotonic() >= due and (found := victims(process.pid, kill.target)):
                os.kill(random.choice(found), 9)
                outcome.kills[kill.target] += 1
                break
            time.sleep(0.02)
    try:
        out, err = process.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        outcome.hangs += 1
        process.kill()
        out, err = process.communicate()
    outcome.exits[process.returncode] += 1
    seconds = time.monotonic() - started
    sys.stderr.write(f"  kill={kill} exit={process.returncode} {seconds:.1f} s {err[-300:].strip()!r}\n")
    if process.returncode == 0:
        summary = json.loads(out.splitlines()[-1])
        outcome.images_done_again += summary["images_now"]
    return process.returncode


def compare(job: Job, expected_keys: Counter[tuple[str, str]], outcome: Outcome) -> None:
    """Count the samples that a finished DEST lost or repeats, and the files that differ from the undisturbed run."""
    found = digests(job.folder)
    outcome.dests += 1
    outcome.differing_files += sum(found.get(name) != digest for name, digest in job.expected.items())
    outcome.differing_files += len(found.keys() - job.expected.keys())
    keys = keys_of(job.folder)
    outcome.lost += sum((expected_keys - keys).values())
    outcome.repeated += sum((keys - expected_keys).values())


def keys_of(folder: Path) -> Counter[tuple[str, str]]:
    """Count the samples of a DEST."""
    rows = pq.read_table(folder, columns=["shard", "key"]).to_pylist()
    return Counter((row["shard"], row["key"]) for row in rows)


def main() -> None:
    """Read the options, run, print, and exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--samples", type=int, default=400, help="in each shard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--s3", action="store_true", help="source and DEST on a real S3 server on this machine")
    options = parser.parse_args()
    outcome = chaos(
        options.kills, options.shards, options.samples, options.seed, options.targets.split(","), s3=options.s3
    )
    sys.stdout.write(json.dumps({**vars(outcome), "kills": dict(outcome.kills), "exits": dict(outcome.exits)}) + "\n")
    bad = outcome.lost + outcome.repeated + outcome.differing_files + outcome.partial_units_seen + outcome.hangs
    sys.exit(1 if bad else 0)


def chaos(kills: int, shards: int, samples: int, seed: int, targets: list[str], *, s3: bool = False) -> Outcome:
    """Run until `kills` processes were killed."""
    work = Path(tempfile.mkdtemp(prefix="shardlabel-chaos-"))
    try:
        if not s3:
            return _chaos(work, str(work), dict(os.environ), kills, shards, samples, random.Random(seed), targets)
        with running_s3(work) as server:
            where = {**os.environ, **server.environment()}
            chance = random.Random(seed)
            return _chaos(work / BUCKET, f"s3://{BUCKET}", where, kills, shards, samples, chance, targets, server)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _chaos(
    work: Path, uri: str, environment: dict[str, str], kills: int, shards: int, samples: int,
    chance: random.Random, targets: list[str], server: S3Server | None = None,
) -> Outcome:  # fmt: skip
    colour_shards(work / "in", shards=shards, samples=samples)
    if server is not None:
        server.put_folder(work)
    model = build_tiny_model(work)
    # Without cached bytecode each of the many starts is slower.
    environment = {k: v for k, v in environment.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["SHARDLABEL_HOME"] = str(work / "home")

    def job(name: str) -> Job:
        command = [sys.executable, "-m", "cluster.cli", "label", f"{uri}/in", "--output", f"{uri}/{name}",
                   "--model", str(model), "--top-k", "3", "--json", "--progress", "none"]  # fmt: skip
        return Job(command, environment, lambda: server.fetch(name) if server else work / name, expected, rows)

    expected: dict[str, str] = {}
    rows: dict[str, int] = {f"part-{i:05d}.parquet": samples for i in range(shards)}
    outcome = Outcome()
    whole = job("whole")
    if one_run(whole, None, outcome) != 0:
        raise RuntimeError("the undisturbed run failed")
    expected = digests(whole.folder)
    expected_keys = keys_of(whole.folder)
    outcome.images_done_again = -shards * samples  # the undisturbed run does not count
    number = 0
    while sum(outcome.kills.values()) < kills:
        disturbed = job(f"dest-{number}")
        number += 1
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(disturbed, stop, outcome))
        watcher.start()
        while True:
            more = sum(outcome.kills.values()) < kills
            parts_now = len(list(disturbed.folder.glob("part-*")))
            kill = choose_kill(chance, targets, parts_now, shards) if more else None
            if one_run(disturbed, kill, outcome) == 0:
                break
        stop.set()
        watcher.join()
        compare(disturbed, expected_keys, outcome)
        if server is None:
            shutil.rmtree(disturbed.folder)
    return outcome


if __name__ == "__main__":
    main()
