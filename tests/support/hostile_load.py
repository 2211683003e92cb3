"""Send the whole corpus of hostile requests to an endpoint at once, while /healthz is asked by another process.

    python -m tests.support.hostile_load http://127.0.0.1:8000 127.0.0.1:9000 [--rounds 3] [--at-once 12] [--only NAME]

The last line of output is a JSON object: for each request's name its statuses.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import requests

from tests.support.hostile_requests import CORPUS, GRPC_CORPUS

TIMEOUT_S = 60


def send(url: str, name: str) -> str:
    hostile = CORPUS[name]()
    headers = {"Content-Type": hostile.content_type, **hostile.headers}
    try:
        return str(requests.post(url + hostile.path, hostile.body, headers=headers, timeout=TIMEOUT_S).status_code)
    except requests.exceptions.RequestException as err:
        return type(err).__name__


def call(address: str, name: str) -> str:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options, compression=grpc.Compression.Gzip) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            infer(GRPC_CORPUS[name](), timeout=TIMEOUT_S)
        except grpc.RpcError as err:
            return err.code().name
        return "OK"


@dataclass
class Health:
    """What /healthz said while the corpus was sent: seconds of each answer, and statuses that were not 200."""

    seconds: list[float]
    failures: list[str]

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def watch_health(url: str, *arguments: str) -> tuple[Health, dict[str, dict[str, int]]]:
    """Run this module in a process of its own, and ask for the health from this one meanwhile."""
    process = subprocess.Popen([sys.executable, "-m", __name__, url, *arguments], stdout=subprocess.PIPE, text=True)
    health = Health([], [])
    while process.poll() is None:
        began = time.perf_counter()
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=30).read()
        except OSError as err:
            health.failures.append(str(err))
        health.seconds.append(time.perf_counter() - began)
        time.sleep(0.02)
    assert process.returncode == 0
    return health, json.loads(process.stdout.read().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("grpc")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--only", action="append")
    args = parser.parse_args()
    names = [name for name in [*CORPUS, *GRPC_CORPUS] if not args.only or name in args.only] * args.rounds
    random.Random(1).shuffle(names)
    for name in names:
        (CORPUS.get(name) or GRPC_CORPUS[name])()
    statuses: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    with ThreadPoolExecutor(args.at_once) as pool:
        tasks = [
            (name, pool.submit(send, args.url, name) if name in CORPUS else pool.submit(call, args.grpc, name))
            for name in names
        ]
        for name, task in tasks:
            statuses[name][task.result()] += 1
    sys.stdout.write(json.dumps(statuses) + "\n")


if __name__ == "__main__":
    main()
