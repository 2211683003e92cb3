"""What clients notice while the endpoint lives: started, scaled up and down and to zero, updated, robbed of a replica.

    python -m benchmarks.serve_lifecycle [--only kill,rolling,...] [--csv FILE.csv] [--plot FILE.png]

Each event happens under a closed-loop load on an endpoint of its own, with a Ray of its own. A failed request is an answer
that is neither 200 nor, with Retry-After, 503, or a connection that ended without one. Where the event is another version,
the answers tell which they are of (one gives 5 labels, the other 3), and the CSV has the answers of each version by the
second. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.serve_load import Load, Tally, sample_images
from benchmarks.serve_replicas import APP, replica_pids, replica_states, wait_for_replicas
from serve.config import ServeConfig, ServeOptions
from serve.local.launch import running
from serve.local.ports import free_ports

MODEL = "efficientnet-lite0"
EVENT_S = 120.0


@dataclass
class Event:
    """What happened, how long it took, and what the clients saw meanwhile."""

    name: str
    seconds: float
    tally: Tally
    notes: dict[str, object] = field(default_factory=dict)
    versions: Counter[tuple[int, str]] = field(default_factory=Counter)

    def row(self) -> dict[str, object]:
        return {"event": self.name, "seconds": self.seconds, **self.tally.summary(), **self.notes}


@dataclass
class Endpoint:
    """An endpoint under test, and the load that it is under."""

    port: int
    images: list[bytes]
    versions: Counter[tuple[int, str]] = field(default_factory=Counter)

    @contextmanager
    def load(self, clients: int) -> Iterator[Load]:
        began, lock = time.perf_counter(), threading.Lock()
        self.versions.clear()

        def answered(status: int, body: bytes) -> None:
            labels = body.count(b'"label":')
            version = f"{labels} labels" if status == 200 else str(status)
            with lock:
                self.versions[int(time.perf_counter() - began), version] += 1

        with Load("127.0.0.1", self.port, self.images, clients, answered=answered) as load:
            yield load

    def event(self, name: str, seconds: float, load: Load, **notes: object) -> Event:
        return Event(name, seconds, load.tally, notes, self.versions.copy())


def settings(**given: object) -> ServeConfig:
    return ServeConfig.model_validate({"model": MODEL, **given})


@contextmanager
def endpoint(images: list[bytes], **given: object) -> Iterator[Endpoint]:
    (port,) = free_ports(1)
    with running(ServeOptions.model_validate({"model": MODEL, "port": port, "grpc_port": 0, **given}), lambda _: None):
        yield Endpoint(port, images)


def deploy(**given: object) -> None:
    """Hand Serve another version, as `serve deploy` does; returns at once."""
    from ray import serve as ray_serve

    from serve.app import build_app

    ray_serve.run_many(
        [ray_serve.RunTarget(build_app(settings(**given)), name=APP, route_prefix="/")],
        wait_for_applications_running=False,
        wait_for_ingress_deployment_creation=False,
    )


def kill(images: list[bytes], replicas: int) -> Iterator[Event]:
    """SIGKILL to a replica's process, twice."""
    with endpoint(images, min_replicas=replicas, max_replicas=replicas) as at:
        for number in (1, 2):
            with at.load(8) as load:
                time.sleep(3)
                doomed = replica_pids()[0]
                os.kill(doomed, signal.SIGKILL)
                began = time.perf_counter()
                while doomed in replica_pids() or len(replica_pids()) < replicas:
                    time.sleep(0.1)
                wait_for_replicas(replicas, EVENT_S)
                took = time.perf_counter() - began
                time.sleep(3)
            yield at.event(
                f"one of {replicas} replicas killed ({number})",
                round(took, 1),
                load,
                slowest_s=round(max(load.tally.seconds), 2),
            )


def rolling(images: list[bytes]) -> Iterator[Event]:
    """Another top_k, rolled out over two replicas."""
    with endpoint(images, min_replicas=2, max_replicas=2) as at:
        before = set(replica_pids())
        with at.load(8) as load:
            time.sleep(5)
            began = time.perf_counter()
            deploy(min_replicas=2, max_replicas=2, top_k=3)
            while before & set(replica_pids()) and time.perf_counter() - began < EVENT_S:
                time.sleep(0.1)
            wait_for_replicas(2, EVENT_S)
            took = time.perf_counter() - began
            time.sleep(5)
        left = len(before & set(replica_pids()))
        yield at.event("rolling update, 2 replicas", round(took, 1), load, old_left=left)


