"""The pulling batcher beside `@serve.batch`: batch sizes and requests/s, with everything else the same.

    python -m benchmarks.serve_batching [--images FOLDER] [--clients 8] [--seconds 10] [--rounds 2]

Both are the endpoint of this project: one replica of one CPU, HAProxy, the same ASGI application, decoder and
`Classifier`. They take turns, each in a Ray of its own. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from benchmarks.serve_load import Load, sample_images
from models.spec import Precision
from serve.config import APP_NAME, ServeConfig, ServeOptions, plan_replica
from serve.http.in_flight import Extras
from serve.local import launch
from serve.local.ports import free_ports
from serve.metrics import ServeMetrics
from serve.model.batcher import Item
from serve.model.engine import Engine, Wanted
from serve.model.models import Models
from serve.model.settled import settle
from serve.routes import build_asgi

MODEL = "efficientnet-lite0"
BATCH = 4
WAIT_S = 0.01


class ServeBatch:
    """The endpoint's ASGI application over `@serve.batch`, with its usual settings."""

    async def __init__(self) -> None:
        self.config = ServeConfig(model=MODEL, precision="int8", batch_size=BATCH)
        settled, plan = settle(MODEL, self.config, has_gpu=False), plan_replica(self.config, on_gpu=False, cpus=1)
        self.engine = await asyncio.to_thread(Engine, settled, self.config, plan)
        self.spec, self.precision, self.labels, self.is_ready = settled.spec, Precision.INT8, self.engine.labels, True
        self.calibration = None
        self.metrics = ServeMetrics(MODEL, "serve.batch")

    def __serve_build_asgi_app__(self) -> Any:
        return build_asgi(
            Models(self),
            self.config,
            Extras(metrics=self.metrics, render_metrics=lambda: asyncio.to_thread(self.metrics.render)),
        )

    def admit(self, images: int) -> None:
        """Serve bounds what waits."""

    async def label(
        self,
        images: Sequence[bytes],
        *,
        top_k: int,
        deadline: float,
        probabilities: bool = False,
        embedding: bool = False,
    ) -> list:
        wanted = Wanted(top_k, probabilities, embedding)
        return await asyncio.gather(*[self.one(Item(image, deadline, wanted)) for image in images])

    @ray_serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def one(self, items: list[Item]) -> list:
        for item in items:
            item.batch = len(items)
        self.metrics.batch(items, MODEL)
        return await asyncio.to_thread(self.work, items)

    def work(self, items: list[Item]) -> list:
        for item in items:
            item.decoded = self.engine.decode(item)
        return self.engine.run(items)


def serve_batch_app(config: ServeConfig, *, is_fixed: bool) -> ray_serve.Application:
    return ray_serve.deployment(
        name="Classifier", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=400, num_replicas=1
    )(ray_serve.ingress()(ServeBatch)).bind()


def histogram(port: int) -> dict[str, int]:
    """Return batches by size, from /metrics."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = re.findall(r'shardlabel_batch_size_bucket\{le="([\d.]+)"[^}]*\} ([\d.]+)', text)
    counts, below = {}, 0
    for edge, total in ((float(edge), int(float(total))) for edge, total in found):
        if total > below:
            counts[str(int(edge))] = total - below
        below = total
    return counts


def measure(kind: str, images: list[bytes], clients: int, seconds: float) -> dict:
    import serve.replica

    (port,) = free_ports(1)
    ours = serve.replica.build_application
    serve.replica.build_application = ours if kind == "pulling" else serve_batch_app
    try:
        options = ServeOptions(
            model=MODEL, precision="int8", batch_size=BATCH, min_replicas=1, max_replicas=1, port=port, grpc_port=0
        )
        with launch.running(options, lambda text: None):
            with Load("127.0.0.1", port, images, clients) as warm_up:
                warm_up._stop.wait(2)
            before = histogram(port)
            with Load("127.0.0.1", port, images, clients) as load:
                load._stop.wait(seconds)
            after = histogram(port)
    finally:
        serve.replica.build_application = ours
    sizes = {size: after[size] - before.get(size, 0) for size in after}
    return {"kind": kind, "clients": clients, "batches": sizes, **load.tally.summary()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="Folder of JPEGs or tars; else the bundled photographs.")
    parser.add_argument("--clients", default="8")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    images = sample_images(args.images)
    results = [
        measure(kind, images, int(clients), args.seconds)
        for _ in range(args.rounds)
        for clients in args.clients.split(",")
        for kind in ("pulling", "serve.batch")
    ]
    print(json.dumps({"app": APP_NAME, "batch_size": BATCH, "wait_s": WAIT_S, "results": results}))


if __name__ == "__main__":
    main()
