"""The actors that hold the model in the two-stage shape, and the watch over how busy they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from models.errors import ShardlabelError
from models.inference.classifier import Provider, UInt8Array
from pipeline.operators.batching import Batcher, Load
from pipeline.operators.model_client import WATCH_GROUP
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.stages import UnitSettings
from pipeline.operators.watchdog import WatchedLabeller
from pipeline.session.pools import Pools
from pipeline.session.stage_clock import Stage

logger = logging.getLogger(__name__)

# One is copied in, one computed, one copied out.
GPU_IN_FLIGHT = 3
# Blocks that an actor holds at a time; those beyond wait in Ray.
MAX_BLOCKS = 128
# A GPU that is lost again and again, or an image that brings its process down, must come to an end.
MAX_RESTARTS = 10
MAX_RETRIES = 2

WATCH_EVERY_S = 10.0
# Below this share of a span a GPU counts as idle.
BUSY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Report:
    """What an actor tells of itself, all since it started.

    Attributes:
        load: Of its session.
        spent: Seconds of the decoders that it was sent blocks by.
        notes: What a person should know: a batch that had to be halved.
    """

    load: Load
    spent: dict[Stage, float]
    notes: tuple[str, ...] = ()


class ModelActor:
    """Actor of the two-stage shape: label blocks of pixels, whatever units they come from."""

    def __init__(self, model: ModelRef, settings: UnitSettings, pools: Pools) -> None:
        self._spent = dict.fromkeys(Stage, 0.0)
        self._lock = threading.Lock()
        self._failed: ShardlabelError | None = None
        on_gpu = model.choice.provider is not Provider.CPU
        try:
            self._labeller = model.loader(len(settings.output.labels), pools)()
            watched = WatchedLabeller(
                self._labeller, settings.preprocessing.crop, pools.batch_size, settings.image_timeout_s
            )
            in_flight = GPU_IN_FLIGHT if on_gpu else 1
            self._batcher = Batcher(watched, pools.batch_size, in_flight, embedding=settings.embeddings)
        except ShardlabelError as err:
            # Raised to those who ask: Ray would wrap what a constructor raises in a page of its own.
            self._failed = err

    def ready(self) -> str:
        """Return the id of this node, once the session is loaded.

        Raises:
            ShardlabelError: It cannot be.
        """
        if self._failed is not None:
            raise self._failed
        return str(ray.get_runtime_context().get_node_id())

    def predict(self, pixels: UInt8Array, spent: dict[Stage, float]) -> tuple[Any, Any, Any, Any]:
        """Label a block; see `models.inference.classifier.Predictions` for the parts of the answer."""
        self.ready()
        with self._lock:
            for stage, seconds in spent.items():
                self._spent[stage] += seconds
        found = self._batcher.predict(pixels) if len(pixels) else self._labeller.predict(pixels)
        return found.label_ids, found.scores, None, found.embedding

    def report(self) -> Report:
        """Return how busy it has been."""
        self.ready()
        with self._lock:
            return Report(self._batcher.load(), dict(self._spent), tuple(getattr(self._labeller, "notes", ())))


@contextmanager
def model_pool(
    model: ModelRef, settings: UnitSettings, pools: Pools, say: Callable[[str], None]
) -> Iterator[list[Any]]:
    """Start the actors, keep watch over them, and end them.

    Yields:
        Their handles; they may still be starting.

    Raises:
        ShardlabelError: A real GPU's session cannot be loaded.
    """
    # Not `.options()`, which refuses concurrency groups.
    actor_class = ray.remote(
        num_cpus=pools.actor_cpus,
        num_gpus=pools.actor_gpus,
        max_concurrency=MAX_BLOCKS,
        concurrency_groups={WATCH_GROUP: 2},
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RETRIES,
        scheduling_strategy="SPREAD",
    )(ModelActor)
    actors = [actor_class.remote(model, settings, pools) for _ in range(pools.actors[1])]
    done = threading.Event()
    if pools.gpu_share:
        watch = Watch(actors, say, pools.decoders)
        threading.Thread(target=watch.run, args=(done,), name="gpu-watch", daemon=True).start()
    try:
        yield actors
    finally:
        done.set()
        for actor in actors:
            # Whatever went wrong with Ray is told by the run itself.
            with suppress(Exception):
                ray.kill(actor)


class Watch:
    """Says when GPUs are idle, and what they wait for."""

    def __init__(self, actors: list[Any], say: Callable[[str], None], decoders: int) -> None:
        self._actors = actors
        self._say = say
        self._decoders = decoders
        self._before: dict[int, Report] = {}
        self._said: set[str] = set()

    def run(self, done: threading.Event) -> None:
        """Look every few seconds until the run is over."""
        while not done.wait(WATCH_EVERY_S):
            asked = {
                actor.report.options(concurrency_group=WATCH_GROUP).remote(): place
                for place, actor in enumerate(self._actors)
            }
            try:
                come, _ = ray.wait(list(asked), num_returns=len(asked), timeout=WATCH_EVERY_S)
                reports = {}
                for reference in come:
                    reports[asked[reference]] = ray.get(reference)
            except (RayError, ShardlabelError):
                logger.debug("no report of an actor", exc_info=True)
                continue
            if done.is_set():
                return
            for text in self.judge(reports):
                self._say(text)

    def judge(self, reports: dict[int, Report]) -> Iterator[str]:
        """Compare reports with those before; yield what is worth saying, each kind of thing once."""
        spans = [(self._before[place], report) for place, report in reports.items() if place in self._before]
        self._before = reports
        for _, report in spans:
            for note in report.notes:
                yield from self._once(note, f"shardlabel: warning: {note}")
        # A restarted actor counts from 0 again.
        spans = [(a, b) for a, b in spans if b.load.at_s > a.load.at_s and b.load.images > a.load.images > 0]
        if not spans:
            return
        busy = sum(b.load.busy_s - a.load.busy_s for a, b in spans) / sum(b.load.at_s - a.load.at_s for a, b in spans)
        if busy >= BUSY_SHARE:
            return
        spent = {stage: sum(b.spent[stage] - a.spent[stage] for a, b in spans) for stage in Stage}
        total = sum(spent.values()) or 1.0
        most = max(spent, key=lambda stage: spent[stage])
        shares = ", ".join(f"{stage} {spent[stage] / total:.0%}" for stage in Stage)
        yield from self._once(
            most,
            f"shardlabel: warning: the GPUs are busy {busy:.0%} of the time, and wait for {most} "
            f"(of the {self._decoders} decoders' time: {shares}); {REMEDIES[most]}",
        )

    def _once(self, kind: str, text: str) -> Iterator[str]:
        if kind not in self._said:
            self._said.add(kind)
            yield text


REMEDIES = {
    Stage.READ: "faster storage, or more decoders to read at the same time, would keep them busy",
    Stage.DECODE: "more CPUs would keep them busy, or fewer GPUs would do",
    Stage.LABEL: "what is slow lies between them: the network, or the object store's memory",
    Stage.WRITE: "faster storage at the output would keep them busy",
}
