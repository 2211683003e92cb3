"""A model as the protocol sees it: a name, tensors, and inference. Each backend is two of them."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.inference.predictions import Float32Array
from models.spec import Layout
from serve.config import ServeConfig
from serve.http.asgi import Rejected, input_status
from serve.http.bodies import off_the_loop, shown
from serve.model.engine import Engine
from serve.model.outcomes import set_request_id
from serve.oip.codec import BYTES, InferRequest, InferResponse, OutputTensor, Tensor, WantedOutput, malformed

T = TypeVar("T")
Array = npt.NDArray[Any]
# Values of the outputs, BYTES as objects; and of the best classes the ids and the scores, of shape (n_images, k).
Answer = tuple[Mapping[str, Array], Array, Float32Array]

_STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


class TensorMetadata(NamedTuple):
    """A tensor in a model's metadata; -1 is an axis of any length."""

    name: str
    datatype: str
    shape: list[int]

    def config(self) -> dict[str, Any]:
        """Describe it as a model configuration does, which leaves out the batch axis."""
        data_type = "TYPE_STRING" if self.datatype == BYTES else f"TYPE_{self.datatype}"
        return {"name": self.name, "data_type": data_type, "dims": self.shape[1:] or [1]}


class ServedModel(ABC):
    """One of the names under which a backend is offered, with one input.

    Its `format` and `parameters` are of the model configuration, its `statistics` counts since this replica started, in
    the protocol's form. Stages that are not timed per request have zero counts: nothing is guessed.
    """

    def __init__(
        self, backend: Engine, config: ServeConfig, name: str, input: TensorMetadata, outputs: Sequence[TensorMetadata]
    ) -> None:
        self.backend = backend
        self.name = name
        self.version = backend.spec.version
        self.input = input
        self.outputs = {output.name: output for output in outputs}
        self.format = "FORMAT_NONE"
        self.parameters: dict[str, str] = {}
        self._every_output = [WantedOutput(name=name) for name in self.outputs]
        self._max_images = config.max_images
        counts: dict[str, Any] = {
            "name": name,
            "version": self.version,
            **dict.fromkeys(("last_inference", "inference_count", "execution_count"), 0),
            "inference_stats": {stage: {"count": 0, "ns": 0} for stage in _STAGES},
            "batch_stats": [],
        }
        self.statistics = backend.statistics.setdefault(name, counts)  # HTTP's and gRPC's endpoints count together

    @abstractmethod
    def raw_input(self, body: bytes) -> Tensor:
        """Take a whole body as the one input, as a header length of 0 asks for."""

    @abstractmethod
    async def _infer(
        self, tensor: Tensor, wanted: Sequence[WantedOutput], top_k: int | None, deadline: float
    ) -> Answer:
        """Run the model; return as many outputs and classes as are wanted."""

    async def infer(
        self, read: Callable[[], Awaitable[InferRequest]], *, started: float, deadline: float
    ) -> InferResponse:
        """Answer a request, and count it: `read` is called in here, so that one that cannot be read is counted too.

        Args:
            read: Parses the request.
            started: `time.monotonic()` at its arrival.
            deadline: `time.monotonic()` after which nobody waits; the request itself may ask for an earlier one.

        Raises:
            Rejected: The tensors are not this model's, or an image cannot be labelled; or as `read` raises it.
            NotReadyError, OverloadedError, DeadlineError: As `Engine` raises them.
        """
        counts, result = self.statistics, "fail"
        try:
            self.backend.admit(1)
            request = await read()
            if request.id:
                set_request_id(request.id)
            if request.parameters.timeout:
                deadline = min(deadline, started + request.parameters.timeout / 1e6)
            outputs = await self._outputs(request, deadline)
            result = "success"
        finally:
            counts["inference_stats"][result]["count"] += 1
            counts["inference_stats"][result]["ns"] += int((time.monotonic() - started) * 1e9)
        counts["execution_count"] += 1
        counts["inference_count"] += len(outputs[0].data)
        counts["last_inference"] = time.time_ns() // 1_000_000
        return InferResponse(self.name, self.version, outputs, request.id)

    async def _outputs(self, request: InferRequest, deadline: float) -> list[OutputTensor]:
        tensor, *others = request.inputs
        if others or tensor.name != self.input.name:
            names = [each.name for each in request.inputs]
            raise malformed(f"model {self.name!r} has the one input {self.input.name!r}, got {shown(names)}")
        if tensor.datatype != self.input.datatype:
            raise malformed(f"input {tensor.name!r} must have datatype {self.input.datatype}, got {tensor.datatype}")
        count = next(iter(tensor.shape), 0)
        if count < 1:
            raise malformed(f"input {tensor.name!r} must hold at least one image, got none")
        if count > self._max_images:
            raise Rejected(413, f"input {tensor.name!r} may hold at most {self._max_images} images, got {count}")
        wanted = request.outputs or self._every_output
        for each in wanted:
            if each.name not in self.outputs:
                known = ", ".join(self.outputs)
                raise malformed(f"model {self.name!r} has the outputs {known}, got {each.name[:60]!r}")
        values, ids, scores = await self._infer(tensor, wanted, request.parameters.top_k, deadline)
        outputs = []
        for each in wanted:
            own = each.parameters
            binary = request.parameters.binary_data_output if own.binary_data is None else own.binary_data
            # Classes of any output: clients of Triton's ensembles ask for those of all that the metadata name.
            k = own.classification
            data = _classes(ids[:, :k], scores[:, :k], self.backend.labels) if k else values[each.name]
            datatype = BYTES if k else self.outputs[each.name].datatype
            outputs.append(OutputTensor(each.name, datatype, data, bool(binary)))
        return outputs


