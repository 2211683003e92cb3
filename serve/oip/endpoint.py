"""The protocol itself, whatever it travels by: which models there are, what they are, and `infer`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import WeakKeyDictionary

from models.errors import ConfigError, UnknownModelError
from serve.config import ServeConfig
from serve.http.asgi import Rejected, not_ready
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import set_request_id
from serve.model.repository import Repository
from serve.oip.request import BYTES, InferRequest, malformed
from serve.oip.response import InferResponse
from serve.oip.served import ServedImages, ServedModel, ServedTensors

Json = dict[str, Any]

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "statistics",
    "schedule_policy",
    "parameters",
]
# The name that clients know a model run by ONNX Runtime by.
PLATFORM = "onnxruntime_onnx"


@dataclass(slots=True)
class _Counts:
    """What one replica has answered for one model since it started: times in ns; the last answer in ms since 1970."""

    images: int = 0
    succeeded: int = 0
    succeeded_ns: int = 0
    failed: int = 0
    failed_ns: int = 0
    last_ms: int = 0

    def as_dict(self, name: str, model_version: str) -> Json:
        """Return the protocol's form. Stages that are not timed per request are counted zero times, not guessed."""
        untimed = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
        return {
            "name": name,
            "version": model_version,
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": self.succeeded,
            "inference_stats": {
                "success": {"count": self.succeeded, "ns": self.succeeded_ns},
                "fail": {"count": self.failed, "ns": self.failed_ns},
                **{stage: {"count": 0, "ns": 0} for stage in untimed},
            },
            "batch_stats": [],
        }


# Of each backend's models, by name: HTTP and gRPC, which have an endpoint each, count together.
_counts: WeakKeyDictionary[Engine, dict[str, _Counts]] = WeakKeyDictionary()


def _counts_of(model: ServedModel) -> _Counts:
    return _counts.setdefault(model.backend, {}).setdefault(model.name, _Counts())


