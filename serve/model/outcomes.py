"""What a model answers for an image, and which request it is for."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from models.errors import InputError
from models.inference.predictions import Float32Array, Int32Array

# Of the request that is answered: the header X-Request-Id, or the protocol's own id. "" without one.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
MAX_ID = 200  # longer ones are cut: whoever sends them chooses what the log takes


@dataclass(frozen=True, slots=True)
class Labelled:
    """The answer for one image. Optional parts are None where they were not asked for."""

    width: int  # of the image as stored, pixels; as is the height
    height: int
    label_ids: Int32Array  # of shape (k,), best first; equal scores keep the lower class index first
    scores: Float32Array  # of shape (k,), probabilities after softmax
    probabilities: Float32Array | None = None  # of shape (n_classes,)
    embedding: Float32Array | None = None  # of shape (features,)
    accepted: bool | None = None  # whether the best label reaches its threshold; None without a calibration


# An image that cannot be labelled is a value, not an exception: of several images the others are still answered.
Outcome = Labelled | InputError


def set_request_id(text: str) -> None:
    """Note the id of the request that is answered from here on; in each request, before its images are labelled."""
    REQUEST_ID.set(text[:MAX_ID])
