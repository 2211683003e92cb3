"""A tensor as a request brings it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.oip.datatypes import DATATYPES, DTYPES, flatten, numbers_from_bytes, numbers_from_json, split_elements
from serve.oip.faults import malformed, shown

# Longer ones are mistakes: the longest shape of any model here has 4 axes. It also keeps error messages short.
MAX_AXES = 8
MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor as it was sent: checked against its shape, not yet read.

    Attributes:
        name: Of the model's input.
        datatype: One of `DATATYPES`.
        shape: No axis is negative.
        payload: The bytes of the binary form, or the values of the JSON form, nested or flat.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    payload: memoryview | Sequence[Any]

    @property
    def count(self) -> int:
        """Return how many elements the shape asks for."""
        return math.prod(self.shape)

    def numbers(self) -> npt.NDArray[Any]:
        """Read the values, as an array of this shape; a view of the request's bytes where they came as bytes.

        Raises:
            Rejected: They are not what datatype and shape say.
        """
        if isinstance(self.payload, memoryview):
            have = self.payload.nbytes
            want = self.count * DTYPES[self.datatype].itemsize
            if have != want:
                raise malformed(
                    f"data of {self.name!r} have {have} bytes, and {self.datatype} of shape {list(self.shape)} has {want}"
                )
            return numbers_from_bytes(self.payload, self.datatype).reshape(self.shape)
        values = numbers_from_json(self.payload, self.datatype, self.name)
        self._check_count(len(values))
        return np.reshape(values, self.shape)

    def elements(self) -> Sequence[memoryview | bytes | str]:
        """Read the elements of a BYTES tensor, in row-major order; strings where they came as JSON.

        Raises:
            Rejected: They are not what the shape says.
        """
        if isinstance(self.payload, memoryview):
            return split_elements(self.payload, self.count, self.name)
        values, kinds = flatten(self.payload, self.name)
        if not kinds <= {str, bytes}:
            raise malformed(f"data of {self.name!r} must be strings (BYTES)")
        self._check_count(len(values))
        return values

    def _check_count(self, have: int) -> None:
        if have != self.count:
            raise malformed(
                f"data of {self.name!r} have {have} elements, and its shape {list(self.shape)} asks for {self.count}"
            )


def check_tensor(name: object, datatype: object, shape: object) -> tuple[str, str, tuple[int, ...]]:
    """Check what describes a tensor.

    Raises:
        Rejected: A part is missing, of another type, or unknown.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise malformed(f"an input's name must be a string of 1 to {MAX_NAME} characters, got {shown(name)}")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise malformed(f"datatype of {name!r} must be one of {', '.join(DATATYPES)}, got {shown(datatype)}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise malformed(f"shape of {name!r} must be a list of at most {MAX_AXES} axes, got {shown(shape)}")
    if not all(type(axis) is int and axis >= 0 for axis in shape):
        raise malformed(f"shape of {name!r} must hold whole numbers that are not negative, got {shown(shape)}")
    return name, datatype, tuple(shape)
