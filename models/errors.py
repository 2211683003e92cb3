"""Every error that this project raises on purpose.

    ShardlabelError                    exit 1: failed; the same command can be run again
    ├── ConfigError                    exit 2: the caller's settings
    │   └── UnknownModelError          no such model in the catalog
    ├── SourceError                    exit 2: SOURCE or DEST cannot be used as it was given
    │   └── DestHeldError              another run writes to DEST
    ├── StorageError                   exit 1: storage failed for good, or for longer than the retries
    ├── ClusterError                   exit 1: Ray does not start, or went away
    ├── ModelError                     exit 1
    │   ├── DownloadError              no source had the file
    │   ├── ArtifactError              a model's file is missing, broken, or has another SHA-256
    │   ├── QuantizationError          a model loses more by quantising than is allowed
    │   ├── SignatureError             a model's inputs or outputs are not what its entry says
    │   └── ProviderUnavailableError   exit 2: ONNX Runtime cannot use what was asked for on this machine
    ├── InferenceError                 ONNX Runtime failed in the middle; its own error is the cause
    │   ├── DeviceMemoryError          the GPU has too little memory for a batch
    │   └── DeviceLostError            the GPU answers no more: this process must end, and another begin
    ├── RequestError                   one request: never an exit code, always a 4xx or 5xx (online)
    │   ├── OverloadedError            503: the queue is full
    │   ├── NotReadyError              503: the model has failed, or is not there yet
    │   └── DeadlineError              504: the deadline passed before the answer was there
    └── InputError                     one image: never an exit code, always a row (bulk) or a 4xx (online)
        ├── UndecodableImageError      status "undecodable"
        ├── ImageTooLargeError         status "too_large"
        ├── UnsupportedImageError      status "unsupported"
        └── EmptyImageError            status "empty"

A message says what, got, expected, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ShardlabelError(Exception):
    """Base of all. `exit_code` is what the command line exits with."""

    exit_code: ClassVar[int] = 1


class ConfigError(ShardlabelError):
    """The caller's settings cannot be used."""

    exit_code = 2


class UnknownModelError(ConfigError):
    """The catalog has no such model, or no such precision of it."""


class SourceError(ShardlabelError):
    """SOURCE or DEST is missing, empty, or not what it was said to be."""

    exit_code = 2


class DestHeldError(SourceError):
    """Another run writes to DEST. Says where it runs."""


class StorageError(ShardlabelError):
    """Storage answered with an error that retrying did not mend. Says the path and the reason."""


class ClusterError(ShardlabelError):
    """Ray does not start, or went away in the middle."""


class ModelError(ShardlabelError):
    """A model cannot be used."""


class DownloadError(ModelError):
    """No source of an artifact had it. Names each source tried, and the ways out."""


class ArtifactError(ModelError):
    """A model's file is missing, unreadable, or does not have the SHA-256 of its entry."""


class SignatureError(ModelError):
    """A model's inputs or outputs are not what its entry says."""


class QuantizationError(ModelError):
    """A quantised model loses more accuracy than is allowed; nothing was registered."""


class ProviderUnavailableError(ModelError):
    """The execution provider asked for cannot be used on this machine. Never replaced in silence."""

    exit_code = 2


class InferenceError(ShardlabelError):
    """ONNX Runtime failed on a batch; its own error is the cause."""


class DeviceMemoryError(InferenceError):
    """The GPU has too little memory for a batch, also after it was halved."""


class DeviceLostError(InferenceError):
    """The GPU failed in a way that its context in this process does not survive."""


class RequestError(ShardlabelError):
    """A request to the endpoint cannot be answered as asked."""


class OverloadedError(RequestError):
    """The queue is full.

    Args:
        message: For the caller.
        retry_after_s: When to try again, seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(RequestError):
    """The model cannot answer now: it has failed and is built anew, or its first inference has not passed."""


class DeadlineError(RequestError):
    """The deadline passed before the answer was there."""


class InputError(ShardlabelError):
    """One image cannot be labelled.

    Args:
        message: Short, without a traceback; it becomes the row's `error`.
        width: Of the image as stored, in pixels, where its header could be read.
        height: Of the image as stored, in pixels, where its header could be read.
    """

    status: ClassVar[str] = "undecodable"

    def __init__(self, message: str, *, width: int | None = None, height: int | None = None) -> None:
        super().__init__(message)
        self.width = width
        self.height = height


class UndecodableImageError(InputError):
    """Bytes that claim to be an image, and cannot be decoded whole."""


class ImageTooLargeError(InputError):
    """More bytes or pixels than the limits allow; found before anything is decoded."""

    status = "too_large"


class UnsupportedImageError(InputError):
    """Bytes that are no image of a format that is read here."""

    status = "unsupported"


class EmptyImageError(InputError):
    """No bytes at all."""

    status = "empty"
