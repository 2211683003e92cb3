"""Counts and times of one model's requests, as the statistics extension has them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from serve.model.backend import Backend
from serve.oip import answers


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long that took together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns

    def as_dict(self) -> answers.Duration:
        """Return the protocol's form."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelStatistics:
    """What one replica has answered for one model since it started.

    Attributes:
        images: In requests that were answered.
        success: Requests that were answered.
        fail: Requests that were refused or failed.
        last_inference_ms: Of the last request that was answered, milliseconds since 1970; 0 before the first.
    """

    images: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    last_inference_ms: int = 0

    def succeeded(self, images: int, ns: int) -> None:
        """Count an answered request."""
        self.images += images
        self.success.add(ns)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def failed(self, ns: int) -> None:
        """Count a request that was not answered."""
        self.fail.add(ns)

    def as_dict(self, name: str, version: str) -> answers.ModelCounts:
        """Return the protocol's form. Stages that are not timed per request are counted zero times, not guessed."""
        untimed = dict.fromkeys(
            ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"),
            Duration().as_dict(),
        )
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.images,
            "execution_count": self.success.count,
            "inference_stats": {"success": self.success.as_dict(), "fail": self.fail.as_dict(), **untimed},
            "batch_stats": [],
        }


_known: WeakKeyDictionary[Backend, dict[str, ModelStatistics]] = WeakKeyDictionary()


def statistics_of(backend: Backend, model: str) -> ModelStatistics:
    """Return the statistics of a backend's model: one object, so that HTTP and gRPC count together."""
    return _known.setdefault(backend, {}).setdefault(model, ModelStatistics())
