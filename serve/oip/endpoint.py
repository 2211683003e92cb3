"""The protocol itself, whatever it travels by: which models there are, what they are, and `infer`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from serve.config import ServeConfig
from serve.http.asgi import Rejected
from serve.model.backend import Backend
from serve.model.observed import set_request_id
from serve.oip.answers import (
    IndexEntry,
    ModelConfig,
    ModelMetadata,
    ServerMetadata,
    Statistics,
    TensorDescription,
)
from serve.oip.request import InferRequest
from serve.oip.response import InferResponse
from serve.oip.served import ServedModel, TensorMetadata, check_ready
from serve.oip.served_images import ServedImages
from serve.oip.served_tensors import ServedTensors
from serve.oip.statistics import statistics_of

SERVER_NAME = "shardlabel"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "statistics",
    "schedule_policy",
    "parameters",
)
# The name that clients know a model run by ONNX Runtime by.
PLATFORM = "onnxruntime_onnx"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_request_bytes: Of a body, as sent and unpacked.
        max_images: Per request.
        deadline_s: Longest time from a request's arrival to its answer; a request may ask for a shorter one.
        top_k: Labels per image where a request does not say.
    """

    max_request_bytes: int = 20 * 1024 * 1024
    max_images: int = 64
    deadline_s: float = 10.0
    top_k: int = 5

    @property
    def max_values(self) -> int:
        """Return how many values a request may have as JSON or as typed contents: as many as its bytes make floats.

        One of float32 has 20 bytes in JSON, comma included, and 100 as a Python object; who has more sends them binary.
        """
        return max(self.max_request_bytes // 20, 64 * self.max_images)

    @classmethod
    def of(cls, config: ServeConfig) -> Limits:
        """Take them from the endpoint's configuration."""
        return cls(config.max_request_bytes, config.max_images, config.deadline_s, config.top_k)


class Endpoint:
    """A backend as two models: `M` takes images, `M-tensor` the model's own input.

    Args:
        backend: What answers.
        limits: On each request.
    """

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.limits = limits
        self._backend = backend
        images = ServedImages(backend, max_images=limits.max_images, top_k=limits.top_k)
        tensors = ServedTensors(backend, max_images=limits.max_images)
        self._models: dict[str, ServedModel] = {images.name: images, tensors.name: tensors}
        self._statistics = {name: statistics_of(backend, name) for name in self._models}

    @property
    def is_ready(self) -> bool:
        """Tell whether the models are ready."""
        return self._backend.is_ready

    def model(self, name: str, model_version: str | None = None) -> ServedModel:
        """Return a model.

        Args:
            name: As the caller wrote it.
            model_version: None or "" for whichever there is.

        Raises:
            Rejected: There is no such model, or no such version of it.
        """
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models)
            raise Rejected(404, f"no model {name[:60]!r} is served here; there are {known}")
        have = model.backend.spec.version
        if model_version and model_version != have:
            raise Rejected(404, f"model {name!r} has version {have!r}, got {model_version[:60]!r}")
        return model

    async def infer(
        self,
        model: ServedModel,
        read: Callable[[], Awaitable[InferRequest]],
        *,
        started: float,
        deadline: float,
    ) -> InferResponse:
        """Answer a request.

        Args:
            model: Of `model`.
            read: Parses the request; called in here, so that one that cannot be read is counted too.
            started: `time.monotonic()` at its arrival.
            deadline: `time.monotonic()` after which nobody waits; the request itself may ask for an earlier one.

        Raises:
            Rejected, InputError, OverloadedError, DeadlineError: As `ServedModel.infer` raises them; also where the
                model is not ready.
        """
        statistics = self._statistics[model.name]
        try:
            check_ready(model)
            request = await read()
            if request.id:
                set_request_id(request.id)
            if request.timeout_s is not None:
                deadline = min(deadline, started + request.timeout_s)
            outputs = await model.infer(request, deadline=deadline)
        except BaseException:
            statistics.failed(_ns_since(started))
            raise
        statistics.succeeded(outputs[0].shape[0], _ns_since(started))
        return InferResponse(model.name, model.backend.spec.version, outputs, request.id)

    def server_metadata(self) -> ServerMetadata:
        """Describe the server."""
        return {"name": SERVER_NAME, "version": package_version(), "extensions": list(EXTENSIONS)}

    def model_names(self) -> list[str]:
        """Return the names of all models."""
        return list(self._models)

    def model_metadata(self, model: ServedModel) -> ModelMetadata:
        """Describe a model's tensors."""
        return {
            "name": model.name,
            "versions": [model.backend.spec.version],
            "platform": PLATFORM,
            "inputs": [_tensor(tensor) for tensor in model.inputs],
            "outputs": [_tensor(tensor) for tensor in model.outputs],
        }

    def model_config(self, model: ServedModel) -> ModelConfig:
        """Describe a model as a model configuration does, as far as clients read it."""
        return {
            "name": model.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.limits.max_images,
            "input": [
                {"name": tensor.name, "data_type": _config_type(tensor.datatype), **model.config()}
                for tensor in model.inputs
            ],
            "output": [
                {"name": t.name, "data_type": _config_type(t.datatype), "dims": list(t.shape[1:]) or [1]}
                for t in model.outputs
            ],
            "parameters": {name: {"string_value": value} for name, value in model.parameters.items()},
        }

    def statistics(self, names: Sequence[str]) -> Statistics:
        """Return the counts of these models, as this replica knows them."""
        return {
            "model_stats": [
                self._statistics[name].as_dict(name, self._models[name].backend.spec.version) for name in names
            ]
        }

    def repository_index(self, *, only_ready: bool) -> list[IndexEntry]:
        """List the models with their state."""
        return [
            {
                "name": model.name,
                "version": self._backend.spec.version,
                "state": "READY" if self.is_ready else "UNAVAILABLE",
                "reason": "" if self.is_ready else "the first inference has not passed yet",
            }
            for model in self._models.values()
            if self.is_ready or not only_ready
        ]


def _ns_since(started: float) -> int:
    return int((time.monotonic() - started) * 1e9)


def _tensor(tensor: TensorMetadata) -> TensorDescription:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def package_version() -> str:
    """Return the version of the installed package; "unknown" where it runs from its folder."""
    try:
        return version("shardlabel")
    except PackageNotFoundError:
        return "unknown"
