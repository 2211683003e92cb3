"""What the protocol sees as a model: a name, tensors, and `infer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from models.inference.predictions import Float32Array
from serve.http.asgi import Rejected, not_ready
from serve.http.bodies import off_the_loop
from serve.model.backend import Backend
from serve.oip.answers import InputLayout
from serve.oip.datatypes import BYTES
from serve.oip.faults import malformed, shown
from serve.oip.request import InferRequest, RequestedOutput
from serve.oip.response import OutputTensor
from serve.oip.tensor import InputTensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A tensor as the metadata describe it; -1 is an axis of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ServedModel(Protocol):
    """One of the names under which a backend is offered.

    Attributes:
        name: See above.
        backend: What answers.
        inputs: Its tensors.
        outputs: Its tensors.
        parameters: What else its configuration says.
    """

    name: str
    backend: Backend
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: dict[str, str]

    def raw_input(self, body: memoryview) -> InputTensor:
        """Take a whole body as the one input, as a header length of 0 asks for."""

    async def infer(self, request: InferRequest, *, deadline: float) -> tuple[OutputTensor, ...]:
        """Answer a request.

        Raises:
            Rejected: The tensors are not this model's.
            InputError: An image cannot be labelled.
            OverloadedError, DeadlineError: As `Backend.label` raises them.
        """

    def config(self) -> InputLayout:
        """Return what is this model's own in a model configuration: its inputs, with their format."""


def check_ready(model: ServedModel) -> None:
    """Check that a model is ready.

    Raises:
        Rejected: 503, its first inference has not passed yet.
    """
    if not model.backend.is_ready:
        raise not_ready(f"model {model.name!r} is not ready yet")


async def read_values(tensor: InputTensor, deadline: float, read: Callable[[], T]) -> T:
    """Read a tensor where that delays nobody: what came as JSON takes milliseconds, 8 for one image of floats."""
    return read() if isinstance(tensor.payload, memoryview) else await off_the_loop(deadline, read)


def only_input(request: InferRequest, expected: TensorMetadata, model: str) -> InputTensor:
    """Return the one input of a model that has one.

    Raises:
        Rejected: There are others, or it has another name or type.
    """
    names = [tensor.name for tensor in request.inputs]
    if names != [expected.name]:
        raise malformed(f"model {model!r} has the one input {expected.name!r}, got {shown(names)}")
    tensor = request.inputs[0]
    if tensor.datatype != expected.datatype:
        raise malformed(
            f"input {tensor.name!r} of {model!r} must have datatype {expected.datatype}, got {tensor.datatype}"
        )
    return tensor


def check_rows(count: int, limit: int, name: str) -> None:
    """Check the number of images in a request.

    Raises:
        Rejected: There is none (400), or there are too many (413).
    """
    if count < 1:
        raise malformed(f"input {name!r} must hold at least one image, got none")
    if count > limit:
        raise Rejected(
            413,
            f"input {name!r} may hold at most {limit} images a request, got {count}; send them in several",
        )


def wanted_outputs(request: InferRequest, outputs: Sequence[TensorMetadata], model: str) -> Sequence[RequestedOutput]:
    """Return the outputs to compute: those that were asked for, or all.

    Args:
        request: What was asked.
        outputs: What the model has.
        model: Its name, for the message.

    Raises:
        Rejected: One is unknown.
    """
    if not request.outputs:
        return [RequestedOutput(output.name, binary=request.binary_output) for output in outputs]
    known = [output.name for output in outputs]
    for output in request.outputs:
        if output.name not in known:
            raise malformed(f"model {model!r} has the outputs {', '.join(known)}, got {output.name[:60]!r}")
    return request.outputs


def classification_output(
    wanted: RequestedOutput, ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]], labels: Sequence[str]
) -> OutputTensor:
    """Write classes as the classification extension does: `value:index:label`.

    Args:
        wanted: The output.
        ids: Class indices per image, best first; the same number for each.
        values: Their values.
        labels: Of all classes.

    Returns:
        BYTES of shape (n_images, k).
    """
    elements = [
        f"{value:f}:{index}:{labels[index]}".encode()
        for row_ids, row_values in zip(ids, values, strict=True)
        for index, value in zip(row_ids, row_values, strict=True)
    ]
    shape = (len(ids), len(ids[0]))
    return OutputTensor(wanted.name, BYTES, shape, elements, wanted.binary)


def best_classes(values: Float32Array, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Pick the k best classes of each row, best first; equal values keep the lower class index first.

    Args:
        values: float32 of shape (n_images, n_classes).
        k: At most as many as there are classes are given.
    """
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]  # (n_images, k)
    return order.tolist(), np.take_along_axis(values, order, axis=1).tolist()
