"""What the endpoint's clients notice when it scales, is updated, loses a replica or is asked for too much: nothing.

    python -m benchmarks.serve_faults [--images FOLDER] [--only kill,rolling,scale,overload]

Each part runs under a closed-loop load and counts failed requests: answers that are neither 200 nor, with Retry-After,
503; and connections that ended without one. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.serve_load import Client, Load, sample_images
from serve.config import ServeConfig
from serve.local.launch import running
from serve.local.listen import Listen
from serve.local.ports import free_ports

MODEL = "efficientnet-lite0"


def replica_pids() -> list[int]:
    """Return the process ids of the replicas that this process' Ray runs, oldest first."""
    ours = _descendants(os.getpid())
    found = []
    for pid in ours:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::ServeReplica"):
            found.append(pid)
    return sorted(found, key=lambda pid: Path(f"/proc/{pid}").stat().st_ctime)


def _descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, grew = {root}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return found


def memory_mb() -> float:
    """Return the proportional memory of the replicas, MB."""
    total = 0
    for pid in replica_pids():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return round(total / 1024, 1)


def wait_for_replicas(count: int, seconds: float) -> float:
    """Wait until so many replicas run; return how long it took, or -1."""
    from ray import serve as ray_serve

    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        app = ray_serve.status().applications["shardlabel"]
        states = app.deployments["Classifier"].replica_states if app.deployments else {}
        by_name = {str(getattr(state, "value", state)): n for state, n in states.items()}
        if by_name.get("RUNNING", 0) == count and sum(by_name.values()) == count:
            return round(time.perf_counter() - began, 1)
        time.sleep(0.3)
    return -1.0


def kill(images: list[bytes], port: int, replicas: int, clients: int = 8) -> dict:
    """Kill a replica under load (SIGKILL), twice."""
    with running(config(min_replicas=replicas, max_replicas=replicas), listen(port), print_none):
        with Load("127.0.0.1", port, images, clients) as load:
            for _ in range(2):
                time.sleep(4)
                os.kill(replica_pids()[0], signal.SIGKILL)
                time.sleep(2)
                wait_for_replicas(replicas, 60)
            time.sleep(3)
        return load.tally.summary()


def rolling(images: list[bytes], port: int, clients: int = 8) -> dict:
    """Another configuration, rolled out under load."""
    from ray import serve as ray_serve

    from serve.app import build_app

    with running(config(min_replicas=2, max_replicas=2), listen(port), print_none):
        before = set(replica_pids())
        with Load("127.0.0.1", port, images, clients) as load:
            time.sleep(3)
            app = build_app(config(min_replicas=2, max_replicas=2, top_k=3))
            ray_serve.run_many(
                [ray_serve.RunTarget(app, name="shardlabel", route_prefix="/")],
                wait_for_applications_running=False,
                wait_for_ingress_deployment_creation=False,
            )
            time.sleep(2)
            took = wait_for_replicas(2, 120)
            time.sleep(8)
        _, _, body = Client("127.0.0.1", port).post(images[0])
        new = len(json.loads(body)["results"][0]["labels"])
        return load.tally.summary() | {
            "took_s": took,
            "old_processes_left": len(before & set(replica_pids())),
            "labels_after": new,
        }


def scale(images: list[bytes], port: int, clients: int = 32) -> dict:
    """1 to 2 replicas under load, and back while a little load goes on."""
    with running(config(min_replicas=1, max_replicas=2), listen(port), print_none):
        with Load("127.0.0.1", port, images, clients) as load:
            up = wait_for_replicas(2, 60)
            time.sleep(3)
        with Load("127.0.0.1", port, images, 1) as rest:
            down = wait_for_replicas(1, 120)
            time.sleep(3)
        return {"up_s": up, "down_s": down, "under_load": load.tally.summary(), "after": rest.tally.summary()}


def overload(images: list[bytes], port: int, seconds: float) -> dict:
    """Three times as many requests a second as one replica was just seen to answer, for a minute."""
    with running(config(min_replicas=1, max_replicas=1), listen(port), print_none):
        with Load("127.0.0.1", port, images, 4) as calm:
            time.sleep(5)
        memory = [memory_mb()]
        offered = 3 * calm.tally.statuses[200] / calm.tally.elapsed
        with Load("127.0.0.1", port, images, 400, per_s=offered) as load:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                time.sleep(seconds / 4)
                memory.append(memory_mb())
        began = time.perf_counter()
        while Client("127.0.0.1", port).post(images[0])[0] != 200:
            time.sleep(0.1)
        recovered = round(time.perf_counter() - began, 2)
        with Load("127.0.0.1", port, images, 4) as after:
            time.sleep(5)
        return {
            "offered_per_s": round(offered, 1),
            "calm": calm.tally.summary(),
            "overload": load.tally.summary(),
            "after": after.tally.summary(),
            "recovered_s": recovered,
            "replica_mb": memory,
        }


def config(**settings: object) -> ServeConfig:
    return ServeConfig.model_validate({"model": MODEL, **settings})


def listen(port: int) -> Listen:
    return Listen(port=port, grpc_port=0)


def print_none(text: str) -> None:
    """Say nothing: the output is JSON."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="Folder of JPEGs or tars; else the bundled photographs.")
    parser.add_argument("--only", default="kill,kill-one,rolling,scale,overload")
    parser.add_argument("--seconds", type=float, default=60.0, help="Of the overload.")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    images = sample_images(args.images)
    port = args.port or free_ports(1)[0]
    parts: dict[str, Callable[[], dict]] = {
        "kill": lambda: kill(images, port, 2),
        "kill-one": lambda: kill(images, port, 1),
        "rolling": lambda: rolling(images, port),
        "scale": lambda: scale(images, port),
        "overload": lambda: overload(images, port, args.seconds),
    }
    results = {}
    for name in args.only.split(","):
        results[name] = parts[name]()
        print(json.dumps({name: results[name]}), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
