"""Model `M`: encoded images in, labels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.errors import InputError
from models.inference.predictions import Float32Array, Int32Array
from serve.http.bodies import from_base64
from serve.model.backend import Backend, Labelled
from serve.oip.answers import InputLayout
from serve.oip.datatypes import BYTES
from serve.oip.faults import bad_image, malformed
from serve.oip.request import InferRequest, RequestedOutput
from serve.oip.response import OutputTensor
from serve.oip.served import TensorMetadata, check_rows, classification_output, only_input, read_values, wanted_outputs
from serve.oip.tensor import InputTensor

# Of a calibrated model alone.
ACCEPTED = TensorMetadata("accepted", "BOOL", (-1,))


class ServedImages:
    """A backend under its own name.

    Args:
        backend: What labels.
        max_images: Per request.
        top_k: Labels per image where a request does not say, or all where the model has fewer.
    """

    def __init__(self, backend: Backend, *, max_images: int, top_k: int) -> None:
        self.backend: Backend = backend
        self.name = backend.spec.name
        self._max_images = max_images
        self._default_top_k = min(top_k, len(backend.labels))
        self._labels = [label.encode() for label in backend.labels]
        self.inputs: tuple[TensorMetadata, ...] = (TensorMetadata("image", BYTES, (-1,)),)
        self.outputs: tuple[TensorMetadata, ...] = (
            TensorMetadata("probabilities", "FP32", (-1, len(self._labels))),
            TensorMetadata("label_ids", "INT32", (-1, -1)),
            TensorMetadata("scores", "FP32", (-1, -1)),
            TensorMetadata("labels", BYTES, (-1, -1)),
            *((ACCEPTED,) if backend.calibration is not None else ()),
        )

        self.parameters: dict[str, str] = {}
        if (calibration := backend.calibration) is not None:
            self.parameters = {
                "calibration_sha256": calibration.sha256,
                "temperature": repr(calibration.temperature),
                "precision_target": f"{calibration.precision_target:g}",
            }

    def raw_input(self, body: memoryview) -> InputTensor:
        """Take the body as one encoded image, without the length that begins a BYTES element."""
        return InputTensor(self.inputs[0].name, BYTES, (1,), [bytes(body)])

    async def infer(self, request: InferRequest, *, deadline: float) -> tuple[OutputTensor, ...]:
        """Label the images of a request. See `ServedModel.infer`."""
        tensor = only_input(request, self.inputs[0], self.name)
        wanted = wanted_outputs(request, self.outputs, self.name)
        top_k = self._top_k(request)
        self._check_shape(tensor)
        images = await read_values(tensor, deadline, lambda: _images(tensor))
        # Classes are the best labels already: all probabilities are needed only where the tensor itself is wanted.
        most = max([top_k, *(output.classification for output in wanted)])
        outcomes = await self.backend.label(
            images,
            top_k=min(most, len(self._labels)),
            deadline=deadline,
            probabilities=any(o.name == "probabilities" and not o.classification for o in wanted),
        )
        rows = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, InputError):
                raise bad_image(index, outcome)
            rows.append(outcome)
        return tuple(self._output(output, rows, top_k) for output in wanted)

    def config(self) -> InputLayout:
        """Describe the input for a model configuration, in which the batch axis goes without saying."""
        return {"format": "FORMAT_NONE", "dims": [1]}

    def _top_k(self, request: InferRequest) -> int:
        classes = len(self._labels)
        if request.top_k is None:
            return self._default_top_k
        if request.top_k > classes:
            raise malformed(f"top_k must be between 1 and {classes} (the classes of {self.name}), got {request.top_k}")
        return request.top_k

    def _check_shape(self, tensor: InputTensor) -> None:
        # Clients of servers with a batch axis of their own send [n, 1].
        if len(tensor.shape) != 1 and tensor.shape[1:] != (1,):
            raise malformed(f"shape of {tensor.name!r} must be [n] or [n, 1], got {list(tensor.shape)}")
        check_rows(tensor.count, self._max_images, tensor.name)

    def _output(self, wanted: RequestedOutput, rows: Sequence[Labelled], top_k: int) -> OutputTensor:
        if wanted.classification:
            # Of any output: clients of Triton's ensembles ask for the classes of all that the metadata name.
            k = min(wanted.classification, len(self._labels))
            ids = [row.label_ids[:k].tolist() for row in rows]
            return classification_output(wanted, ids, [row.scores[:k].tolist() for row in rows], self.backend.labels)
        if wanted.name == "labels":
            names = [self._labels[index] for row in rows for index in row.label_ids[:top_k].tolist()]
            return OutputTensor(wanted.name, BYTES, (len(rows), top_k), names, wanted.binary)
        if wanted.name == ACCEPTED.name:
            accepted = np.array([row.accepted for row in rows], np.bool_)
            return OutputTensor(wanted.name, ACCEPTED.datatype, accepted.shape, accepted, wanted.binary)
        values = np.stack([_values(row, wanted.name, top_k) for row in rows])
        datatype = "INT32" if wanted.name == "label_ids" else "FP32"
        return OutputTensor(wanted.name, datatype, values.shape, values, wanted.binary)


def _values(row: Labelled, name: str, top_k: int) -> Float32Array | Int32Array:
    if name == "probabilities":
        assert row.probabilities is not None, "they were asked for"
        return row.probabilities
    return row.label_ids[:top_k] if name == "label_ids" else row.scores[:top_k]


def _images(tensor: InputTensor) -> list[bytes]:
    return [
        _from_base64(element, index) if isinstance(element, str) else bytes(element)
        for index, element in enumerate(tensor.elements())
    ]


def _from_base64(text: str, index: int) -> bytes:
    try:
        return from_base64(text)
    except ValueError as err:
        raise malformed(f"image {index}: JSON carries an image as base64 text, and this is not: {err}") from None
