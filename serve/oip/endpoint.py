"""The protocol, over HTTP or gRPC: the models, and what every RPC but an inference answers."""

from __future__ import annotations

from typing import Any

from models.errors import ConfigError, NotReadyError, UnknownModelError
from pipeline.dest.made_by import versions
from serve.config import ServeConfig
from serve.http.asgi import Rejected
from serve.model.models import Models
from serve.model.repository import Repository
from serve.oip.codec import malformed
from serve.oip.served import ServedImages, ServedModel, ServedTensors

Json = dict[str, Any]

# Unknown where the package runs from its folder.
VERSION = versions(["shardlabel"]).get("shardlabel", "unknown")
_EXTENSIONS = [
    *("binary_tensor_data", "classification", "model_configuration"),
    *("statistics", "schedule_policy", "parameters"),
]
_PLATFORM = "onnxruntime_onnx"  # the name that clients know a model run by ONNX Runtime by
# RPCs that are answered without a key: probes have none.
OPEN = frozenset({"ServerLive", "ServerReady", "Check", "Watch"})
MAX_OPTIONS_BYTES = 64 * 1024  # limit on every request but one to infer: these hold a name or two


class Endpoint:
    """Each backend as two models: `M` takes images, `M-tensor` the model's own input.

    They are `served` by name; of several versions, the default one is first. Without a `control`, callers may not load and
    unload them.
    """

    def __init__(self, models: Models, config: ServeConfig, control: Repository | None = None) -> None:
        self.config = config
        self.models = models
        self._control = control
        self.served: dict[str, list[ServedModel]] = {}
        models.watch(self._serve)

    def _serve(self) -> None:
        served: dict[str, list[ServedModel]] = {}
        for backend in self.models:
            for model in (ServedImages(backend, self.config), ServedTensors(backend, self.config)):
                served.setdefault(model.name, []).append(model)
        self.served = served

    @property
    def max_values(self) -> int:
        """Return the limit on values in a request, as JSON or typed contents: as many as its bytes can hold floats.

        A float32 takes 20 bytes in JSON, comma included, and 100 as a Python object. Larger tensors are sent in binary.
        """
        return max(self.config.max_request_bytes // 20, 64 * self.config.max_images)

    def model(self, name: str, model_version: str | None = None) -> ServedModel:
        """Return a model by name and version as the caller wrote them; None or "" is the first version there is.

        Raises:
            UnknownModelError: There is no such model, or no such version of it.
        """
        for model in self.served.get(name, ()):
            if not model_version or model_version == model.version:
                return model
        raise self.models.unknown(name.removesuffix("-tensor"), model_version)

    def label_of(self, name: str) -> str | None:
        """Return the metrics' name for the model that a request names; None where there is no such model."""
        return next((model.backend.spec.name for model in self.served.get(name, ())), None)

    async def answer(self, rpc: str, name: str, model_version: str, options: Any) -> Json:  # noqa: ANN401
        """Answer an RPC that does not infer, with the fields of its message; those that it has not are for HTTP.

        The names are the caller's, or "". Of the request's options, `ready` is the index's, and `parameters` are a load's.

        Raises:
            NotReadyError: It is asked whether something is ready that is not.
            UnknownModelError: There is no such model.
            Rejected: Callers may not load or unload, or it failed.
        """
        match rpc:
            case "ServerLive":
                return {"live": True}
            case "ServerReady":
                if not self.models.is_ready:
                    raise NotReadyError("not ready: no model can answer yet")
                return {"ready": True}
            case "ServerMetadata":
                return {"name": "shardlabel", "version": VERSION, "extensions": _EXTENSIONS}
            case "ModelStatistics":  # as this replica knows them
                names = [self.model(name, model_version).name] if name else self.served
                return {"model_stats": [model.statistics for each in names for model in self.served[each]]}
            case "RepositoryIndex":
                return {"models": self._index(only_ready=options.ready)}
            case "RepositoryModelLoad" | "RepositoryModelUnload":
                return await self._change(rpc, name, options.parameters)
        model = self.model(name, model_version)
        if rpc == "ModelReady":
            if not model.backend.is_ready:
                raise NotReadyError(f"model {name!r} is not ready yet")
            return {"name": name, "ready": True}
        return {"config": self._config(model)} if rpc == "ModelConfig" else self._metadata(model)

    def _metadata(self, model: ServedModel) -> Json:
        return {
            "name": model.name,
            "versions": [each.version for each in self.served.get(model.name, ())],
            "platform": _PLATFORM,
            "inputs": [model.input._asdict()],
            "outputs": [output._asdict() for output in model.outputs.values()],
        }

    def _config(self, model: ServedModel) -> Json:
        """Describe a model as a model configuration does, as far as clients read it."""
        return {
            "name": model.name,
            "platform": _PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.config.max_images,
            "input": [{**model.input.config(), "format": model.format}],
            "output": [output.config() for output in model.outputs.values()],
            "parameters": {name: {"string_value": value} for name, value in model.parameters.items()},
        }

    def _index(self, *, only_ready: bool) -> list[Json]:
        """List the models with their state, and those that were unloaded or could not be loaded."""
        broken = "not ready: starting, or failed and being rebuilt"
        served = [model for models in self.served.values() for model in models]
        states = [(model.name, model.version, "" if model.backend.is_ready else broken) for model in served]
        states += [(name, "", why) for name, why in self.models.unavailable.items()]
        return [
            {"name": name, "version": model_version, "state": "UNAVAILABLE" if why else "READY", "reason": why}
            for name, model_version, why in states
            if not (why and only_ready)
        ]

    async def _change(self, rpc: str, name: str, parameters: object) -> Json:
        """Load or unload a model in every replica."""
        if self._control is None:
            text = "models are loaded and unloaded by request only with --model-control explicit"
            raise Rejected(503, text, kind="no_model_control")
        is_load = rpc == "RepositoryModelLoad"
        # Triton's clients unload with the parameter `unload_dependents`: there are none.
        if is_load and parameters:
            raise malformed("a model's configuration and files cannot be replaced by a request")
        try:
            await (self._control.load(name) if is_load else self._control.unload(name))
        except UnknownModelError:
            raise
        except ConfigError as err:
            raise malformed(str(err)) from None
        return {"name": name, "state": "READY" if is_load else "UNAVAILABLE"}
