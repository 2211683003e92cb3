"""Ray Serve as its documentation does it: a FastAPI ingress and @serve.batch, one replica per core.

The proxy is chosen by the environment: none set is the default Python proxy; RAY_SERVE_ENABLE_HA_PROXY=1 and
RAY_SERVE_THROUGHPUT_OPTIMIZED=1 are HAProxy and the settings that its guide has for throughput.

Batches of 8, wait 10 ms (Serve's defaults are 10 and 10 ms); max_ongoing_requests raised as the guide on batching says,
or no batch would ever fill.
"""

# No `from __future__ import annotations`: Serve pickles the class, and FastAPI reads its annotations afterwards.

import argparse
import os
import signal
import threading

import ray
from fastapi import FastAPI, Request
from ray import serve

app = FastAPI()
CORES = len(os.sched_getaffinity(0))


@serve.deployment(num_replicas=CORES, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
@serve.ingress(app)
class Labels:
    def __init__(self) -> None:
        from benchmarks.serve_rivals.labeller import make_labeller

        self.labeller = make_labeller()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def label(self, images: list[bytes]) -> list[dict]:
        return self.labeller.label([self.labeller.decode(data) for data in images])

    @app.post("/classify")
    async def classify(self, request: Request) -> dict:
        return await self.label(await request.body())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(Labels.bind(), name="labels", route_prefix="/")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
