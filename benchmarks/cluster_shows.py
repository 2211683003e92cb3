"""What a run on a cluster of several nodes does, measured: real `ray start` nodes on this machine, the real Jobs API, S3.

    python -m benchmarks.cluster_shows submit     # 500 images s3 -> s3 on three nodes; bytes sent, seconds to the log
    python -m benchmarks.cluster_shows cut        # the connection cut for 20 s in the middle
    python -m benchmarks.cluster_shows kills      # a worker node killed 10 times, the driver 3 times
    python -m benchmarks.cluster_shows grow       # a node added in the middle, and one drained
    python -m benchmarks.cluster_shows scaling    # 1 to 4 nodes with a simulated GPU each

Nodes share this machine: what is measured is that work is placed, lost and done again as it should be, and not speed;
`scaling` therefore simulates GPUs that are slower than the CPUs here. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cluster_stand import Stand, stand
from tests.support.cluster_nodes import Node
from tests.support.s3_server import BUCKET


def run_here(at: Stand, *label: str) -> dict[str, str]:
    """Label the same on this machine, without a cluster; return the files' digests."""
    command = [sys.executable, "-m", "cluster.cli", "label", f"s3://{BUCKET}/in", "--output", f"s3://{BUCKET}/here",
               "--progress", "none", *label]  # fmt: skip
    subprocess.run(command, env={**os.environ, **at.server.environment()}, check=True, capture_output=True, timeout=200)
    return at.digests("here")


def show_submit() -> dict[str, Any]:
    """Submit real images with the real model."""
    with stand(2, source="photos", shards=10, samples=50) as at:
        model = ("--model", "efficientnet-lite0")
        sent = at.line.bytes_up
        run = at.submit("first", *model)
        first_line = run.wait_for("batches of 16")
        code = run.end()
        said = run.summary()
        up = at.line.bytes_up - sent
        sent = at.line.bytes_up
        again = at.submit("first", *model)
        again_code, again_s = again.end(), time.monotonic() - again.began
        return {
            "nodes": 3, "exit": code, "images": said["images"], "seconds_of_label": said["seconds"],
            "seconds_to_first_log_line": round(first_line, 1), "seconds_in_all": round(run.lines[-1][0], 1),
            "bytes_sent_to_dashboard": up, "bytes_sent_again": at.line.bytes_up - sent,
            "equal_to_local_run": at.digests("first") == run_here(at, *model),
            "same_id_after_success": {"exit": again_code, "seconds": round(again_s, 1)},
        }  # fmt: skip


def show_cut() -> dict[str, Any]:
    """Cut the connection for 20 s in the middle of a job."""
    with stand(2) as at:
        at.seconds_per_read[0] = 1.5
        model = ("--model", str(at.work / "tiny.onnx"), "--top-k", "3")
        run = at.submit("cut", *model)
        run.wait_for("batches of 16")
        time.sleep(3)
        at.line.cut()
        time.sleep(20)
        at.line.mend()
        back = run.wait_for("reconnected")
        code = run.end()
        texts = [text for _, text in run.lines]
        at.seconds_per_read[0] = 0.0
        return {
            "cut_s": 20, "exit": code, "connected_again_at_s": round(back, 1), "ended_at_s": round(run.lines[-1][0], 1),
            "log_lines_repeated": len([t for t in texts if "units," in t]) - len({t for t in texts if "units," in t}),
            "equal_to_local_run": at.digests("cut") == run_here(at, *model),
        }  # fmt: skip


def show_kills(node_kills: int, driver_kills: int, seed: int, limit_s: float) -> dict[str, Any]:
    """Kill worker nodes and drivers at random moments, and compare what comes out; no new job after `limit_s`."""
    began = time.monotonic()
    chance = random.Random(seed)
    outcome: dict[str, Any] = {"node_kills": 0, "driver_kills": 0, "jobs": [], "seed": seed}
    with stand(2, shards=40, samples=60) as at:
        model = ("--model", str(at.work / "tiny.onnx"), "--top-k", "3")
        expected = run_here(at, *model)
        at.seconds_per_read[0] = 0.7
        source = at.bytes_of_source()
        number = 0
        while outcome["node_kills"] < node_kills or outcome["driver_kills"] < driver_kills:
            if time.monotonic() - began > limit_s:
                break
            name = f"kills-{number}"
            number += 1
            at.storage.forget()
            nodes_before, drivers_before = outcome["node_kills"], outcome["driver_kills"]
            run = at.submit(name, *model, options=("--retries", "3"))
            run.wait_for("batches of 16")
            while run.process.poll() is None:
                time.sleep(chance.uniform(1, 5))
                if run.process.poll() is not None:
                    break
                if outcome["driver_kills"] < driver_kills and chance.random() < 0.3:
                    outcome["driver_kills"] += kill_driver(at, name)
                elif outcome["node_kills"] < node_kills:
                    outcome["node_kills"] += kill_node(at, chance)
            code = run.end()
            done_again = at.bytes_read() / source - 1
            outcome["jobs"].append(
                {"exit": code, "equal": at.digests(name) == expected, "share_done_again": round(done_again, 3),
                 "nodes_killed": outcome["node_kills"] - nodes_before,
                 "drivers_killed": outcome["driver_kills"] - drivers_before,
                 "seconds": round(run.lines[-1][0], 1)}
            )  # fmt: skip
    return outcome


