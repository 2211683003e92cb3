"""Model `M-tensor`: the model's own input in, its own output out, without our preprocessing or softmax."""

from __future__ import annotations

import math

import numpy as np

from models.spec import Layout
from serve.model.backend import Backend
from serve.oip.answers import InputLayout
from serve.oip.faults import malformed
from serve.oip.request import InferRequest
from serve.oip.response import OutputTensor
from serve.oip.served import (
    TensorMetadata,
    best_classes,
    check_rows,
    classification_output,
    only_input,
    read_values,
    wanted_outputs,
)
from serve.oip.tensor import InputTensor

SUFFIX = "-tensor"
_FLOAT_BYTES = 4


class ServedTensors:
    """A backend under its own name and "-tensor".

    Args:
        backend: What runs the model.
        max_images: Per request.
    """

    def __init__(self, backend: Backend, *, max_images: int) -> None:
        spec = backend.spec
        self.backend: Backend = backend
        self.name = spec.name + SUFFIX
        self._max_images = max_images
        side = spec.preprocessing.crop
        self._row = (3, side, side) if spec.input.layout is Layout.NCHW else (side, side, 3)
        self.inputs: tuple[TensorMetadata, ...] = (TensorMetadata(spec.input.name, "FP32", (-1, *self._row)),)
        self.parameters: dict[str, str] = {}
        self.outputs: tuple[TensorMetadata, ...] = (
            TensorMetadata(spec.output.name, "FP32", (-1, len(backend.labels))),
        )

    def raw_input(self, body: memoryview) -> InputTensor:
        """Take the body as a batch of as many images as its bytes make."""
        row_bytes = math.prod(self._row) * _FLOAT_BYTES
        count, rest = divmod(body.nbytes, row_bytes)
        if rest:
            raise malformed(
                f"a raw body for {self.name!r} must be whole images of {row_bytes} bytes (FP32 of shape "
                f"{list(self._row)}), got {body.nbytes} bytes"
            )
        return InputTensor(self.inputs[0].name, "FP32", (count, *self._row), body)

    async def infer(self, request: InferRequest, *, deadline: float) -> tuple[OutputTensor, ...]:
        """Run the model on a batch. See `ServedModel.infer`."""
        tensor = only_input(request, self.inputs[0], self.name)
        wanted = wanted_outputs(request, self.outputs, self.name)
        if request.top_k is not None:
            raise malformed(f"{self.name!r} gives no labels, so top_k means nothing to it; ask for classification")
        if tensor.shape[1:] != self._row or not tensor.shape:
            raise malformed(
                f"shape of {tensor.name!r} must be {[-1, *self._row]} for {self.name!r}, got {list(tensor.shape)}"
            )
        check_rows(tensor.shape[0], self._max_images, tensor.name)
        # A view into a body may begin at any byte; what runs the model wants whole floats at whole addresses.
        batch = np.require(await read_values(tensor, deadline, tensor.numbers), np.float32, ["C", "A"])
        values = await self.backend.run_tensor(batch, deadline=deadline)
        outputs = []
        for output in wanted:
            if output.classification:
                ids, best = best_classes(values, output.classification)
                outputs.append(classification_output(output, ids, best, self.backend.labels))
            else:
                outputs.append(OutputTensor(output.name, "FP32", values.shape, values, output.binary))
        return tuple(outputs)

    def config(self) -> InputLayout:
        """Describe the input for a model configuration, in which the batch axis goes without saying."""
        return {"format": f"FORMAT_{self.backend.spec.input.layout}", "dims": list(self._row)}
