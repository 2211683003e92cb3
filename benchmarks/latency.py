"""How much of an object store's latency a run feels: `label` from S3 with so many ms added to each request, and with none.

    python -m benchmarks.latency --source samples/*.tar --images 1000 --rounds 3 [--kind images,tar] [--dest s3]

The store is the tests' own (moto) behind a proxy that remembers what it read of SOURCE, so that a request costs little of
the cores that are measured, and that waits before it answers. Runs take turns, and ratios are formed within a round. The
last line of output is one JSON object.

With `--paced` no command is run: one actor's stages read and publish in this process, and sleep where they would decode
and label, one at a time as on one core. That tells how much of the latency is hidden on a machine that others use too,
where a run is late anyway; `--variants 8:1,32:2` are how many requests, and units, are under way at a time.
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
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import aiohttp
import numpy as np
import numpy.typing as npt
from aiohttp import web

from models.decode.decode import DecodedImage
from models.inference.classifier import Device, choose
from models.inference.predictions import Predictions
from pipeline.config import LabelConfig
from pipeline.dest.plan import cut_units
from pipeline.job import unit_settings
from pipeline.operators import stages
from pipeline.operators.dataset import REMOTE_UNITS
from pipeline.operators.model_ref import settle_model
from pipeline.operators.stages import DecodedBatch, label_unit
from pipeline.sources import images
from pipeline.sources.reader import slices
from pipeline.sources.source import open_source
from tests.support.object_server import BUCKET, free_port
from tests.support.s3_server import S3Server, running_s3

# Of SOURCE: what does not change.
KEPT = f"/{BUCKET}/source"
# Small shards: as many as loose images would fill a folder with, and a wait each.
SHARD_IMAGES = 25
# Of one core, an image: what the bundled int8 model took on a quiet one.
DECODE_S, LABEL_S = 0.0015, 0.003
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

    async def client(app: web.Application) -> AsyncIterator[None]:
        app["client"] = aiohttp.ClientSession(auto_decompress=False)
        yield
        await app["client"].close()

    app = web.Application(client_max_size=2**30)
    app.cleanup_ctx.append(client)
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


def fill(server: S3Server, count: int, source: list[str]) -> None:
    """Put images into the bucket, loose and in tars; the same ones again where more are wanted."""
    contents = []
    for path in source:
        with tarfile.open(path) as tar:
            contents += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    for number in range(count):
        server.put(f"source/images/{number:06d}.jpg", contents[number % len(contents)])
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(-(-count // SHARD_IMAGES)):
            path = Path(folder) / f"{shard:05d}.tar"
            with tarfile.open(path, "w") as tar:
                for number in range(shard * SHARD_IMAGES, min(count, (shard + 1) * SHARD_IMAGES)):
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


def pace(kind: str, environment: dict[str, str], dest: str, calls: int, units_at_a_time: int) -> dict[str, float]:
    """Take all units through an actor's stages, of which those that compute only sleep; return the seconds."""
    core = threading.Lock()

    def decode(data: bytes, *_: object, out: npt.NDArray[np.uint8]) -> DecodedImage:
        time.sleep(DECODE_S)
        return DecodedImage(out, 224, 224)

    def label(batches: Iterator[DecodedBatch]) -> Iterator[tuple[DecodedBatch, Predictions]]:
        for batch in batches:
            with core:
                time.sleep(LABEL_S * len(batch.rows))
            ids = np.zeros((len(batch.rows), 5), np.int32)
            yield batch, Predictions(ids, np.ones(ids.shape, np.float32))

    patches = (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(images, "REMOTE_CALLS", calls),
        mock.patch.object(stages, "decode_image", decode),
    )
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        config = LabelConfig(source=f"s3://{BUCKET}/source/{kind}", output=dest, model="efficientnet-lite0")
        source = open_source(config.source, config.format)
        config, spec, labels = settle_model(config)
        settings = unit_settings(config, source, spec, choose(spec, Device.CPU, "int8", has_gpu=False), labels)
        units = list(cut_units(slices(source), images=kind == "images"))
        began = time.perf_counter()
        with ThreadPoolExecutor(units_at_a_time) as threads:
            rows = sum(threads.map(lambda unit: label_unit(settings, unit, label, turn=core).rows, units))
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "of_core": rows * (DECODE_S + LABEL_S) / seconds, "images": rows}


def take_turns(
    kind: str, options: argparse.Namespace, server: S3Server, ports: dict[float, int], local: str
) -> dict[str, list[tuple[dict[str, float], dict[str, float]]]]:
    """Run each variant without and with the delay, round by round; return the pairs of each by its name."""
    variants = [tuple(map(int, text.split(":"))) for text in options.variants.split(",")] if options.paced else [()]
    pairs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
    dest = local if options.dest == "local" else f"s3://{BUCKET}/out"
    for number in range(-1, options.rounds):  # the first fills the proxies, and is no result
        for variant in variants[:: 1 if number % 2 else -1]:
            run = {}
            for delay in list(ports)[:: 1 if number % 2 else -1]:
                environment = server.environment(f"http://127.0.0.1:{ports[delay]}")
                run[delay] = pace(kind, environment, dest, *variant) if variant else label(kind, environment, dest)
                shutil.rmtree(local, ignore_errors=True)
            if number >= 0:
                name = f" {variant[0]}:{variant[1]}" if variant else ""
                pairs.setdefault(name, []).append((run[0.0], run[options.delay_ms]))
                print(kind, name, *pairs[name][-1], flush=True)
    return pairs


def compare(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, dict]:
    """Return the figures of runs without and with the delay, and their ratios within each round."""
    return {
        name: {
            "ratios": [round(slow[name] / fast[name], 3) for fast, slow in pairs],
            "median_ratio": round(statistics.median(slow[name] / fast[name] for fast, slow in pairs), 3),
            "none": [round(fast[name], 2) for fast, _ in pairs],
            "delayed": [round(slow[name], 2) for _, slow in pairs],
        }
        for name in pairs[0][0]
        if name != "images"
    }


def main() -> None:
    """Fill a bucket, label it in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", required=True, help="tars with .jpg members, repeated to --images")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--kind", default="images,tar")
    parser.add_argument("--dest", choices=("local", "s3"), default="local")
    parser.add_argument("--paced", action="store_true", help="sleep in place of decoding and labelling, in one process")
    now = f"{images.REMOTE_CALLS}:{max(REMOTE_UNITS.values())}"
    parser.add_argument("--variants", default=now, help="with --paced: REQUESTS:UNITS at a time, several by commas")
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
            for name, runs in take_turns(kind, options, server, ports, f"{folder}/out").items():
                result[f"{kind}{name}"] = compare(runs)
        for proxy in proxies:
            proxy.terminate()
    print(json.dumps({"images": options.images, "delay_ms": options.delay_ms, "dest": options.dest, **result}))


if __name__ == "__main__":
    main()
