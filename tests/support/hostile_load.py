"""Send the corpora of hostile requests and images to an endpoint in parallel, while another process polls /healthz.

    python -m tests.support.hostile_load http://127.0.0.1:8000 127.0.0.1:9000 [--rounds 3] [--at-once 12] [--only NAME]

With `--uploads N` it sends N bodies of 20 MB at once instead. The last line of output is a JSON object of statuses by
request name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import grpc
import requests

from tests.support.hostile_images import HOSTILE
from tests.support.hostile_requests import CORPUS, GRPC_CORPUS

TIMEOUT_S = 60
UPLOAD_BYTES = 20_000_000
# Size of each image, a body for /v1/classify; the prefix distinguishes images from requests.
IMAGE_BYTES = 2 * 2**20
IMAGES = {f"image:{name}": make for name, make in HOSTILE.items()}


def send_image(url: str, name: str) -> str:
    headers = {"Content-Type": "application/octet-stream"}
    try:
        body = IMAGES[name](IMAGE_BYTES)
        return str(requests.post(f"{url}/v1/classify", body, headers=headers, timeout=TIMEOUT_S).status_code)
    except requests.exceptions.RequestException as err:
        return type(err).__name__


async def upload(host: str, port: int) -> str:
    """Send a body of 20 MB until the answer arrives, as a client does without `Expect: 100-continue`."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as err:
        return type(err).__name__
    head = f"POST /v1/classify HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n"
    writer.write(f"{head}Content-Length: {UPLOAD_BYTES}\r\nConnection: close\r\n\r\n".encode())
    answer = asyncio.ensure_future(reader.readline())
    try:
        for _ in range(UPLOAD_BYTES // 2**16 + 1):
            if answer.done():
                break
            writer.write(bytes(2**16))
            await writer.drain()
        return (await asyncio.wait_for(answer, TIMEOUT_S)).split()[1].decode()
    except (OSError, IndexError, TimeoutError) as err:
        # The server answers before the whole body is sent, and then closes the connection.
        answered = answer.done() and not answer.exception() and answer.result()
        return answer.result().split()[1].decode() if answered else type(err).__name__
    finally:
        answer.cancel()
        writer.close()


async def upload_many(url: str, count: int) -> Counter[str]:
    host, _, port = url.removeprefix("http://").partition(":")
    return Counter(await asyncio.gather(*(upload(host, int(port)) for _ in range(count))))


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
    """Answers of /healthz while the corpus was sent: the seconds of each, and the errors."""

    seconds: list[float]
    failures: list[str]

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def watch_health(url: str, *arguments: str) -> tuple[Health, dict[str, dict[str, int]]]:
    """Run this module in a child process, and poll /healthz from this one meanwhile."""
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
    parser.add_argument("--uploads", type=int, default=0)
    args = parser.parse_args()
    if args.uploads:
        sys.stdout.write(json.dumps({"upload": asyncio.run(upload_many(args.url, args.uploads))}) + "\n")
        return
    senders = {
        **dict.fromkeys(CORPUS, partial(send, args.url)),
        **dict.fromkeys(IMAGES, partial(send_image, args.url)),
        **dict.fromkeys(GRPC_CORPUS, partial(call, args.grpc)),
    }
    names = [name for name in senders if not args.only or name in args.only] * args.rounds
    random.Random(1).shuffle(names)
    for name in {*names} - {*IMAGES}:
        (CORPUS.get(name) or GRPC_CORPUS[name])()
    statuses: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    with ThreadPoolExecutor(args.at_once) as pool:
        tasks = [(name, pool.submit(senders[name], name)) for name in names]
        for name, task in tasks:
            statuses[name][task.result()] += 1
    sys.stdout.write(json.dumps(statuses) + "\n")


if __name__ == "__main__":
    main()
