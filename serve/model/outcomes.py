"""What a model answers for an image, and which request it is for."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from models.errors import InputError
from models.inference.predictions import Float32Array, Int32Array

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


def set_request_id(text: str) -> None:
    """Note the id of the request that is answered from here on; in each request, before its images are labelled."""
    REQUEST_ID.set(text[:MAX_ID])
