"""What the protocol sees as a model: a name, tensors, and `infer`. Each backend is two of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from models.errors import InputError
from models.inference.predictions import Float32Array
from models.spec import Layout
from serve.http.asgi import Rejected, input_status
from serve.http.bodies import from_base64, off_the_loop
from serve.model.engine import Engine
from serve.model.outcomes import Labelled
from serve.oip.request import BYTES, InferRequest, Tensor, malformed, shown
from serve.oip.response import OutputTensor

T = TypeVar("T")


class TensorMetadata(NamedTuple):
    """A tensor as the metadata describe it; -1 is an axis of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class _Wanted(NamedTuple):
    """An output to give: as so many best classes where that is not 0, and in binary form or not."""

    name: str
    classification: int
    binary: bool


class ServedModel(ABC):
    """One of the names under which a backend is offered.

    Attributes:
        backend: What answers.
        name: See above.
        input: Its one input.
        outputs: All of them.
        layout: Format and dims of the input, as a model configuration has them: the batch axis goes without saying.
        parameters: What else its configuration says.
    """

    backend: Engine
    name: str
    input: TensorMetadata
    outputs: tuple[TensorMetadata, ...]
    layout: dict[str, Any]
    parameters: dict[str, str]

    @property
    def version(self) -> str:
        """Return the version of the backend's entry."""
        return self.backend.spec.version

    @abstractmethod
    def raw_input(self, body: memoryview) -> Tensor:
        """Take a whole body as the one input, as a header length of 0 asks for."""

    @abstractmethod
    async def _infer(
        self, tensor: Tensor, wanted: Sequence[_Wanted], top_k: int | None, deadline: float
    ) -> list[OutputTensor]:
        """Answer with the outputs that are wanted, in their order."""

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
            raise malformed(
                f"input {tensor.name!r} of {self.name!r} must have datatype {self.input.datatype}, got {tensor.datatype}"
            )
        known = [output.name for output in self.outputs]
        default = request.parameters.binary_data_output
        wanted = [
            _Wanted(name, own.classification, bool(default if own.binary_data is None else own.binary_data))
            for name, own in [(each.name, each.parameters) for each in request.outputs or ()]
        ] or [_Wanted(name, 0, bool(default)) for name in known]
        for output in wanted:
            if output.name not in known:
                raise malformed(f"model {self.name!r} has the outputs {', '.join(known)}, got {output.name[:60]!r}")
        return await self._infer(tensor, wanted, request.parameters.top_k, deadline)


class ServedImages(ServedModel):
    """Model `M`: encoded images in, labels out.

    Args:
        backend: What labels.
        max_images: Per request.
        top_k: Labels per image where a request does not say, or all where the model has fewer.
    """

    def __init__(self, backend: Engine, *, max_images: int, top_k: int) -> None:
        self.backend = backend
        self.name = backend.spec.name
        self._max_images = max_images
        self._default_top_k = min(top_k, len(backend.labels))
        self._labels = [label.encode() for label in backend.labels]
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
        self, tensor: Tensor, wanted: Sequence[_Wanted], top_k: int | None, deadline: float
    ) -> list[OutputTensor]:
        classes = len(self._labels)
        if top_k is not None and top_k > classes:
            raise malformed(f"top_k must be between 1 and {classes} (the classes of {self.name}), got {top_k}")
        k = top_k or self._default_top_k
        # Clients of servers with a batch axis of their own send [n, 1].
        if len(tensor.shape) != 1 and tensor.shape[1:] != [1]:
            raise malformed(f"shape of {tensor.name!r} must be [n] or [n, 1], got {tensor.shape}")
        _check_rows(tensor.count, self._max_images, tensor.name)
        images = await _read(tensor, deadline, lambda: _images(tensor))
        # Classes are the best labels already: all probabilities are needed only where the tensor itself is wanted.
        outcomes = await self.backend.label(
            images,
            top_k=min(max([k, *(output.classification for output in wanted)]), classes),
            deadline=deadline,
            probabilities=any(o.name == "probabilities" and not o.classification for o in wanted),
        )
        rows = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, InputError):
                # The protocol has no status for one image of several.
                raise Rejected(input_status(outcome), f"image {index}: {outcome}", kind=outcome.status)
            rows.append(outcome)
        return [self._output(output, rows, k) for output in wanted]

    def _output(self, wanted: _Wanted, rows: Sequence[Labelled], top_k: int) -> OutputTensor:
        if k := wanted.classification:
            # Of any output: clients of Triton's ensembles ask for the classes of all that the metadata name.
            return _classes(wanted, [(row.label_ids[:k], row.scores[:k]) for row in rows], self.backend.labels)
        if wanted.name == "labels":
            names = [self._labels[index] for row in rows for index in row.label_ids[:top_k].tolist()]
            return OutputTensor(wanted.name, BYTES, (len(rows), top_k), names, wanted.binary)
        if wanted.name == "accepted":
            values = np.array([row.accepted for row in rows], np.bool_)
        elif wanted.name == "probabilities":
            values = np.stack([row.probabilities for row in rows])  # type: ignore[misc]  # they were asked for
        else:
            values = np.stack([getattr(row, wanted.name)[:top_k] for row in rows])
        datatype = {"label_ids": "INT32", "accepted": "BOOL"}.get(wanted.name, "FP32")
        return OutputTensor(wanted.name, datatype, values.shape, values, wanted.binary)


