"""The protocol, over HTTP or gRPC: the models, what they are, and `infer`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal
from weakref import WeakKeyDictionary

from models.errors import ConfigError, NotReadyError, UnknownModelError
from pipeline.dest.made_by import versions
from serve.config import ServeConfig
from serve.http.asgi import Rejected
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import set_request_id
from serve.model.repository import Repository
from serve.oip.request import BYTES, InferRequest, malformed
from serve.oip.response import InferResponse
from serve.oip.served import ServedImages, ServedModel, ServedTensors

Json = dict[str, Any]

# Unknown where the package runs from its folder.
VERSION = versions(["shardlabel"]).get("shardlabel", "unknown")

EXTENSIONS = [
    *("binary_tensor_data", "classification", "model_configuration"),
    *("statistics", "schedule_policy", "parameters"),
]
# The name that clients know a model run by ONNX Runtime by.
PLATFORM = "onnxruntime_onnx"


# Of each backend's models, by name: HTTP and gRPC, which have an endpoint each, count together.
_statistics: WeakKeyDictionary[Engine, dict[str, Json]] = WeakKeyDictionary()


def _statistics_of(model: ServedModel) -> Json:
    """Return the counts of a model since this replica started, for `infer` to add to.

    They are in the protocol's form. Stages that are not timed per request have zero counts: nothing is guessed.
    """
    stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    known = _statistics.setdefault(model.backend, {})
    if model.name in known:
        return known[model.name]
    known[model.name] = {
        "name": model.name,
        "version": model.version,
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": {stage: {"count": 0, "ns": 0} for stage in stages},
        "batch_stats": [],
    }
    return known[model.name]


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
        # By name; of several versions, the default one first.
        self._served: dict[str, list[ServedModel]] = {}
        models.watch(self._serve)

    def _serve(self) -> None:
        served: dict[str, list[ServedModel]] = {}
        for backend in self.models:
            for model in (ServedImages(backend, self.config), ServedTensors(backend, self.config)):
                served.setdefault(model.name, []).append(model)
        self._served = served

    @property
    def max_values(self) -> int:
        """Return the limit on values in a request, as JSON or typed contents: as many as its bytes can hold floats.

        A float32 takes 20 bytes in JSON, comma included, and 100 as a Python object. Larger tensors are sent in binary.
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
        """Return the metrics' name for the model that a request names; None where there is no such model."""
        return next((model.backend.spec.name for model in self._served.get(name, ())), None)

    def check_ready(self, model: ServedModel) -> None:
        """Raise NotReadyError where a model's first inference has not passed yet."""
        if not model.backend.is_ready:
            raise NotReadyError(f"model {model.name!r} is not ready yet")

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
            Rejected, OverloadedError, DeadlineError: As `ServedModel.infer` raises them.
            NotReadyError: The model's first inference has not passed yet.
        """
        counts = _statistics_of(model)
        result = "fail"
        try:
            self.check_ready(model)
            model.backend.admit(1)
            request = await read()
            if request.id:
                set_request_id(request.id)
            if request.parameters.timeout:
                deadline = min(deadline, started + request.parameters.timeout / 1e6)
            outputs = await model.infer(request, deadline=deadline)
            result = "success"
        finally:
            counts["inference_stats"][result]["count"] += 1
            counts["inference_stats"][result]["ns"] += int((time.monotonic() - started) * 1e9)
        counts["execution_count"] += 1
        counts["inference_count"] += len(outputs[0].data)
        counts["last_inference"] = time.time_ns() // 1_000_000
        return InferResponse(model.name, model.version, outputs, request.id)

    def tell(self, rpc: str, name: str, model_version: str) -> Json:
        """Answer an RPC that describes the server or a model, with the fields of its message.

        Raises:
            UnknownModelError: There is no such model.
        """
        match rpc:
            case "ServerLive":
                return {"live": True}
            case "ServerReady":
                return {"ready": self.models.is_ready}
            case "ServerMetadata":
                return {"name": "shardlabel", "version": VERSION, "extensions": EXTENSIONS}
            case "ModelStatistics":  # as this replica knows them
                names = [self.model(name, model_version).name] if name else self.model_names()
                return {"model_stats": [_statistics_of(model) for each in names for model in self._served[each]]}
        model = self.model(name, model_version)
        return {"config": self._config(model)} if rpc == "ModelConfig" else self._metadata(model)

    def model_names(self) -> list[str]:
        """Return the names of all models."""
        return list(self._served)

    def _metadata(self, model: ServedModel) -> Json:
        return {
            "name": model.name,
            "versions": [each.version for each in self._served.get(model.name, ())],
            "platform": PLATFORM,
            "inputs": [model.input._asdict()],
            "outputs": [output._asdict() for output in model.outputs],
        }

    def _config(self, model: ServedModel) -> Json:
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

    def repository_index(self, *, only_ready: bool) -> list[Json]:
        """List the models with their state, and those that were unloaded or could not be loaded."""
        broken = "not ready: starting, or failed and being rebuilt"
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

    async def change(self, what: Literal["load", "unload"], name: str, parameters: object = None) -> None:
        """Load or unload a model in every replica.

        Args:
            what: What to do.
            name: As the caller wrote it.
            parameters: Parameters of a request to load; any is refused.

        Raises:
            UnknownModelError: There is no such model.
            Rejected: Callers may not load or unload, or it failed.
        """
        if self._control is None:
            text = "models are loaded and unloaded by request only with --model-control explicit"
            raise Rejected(503, text, kind="no_model_control")
        if parameters:
            raise malformed("a model's configuration and files cannot be replaced by a request")
        try:
            await (self._control.load(name) if what == "load" else self._control.unload(name))
        except UnknownModelError:
            raise
        except ConfigError as err:
            raise malformed(str(err)) from None


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"
