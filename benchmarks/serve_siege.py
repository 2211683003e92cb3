"""Everything at once for a minute: overload, slow senders on both ports, 20 MB bodies, 4,000 idle connections.

    python -m benchmarks.serve_siege [--seconds 60] [--replicas 2]

Honest clients ask at a quarter of what the endpoint answered when it was calm, each on a connection that it keeps;
what they see before, during and after is what counts. The attackers are a process of their own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path

from benchmarks.measure import descendants, memory_mb
from benchmarks.serve_load import Client, Load, sample_images
from benchmarks.serve_replicas import replica_pids
from serve.config import ServeOptions
from serve.local.launch import running
from serve.local.ports import free_ports

MODEL = "efficientnet-lite0"
HOST = "127.0.0.1"
HONEST = 8
IDLE = 4000
SLOW = 100
UPLOADS = 8
UPLOAD_BYTES = 20_000_000
FLOOD = 400
HEAD = f"POST /v1/classify HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: image/jpeg\r\nContent-Length: "


class Attack:
    """The attackers' connections, and what became of them, by kind."""

    def __init__(self, port: int, grpc_port: int, seconds: float) -> None:
        self.ports = {"http": port, "grpc": grpc_port}
        self.end = time.monotonic() + seconds
        self.seen: dict[str, Counter[str]] = {}

    async def run(self) -> dict[str, dict[str, int]]:
        photo = sample_images(None)[0]
        kinds: list[tuple[str, int, Callable[[str], Coroutine]]] = [
            ("flood", FLOOD, lambda kind: self.flood(kind, photo)),
            ("uploads of 20 MB", UPLOADS, self.upload),
            ("slow heads, http", SLOW, lambda kind: self.drip(kind, "http", HEAD.encode())),
            (
                "slow bodies, http",
                SLOW,
                lambda kind: self.drip(kind, "http", b"x" * 10_000, f"{HEAD}9999\r\n\r\n".encode()),
            ),
            ("slow prefaces, grpc", SLOW, lambda kind: self.drip(kind, "grpc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
            ("idle, http", IDLE // 2, lambda kind: self.drip(kind, "http", b"")),
            ("idle, grpc", IDLE // 2, lambda kind: self.drip(kind, "grpc", b"")),
        ]
        tasks = []
        for kind, count, attack in kinds:
            self.seen[kind] = Counter()
            tasks += [asyncio.create_task(self.repeat(kind, attack)) for _ in range(count)]
        await asyncio.gather(*tasks)
        return {kind: dict(counts) for kind, counts in self.seen.items()}

    async def repeat(self, kind: str, attack: Callable[[str], Coroutine]) -> None:
        """Attack again and again: who is thrown out comes back."""
        while (left := self.end - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    outcome = await attack(kind)
            except TimeoutError:
                outcome = "held to the end"
            except (OSError, EOFError) as err:
                outcome = type(err).__name__
            self.seen[kind][outcome] += 1
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def connected(self, which: str):
        reader, writer = await asyncio.open_connection(HOST, self.ports[which])
        try:
            yield reader, writer
        finally:
            writer.close()

    async def flood(self, kind: str, photo: bytes) -> str:
        """Ask on a kept connection as fast as there are answers."""
        async with self.connected("http") as (reader, writer):
            while True:
                writer.write(f"{HEAD}{len(photo)}\r\n\r\n".encode() + photo)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                self.seen[kind][head.split()[1].decode()] += 1

    async def upload(self, _: str) -> str:
        async with self.connected("http") as (reader, writer):
            writer.write(f"{HEAD}{UPLOAD_BYTES}\r\n\r\n".encode())
            answer = asyncio.ensure_future(reader.readuntil(b"\r\n"))
            for _ in range(UPLOAD_BYTES // 2**16 + 1):
                if answer.done():
                    break
                writer.write(bytes(2**16))
                await writer.drain()
            return (await answer).split()[1].decode()

    async def drip(self, _: str, which: str, data: bytes, before: bytes = b"") -> str:
        """Send a byte a second, or nothing, and wait to be thrown out."""
        async with self.connected(which) as (reader, writer):
            writer.write(before)
            answer = asyncio.ensure_future(reader.read(100))
            for byte in data:
                if answer.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.wait([answer], timeout=1)
            said = await answer
            return said.split()[1].decode() if said.startswith(b"HTTP/1") else "closed"


def watch(peak: dict[str, float], stop: threading.Event) -> None:
    """Keep the peak memory of the replicas, and of all of the endpoint but its clients."""
    while not stop.wait(1.0):
        replicas = memory_mb(replica_pids())
        others = [pid for pid in descendants(os.getpid()) if b"serve_siege" not in command(pid)]
        peak["replicas_mb"] = max(peak["replicas_mb"], round(replicas, 1))
        peak["endpoint_mb"] = max(peak["endpoint_mb"], round(memory_mb(others), 1))


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def honest(port: int, images: list[bytes], per_s: float | None, seconds: float) -> dict:
    with Load(HOST, port, images, HONEST, per_s=per_s) as load:
        time.sleep(seconds)
    return load.tally.summary()


def siege(images: list[bytes], seconds: float, replicas: int) -> dict:
    port, grpc_port = free_ports(2)
    options = ServeOptions(model=MODEL, min_replicas=replicas, max_replicas=replicas, port=port, grpc_port=grpc_port)
    with running(options, lambda _: None):
        full = honest(port, images, None, 5)
        per_s = full["ok_per_s"] / 4
        result = {"honest_per_s": round(per_s, 1), "calm": honest(port, images, per_s, 10)}
        peak, stop = {"replicas_mb": 0.0, "endpoint_mb": 0.0}, threading.Event()
        before = round(memory_mb(replica_pids()), 1)
        watcher = threading.Thread(target=watch, args=(peak, stop), daemon=True)
        watcher.start()
        arguments = ["--attack", str(port), str(grpc_port), "--seconds", str(seconds)]
        attackers = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve_siege", *arguments], stdout=subprocess.PIPE
        )
        with Load(HOST, port, images, HONEST, per_s=per_s) as load:
            health, failures = [], 0
            while attackers.poll() is None:
                began = time.perf_counter()
                try:
                    assert Client(HOST, port, "/v1/classify").post(b"")[0] in (400, 503)
                except (OSError, EOFError, AssertionError):
                    failures += 1
                health.append(time.perf_counter() - began)
                time.sleep(0.5)
        stop.set()
        result |= {
            "siege": load.tally.summary(),
            "new_connections": {
                "asked": len(health),
                "failed": failures,
                "p99_s": round(sorted(health)[-1 - len(health) // 100], 2),
            },
            "attackers": json.loads(attackers.stdout.read()),
            "replicas_mb_before": before,
            "peak": peak,
            "after": honest(port, images, per_s, 10),
        }
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="Folder of JPEGs or tars; else the bundled photographs.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--attack", type=int, nargs=2, metavar=("PORT", "GRPC_PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        print(json.dumps(asyncio.run(Attack(*args.attack, args.seconds).run())))
    else:
        print(json.dumps(siege(sample_images(args.images), args.seconds, args.replicas)))


if __name__ == "__main__":
    main()
