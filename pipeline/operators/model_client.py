"""A decoder's side of the two-stage shape: pixels go to an actor that holds the model, labels come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from models.errors import ClusterError, ShardlabelError
from models.inference.classifier import Predictions
from pipeline.operators.stages import DecodedBatch
from pipeline.session.stage_clock import Stage, StageClock

# Blocks that a unit has on their way: one is decoded while another waits, and another is labelled.
IN_FLIGHT_BLOCKS = 2
# An actor that does not answer for so long is restarting, or its node is gone: the block goes to another.
PATIENCE_S = 120.0
MAX_SENDS = 4
# Of an actor's threads, those that label nothing: who asks how it goes must not wait behind blocks.
WATCH_GROUP = "watch"
# The longest that a session takes to load: TensorRT builds its engine first.
LOAD_S = 900.0
# So many more blocks are sent to an actor of this node before one of another is preferred: pixels are large.
LOCAL_ADVANTAGE = 2


@dataclass(slots=True)
class _Sent:
    """A block on its way: its pixels' place in the object store, to whom it went, and where the answer will be."""

    pixels: Any
    place: int
    answer: Any


class ModelClient:
    """Labels batches by actors elsewhere. Picklable before its first use; then one per process, for several threads.

    Args:
        actors: Handles of `pipeline.operators.model_pool.ModelActor`; some may still be starting.
        clock: Of this process; what it counted goes along with each block.
        decode_turn: Held while a unit is decoded, so that of several units in a process one is decoded at a time,
            and the others are written, or wait for labels.
    """

    def __init__(self, actors: Sequence[Any], clock: StageClock, decode_turn: AbstractContextManager[Any]) -> None:
        self._actors = list(actors)
        self._clock = clock
        self._decode_turn = decode_turn
        self._in_flight = [0] * len(self._actors)
        self._node = ray.get_runtime_context().get_node_id()
        self._nodes: dict[int, str] = {}
        self._starting = {
            actor.ready.options(concurrency_group=WATCH_GROUP).remote(): place
            for place, actor in enumerate(self._actors)
        }
        self._failed: ShardlabelError | None = None
        self._lock = threading.Lock()

    def label(self, batches: Iterator[DecodedBatch]) -> Iterator[tuple[DecodedBatch, Predictions]]:
        """Label batches, in order; a few are on their way while the next is decoded."""
        waiting: deque[tuple[DecodedBatch, _Sent]] = deque()
        for batch in self._in_turn(batches):
            # Without the pixels, also not a view of them: they are in the object store now.
            rows = DecodedBatch(batch.rows, np.empty((0, *batch.pixels.shape[1:]), np.uint8))
            waiting.append((rows, self._send(batch.pixels)))
            del batch
            if len(waiting) > IN_FLIGHT_BLOCKS and not self._has_come(waiting[0][1]):
                # Counted here alone: at its end a unit waits too, and another is decoded meanwhile.
                with self._clock.measured(Stage.LABEL):
                    ray.wait([waiting[0][1].answer], timeout=PATIENCE_S)
            while waiting and (len(waiting) > IN_FLIGHT_BLOCKS or self._has_come(waiting[0][1])):
                decoded, sent = waiting.popleft()
                yield decoded, self._receive(sent)
        for decoded, sent in waiting:
            yield decoded, self._receive(sent)

    def _in_turn(self, batches: Iterator[DecodedBatch]) -> Iterator[DecodedBatch]:
        with self._decode_turn:
            yield from batches

    def _send(self, pixels: Any) -> _Sent:  # noqa: ANN401 (an array, or where it lies)
        reference = ray.put(pixels)
        return self._send_to(self._choose(), reference)

    def _send_to(self, place: int, reference: Any) -> _Sent:  # noqa: ANN401 (untyped library)
        with self._lock:
            self._in_flight[place] += 1
        return _Sent(reference, place, self._actors[place].predict.remote(reference, self._clock.take()))

    def _has_come(self, sent: _Sent) -> bool:
        return bool(ray.wait([sent.answer], timeout=0)[0])

    def _receive(self, sent: _Sent) -> Predictions:
        """Wait for a block's labels; where its actor is lost, have another label it."""
        for attempt in range(MAX_SENDS):
            come, _ = ray.wait([sent.answer], timeout=PATIENCE_S)
            with self._lock:
                self._in_flight[sent.place] -= 1
            if come:
                try:
                    return Predictions(*_without_ray(sent.answer))
                except RayActorError:
                    pass
            if attempt + 1 < MAX_SENDS:
                sent = self._send_to(self._choose(avoid=sent.place), sent.pixels)
        raise ClusterError(
            f"{MAX_SENDS} tries to have a block of images labelled came to nothing: the actors that hold the model "
            "die or do not answer; run the same command again"
        )

    def _choose(self, avoid: int = -1) -> int:
        """Return the actor with the fewest blocks of this process, rather one of this node."""
        deadline = time.monotonic() + LOAD_S
        while not self._look(0 if self._nodes else 1.0):
            if time.monotonic() > deadline:
                raise ClusterError(f"no actor that holds the model came up in {LOAD_S:g} s; see Ray's logs")
        with self._lock:
            places = [place for place in self._nodes if place != avoid] or [avoid]
            return min(places, key=lambda place: self._in_flight[place] - LOCAL_ADVANTAGE * self._is_here(place))

    def _is_here(self, place: int) -> bool:
        return bool(self._nodes.get(place) == self._node)

    def _look(self, timeout_s: float) -> bool:
        """See which actors came up; tell whether any did.

        Raises:
            ShardlabelError: All that came to an end of their start failed.
        """
        with self._lock:
            starting = list(self._starting)
        come = ray.wait(starting, num_returns=1, timeout=timeout_s)[0] if starting else []
        for reference in come:
            with self._lock:
                place = self._starting.pop(reference, None)
            if place is None:
                continue
            try:
                node = _without_ray(reference)
                with self._lock:
                    self._nodes[place] = node
            except ShardlabelError as err:
                self._failed = err
            except RayActorError as err:
                self._failed = ClusterError(f"an actor that holds the model died as it started: {err}")
        if not self._nodes and not self._starting and self._failed is not None:
            raise self._failed
        return bool(self._nodes)


def _without_ray(reference: Any) -> Any:  # noqa: ANN401 (untyped library)
    """Return the value, or raise what was raised over there, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except RayTaskError as err:
        if isinstance(err.cause, ShardlabelError):
            raise err.cause from err
        raise