class Endpoint:
    """Each backend as two models: `M` takes images, `M-tensor` the model's own input.

    Args:
        models: What answers.
        config: Limits on each request, and labels per image where it does not say.
        control: Loads and unloads models; None where callers may not.
    """

    def __init__(self, models: Models, config: ServeConfig, control: Repository | None = None) -> None:
        self.config = config
        self.models = models
        self._control = control
        # By name; of several versions first that which is meant where none is named.
        self._served: dict[str, list[ServedModel]] = {}
        models.watch(self._serve)

    def _serve(self) -> None:
        served: dict[str, list[ServedModel]] = {}
        most = self.config.max_images
        for backend in self.models:
            images = ServedImages(backend, max_images=most, top_k=self.config.top_k)
            for model in (images, ServedTensors(backend, max_images=most)):
                served.setdefault(model.name, []).append(model)
        self._served = served

    @property
    def max_values(self) -> int:
        """Return how many values a request may have as JSON or as typed contents: as many as its bytes make floats.

        One of float32 has 20 bytes in JSON, comma included, and 100 as a Python object; who has more sends them binary.
        """
        return max(self.config.max_request_bytes // 20, 64 * self.config.max_images)

    def model(self, name: str, model_version: str | None = None) -> ServedModel:
        """Return a model.

        Args:
            name: As the caller wrote it.
            model_version: None or "" for the first there is.

        Raises:
            UnknownModelError: There is no such model, or no such version of it.
        """
        for model in self._served.get(name, ()):
            if not model_version or model_version == model.version:
                return model
        raise self.models.unknown(name.removesuffix("-tensor"), model_version)

    def label_of(self, name: str) -> str | None:
        """Return how the metrics call the model of a request; None where there is none of this name."""
        return next((model.backend.spec.name for model in self._served.get(name, ())), None)

    def check_ready(self, model: ServedModel) -> None:
        """Check that a model is ready.

        Raises:
            Rejected: 503, its first inference has not passed yet.
        """
        if not model.backend.is_ready:
            raise not_ready(f"model {model.name!r} is not ready yet")

    async def infer(
        self, model: ServedModel, read: Callable[[], Awaitable[InferRequest]], *, started: float, deadline: float
    ) -> InferResponse:
        """Answer a request.

        Args:
            model: Of `model`.
            read: Parses the request; called in here, so that one that cannot be read is counted too.
            started: `time.monotonic()` at its arrival.
            deadline: `time.monotonic()` after which nobody waits; the request itself may ask for an earlier one.

        Raises:
            Rejected, OverloadedError, DeadlineError: As `ServedModel.infer` raises them; also where the model is not
                ready.
        """
        counts = _counts_of(model)
        try:
            self.check_ready(model)
            model.backend.admit(1)
            request = await read()
            if request.id:
                set_request_id(request.id)
            if request.parameters.timeout:
                deadline = min(deadline, started + request.parameters.timeout / 1e6)
            outputs = await model.infer(request, deadline=deadline)
        except BaseException:
            counts.failed += 1
            counts.failed_ns += int((time.monotonic() - started) * 1e9)
            raise
        counts.succeeded += 1
        counts.succeeded_ns += int((time.monotonic() - started) * 1e9)
        counts.images += outputs[0].shape[0]
        counts.last_ms = time.time_ns() // 1_000_000
        return InferResponse(model.name, model.version, outputs, request.id)

    def server_metadata(self) -> Json:
        """Describe the server."""
        return {"name": "shardlabel", "version": package_version(), "extensions": EXTENSIONS}

    def model_names(self) -> list[str]:
        """Return the names of all models."""
        return list(self._served)

    def model_metadata(self, model: ServedModel) -> Json:
        """Describe a model's tensors."""
        return {
            "name": model.name,
            "versions": [each.version for each in self._served.get(model.name, ())],
            "platform": PLATFORM,
            "inputs": [model.input._asdict()],
            "outputs": [output._asdict() for output in model.outputs],
        }

    def model_config(self, model: ServedModel) -> Json:
        """Describe a model as a model configuration does, as far as clients read it."""
        return {
            "name": model.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.config.max_images,
            "input": [{"name": model.input.name, "data_type": _config_type(model.input.datatype), **model.layout}],
            "output": [
                {"name": t.name, "data_type": _config_type(t.datatype), "dims": t.shape[1:] or [1]}
                for t in model.outputs
            ],
            "parameters": {name: {"string_value": value} for name, value in model.parameters.items()},
        }

    def statistics(self, names: Sequence[str]) -> Json:
        """Return the counts of these models, as this replica knows them."""
        served = [model for name in names for model in self._served[name]]
        return {"model_stats": [_counts_of(model).as_dict(model.name, model.version) for model in served]}

    def repository_index(self, *, only_ready: bool) -> list[Json]:
        """List the models with their state, and those that were unloaded or could not be loaded."""
        broken = "not ready: starting, or failed and being built anew"
        states = [
            (model.name, model.version, "" if model.backend.is_ready else broken)
            for versions in self._served.values()
            for model in versions
        ]
        states += [(name, "", why) for name, why in self.models.unavailable.items()]
        return [
            {"name": name, "version": model_version, "state": "UNAVAILABLE" if why else "READY", "reason": why}
            for name, model_version, why in states
            if not (why and only_ready)
        ]

    async def load(self, name: str, parameters: object) -> None:
        """Load a model in every replica.

        Args:
            name: As the caller wrote it.
            parameters: Those of the request; none is taken.

        Raises:
            UnknownModelError: There is no such model.
            Rejected: Callers may not, or it cannot be loaded.
        """
        await self._change("load", name, parameters)

    async def unload(self, name: str) -> None:
        """Unload a model in every replica; as `load`."""
        await self._change("unload", name)

    async def _change(self, what: str, name: str, parameters: object = None) -> None:
        if self._control is None:
            text = "models are loaded and unloaded by request only with --model-control explicit"
            raise Rejected(503, text, kind="no_model_control")
        if parameters:
            raise malformed("a model's configuration and files cannot be replaced by a request")
        try:
            await getattr(self._control, what)(name)
        except UnknownModelError:
            raise
        except ConfigError as err:
            raise malformed(str(err)) from None


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"


def package_version() -> str:
    """Return the version of the installed package; "unknown" where it runs from its folder."""
    try:
        return version("shardlabel")
    except PackageNotFoundError:
        return "unknown"