def kill_node(at: Stand, chance: random.Random) -> int:
    """Kill a worker node, and start another in its place."""
    node = chance.choice([node for node in at.nodes.nodes[1:] if node.process.poll() is None])
    node.kill()
    at.nodes.add(cpus=1)
    return 1


def kill_driver(at: Stand, name: str) -> int:
    drivers = [pid for pid, line in at.nodes.nodes[0].pids().items() if "cluster.cli label" in line and name in line]
    for pid in drivers:
        os.kill(pid, 9)
    return len(drivers)


def show_grow() -> dict[str, Any]:
    """Add a node in the middle of a run, then drain it in the middle of the next."""
    with stand(2, shards=80, samples=60) as at:
        at.seconds_per_read[0] = 1.0
        model = ("--model", str(at.work / "tiny.onnx"), "--top-k", "3")
        run = at.submit("grow", *model)
        run.wait_for("batches of 16")
        time.sleep(4)
        began = time.time()
        node = at.nodes.add(cpus=1)
        alive = time.time()
        first_unit = first_done(at, node, since=began, timeout_s=60)
        code = run.end()
        at.storage.forget()
        run = at.submit("drain", *model)
        run.wait_for("batches of 16")
        time.sleep(6)
        drained_at = time.time()
        drain(at, node, deadline_s=15)
        last_unit = wait_gone(at, node)
        drained = run.end()
        done_again = at.bytes_read() / at.bytes_of_source() - 1
        at.seconds_per_read[0] = 0.0
        expected = run_here(at, *model)
        return {
            "added": {"exit": code, "seconds_until_alive": round(alive - began, 1),
                      "seconds_until_its_first_unit": round(first_unit - began, 1),
                      "equal_to_local_run": at.digests("grow") == expected},
            "drained": {"exit": drained, "deadline_s": 15, "seconds_until_gone": round(last_unit - drained_at, 1),
                        "images_lost": 80 * 60 - run.summary()["images"], "share_done_again": round(done_again, 3),
                        "equal_to_local_run": at.digests("drain") == expected},
        }  # fmt: skip


def first_done(at: Stand, node: Node, *, since: float, timeout_s: float) -> float:
    """Return when a node finished its first unit, by its workers' logs."""
    mark = at.nodes.node_ids()[node.name][:8]
    deadline = time.time() + timeout_s
    while time.time() < deadline:
        for path in at.nodes.folder.glob("session_2*/logs/worker-*.err"):
            for line in path.read_text().splitlines():
                if f"node={mark} done" in line and path.stat().st_mtime > since:
                    return time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
        time.sleep(0.2)
    raise TimeoutError(f"{node.name} has done no unit in {timeout_s:g} s")


def drain(at: Stand, node: Node, *, deadline_s: int) -> None:
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", at.nodes.address,
               "--node-id", at.nodes.node_ids()[node.name], "--reason", "DRAIN_NODE_REASON_PREEMPTION",
               "--reason-message", "shown", "--deadline-remaining-seconds", str(deadline_s)]  # fmt: skip
    done = subprocess.run(command, env=at.nodes.environment, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stdout[-300:] + done.stderr[-300:])


def wait_gone(at: Stand, node: Node) -> float:
    """Wait as a cloud does: the machine ends at its deadline at the latest."""
    deadline = time.monotonic() + 20
    while node.name in at.nodes.node_ids() and time.monotonic() < deadline:
        time.sleep(0.5)
    node.kill()
    return time.time()


def show_scaling(rate: float, counts: list[int], seconds: float) -> dict[str, Any]:
    """Label on so many nodes, each with a simulated GPU of so many images/s, for so many seconds at the ideal rate."""
    found: dict[str, Any] = {"rate_per_node": rate, "nodes": {}}
    for count in counts:
        shards = round(rate * count * seconds / 50)
        with stand(count, source="photos", shards=shards, samples=50) as at:
            run = at.submit("scaling", "--model", "efficientnet-lite0", "--device", f"simulated:{rate:g}")
            code = run.end()
            said = run.summary()
            # From the first finished unit on: before that nodes load, and the first batches fill.
            steady = (said["images"] - 50) / (said["seconds"] - said["first_commit_s"])
            found["nodes"][count] = {
                "exit": code, "images": said["images"], "seconds": said["seconds"],
                "first_commit_s": said["first_commit_s"], "images_per_s_after": round(steady, 1),
                "share_of_ideal": round(steady / (rate * count), 3),
            }  # fmt: skip
            sys.stderr.write(json.dumps(found) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("show", choices=["submit", "cut", "kills", "grow", "scaling"])
    parser.add_argument("--node-kills", type=int, default=10)
    parser.add_argument("--driver-kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=160, help="seconds after which no new job is begun")
    parser.add_argument("--rate", type=float, default=20, help="images/s of a simulated GPU")
    parser.add_argument("--nodes", default="1,2,3,4", help="how many, one run each")
    parser.add_argument("--seconds", type=float, default=25, help="what a run would take at the ideal rate")
    options = parser.parse_args()
    shows = {
        "submit": show_submit,
        "cut": show_cut,
        "kills": lambda: show_kills(options.node_kills, options.driver_kills, options.seed, options.limit),
        "grow": show_grow,
        "scaling": lambda: show_scaling(options.rate, [int(n) for n in options.nodes.split(",")], options.seconds),
    }
    print(json.dumps({options.show: shows[options.show]()}))


if __name__ == "__main__":
    main()
