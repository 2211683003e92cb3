"""BentoML, one worker per core: with its adaptive batching, as its documentation on that does it, and without.

bentoml serve benchmarks.serve_rivals.bentoml_service:Batched
"""

from __future__ import annotations

import os
from pathlib import Path

import bentoml

from benchmarks.serve_rivals.labeller import make_labeller

WORKERS = len(os.sched_getaffinity(0))
TRAFFIC = {"timeout": 60, "concurrency": 64}
# The log of every request is off, as those of the others are.
LOGGING = {"access": {"enabled": False}}


@bentoml.service(workers=WORKERS, traffic=TRAFFIC, logging=LOGGING)
class Batched:
    def __init__(self) -> None:
        self.labeller = make_labeller()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=16, max_latency_ms=60_000)
    def classify(self, image: list[Path]) -> list[dict]:
        return self.labeller.label([self.labeller.decode(path.read_bytes()) for path in image])


@bentoml.service(workers=WORKERS, traffic=TRAFFIC, logging=LOGGING)
class Plain:
    def __init__(self) -> None:
        self.labeller = make_labeller()

    @bentoml.api
    def classify(self, image: Path) -> dict:
        return self.labeller.label([self.labeller.decode(image.read_bytes())])[0]
