"""One model, ready to answer: the bulk actors' own `Classifier` and `decode_image`, fed by the pulling batcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from models.catalog import load_labels
from models.decode.decode import DecodedImage, ImageLimits, decode_image
from models.decode.photographs import bundled_photographs
from models.errors import DeadlineError, InputError, NotReadyError
from models.graph.fp16 import load_graph
from models.inference.classifier import Classifier
from models.inference.predictions import Float32Array
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


class Wanted(NamedTuple):
    """What a request wants of its images; see `Engine.label`."""

    top_k: int
    probabilities: bool
    embedding: bool


@dataclass(eq=False)
class Engine:
    """One model: its session and its batcher. Takes seconds: a real inference runs on every batch shape that is used."""

    settled: Settled  # what to load, and what it runs on
    config: ServeConfig  # how images are decoded, and limits of one
    plan: Plan  # batch size and threads
    report: Callable[[Sequence[Item]], None] = lambda _: None  # see `Batcher`
    log: PredictionLog | None = None  # takes what is answered for images; closed with the engine
    drift: Drift | None = None  # how far its labels are from a baseline's
    statistics: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # counts of the protocol, by its name of the model

    def __post_init__(self) -> None:
        self.spec = spec = self.settled.spec
        self.calibration = self.settled.calibration
        self.precision = precision = self.settled.choice.precision
        self._provider = self.settled.choice.provider
        self.labels = load_labels(spec)  # by class index
        # The bytes of an image are bounded by its request's.
        self._limits = ImageLimits(self.config.max_pixels, self.config.max_request_bytes)
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        graph = load_graph(spec, precision, locate(spec, precision), temperature)
        self._classifier = Classifier(spec, precision=precision, provider=self._provider, top_k=1, graph=graph)
        check_classes(spec, self._classifier.num_classes)
        self._tensors: asyncio.Future[TensorModel] | None = None
        tune_malloc()
        delay_s = self.config.max_batch_delay_ms / 1000
        self._batcher = Batcher(self.decode, self.run, self.plan, delay_s, self.report)
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
        """Let a request in before its body is read; raise OverloadedError or NotReadyError if it cannot be taken."""
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
        """Label encoded images, in order, and show the outcomes to the log and to what measures drift.

        Args:
            images: Within the limits on number and bytes, which the caller checks.
            top_k: 1 <= top_k <= number of classes.
            deadline: `time.monotonic()` after which nobody waits for the answer.
            probabilities: Whether to give all classes' probabilities too.
            embedding: Whether to give the penultimate features too; the model's entry has to name them.

        Raises:
            OverloadedError, DeadlineError: See `Batcher.submit`.
        """
        most = top_k if self.log is None else max(top_k, self.log.top_k)
        wanted = Wanted(most, probabilities, embedding)
        items = [Item(data, deadline, wanted) for data in images]
        outcomes: list[Outcome] = await self._submit(items)
        if self.log is not None:
            self.log(items, outcomes)
        if self.drift is not None:
            self.drift(outcomes)
        return outcomes if most == top_k else [_cut(outcome, top_k) for outcome in outcomes]

    async def run_tensor(self, batch: Float32Array, *, deadline: float) -> Float32Array:
        """Run the model on its own input tensor, without our preprocessing or softmax; see `TensorModel.run`.

        Args:
            batch: As there, of any number of images.
            deadline: As for `label`.
        """
        (await self._have_tensors(deadline)).check(batch)
        return np.stack(await self._submit([Item(image, deadline) for image in batch]))

    async def _submit(self, items: Sequence[Item]) -> list[Any]:
        try:
            outcomes = await self._batcher.submit(items)
        finally:
            tracing.stages(items, self.spec.name)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, InputError):
                raise outcome
        return outcomes

    async def _have_tensors(self, deadline: float) -> TensorModel:
        """Build the session of the model's own tensors when it is first asked for: it takes the model's memory again.

        Requests that come meanwhile wait for it too. Where it cannot be built, the next request tries again.
        """
        if self._tensors is None or (self._tensors.done() and self._tensors.exception() is not None):
            self._tensors = asyncio.ensure_future(asyncio.to_thread(self._build_tensors))
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._tensors)
        except TimeoutError:
            raise DeadlineError(
                f"the deadline passed while {self.spec.name!r} was loaded for its own tensors"
            ) from None

    def _build_tensors(self) -> TensorModel:
        tensors = TensorModel(self.spec, precision=self.precision, provider=self._provider)
        for size in range(1, self.plan.batch_size + 1):
            tensors.run(np.zeros((size, *tensors.shape), np.float32))
        return tensors

    def decode(self, item: Item) -> DecodedImage | None:
        """Decode an image, in a thread of the batcher; a tensor is what it is."""
        if item.options is None:
            return None
        if self.log is not None:
            item.digest = sha256(item.payload).hexdigest()
        return decode_image(item.payload, self.spec.preprocessing, self.config.decode, self._limits)

    def run(self, items: Sequence[Item]) -> list[Any]:
        """Run one batch, in a thread of the batcher: its images, then its tensors."""
        images = [item for item in items if item.options is not None]
        tensors = [item for item in items if item.options is None]
        outcomes: dict[Item, Any] = dict(zip(images, self._label(images), strict=True)) if images else {}
        try:
            if tensors:
                assert self._tensors is not None, "`run_tensor` has built it"
                found = self._tensors.result().run(_stacked([item.payload for item in tensors]))
                outcomes |= zip(tensors, found, strict=True)
        except Exception as err:  # noqa: BLE001 (must not fail the images beside them)
            outcomes |= zip(tensors, repeat(err), strict=False)
        return [outcomes[item] for item in items]

    def _label(self, items: Sequence[Item]) -> list[Labelled]:
        wanted: list[Wanted] = [item.options for item in items]
        try:
            found = self._classifier.predict(
                _stacked([item.decoded.pixels for item in items]),
                top_k=max(each.top_k for each in wanted),
                probabilities=any(each.probabilities for each in wanted),
                embedding=any(each.embedding for each in wanted),
            )
        except Exception:
            self._failures += 1
            raise
        self._failures = 0
        accepted = None
        if self.calibration is not None:
            accepted = self.calibration.accepts(found.label_ids[:, 0], found.scores[:, 0]).tolist()
        optional = (repeat(None) if rows is None else rows for rows in (found.probabilities, found.embedding, accepted))
        rows: Any = zip(items, wanted, found.label_ids, found.scores, *optional, strict=False)
        return [
            Labelled(
                width=item.decoded.width,
                height=item.decoded.height,
                # Best first: the first k of a larger k are the k best.
                label_ids=ids[: want.top_k],
                scores=scores[: want.top_k],
                probabilities=probabilities if want.probabilities else None,
                # A copy: it must not keep those of the whole batch.
                embedding=embedding.copy() if want.embedding else None,
                accepted=is_accepted,
            )
            for item, want, ids, scores, probabilities, embedding, is_accepted in rows
        ]

    def _warm_up(self) -> None:
        """Decode and run, as requests will be: a model that cannot is never ready."""
        image = bundled_photographs(self.spec.preprocessing, self.config.decode)[:1]
        for size in range(1, self.plan.batch_size + 1):
            self._classifier.predict(image.repeat(size, axis=0), top_k=min(5, len(self.labels)))
        if self.spec.embedding is not None:
            self._classifier.predict(image, embedding=True)


def _stacked(images: list[Any]) -> Any:  # noqa: ANN401 (arrays)
    """Join images to a batch; one image is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


def _cut(outcome: Outcome, top_k: int) -> Outcome:
    """Leave the best few labels: of a larger k the first are the best."""
    if not isinstance(outcome, Labelled):
        return outcome
    return replace(outcome, label_ids=outcome.label_ids[:top_k], scores=outcome.scores[:top_k])
