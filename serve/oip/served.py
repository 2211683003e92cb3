"""A model as the protocol sees it: a name, tensors, and `infer`. Each backend is two of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.inference.predictions import Float32Array
from models.spec import Layout
from serve.config import ServeConfig
from serve.http.asgi import Rejected, input_status
from serve.http.bodies import from_base64, off_the_loop, shown
from serve.model.engine import Engine
from serve.oip.request import BYTES, InferRequest, Tensor, WantedOutput, malformed
from serve.oip.response import OutputTensor

T = TypeVar("T")


class TensorMetadata(NamedTuple):
    """A tensor in a model's metadata; -1 is an axis of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ServedModel(ABC):
    """One of the names under which a backend is offered.

    Attributes:
        backend: What answers.
        name: See above.
        input: Its one input.
        outputs: All of them.
        layout: Format and dims of the input in the model configuration, which leaves out the batch axis.
        parameters: Parameters in the model configuration.
    """

    backend: Engine
    name: str
    input: TensorMetadata
    outputs: tuple[TensorMetadata, ...]
    layout: dict[str, Any]
    parameters: dict[str, str]

    def __init__(self, backend: Engine, config: ServeConfig) -> None:
        self.backend = backend
        self._max_images = config.max_images
        self._default_top_k = min(config.top_k, len(backend.labels))

    @property
    def version(self) -> str:
        """Return the version of the backend's entry."""
        return self.backend.spec.version

    @abstractmethod
    def raw_input(self, body: memoryview) -> Tensor:
        """Take a whole body as the one input, as a header length of 0 asks for."""

    @abstractmethod
    async def _infer(
        self, tensor: Tensor, wanted: Sequence[WantedOutput], top_k: int | None, deadline: float
    ) -> Callable[[WantedOutput], npt.NDArray[Any]]:
        """Run the model, and return a function that gives the values of each wanted output, BYTES as objects."""

    async def infer(self, request: InferRequest, *, deadline: float) -> list[OutputTensor]:
        """Answer a request.

        Raises:
            Rejected: The tensors are not this model's, or an image cannot be labelled.
            OverloadedError, DeadlineError: As `Engine.label` raises them.
        """
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
        known = {output.name: output.datatype for output in self.outputs}
        default = request.parameters.binary_data_output
        wanted = request.outputs or [WantedOutput(name=name) for name in known]
        for each in wanted:
            if each.name not in known:
                raise malformed(f"model {self.name!r} has the outputs {', '.join(known)}, got {each.name[:60]!r}")
        values = await self._infer(tensor, wanted, request.parameters.top_k, deadline)
        outputs = []
        for each in wanted:
            own = each.parameters
            binary = default if own.binary_data is None else own.binary_data
            datatype = BYTES if own.classification else known[each.name]
            outputs.append(OutputTensor(each.name, datatype, values(each), bool(binary)))
        return outputs


class ServedImages(ServedModel):
    """Model `M`: encoded images in, labels out."""

    def __init__(self, backend: Engine, config: ServeConfig) -> None:
        super().__init__(backend, config)
        self.name = backend.spec.name
        self._labels = np.array([label.encode() for label in backend.labels], object)
        self.input = TensorMetadata("image", BYTES, (-1,))
        self.layout = {"format": "FORMAT_NONE", "dims": [1]}
        self.outputs = (
            TensorMetadata("probabilities", "FP32", (-1, len(self._labels))),
            TensorMetadata("label_ids", "INT32", (-1, -1)),
            TensorMetadata("scores", "FP32", (-1, -1)),
            TensorMetadata("labels", BYTES, (-1, -1)),
        )
        self.parameters = {}
        if (calibration := backend.calibration) is not None:
            self.outputs += (TensorMetadata("accepted", "BOOL", (-1,)),)
            self.parameters = {
                "calibration_sha256": calibration.sha256,
                "temperature": repr(calibration.temperature),
                "precision_target": f"{calibration.precision_target:g}",
            }

    def raw_input(self, body: memoryview) -> Tensor:
        """Take the body as one encoded image, without the length that begins a BYTES element."""
        return Tensor(name=self.input.name, datatype=BYTES, shape=[1], data=[bytes(body)])

    async def _infer(
        self, tensor: Tensor, wanted: Sequence[WantedOutput], top_k: int | None, deadline: float
    ) -> Callable[[WantedOutput], npt.NDArray[Any]]:
        classes = len(self._labels)
        if top_k is not None and top_k > classes:
            raise malformed(f"top_k must be between 1 and {classes} (the classes of {self.name}), got {top_k}")
        k = top_k or self._default_top_k
        # Clients of servers with a batch axis of their own send [n, 1].
        if len(tensor.shape) != 1 and tensor.shape[1:] != [1]:
            raise malformed(f"shape of {tensor.name!r} must be [n] or [n, 1], got {tensor.shape}")
        images = await _read(tensor, deadline, lambda: _images(tensor))
        # Classes are the best labels already: all probabilities are needed only where the tensor itself is wanted.
        outcomes = await self.backend.label(
            images,
            top_k=min(max([k, *(each.parameters.classification for each in wanted)]), classes),
            deadline=deadline,
            probabilities=any(o.name == "probabilities" and not o.parameters.classification for o in wanted),
        )
        rows = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, InputError):
                # The protocol has no status for one image of several.
                raise Rejected(input_status(outcome), f"image {index}: {outcome}", kind=outcome.status)
            rows.append(outcome)

        ids, scores = (np.stack([getattr(row, name) for row in rows]) for name in ("label_ids", "scores"))
        best = {"label_ids": ids[:, :k], "scores": scores[:, :k], "labels": self._labels[ids[:, :k]]}

        def values(of: WantedOutput) -> npt.NDArray[Any]:
            if count := of.parameters.classification:
                # Of any output: clients of Triton's ensembles ask for the classes of all that the metadata name.
                return _classes(ids[:, :count], scores[:, :count], self.backend.labels)
            return best[of.name] if of.name in best else np.stack([getattr(row, of.name) for row in rows])

        return values


