"""Images fetched by a manifest beside the same images in tars, in turns: `python -m benchmarks.manifest`.

A web server on this machine answers each request after a wait, as one far away does; it takes part of the same CPUs. All
rows name one host: the worst case for limits of a host. Seconds are of whole commands; `fetch` is fetching alone.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web

from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.places import Places
from pipeline.fetch.settings import FetchSettings
from pipeline.storage.storage import open_storage

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"


def sample_images() -> list[bytes]:
    images = []
    for path in sorted(SAMPLES.glob("*.tar")):
        with tarfile.open(path) as tar:
            images += [tar.extractfile(one).read() for one in tar if one.name.endswith((".jpg", ".JPEG", ".jpeg"))]
    return images


def serve(images: list[bytes], wait_s: float, port: multiprocessing.Queue) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(wait_s)
        return web.Response(body=images[int(request.match_info["number"]) % len(images)])

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{number}.jpg", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.put(site._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(run())


def write_sources(folder: Path, images: list[bytes], count: int, port: int) -> None:
    (folder / "tars").mkdir()
    for first in range(0, count, 1000):
        with tarfile.open(folder / "tars" / f"{first:06d}.tar", "w") as tar:
            for number in range(first, min(count, first + 1000)):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(images[number % len(images)])
                tar.addfile(member, io.BytesIO(images[number % len(images)]))
    for number, image in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(image)
    uris = {
        "paths": [f"{number % len(images)}.jpg" for number in range(count)],
        "web": [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(count)],
    }
    for name, column in uris.items():
        pq.write_table(pa.table({"uri": column}), folder / f"{name}.parquet")


def labelled(source: Path, output: Path, *options: str) -> dict[str, float]:
    command = [sys.executable, "-m", "cluster.cli", "label", str(source), "--output", str(output), "--model",
               "efficientnet-lite0", "--progress", "none", "--json", *options]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    seconds = report["seconds"]
    return {"ok": report["ok"], "seconds": seconds, "images_per_s": round(report["images"] / seconds, 1)}


def fetched(uris: list[str], connections: int) -> dict[str, float]:
    """Fetch and do nothing else: rate, and what it costs of a CPU."""
    settings = FetchSettings(allow_private_hosts=True, connections_per_host=connections)
    wall, cpu = time.perf_counter(), time.process_time()
    with Fetcher(settings, Places(open_storage("/"), "manifest.parquet", settings), 2**26) as fetcher:
        ok = sum(got is not None and got.data is not None for _, got in fetcher.in_order((uri, uri, 0) for uri in uris))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"ok": ok, "images_per_s": round(ok / wall, 1), "cpu_ms_per_image": round(1000 * cpu / ok, 3)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--wait-ms", type=float, default=50)
    parser.add_argument("--connections", default="8,32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    images = sample_images()
    port: multiprocessing.Queue = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(images, arguments.wait_ms / 1000, port), daemon=True)
    server.start()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder, images, arguments.images, port.get())
        ways = {"tars": ("tars",), "paths": ("paths.parquet", "--uri-column", "uri")}
        for number in arguments.connections.split(","):
            options = ("--uri-column", "uri", "--allow-private-hosts", "--connections-per-host", number)
            ways[f"web-{number}"] = ("web.parquet", *options)
        web_uris = pq.read_table(folder / "web.parquet")["uri"].to_pylist()
        for number in map(int, arguments.connections.split(",")):
            print(json.dumps({"way": f"fetch-{number}", **fetched(web_uris, number)}), flush=True)
        for turn in range(arguments.rounds):
            for way, (source, *options) in ways.items():
                found = labelled(folder / source, folder / f"out-{way}-{turn}", *options)
                print(json.dumps({"way": way, **found}), flush=True)
    server.terminate()


if __name__ == "__main__":
    main()
