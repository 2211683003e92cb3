"""A backend: the bulk actors' own `Classifier` and `decode_image`, fed by the pulling batcher."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from models.catalog import load_labels
from models.decode.decode import DecodedImage, ImageLimits, decode_image
from models.errors import DeadlineError, InputError, NotReadyError
from models.graph.fp16 import load_graph
from models.inference.classifier import Classifier
from models.inference.predictions import Float32Array, Predictions, UInt8Array
from models.inference.tensor_model import TensorModel
from models.labels import check_classes
from models.malloc import tune_malloc
from models.store.locate import locate
from serve import tracing
from serve.config import Plan, ServeConfig
from serve.model.batcher import Batcher, Item
from serve.model.drift import Drift
from serve.model.outcomes import Labelled, Outcome
from serve.model.prediction_log import PredictionLog
from serve.model.settled import Settled

# A batch that takes longer than any image should: the replica says it is not healthy, and is replaced.
STUCK_S = 60.0
# After so many failed batches in a row the session is taken to be broken for good, as after a CUDA error.
BROKEN_AFTER = 5


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request wants of its images."""

    top_k: int
    probabilities: bool
    embedding: bool


class Engine:
    """One model, ready to answer: its session and its batcher. Build one per process; takes seconds.

    Construction runs a real inference on every batch shape that is used. It blocks, so it belongs in a thread of its own
    when an event loop is running.

    Args:
        settled: What to load, and what it runs on.
        config: How images are decoded, and limits of one.
        plan: Batch size and threads.
        report: Called on the event loop with the items of each batch, and with those that were dropped.

    Attributes:
        spec: The model's entry.
        precision: Which artifact of it.
        labels: Name of each class, by class index.
        calibration: Of all scores and probabilities, and what accepts labels; None without one.
        log: Takes what is answered for images; closed with the engine. None without one.
        drift: How far its labels are from a baseline's; None without one.
    """

    log: PredictionLog | None = None
    drift: Drift | None = None

    def __init__(
        self,
        settled: Settled,
        config: ServeConfig,
        plan: Plan,
        report: Callable[[Sequence[Item]], None] = lambda _: None,
    ) -> None:
        self.settled = settled
        self.spec, self.calibration = settled.spec, settled.calibration
        self.precision = settled.choice.precision
        self.labels = load_labels(self.spec)
        self._mode = config.decode
        self._limits = config.image_limits()
        self._plan = plan
        self._provider = settled.choice.provider
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        graph = load_graph(self.spec, self.precision, locate(self.spec, self.precision), temperature)
        self._classifier = Classifier(
            self.spec, precision=self.precision, provider=self._provider, top_k=1, graph=graph
        )
        check_classes(self.spec, self._classifier.num_classes)
        self._tensors: asyncio.Future[TensorModel] | None = None
        tune_malloc()
        delay_s = config.max_batch_delay_ms / 1000
        self._batcher = Batcher(self.decode, self.run, plan, delay_s=delay_s, report=report)
        self._failures = 0
        self._warm_up()

    @property
    def is_ready(self) -> bool:
        """Tell whether a real inference has passed on every batch shape that is used, and batches run and succeed."""
        return self.fault() is None

    @property
    def queued(self) -> int:
        """Images that wait."""
        return self._batcher.queued

    def close(self) -> None:
        """End the threads, once nobody asks any more, and the log; may take seconds."""
        self._batcher.close()
        if self.log is not None:
            self.log.close()

    def admit(self, images: int) -> None:
        """Let a request in before its body is read.

        Raises:
            OverloadedError: So many images would not fit into the queue.
            NotReadyError: The model has failed, and is rebuilt.
        """
        if (fault := self.fault()) is not None:
            raise NotReadyError(f"model {self.spec.name!r} has failed and is being rebuilt: {fault}")
        self._batcher.admit(images)

    def fault(self) -> str | None:
        """Return why this engine should be replaced; None while it is healthy."""
        if self._failures >= BROKEN_AFTER:
            return f"the last {self._failures} batches failed"
        stuck = self._batcher.stuck_s()
        return f"a thread has been at one batch for {stuck:.0f} s" if stuck > STUCK_S else None

    async def label(
        self,
        images: Sequence[bytes],
        *,
        top_k: int,
        deadline: float,
        probabilities: bool = False,
        embedding: bool = False,
    ) -> list[Outcome]:
        """Label encoded images, and show the outcomes to the log and to what measures drift.

        Args:
            images: Each one encoded image; within the limits on number and bytes, which the caller checks.
            top_k: 1 <= top_k <= number of classes.
            deadline: `time.monotonic()` after which nobody waits for the answer.
            probabilities: Whether to give all classes' probabilities too.
            embedding: Whether to give the penultimate features too; the model's entry has to name them.

        Returns:
            One outcome per image, in order.

        Raises:
            OverloadedError: The queue is full; nothing was begun.
            DeadlineError: The deadline passed first.
        """
        most = top_k if self.log is None else max(top_k, self.log.top_k)
        wanted = _Wanted(most, probabilities, embedding)
        outcomes = await self._submit([Item(data, 1, deadline, wanted) for data in images])
        if self.log is not None:
            self.log(images, outcomes)
        if self.drift is not None:
            self.drift(outcomes)
        return outcomes if most == top_k else [_cut(outcome, top_k) for outcome in outcomes]

    async def run_tensor(self, batch: Float32Array, *, deadline: float) -> Float32Array:
        """Run the model on its own input tensor, without our preprocessing or softmax.

        Args:
            batch: float32 of the model's own input shape, batch axis first.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Returns:
            float32 of shape (n_images, n_classes), the model's own output.
        """
        await self._have_tensors(deadline)
        size = self._plan.batch_size
        pieces = [batch[i : i + size] for i in range(0, max(1, len(batch)), size)]
        return np.concatenate(await self._submit([Item(piece, len(piece), deadline) for piece in pieces]))

    async def _submit(self, items: Sequence[Item]) -> list[Any]:
        try:
            outcomes = await self._batcher.submit(items)
        finally:
            tracing.stages(items, self.spec.name)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, InputError):
                raise outcome
        return outcomes

    async def _have_tensors(self, deadline: float) -> None:
        """Build the session of the model's own tensors when it is first asked for: it takes the model's memory again.

        Requests that come meanwhile wait for it too. Where it cannot be built, the next request tries again.
        """
        if self._tensors is None or (self._tensors.done() and self._tensors.exception() is not None):
            self._tensors = asyncio.ensure_future(asyncio.to_thread(self._build_tensors))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._tensors)
        except TimeoutError:
            raise DeadlineError(
                f"the deadline passed while {self.spec.name!r} was loaded for its own tensors"
            ) from None

    def _build_tensors(self) -> TensorModel:
        tensors = TensorModel(self.spec, precision=self.precision, provider=self._provider)
        for size in range(1, self._plan.batch_size + 1):
            tensors.run(np.zeros((size, *tensors.shape), np.float32))
        return tensors

    def decode(self, item: Item) -> None:
        """Decode one image, in a thread of the batcher."""
        if item.options is None:
            return
        try:
            item.decoded = decode_image(item.payload, self.spec.preprocessing, self._mode, self._limits)
        except InputError as err:
            # Its traceback has this frame, and this has the item, for the collector to find.
            item.decoded = err.with_traceback(None)
        except Exception as err:  # noqa: BLE001 (a fault of ours must not take the batch with it; `label` raises it)
            item.decoded = err

    def run(self, items: Sequence[Item]) -> list[Outcome | Float32Array | Exception]:
        """Run one batch, in a thread of the batcher."""
        outcomes: list[Outcome | Float32Array | Exception] = [item.decoded for item in items]
        images = [i for i, item in enumerate(items) if isinstance(item.decoded, DecodedImage)]
        if images:
            wanted = [items[i].options for i in images]
            try:
                predictions = self._classifier.predict(
                    _stacked([items[i].decoded.pixels for i in images]),
                    top_k=max(w.top_k for w in wanted),
                    probabilities=any(w.probabilities for w in wanted),
                    embedding=any(w.embedding for w in wanted),
                )
            except Exception:
                self._failures += 1
                raise
            self._failures = 0
            accepted: Sequence[bool | None] = [None] * len(images)
            if self.calibration is not None:
                accepted = self.calibration.accepts(predictions.label_ids[:, 0], predictions.scores[:, 0]).tolist()
            for row, i in enumerate(images):
                outcomes[i] = _labelled(items[i], predictions, row, accepted[row])
        for i, item in enumerate(items):
            if item.options is None:
                try:
                    assert self._tensors is not None, "`run_tensor` has built it"
                    outcomes[i] = self._tensors.result().run(item.payload)
                except Exception as err:  # noqa: BLE001 (a tensor of the wrong shape must not fail the images beside it)
                    outcomes[i] = err
        return outcomes

    def _warm_up(self) -> None:
        """Decode and run, as requests will be: a model that cannot is never ready."""
        side = self.spec.preprocessing.crop
        buffer = io.BytesIO()
        Image.new("RGB", (2 * side, 2 * side), (90, 120, 150)).save(buffer, "JPEG")
        image = decode_image(buffer.getvalue(), self.spec.preprocessing, self._mode, ImageLimits())
        for size in range(1, self._plan.batch_size + 1):
            self._classifier.predict(_stacked([image.pixels] * size), top_k=min(5, len(self.labels)))
        if self.spec.embedding is not None:
            self._classifier.predict(_stacked([image.pixels]), embedding=True)


def _stacked(pixels: list[UInt8Array]) -> UInt8Array:
    """Join images of shape (crop, crop, 3) to a batch; one image is not copied."""
    return pixels[0][np.newaxis] if len(pixels) == 1 else np.stack(pixels)


def _labelled(item: Item, predictions: Predictions, row: int, accepted: bool | None) -> Labelled:
    wanted, probabilities, embeddings = item.options, predictions.probabilities, predictions.embedding
    return Labelled(
        width=item.decoded.width,
        height=item.decoded.height,
        # Best first: the first k of a larger k are the k best.
        label_ids=predictions.label_ids[row, : wanted.top_k],
        scores=predictions.scores[row, : wanted.top_k],
        probabilities=probabilities[row] if wanted.probabilities and probabilities is not None else None,
        # A copy: it must not keep those of the whole batch.
        embedding=embeddings[row].copy() if wanted.embedding and embeddings is not None else None,
        accepted=accepted,
    )


def _cut(outcome: Outcome, top_k: int) -> Outcome:
    """Leave the best few labels: of a larger k the first are the best."""
    if not isinstance(outcome, Labelled):
        return outcome
    return replace(outcome, label_ids=outcome.label_ids[:top_k], scores=outcome.scores[:top_k])
