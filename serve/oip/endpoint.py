"""The protocol itself, whatever it travels by: which models there are, what they are, and `infer`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from models.errors import ConfigError, UnknownModelError
from serve.config import ServeConfig
from serve.http.asgi import Rejected
from serve.model.backend import ModelControl
from serve.model.models import Models
from serve.model.observed import set_request_id
from serve.oip.answers import (
    IndexEntry,
    ModelConfig,
    ModelMetadata,
    ServerMetadata,
    Statistics,
    TensorDescription,
)
from serve.oip.faults import malformed
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
    """Each backend as two models: `M` takes images, `M-tensor` the model's own input.

    Args:
        models: What answers.
        limits: On each request.
        control: Loads and unloads models; None where callers may not.
    """

    def __init__(self, models: Models, limits: Limits, control: ModelControl | None = None) -> None:
        self.limits = limits
        self.admit = models.admit
        self._models = models
        self._control = control
        # By name, then by version.
        self._served: dict[str, dict[str, ServedModel]] = {}
        models.watch(self._serve)

    def _serve(self) -> None:
        served: dict[str, dict[str, ServedModel]] = {}
        limits = self.limits
        for backend in self._models:
            images = ServedImages(backend, max_images=limits.max_images, top_k=limits.top_k)
            for model in (images, ServedTensors(backend, max_images=limits.max_images)):
                served.setdefault(model.name, {})[backend.spec.version] = model
        self._served = served

    @property
    def is_ready(self) -> bool:
        """Tell whether a model is ready."""
        return self._models.is_ready

    def model(self, name: str, model_version: str | None = None) -> ServedModel:
        """Return a model.

        Args:
            name: As the caller wrote it.
            model_version: None or "" for the first there is.

        Raises:
            Rejected: There is no such model, or no such version of it.
        """
        versions = self._served.get(name)
        if versions is None:
            known = ", ".join(self._served) or "none"
            raise Rejected(404, f"no model {name[:60]!r} is served here; there are {known}")
        if not model_version:
            return next(iter(versions.values()))
        if model_version not in versions:
            have = ", ".join(map(repr, versions))
            raise Rejected(404, f"model {name!r} has version {have}, got {model_version[:60]!r}")
        return versions[model_version]

    def label_of(self, name: str) -> str | None:
        """Return how the metrics call the model of a request; None where there is none of this name."""
        versions = self._served.get(name)
        return None if versions is None else next(iter(versions.values())).backend.spec.name

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
        statistics = statistics_of(model.backend, model.name)
        try:
            check_ready(model)
            model.backend.admit(1)
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
        return list(self._served)

    def model_metadata(self, model: ServedModel) -> ModelMetadata:
        """Describe a model's tensors."""
        return {
            "name": model.name,
            "versions": list(self._served.get(model.name, ())),
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
                statistics_of(model.backend, name).as_dict(name, version)
                for name in names
                for version, model in self._served[name].items()
            ]
        }

    def repository_index(self, *, only_ready: bool) -> list[IndexEntry]:
        """List the models with their state, and those that were unloaded or could not be loaded."""
        entries: list[IndexEntry] = [
            {
                "name": name,
                "version": version,
                "state": "READY" if model.backend.is_ready else "UNAVAILABLE",
                "reason": "" if model.backend.is_ready else "not ready: starting, or failed and being built anew",
            }
            for name, versions in self._served.items()
            for version, model in versions.items()
        ]
        entries += [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason}
            for name, reason in self._models.unavailable.items()
        ]
        return [entry for entry in entries if entry["state"] == "READY" or not only_ready]

    async def load(self, name: str, parameters: object) -> None:
        """Load a model in every replica.

        Args:
            name: As the caller wrote it.
            parameters: Those of the request; none is taken.

        Raises:
            Rejected: Callers may not, there is no such model, or it cannot be loaded.
        """
        control = self._allowed()
        if parameters:
            raise malformed("a model's configuration and files cannot be replaced by a request")
        await _told(control.load(name))

    async def unload(self, name: str) -> None:
        """Unload a model in every replica; as `load`."""
        await _told(self._allowed().unload(name))

    def _allowed(self) -> ModelControl:
        if self._control is None:
            raise Rejected(
                503,
                "models are loaded and unloaded by request only with --model-control explicit",
                kind="no_model_control",
            )
        return self._control


async def _told(work: Awaitable[None]) -> None:
    """Await what a caller has asked for, and tell the caller what is wrong with it."""
    try:
        await work
    except UnknownModelError:
        raise
    except ConfigError as err:
        raise malformed(str(err)) from None


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