def bad(images: list[bytes]) -> Iterator[Event]:
    """A version whose replicas fail as they start, and then the one of before again."""
    from ray import serve as ray_serve

    with endpoint(images, min_replicas=2, max_replicas=2) as at:
        with at.load(8) as load:
            time.sleep(3)
            began = time.perf_counter()
            # No such folder on the node: found only by the replica.
            deploy(min_replicas=2, max_replicas=2, top_k=3, access_log="/no/such/folder/access.log")
            status, message = "", ""
            while status not in ("DEPLOY_FAILED", "UNHEALTHY") and time.perf_counter() - began < EVENT_S:
                app = ray_serve.status().applications[APP]
                status, message = str(app.status.value), app.deployments["Classifier"].message
                time.sleep(0.2)
            took = time.perf_counter() - began
            time.sleep(10)
            states = replica_states()
        why = next((line for line in reversed(message.splitlines()) if line.strip()), "")
        yield at.event("bad version", round(took, 1), load, status=status, replicas=states, why=why.strip()[:200])
        with at.load(8) as load:
            time.sleep(3)
            began = time.perf_counter()
            deploy(min_replicas=2, max_replicas=2)
            wait_for_replicas(2, EVENT_S)
            took = time.perf_counter() - began
            time.sleep(3)
        yield at.event("the good version again", round(took, 1), load)


def scale(images: list[bytes]) -> Iterator[Event]:
    """1 to 2 replicas under 32 clients, and back under one."""
    with endpoint(images, min_replicas=1, max_replicas=2) as at:
        with at.load(32) as load:
            took = wait_for_replicas(2, EVENT_S)
            time.sleep(5)
        yield at.event("scaled 1 to 2", took, load)
        with at.load(1) as load:
            took = wait_for_replicas(1, EVENT_S)
            time.sleep(3)
        yield at.event("scaled 2 to 1", took, load)


def zero(images: list[bytes]) -> Iterator[Event]:
    """To zero while nobody asks, and back at the first requests."""
    with endpoint(images, min_replicas=0, max_replicas=2) as at:
        for name in ("0 to 1, from the start", "0 to 1, again"):
            with at.load(4) as load:
                took = wait_for_first(load)
                time.sleep(5)
            yield at.event(name, took, load, slowest_s=round(max(load.tally.seconds, default=0.0), 2))
            idle = wait_for_replicas(0, EVENT_S)
            yield Event("1 to 0, nobody asks", idle, Tally())


def wait_for_first(load: Load) -> float:
    """Wait for the first 200; return after how many seconds it came, or -1."""
    while not load.tally.statuses[200]:
        if time.perf_counter() - load.tally.began > EVENT_S:
            return -1.0
        time.sleep(0.02)
    return round(time.perf_counter() - load.tally.began, 1)


EVENTS: dict[str, Callable[[list[bytes]], Iterator[Event]]] = {
    "kill": lambda images: kill(images, 2),
    "kill-one": lambda images: kill(images, 1),
    "rolling": rolling,
    "bad": bad,
    "scale": scale,
    "zero": zero,
}


def print_row(event: Event) -> None:
    summary = event.tally.summary()
    statuses = ", ".join(f"{status}: {count}" for status, count in summary["statuses"].items())
    cells = [
        event.name,
        f"{event.seconds:g}",
        summary["requests"],
        summary["failed"],
        statuses,
        f"{summary['p99_ms']:g}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def write_csv(events: list[Event], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["event", "second", "version", "answers"])
        for event in events:
            table.writerows([event.name, second, version, n] for (second, version), n in sorted(event.versions.items()))


def draw(events: list[Event], path: Path) -> None:
    """Draw the share of each version's answers by the second, an event a panel."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [event for event in events if event.versions]
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 1.7 * len(shown)), squeeze=False)
    for axis, event in zip(axes[:, 0], shown, strict=True):
        names = sorted({version for _, version in event.versions})
        seconds = range(max(second for second, _ in event.versions) + 1)
        counts = {name: [event.versions[second, name] for second in seconds] for name in names}
        total = [max(1, sum(counts[name][second] for name in names)) for second in seconds]
        shares = [[100 * n / t for n, t in zip(counts[name], total, strict=True)] for name in names]
        axis.stackplot(seconds, shares, labels=names, step="post")
        axis.set_title(
            f"{event.name}: {event.tally.summary()['requests']} requests, {event.tally.failed} failed", fontsize=9
        )
        axis.set_ylabel("% of answers", fontsize=8)
        axis.legend(loc="lower left", fontsize=7)
    axes[-1, 0].set_xlabel("s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="Folder of JPEGs or tars; else the bundled photographs.")
    parser.add_argument("--only", default=",".join(EVENTS), help="Some of %(default)s.")
    parser.add_argument("--csv", type=Path, help="File for the answers of each version by the second.")
    parser.add_argument("--plot", type=Path, help="The same as a picture; wants matplotlib.")
    args = parser.parse_args()
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot wants matplotlib: pip install matplotlib")
    images = sample_images(args.images)
    events = []
    print("| event | seconds | requests | failed | by status | p99 ms |\n|---|---|---|---|---|---|")
    for name in args.only.split(","):
        for event in EVENTS[name](images):
            events.append(event)
            print_row(event)
    if args.csv:
        write_csv(events, args.csv)
    if args.plot:
        draw(events, args.plot)
    print(json.dumps([event.row() for event in events]))


if __name__ == "__main__":
    main()
