"""BentoML with its adaptive batching, one worker per core: as its documentation on adaptive batching does it.

bentoml serve benchmarks.serve_rivals.bentoml_service:Labels
"""

from __future__ import annotations

import os
from pathlib import Path

import bentoml

from benchmarks.serve_rivals.labeller import Labeller


# Its log of every request is off, as those of the others are.
@bentoml.service(
    workers=len(os.sched_getaffinity(0)),
    traffic={"timeout": 60, "concurrency": 64},
    logging={"access": {"enabled": False}},
)
class Labels:
    def __init__(self) -> None:
        self.labeller = Labeller()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=16, max_latency_ms=60_000)
    def classify(self, image: list[Path]) -> list[dict]:
        return self.labeller.label([self.labeller.decode(path.read_bytes()) for path in image])
