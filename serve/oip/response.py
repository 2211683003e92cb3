"""An inference answer, and its HTTP body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from serve.oip.request import BYTES, LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output.

    Attributes:
        name: As the model calls it.
        datatype: FP32, INT32, BOOL or BYTES.
        data: Of the output's shape, batch axis first: numbers, or as objects the elements of a BYTES tensor, UTF-8.
        binary: Whether it was asked for in binary form.
    """

    name: str
    datatype: str
    data: npt.NDArray[Any]
    binary: bool = False

    def raw(self) -> bytes | memoryview:
        """Return the binary form: little-endian, row-major; of an array's own memory where it lies so."""
        if self.datatype == BYTES:
            return join_elements(self.data.ravel().tolist())
        ordered = np.ascontiguousarray(self.data, self.data.dtype.newbyteorder("<"))
        return ordered.data.cast("B") if ordered.size else b""


@dataclass(frozen=True, slots=True)
class InferResponse:
    """What a model answered, whatever it travels by."""

    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor]
    id: str | None = None

    def encode(self) -> tuple[bytes, int | None]:
        """Write the HTTP body.

        Returns:
            (body, bytes of its JSON part), the latter None where no output is binary.
        """
        tensors = []
        buffers = []
        for output in self.outputs:
            tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.data.shape}
            if output.binary:
                buffers.append(output.raw())
                tensor["parameters"] = {"binary_data_size": len(buffers[-1])}
            elif output.datatype == BYTES:
                tensor["data"] = [element.decode() for element in output.data.ravel()]
            else:
                tensor["data"] = np.ascontiguousarray(output.data).ravel()
            tensors.append(tensor)
        document = {"model_name": self.model_name, "model_version": self.model_version, "outputs": tensors}
        if self.id is not None:
            document["id"] = self.id
        head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return b"".join((head, *buffers)), len(head) if buffers else None


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Put the elements of a BYTES tensor together: the reverse of `serve.oip.request.split_elements`."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(LENGTH_BYTES, "little"), element))
