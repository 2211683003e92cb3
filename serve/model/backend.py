"""What the protocols of the endpoint ask of the model behind them: the seam between request formats and batching."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace

from models.calibration import Calibration
from models.errors import InputError
from models.inference.predictions import Float32Array, Int32Array
from models.spec import ModelSpec, Precision

# Of the request that is answered: the header X-Request-Id, or the protocol's own id. "" without one.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
# Longer ones are cut: whoever sends them chooses what the log takes.
MAX_ID = 200


@dataclass(frozen=True, slots=True)
class Labelled:
    """The answer for one image.

    Attributes:
        width: Of the image as stored, pixels.
        height: Of the image as stored, pixels.
        label_ids: int32 of shape (k,), best first; equal scores keep the lower class index first.
        scores: float32 of shape (k,), probabilities after softmax.
        probabilities: float32 of shape (n_classes,), or None where it was not asked for.
        embedding: float32 of shape (features,), or None where it was not asked for.
        accepted: Whether the best label reaches the threshold of its class; None without a calibration.
    """

    width: int
    height: int
    label_ids: Int32Array
    scores: Float32Array
    probabilities: Float32Array | None = None
    embedding: Float32Array | None = None
    accepted: bool | None = None


# An image that cannot be labelled is a value, not an exception: of several images the others are still answered.
Outcome = Labelled | InputError


class Observer(ABC):
    """Looks at what a backend answers, whatever the protocol; not at what is answered for a model's own tensor."""

    @abstractmethod
    def __call__(self, images: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        """Take the images of a request and their outcomes; on the event loop, in microseconds, and without raising."""

    @abstractmethod
    def close(self) -> None:
        """Finish; may take seconds."""


class Backend(ABC):
    """One model, ready to answer. Calls are made on the event loop; decoding and inference run in threads.

    Attributes:
        spec: The model's entry.
        precision: Which artifact of it.
        labels: Name of each class, by class index.
        calibration: Of all scores and probabilities, and what accepts labels; None without one.
        observers: Who looks at what is answered; ended with the backend.
        observed_top_k: Labels that observers see at least, however few are asked for.
    """

    spec: ModelSpec
    precision: Precision
    labels: tuple[str, ...]
    calibration: Calibration | None
    observers: Sequence[Observer] = ()
    observed_top_k: int = 1

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether a real inference has passed on every batch shape that is used, and batches run and succeed."""

    @abstractmethod
    def admit(self, images: int) -> None:
        """Let a request in before its body is read.

        Raises:
            OverloadedError: So many images would not fit into the queue.
            NotReadyError: The model has failed, and is built anew.
        """

    async def label(
        self,
        images: Sequence[bytes],
        *,
        top_k: int,
        deadline: float,
        probabilities: bool = False,
        embedding: bool = False,
    ) -> list[Outcome]:
        """Label encoded images, and show observers the outcomes.

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
        most = max(top_k, min(self.observed_top_k, len(self.labels)))
        outcomes = await self._label(images, most, deadline, probabilities, embedding)
        for observe in self.observers:
            observe(images, outcomes)
        return outcomes if most == top_k else [_cut(outcome, top_k) for outcome in outcomes]

    @abstractmethod
    async def _label(
        self, images: Sequence[bytes], top_k: int, deadline: float, probabilities: bool, embedding: bool
    ) -> list[Outcome]:
        """Label encoded images; as `label`."""

    @abstractmethod
    async def run_tensor(self, batch: Float32Array, *, deadline: float) -> Float32Array:
        """Run the model on its own input tensor, without our preprocessing or softmax.

        Args:
            batch: float32 of the model's own input shape, batch axis first.
            deadline: As above.

        Returns:
            float32 of shape (n_images, n_classes), the model's own output.
        """

    def close(self) -> None:
        """End what answers, once nobody asks any more, and the observers; may take seconds."""
        for observer in self.observers:
            observer.close()


def set_request_id(text: str) -> None:
    """Note the id of the request that is answered from here on; in each request, before its images are labelled."""
    REQUEST_ID.set(text[:MAX_ID])


def _cut(outcome: Outcome, top_k: int) -> Outcome:
    """Leave the best few labels: of a larger k the first are the best."""
    if not isinstance(outcome, Labelled):
        return outcome
    return replace(outcome, label_ids=outcome.label_ids[:top_k], scores=outcome.scores[:top_k])