class ServedImages(ServedModel):
    """Model `M`: encoded images in, labels out."""

    def __init__(self, backend: Engine, config: ServeConfig) -> None:
        classes = len(backend.labels)
        outputs = [
            TensorMetadata("probabilities", "FP32", [-1, classes]),
            TensorMetadata("label_ids", "INT32", [-1, -1]),
            TensorMetadata("scores", "FP32", [-1, -1]),
            TensorMetadata("labels", BYTES, [-1, -1]),
        ]
        calibration = backend.calibration
        if calibration is not None:
            outputs.append(TensorMetadata("accepted", "BOOL", [-1]))
        super().__init__(backend, config, backend.spec.name, TensorMetadata("image", BYTES, [-1]), outputs)
        if calibration is not None:
            self.parameters = {
                "calibration_sha256": calibration.sha256,
                "temperature": repr(calibration.temperature),
                "precision_target": f"{calibration.precision_target:g}",
            }
        self._labels = np.array([label.encode() for label in backend.labels], object)
        self._default_top_k = min(config.top_k, classes)

    def raw_input(self, body: bytes) -> Tensor:
        """Take the body as one image."""
        return Tensor(name=self.input.name, datatype=BYTES, shape=[1], data=[body])

    async def _infer(
        self, tensor: Tensor, wanted: Sequence[WantedOutput], top_k: int | None, deadline: float
    ) -> Answer:
        classes = len(self._labels)
        if top_k is not None and top_k > classes:
            raise malformed(f"top_k must be between 1 and {classes} (the classes of {self.name}), got {top_k}")
        k = top_k or self._default_top_k
        # Clients of servers with a batch axis of their own send [n, 1].
        if len(tensor.shape) != 1 and tensor.shape[1:] != [1]:
            raise malformed(f"shape of {tensor.name!r} must be [n] or [n, 1], got {tensor.shape}")
        images = await _read(tensor, deadline, tensor.images)
        # Classes are the best labels already: all probabilities are needed only where the tensor itself is wanted.
        plain = {each.name for each in wanted if not each.parameters.classification}
        outcomes = await self.backend.label(
            images,
            top_k=min(max([k, *(each.parameters.classification for each in wanted)]), classes),
            deadline=deadline,
            probabilities="probabilities" in plain,
        )
        rows = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, InputError):
                # The protocol has no status for one image of several.
                raise Rejected(input_status(outcome), f"image {index}: {outcome}", kind=outcome.status)
            rows.append(outcome)

        ids, scores = (np.stack([getattr(row, name) for row in rows]) for name in ("label_ids", "scores"))
        values = {"label_ids": ids[:, :k], "scores": scores[:, :k], "labels": self._labels[ids[:, :k]]}
        for name in plain - values.keys():
            values[name] = np.stack([getattr(row, name) for row in rows])
        return values, ids, scores


class ServedTensors(ServedModel):
    """Model `M-tensor`: the model's own input in, its own output out, without our preprocessing or softmax."""

    def __init__(self, backend: Engine, config: ServeConfig) -> None:
        spec = backend.spec
        side = spec.preprocessing.crop
        self._row = [3, side, side] if spec.input.layout is Layout.NCHW else [side, side, 3]
        tensor = TensorMetadata(spec.input.name, "FP32", [-1, *self._row])
        output = TensorMetadata(spec.output.name, "FP32", [-1, len(backend.labels)])
        super().__init__(backend, config, f"{spec.name}-tensor", tensor, [output])
        self.format = f"FORMAT_{spec.input.layout}"

    def raw_input(self, body: bytes) -> Tensor:
        """Take the body as a batch of as many images as its bytes make."""
        row_bytes = math.prod(self._row) * 4
        count, rest = divmod(len(body), row_bytes)
        if rest:
            expected = f"whole images of {row_bytes} bytes (FP32 of shape {self._row})"
            raise malformed(f"a raw body for {self.name!r} must be {expected}, got {len(body)} bytes")
        return Tensor(name=self.input.name, datatype="FP32", shape=[count, *self._row], data=memoryview(body))

    async def _infer(
        self, tensor: Tensor, wanted: Sequence[WantedOutput], top_k: int | None, deadline: float
    ) -> Answer:
        if top_k is not None:
            raise malformed(f"{self.name!r} gives no labels, so top_k means nothing to it; ask for classification")
        if tensor.shape[1:] != self._row:
            raise malformed(f"shape of {tensor.name!r} must be {[-1, *self._row]}, got {tensor.shape}")
        # A view into a body may begin at any byte; what runs the model wants whole floats at whole addresses.
        batch = np.require(await _read(tensor, deadline, tensor.floats), np.float32, ["C", "A"])
        output = await self.backend.run_tensor(batch, deadline=deadline)
        ids: Array = output[:, :0]
        scores = ids
        if k := max(each.parameters.classification for each in wanted):
            # Best first; equal values keep the lower class index first.
            ids = np.argsort(-output, axis=1, kind="stable")[:, :k]  # (n_images, k)
            scores = np.take_along_axis(output, ids, axis=1)
        return dict.fromkeys(self.outputs, output), ids, scores


async def _read(tensor: Tensor, deadline: float, read: Callable[[], T]) -> T:
    """Read a tensor where that delays nobody: what came as JSON takes milliseconds, 8 for one image of floats."""
    return read() if isinstance(tensor.data, memoryview) else await off_the_loop(deadline, read)


def _classes(ids: Array, values: Float32Array, labels: Sequence[str]) -> Array:
    """Write classes as the classification extension does: BYTES of the shape of both, (n_images, k)."""
    pairs = zip(ids.ravel().tolist(), values.ravel().tolist(), strict=True)
    texts = [f"{value:f}:{index}:{labels[index]}".encode() for index, value in pairs]
    return np.array(texts, object).reshape(ids.shape)
