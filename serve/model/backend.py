"""What the protocols of the endpoint ask of the model behind them: the seam between request formats and batching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.calibration import Calibration
from models.errors import InputError
from models.inference.predictions import Float32Array, Int32Array
from models.spec import ModelSpec, Precision


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


class ModelControl(Protocol):
    """Changes which models are there, in every replica."""

    async def load(self, name: str) -> None:
        """Load a model, or load it anew where its entry is another than the one that is loaded.

        Raises:
            UnknownModelError: The catalog has none of this name.
            ConfigError: It cannot be loaded; the message says why. What was there stays.
        """

    async def unload(self, name: str) -> None:
        """Unload a model; the requests that it has are finished.

        Raises:
            UnknownModelError: It is not loaded.
        """


class Backend(Protocol):
    """One model, ready to answer. Calls are made on the event loop; decoding and inference run in threads.

    Attributes:
        spec: The model's entry.
        precision: Which artifact of it.
        labels: Name of each class, by class index.
        calibration: Of all scores and probabilities, and what accepts labels; None without one.
    """

    spec: ModelSpec
    precision: Precision
    labels: tuple[str, ...]
    calibration: Calibration | None

    @property
    def is_ready(self) -> bool:
        """Tell whether a real inference has passed on every batch shape that is used."""

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
        """Label encoded images.

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

    async def run_tensor(self, batch: Float32Array, *, deadline: float) -> Float32Array:
        """Run the model on its own input tensor, without our preprocessing or softmax.

        Args:
            batch: float32 of the model's own input shape, batch axis first.
            deadline: As above.

        Returns:
            float32 of shape (n_images, n_classes), the model's own output.
        """

    def close(self) -> None:
        """End what answers, once nobody asks any more; may take seconds."""
