"""A RayJob's whole life without Kubernetes: the pods' own commands, as processes of this machine.

    python -m benchmarks.cluster_rehearsal [--root IMAGE]       # a worker killed, one drained; labels compared

The manifests are rendered by `cluster render`; commands and environment are those that KubeRay's operator makes of them
(tests/support/kuberay_pods.py); each pod has its own network, processes, /tmp and /dev/shm (tests/support/pods.py). With
`--root`, a folder that `buildah mount` shows, they run in the image: as its user, without capabilities, on a root file
system that cannot be written to. What an operator does is done here: pods are made, made anew where one is gone, the job
is submitted. There is no autoscaler. For root alone, on Linux. Pods share this machine:
seconds say what takes long, and not how fast a cluster is. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cluster_pods import MODEL, Rehearsal, is_ready, rehearsal
from cluster.manifests.render import Target
from tests.support.kuberay_pods import submitter
from tests.support.pods import build_network
from tests.support.s3_server import BUCKET, S3Server


def digests(server: S3Server, name: str) -> dict[str, str]:
    """Return the SHA-256 of each labelled file of a DEST."""
    folder = server.fetch(name)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def run_rayjob(root: Path | None, shards: int) -> dict[str, Any]:
    """Run a job on a head and two workers; kill one worker and drain another."""
    settings = [f"job.source=s3://{BUCKET}/in", f"job.output=s3://{BUCKET}/out", "cpu.min=2", "job.options=--json"]
    with rehearsal(Target.RAYJOB, settings, root, shards) as (at, job):
        at.start(workers=2)

        def units() -> int:
            return len([key for key in at.server.keys("out/") if key.startswith("out/part-")])

        submitting = at.add("submitter", submitter(job, "rehearsal-1", at.pods[0].address, token=at.token))
        at.note("submitter: started")
        at.wait("the first labels are there", lambda: units() > 0 or not submitting.is_alive)
        at.pods[1].kill()
        at.note(f"{at.pods[1].name}: killed at {units()} of {shards} units")
        third = at.add_worker()
        at.wait(f"{third.name} is ready", lambda: is_ready(third) or not submitting.is_alive)
        before = units()
        at.drain(at.pods[2])
        at.note(f"drained from {before} to {units()} of {shards} units")
        at.wait("the submitter has ended", lambda: not submitting.is_alive)
        state = at.ask("GET", "/api/jobs/rehearsal-1")
        said = json.loads(next(line for line in reversed(submitting.log.read_text().splitlines()) if line[:1] == "{"))
        found = digests(at.server, "out")
        here = run_here(at)
        return {
            "job": state["status"], "submitter_exit": submitting.process.returncode if submitting.process else None,
            "images": said["images"], "images_lost": shards * 50 - said["images"], "seconds_of_label": said["seconds"],
            "equal_to_local_run": found == here, "files": len(found), "timeline": at.timeline,
        }  # fmt: skip


def run_here(at: Rehearsal) -> dict[str, str]:
    """Label the same on this machine, without a cluster."""
    command = [sys.executable, "-m", "cluster.cli", "label", f"s3://{BUCKET}/in", "--output", f"s3://{BUCKET}/here",
               "--model", MODEL, "--device", "cpu", "--progress", "none"]  # fmt: skip
    subprocess.run(command, env={**os.environ, **at.server.environment()}, check=True, capture_output=True, timeout=300)
    return digests(at.server, "here")


def main() -> None:
    """Run it, in a network of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="file system of the image, as `buildah mount` shows it")
    parser.add_argument("--shards", type=int, default=36, help="of 50 images each")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("pods are made of namespaces, which only root may make")
    if "REHEARSAL_NETWORK" not in os.environ:
        command = ["unshare", "--net", sys.executable, "-m", "benchmarks.cluster_rehearsal", *sys.argv[1:]]
        raise SystemExit(
            subprocess.run(command, check=False, env={**os.environ, "REHEARSAL_NETWORK": "own"}).returncode
        )
    build_network()
    print(json.dumps({"rayjob": run_rayjob(options.root, options.shards)}))


if __name__ == "__main__":
    main()