class ServedTensors(ServedModel):
    """Model `M-tensor`: the model's own input in, its own output out, without our preprocessing or softmax."""

    def __init__(self, backend: Engine, config: ServeConfig) -> None:
        super().__init__(backend, config)
        spec = backend.spec
        self.name = f"{spec.name}-tensor"
        side = spec.preprocessing.crop
        self._row = [3, side, side] if spec.input.layout is Layout.NCHW else [side, side, 3]
        self.input = TensorMetadata(spec.input.name, "FP32", (-1, *self._row))
        self.layout = {"format": f"FORMAT_{spec.input.layout}", "dims": self._row}
        self.outputs = (TensorMetadata(spec.output.name, "FP32", (-1, len(backend.labels))),)
        self.parameters = {}

    def raw_input(self, body: memoryview) -> Tensor:
        """Take the body as a batch of as many images as its bytes make."""
        row_bytes = math.prod(self._row) * 4
        count, rest = divmod(body.nbytes, row_bytes)
        if rest:
            expected = f"whole images of {row_bytes} bytes (FP32 of shape {self._row})"
            raise malformed(f"a raw body for {self.name!r} must be {expected}, got {body.nbytes} bytes")
        return Tensor(name=self.input.name, datatype="FP32", shape=[count, *self._row], data=body)

    async def _infer(
        self, tensor: Tensor, wanted: Sequence[WantedOutput], top_k: int | None, deadline: float
    ) -> Callable[[WantedOutput], npt.NDArray[Any]]:
        if top_k is not None:
            raise malformed(f"{self.name!r} gives no labels, so top_k means nothing to it; ask for classification")
        if tensor.shape[1:] != self._row:
            raise malformed(f"shape of {tensor.name!r} must be {[-1, *self._row]}, got {tensor.shape}")
        # A view into a body may begin at any byte; what runs the model wants whole floats at whole addresses.
        batch = np.require(await _read(tensor, deadline, tensor.floats), np.float32, ["C", "A"])
        output = await self.backend.run_tensor(batch, deadline=deadline)

        def values(of: WantedOutput) -> npt.NDArray[Any]:
            if not (count := of.parameters.classification):
                return output
            # Best first; equal values keep the lower class index first.
            ids = np.argsort(-output, axis=1, kind="stable")[:, :count]  # (n_images, k)
            return _classes(ids, np.take_along_axis(output, ids, axis=1), self.backend.labels)

        return values


async def _read(tensor: Tensor, deadline: float, read: Callable[[], T]) -> T:
    """Read a tensor where that delays nobody: what came as JSON takes milliseconds, 8 for one image of floats."""
    return read() if isinstance(tensor.data, memoryview) else await off_the_loop(deadline, read)


def _images(tensor: Tensor) -> list[bytes]:
    images = []
    for index, element in enumerate(tensor.elements()):
        try:
            images.append(from_base64(element) if isinstance(element, str) else bytes(element))
        except ValueError as err:
            raise malformed(f"image {index}: JSON carries an image as base64 text, and this is not: {err}") from None
    return images


def _classes(ids: npt.NDArray[Any], values: Float32Array, labels: Sequence[str]) -> npt.NDArray[Any]:
    """Write classes as the classification extension does: BYTES of the shape of both, (n_images, k)."""
    pairs = zip(ids.ravel().tolist(), values.ravel().tolist(), strict=True)
    texts = [f"{value:f}:{index}:{labels[index]}".encode() for index, value in pairs]
    return np.array(texts, object).reshape(ids.shape)
