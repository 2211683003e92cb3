"""How much of an object store's latency a run feels: `label` from S3 with so many ms added to each request, and with none.

    python -m benchmarks.latency --images 1000 --rounds 3 --delay-ms 30 [--kind images,tar] [--dest s3]

The store is the tests' own (moto) behind a proxy that remembers what it read of SOURCE, so that a request costs little of
the cores that are measured, and that waits before it answers. Runs take turns, and ratios are formed within a round. The
last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.support.object_server import BUCKET, free_port
from tests.support.s3_server import S3Server, running_s3

# Of SOURCE: what does not change.
KEPT = f"/{BUCKET}/source"
# Small shards: as many as loose images would fill a folder with, and a wait each.
SHARD_IMAGES = 25
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}


def serve_slowly(upstream: int, port: int, delay_s: float) -> None:
    """Pass requests on, each after a wait; runs until its process is ended."""
    kept: dict[tuple[str, ...], tuple[int, dict[str, str], bytes]] = {}

    async def answer(request: web.Request) -> web.Response:
        began = time.perf_counter()
        body = await request.read()
        key = (request.method, request.path_qs, request.headers.get("Range", ""))
        found = kept.get(key)
        if found is None:
            url = f"http://127.0.0.1:{upstream}{request.raw_path}"
            headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
            async with request.app["client"].request(request.method, url, headers=headers, data=body or None) as got:
                told = {k: v for k, v in got.headers.items() if k.lower() not in _HOP_BY_HOP}
                if request.method == "HEAD":
                    told["Content-Length"] = got.headers.get("Content-Length", "0")
                found = got.status, told, await got.read()
            if "source" in request.path_qs and request.method == "GET":
                kept[key] = found
        await asyncio.sleep(max(0.0, delay_s - (time.perf_counter() - began) if delay_s else 0.0))
        return web.Response(status=found[0], headers=found[1], body=found[2] or None)

    async def client(app: web.Application):  # noqa: ANN202
        app["client"] = aiohttp.ClientSession(auto_decompress=False)
        yield
        await app["client"].close()

    app = web.Application(client_max_size=2**30)
    app.cleanup_ctx.append(client)
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


def fill(server: S3Server, images: int, source: list[str]) -> None:
    """Put images into the bucket, loose and in tars; the same ones again where more are wanted."""
    contents = [
        tar.extractfile(member).read()
        for path in source
        for tar in [tarfile.open(path)]
        for member in tar
        if member.name.endswith(".jpg")
    ]
    for number in range(images):
        server.put(f"source/images/{number:06d}.jpg", contents[number % len(contents)])
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(-(-images // SHARD_IMAGES)):
            path = Path(folder) / f"{shard:05d}.tar"
            with tarfile.open(path, "w") as tar:
                for number in range(shard * SHARD_IMAGES, min(images, (shard + 1) * SHARD_IMAGES)):
                    file = Path(folder) / f"{number:06d}.jpg"
                    file.write_bytes(contents[number % len(contents)])
                    tar.add(file, file.name)
                    file.unlink()
            server.put(f"source/tar/{path.name}", path.read_bytes())
            path.unlink()


def label(kind: str, environment: dict[str, str], dest: str) -> dict[str, float]:
    """Run the command once; return its seconds, its own from the first commit on, and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "label", f"s3://{BUCKET}/source/{kind}", "--output", dest,
         "--model", "efficientnet-lite0", "--precision", "int8", "--json", "--progress", "none", "--overwrite"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    report = json.loads(done.stdout.splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "from_first": report["seconds"] - (report["first_commit_s"] or 0), "cpu": cpu,
            "images": report["images"]}  # fmt: skip


def main() -> None:
    """Fill a bucket, label it in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", required=True, help="tars with .jpg members, repeated to --images")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--kind", default="images,tar")
    parser.add_argument("--dest", choices=("local", "s3"), default="local")
    options = parser.parse_args()
    result: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder) / "s3") as server:
        fill(server, options.images, options.source)
        ports = {0.0: free_port(), options.delay_ms: free_port()}
        proxies = [
            multiprocessing.Process(target=serve_slowly, args=(server.port, port, delay / 1000), daemon=True)
            for delay, port in ports.items()
        ]
        for proxy in proxies:
            proxy.start()
        time.sleep(1.0)
        for kind in options.kind.split(","):
            runs: dict[float, list[dict[str, float]]] = {delay: [] for delay in ports}
            for number in range(-1, options.rounds):  # the first fills the proxies, and is no result
                for delay in list(ports)[:: 1 if number % 2 else -1]:
                    dest = f"{folder}/out" if options.dest == "local" else f"s3://{BUCKET}/out"
                    run = label(kind, server.environment(f"http://127.0.0.1:{ports[delay]}"), dest)
                    if number >= 0:
                        runs[delay].append(run)
                        print(kind, delay, {name: round(value, 2) for name, value in run.items()}, flush=True)
                    shutil.rmtree(f"{folder}/out", ignore_errors=True)
            pairs = list(zip(runs[0.0], runs[options.delay_ms], strict=True))
            result[kind] = {
                name: {
                    "ratios": [round(slow[name] / fast[name], 3) for fast, slow in pairs],
                    "median_ratio": round(statistics.median(slow[name] / fast[name] for fast, slow in pairs), 3),
                    "none": [round(fast[name], 2) for fast, _ in pairs],
                    "delayed": [round(slow[name], 2) for _, slow in pairs],
                }
                for name in ("seconds", "from_first", "cpu")
            }
        for proxy in proxies:
            proxy.terminate()
    print(json.dumps({"images": options.images, "delay_ms": options.delay_ms, "dest": options.dest, **result}))


if __name__ == "__main__":
    main()