class ServedTensors(ServedModel):
    """Model `M-tensor`: the model's own input in, its own output out, without our preprocessing or softmax.

    Args:
        backend: What runs the model.
        max_images: Per request.
    """

    def __init__(self, backend: Engine, *, max_images: int) -> None:
        spec = backend.spec
        self.backend = backend
        self.name = f"{spec.name}-tensor"
        self._max_images = max_images
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
            raise malformed(
                f"a raw body for {self.name!r} must be whole images of {row_bytes} bytes (FP32 of shape "
                f"{self._row}), got {body.nbytes} bytes"
            )
        return Tensor(name=self.input.name, datatype="FP32", shape=[count, *self._row], data=body)

    async def _infer(
        self, tensor: Tensor, wanted: Sequence[_Wanted], top_k: int | None, deadline: float
    ) -> list[OutputTensor]:
        if top_k is not None:
            raise malformed(f"{self.name!r} gives no labels, so top_k means nothing to it; ask for classification")
        if tensor.shape[1:] != self._row:
            raise malformed(
                f"shape of {tensor.name!r} must be {[-1, *self._row]} for {self.name!r}, got {tensor.shape}"
            )
        _check_rows(tensor.shape[0], self._max_images, tensor.name)
        # A view into a body may begin at any byte; what runs the model wants whole floats at whole addresses.
        batch = np.require(await _read(tensor, deadline, tensor.floats), np.float32, ["C", "A"])
        values = await self.backend.run_tensor(batch, deadline=deadline)
        return [
            _classes(output, _best_classes(values, output.classification), self.backend.labels)
            if output.classification
            else OutputTensor(output.name, "FP32", values.shape, values, output.binary)
            for output in wanted
        ]


async def _read(tensor: Tensor, deadline: float, read: Callable[[], T]) -> T:
    """Read a tensor where that delays nobody: what came as JSON takes milliseconds, 8 for one image of floats."""
    return read() if isinstance(tensor.data, memoryview) else await off_the_loop(deadline, read)


def _check_rows(count: int, limit: int, name: str) -> None:
    if count < 1:
        raise malformed(f"input {name!r} must hold at least one image, got none")
    if count > limit:
        raise Rejected(
            413,
            f"input {name!r} may hold at most {limit} images a request, got {count}; send them in several",
        )


def _images(tensor: Tensor) -> list[bytes]:
    images = []
    for index, element in enumerate(tensor.elements()):
        try:
            images.append(from_base64(element) if isinstance(element, str) else bytes(element))
        except ValueError as err:
            raise malformed(f"image {index}: JSON carries an image as base64 text, and this is not: {err}") from None
    return images


def _classes(
    wanted: _Wanted, rows: Sequence[tuple[np.ndarray[Any, Any], Float32Array]], labels: Sequence[str]
) -> OutputTensor:
    """Write classes, of each image their indices and values, as the classification extension does: BYTES [n_images, k]."""
    elements = [
        f"{value:f}:{index}:{labels[index]}".encode()
        for ids, values in rows
        for index, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return OutputTensor(wanted.name, BYTES, (len(rows), len(rows[0][0])), elements, wanted.binary)


def _best_classes(values: Float32Array, k: int) -> list[tuple[np.ndarray[Any, Any], Float32Array]]:
    """Pick the k best classes of each row, best first; equal values keep the lower class index first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]  # (n_images, k)
    return list(zip(order, np.take_along_axis(values, order, axis=1), strict=True))
