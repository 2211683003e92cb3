"""Every error that this project raises on purpose.

    ShardlabelError                    exit 1: failed; run the same command again
    ├── ConfigError                    exit 2: the caller's settings
    │   └── UnknownModelError          no such model in the catalog
    ├── SourceError                    exit 2: SOURCE or DEST cannot be used as it was given
    │   └── DestHeldError              another run writes to DEST
    ├── StorageError                   exit 1: storage failed for good, or for longer than the retries
    ├── ClusterError                   exit 1: Ray did not start, or the connection to it was lost
    ├── ModelError                     exit 1
    │   ├── DownloadError              no source had the file
    │   ├── ArtifactError              a model's file is missing, broken, or has another SHA-256
    │   ├── QuantizationError          quantising costs a model more accuracy than is allowed
    │   ├── SignatureError             a model's inputs or outputs are not what its entry says
    │   └── ProviderUnavailableError   exit 2: ONNX Runtime cannot use this provider on this machine
    ├── InferenceError                 ONNX Runtime failed on a batch; its own error is the cause
    │   ├── DeviceMemoryError          the GPU has too little memory for a batch
    │   └── DeviceLostError            the GPU failed: this process must be replaced
    ├── RequestError                   one request: never an exit code, always a 4xx or 5xx (online)
    │   ├── OverloadedError            503: the queue is full
    │   ├── NotReadyError              503: the model has failed, or is still loading
    │   └── DeadlineError              504: the deadline passed before the answer was ready
    └── InputError                     one image: never an exit code, always a row (bulk) or a 4xx (online)
        ├── UndecodableImageError      status "undecodable"
        ├── ImageTooLargeError         status "too_large"
        ├── UnsupportedImageError      status "unsupported"
        └── EmptyImageError            status "empty"

A message says what happened, what was got and expected, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ShardlabelError(Exception):
    """Base class of the project's errors. `exit_code` is the exit code of the command line."""

    exit_code: ClassVar[int] = 1


class ConfigError(ShardlabelError):
    """The caller's settings cannot be used."""

    exit_code = 2


class UnknownModelError(ConfigError):
    """The catalog has no such model, or no such precision of it."""


class SourceError(ShardlabelError):
    """SOURCE or DEST is missing, empty, or not of the kind that the options say."""

    exit_code = 2


class DestHeldError(SourceError):
    """Another run writes to DEST. The message says where it runs."""


class StorageError(ShardlabelError):
    """A storage operation failed, also after retries. The message names the path and the reason."""


class ClusterError(ShardlabelError):
    """Ray did not start, or the connection to it was lost."""


class ModelError(ShardlabelError):
    """A model cannot be used."""


class DownloadError(ModelError):
    """No source had the artifact. The message names each source tried, and the ways out."""


class ArtifactError(ModelError):
    """A model's file is missing, unreadable, or does not have the SHA-256 of its entry."""


class SignatureError(ModelError):
    """A model's inputs or outputs are not what its entry says."""


class QuantizationError(ModelError):
    """Quantising costs a model more accuracy than is allowed; nothing was registered."""


class ProviderUnavailableError(ModelError):
    """The execution provider asked for cannot be used on this machine. No other is used instead."""

    exit_code = 2


class InferenceError(ShardlabelError):
    """ONNX Runtime failed on a batch; its own error is the cause."""


class DeviceMemoryError(InferenceError):
    """The GPU has too little memory for a batch, even after the batch was halved."""


class DeviceLostError(InferenceError):
    """The GPU failed, and its context in this process cannot be used any more."""


class RequestError(ShardlabelError):
    """A request to the endpoint cannot be answered as asked."""


class OverloadedError(RequestError):
    """The queue is full.

    Args:
        message: For the caller.
        retry_after_s: Seconds to wait before a retry.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(RequestError):
    """The model cannot answer now: it failed and is being rebuilt, or its first inference has not passed yet."""


class DeadlineError(RequestError):
    """The deadline passed before the answer was ready."""


class InputError(ShardlabelError):
    """One image cannot be labelled.

    Args:
        message: Short, without a traceback; it becomes the row's `error`.
        width: Width of the image as stored, pixels; None if its header could not be read.
        height: Height of the image as stored, pixels; None if its header could not be read.
    """

    status: ClassVar[str] = "undecodable"

    def __init__(self, message: str, *, width: int | None = None, height: int | None = None) -> None:
        super().__init__(message)
        self.width = width
        self.height = height


class UndecodableImageError(InputError):
    """The bytes are not an image of a known format, or cannot be decoded completely."""


class ImageTooLargeError(InputError):
    """The image has more bytes or pixels than the limits allow; detected before anything is decoded."""

    status = "too_large"


class UnsupportedImageError(InputError):
    """The image has a known format, or a kind of samples, that this project does not read."""

    status = "unsupported"


class EmptyImageError(InputError):
    """The image has no bytes."""

    status = "empty"
