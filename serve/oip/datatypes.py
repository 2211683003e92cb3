"""The protocol's data types, their numpy twins, and values of them read from bytes and from JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.oip.faults import malformed

# On the wire every type is little-endian, whatever the machine. BF16 has no numpy type: its bits travel as UINT16.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
BYTES = "BYTES"
DATATYPES = (*DTYPES, BYTES)
# A BYTES element begins with its length.
LENGTH_BYTES = 4
# What JSON has to hold, by numpy's kind of the type: the other kinds are whole numbers.
_JSON_TYPES: dict[str, set[type]] = {"f": {int, float}, "b": {bool}}
_JSON_NAMES = {str: "string", type(None): "null", bool: "boolean", float: "number with a fraction", dict: "object"}


def numbers_from_bytes(data: memoryview, datatype: str) -> npt.NDArray[Any]:
    """View bytes as numbers; nothing is copied but BF16, which becomes float32.

    Args:
        data: Little-endian, row-major; a whole number of elements.
        datatype: Any but BYTES.

    Returns:
        A flat array, read-only where it is a view.
    """
    values = np.frombuffer(data, DTYPES[datatype])
    if datatype == "BOOL" and values.size and int(values.view("u1").max()) > 1:
        raise malformed("BOOL elements must be the bytes 0 or 1")
    if datatype == "BF16":
        return (values.astype("<u4") << 16).view("<f4")
    return values


def flatten(data: Sequence[Any], name: str) -> tuple[Sequence[Any], set[type]]:
    """Flatten JSON data, nested or flat, in row-major order.

    Args:
        data: As parsed.
        name: The tensor's, for the message.

    Returns:
        (values, the types that are among them).
    """
    kinds = set(map(type, data))
    while list in kinds:
        if len(kinds) > 1:
            raise malformed(f"data of {name!r} mix values and lists at one level")
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    return data, kinds


def numbers_from_json(data: Sequence[Any], datatype: str, name: str) -> npt.NDArray[Any]:
    """Read JSON numbers, without rounding integers or wrapping them around.

    Args:
        data: As parsed, nested or flat.
        datatype: Any but BYTES.
        name: The tensor's, for the message.

    Returns:
        A flat array; float32 for BF16.
    """
    # Types are looked at first: numpy would read "1" as one, cut 1.5 to 1, and pad every string to the longest.
    values, kinds = flatten(data, name)
    dtype = np.dtype("<f4") if datatype == "BF16" else DTYPES[datatype]
    allowed = _JSON_TYPES.get(dtype.kind, {int})
    if not kinds <= allowed:
        found = ", ".join(sorted(_JSON_NAMES.get(kind, kind.__name__) for kind in kinds - allowed))
        raise malformed(f"data of {name!r} must be {datatype} values, and there are others among them: {found}")
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise malformed(f"data of {name!r} must lie between {limits.min} and {limits.max} ({datatype})")
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype)
    except OverflowError:
        raise malformed(f"data of {name!r} hold a number that no {datatype} can hold") from None


def split_elements(data: memoryview, count: int, name: str) -> list[memoryview]:
    """Cut a BYTES tensor into its elements, without copying.

    Args:
        data: For each element its length (uint32, little-endian) and then its bytes.
        count: How many elements the tensor's shape asks for; no more are looked at.
        name: The tensor's, for the message.
    """
    elements = []
    at = 0
    end = data.nbytes
    for index in range(count):
        start = at + LENGTH_BYTES
        if start > end:
            raise malformed(f"data of {name!r} end at element {index}, and its shape asks for {count}")
        at = start + int.from_bytes(data[start - LENGTH_BYTES : start], "little")
        if at > end:
            raise malformed(
                f"element {index} of {name!r} says it has {at - start} bytes, and {end - start} bytes follow; "
                "each element is a 4-byte little-endian length and that many bytes"
            )
        elements.append(data[start:at])
    if at != end:
        raise malformed(f"data of {name!r} go on for {end - at} bytes after the {count} elements of its shape")
    return elements


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Put the elements of a BYTES tensor together: the reverse of `split_elements`."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(LENGTH_BYTES, "little"), element))
