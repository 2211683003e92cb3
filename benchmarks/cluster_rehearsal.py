"""A RayJob's and a RayService's whole life without Kubernetes: the pods' own commands, as processes of this machine.

    python -m benchmarks.cluster_rehearsal rayjob [--root IMAGE]       # a worker killed, one drained; labels compared
    python -m benchmarks.cluster_rehearsal rayservice [--root IMAGE]   # the same, while a client asks

The manifests are rendered by `cluster render`; commands and environment are those that KubeRay's operator makes of them
(tests/support/kuberay_pods.py); each pod has its own network, processes, /tmp and /dev/shm (tests/support/pods.py). With
`--root`, a folder that `buildah mount` shows, they run in the image: as its user, without capabilities, on a root file
system that cannot be written to. What an operator does is done here: pods are made, made anew where one is gone, the job
is submitted, Serve is told its configuration. There is no autoscaler. For root alone, on Linux. Pods share this machine:
seconds say what takes long, and not how fast a cluster is. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cluster_pods import MODEL, Rehearsal, is_ready, rehearsal
from benchmarks.cluster_stand import sample_images
from cluster.manifests.render import Target
from tests.support.kuberay_pods import submitter
from tests.support.pods import Pod, build_network
from tests.support.s3_server import BUCKET, S3Server

SERVE_PORT = 8000
# KubeRay's readiness probe of a worker that serves: every 5 s, and out after one failure.
PROBE_S = 5.0


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


class Client:
    """One who asks an endpoint all the while, through a service: each time another of the pods that are ready."""

    def __init__(self, at: Rehearsal) -> None:
        self.at = at
        self.outcomes: Counter[str] = Counter()
        self.labels: set[tuple[int, str]] = set()
        self.ready: list[Pod] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._probe, self._ask)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for the last answer."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _probe(self) -> None:
        while not self._ended.is_set():
            # Kubernetes takes a pod that is to be stopped out of a service at once, and one that dies at the next probe.
            workers = [pod for pod in self.at.pods[1:] if not pod.is_stopping]
            self.ready = [pod for pod in workers if is_ready(pod, "/-/healthz", SERVE_PORT)]
            self._ended.wait(PROBE_S)

    def _ask(self) -> None:
        images = cycle(enumerate(sample_images()[:8]))
        number = 0
        while not self._ended.is_set():
            pods = [pod for pod in self.ready if not pod.is_stopping]
            number += 1
            if not pods:
                self.outcomes["no pod was ready"] += 1
                self._ended.wait(0.2)
                continue
            pod = pods[number % len(pods)]
            index, image = next(images)
            try:
                self.labels.add((index, classify(pod, image)))
                self.outcomes["answered"] += 1
            except (OSError, ValueError) as err:
                self.outcomes[f"{type(err).__name__} of {pod.name}{' (killed)' if not pod.is_alive else ''}"] += 1
            self._ended.wait(0.05)


def classify(pod: Pod, image: bytes) -> str:
    """Return the label that a pod gives an image."""
    request = urllib.request.Request(
        f"http://{pod.address}:{SERVE_PORT}/v1/classify", data=image, headers={"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        return str(json.load(answer)["results"][0]["labels"][0]["label"])


def configured(at: Rehearsal, config: object) -> bool:
    """Give Serve its configuration; the operator too asks again where the first one that starts Serve takes too long."""
    with suppress(OSError):
        at.ask("PUT", "/api/serve/applications/", config)
        return True
    return False


def run_rayservice(root: Path | None) -> dict[str, Any]:
    """Serve on a head and two workers; kill one worker and drain another while a client asks."""
    settings = ["service.min_replicas=2", "service.max_replicas=2"]
    with rehearsal(Target.RAYSERVICE, settings, root, 1) as (at, service):
        at.start(workers=2)
        at.wait("Serve has its configuration", lambda: configured(at, yaml.safe_load(service["serveConfigV2"])))

        def serving(*pods: Pod) -> bool:
            return all(is_ready(pod, "/-/healthz", SERVE_PORT) for pod in pods)

        def running() -> bool:
            with suppress(OSError):
                found = at.ask("GET", "/api/serve/applications/")["applications"].get("shardlabel", {})
                return bool(found.get("status") == "RUNNING")
            return False

        at.wait("the application runs, and both workers answer", lambda: running() and serving(*at.pods[1:]))
        client = Client(at)
        client.start()
        phases: dict[str, dict[str, int]] = {}

        def phase(name: str) -> None:
            phases[name] = dict(client.outcomes)
            client.outcomes.clear()
            at.note(f"{name}: {phases[name]}")

        time.sleep(10)
        phase("undisturbed")
        at.pods[1].kill()
        at.note(f"{at.pods[1].name}: killed")
        third = at.add_worker()
        at.wait(f"{third.name} answers", lambda: serving(third))
        at.wait("the application runs again", running)
        time.sleep(2 * PROBE_S)
        phase("a worker killed")
        fourth = at.add_worker()
        at.wait(f"{fourth.name} answers", lambda: is_ready(fourth))
        at.drain(at.pods[2])
        at.wait(f"{fourth.name} answers", lambda: serving(fourth))
        time.sleep(2 * PROBE_S)
        phase("a worker drained")
        client.stop()
        return {"requests": phases, "labels_of_8_images": len(client.labels), "timeline": at.timeline}


def main() -> None:
    """Run one of the two, in a network of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["rayjob", "rayservice"])
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
    if options.target == "rayjob":
        print(json.dumps({"rayjob": run_rayjob(options.root, options.shards)}))
    else:
        print(json.dumps({"rayservice": run_rayservice(options.root)}))


if __name__ == "__main__":
    main()
