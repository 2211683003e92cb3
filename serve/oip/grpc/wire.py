"""How much a ModelInferRequest holds, told from its bytes: two of them can stand for a message of 100 in memory."""

from __future__ import annotations

from typing import Any

from serve.http.asgi import Rejected
from serve.oip.request import malformed

# Smaller messages are parsed in less than 1 ms, to some megabytes at most.
SMALL_BYTES = 32 * 1024
# Fields that are messages in their turn, by number: see inference.proto.
_CONTENTS: dict[int, Any] = {}
_INPUT: dict[int, Any] = {4: {}, 5: _CONTENTS}
_REQUEST: dict[int, Any] = {4: {}, 5: _INPUT, 6: {2: {}}}
# Values of the contents that are packed one behind the other, in so many bytes each or more; images are not.
_BYTES_A_VALUE = {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 4, 7: 8}


def check_size(message: bytes, *, most_fields: int, most_values: int) -> None:
    """Check a ModelInferRequest before it is parsed; looks at fields, not at what they hold.

    Args:
        message: As sent.
        most_fields: Of all messages in it; each image among the contents is one.
        most_values: Of one field of numbers.

    Raises:
        Rejected: 413 there are more, 400 it is no message.
    """
    if len(message) <= SMALL_BYTES:
        return
    open_messages = [(0, len(message), _REQUEST)]
    fields = 0
    while open_messages:
        at, end, known = open_messages.pop()
        while at < end:
            fields += 1
            if fields > most_fields:
                raise _too_much(f"more than {most_fields:,} fields")
            tag, at = _varint(message, at)
            start, at = _content(message, at, tag & 7)
            if at > end:
                raise malformed("the message is not of the protocol: a field goes on behind its end")
            number = tag >> 3
            if tag & 7 == 2 and number in known:
                open_messages.append((start, at, known[number]))
            elif (at - start) // _packed_in(known, number) > most_values:
                raise _too_much(f"more than {most_values:,} values in a field")


def _packed_in(known: dict[int, Any], number: int) -> int:
    """Return the bytes that a value of a field takes at least; for what is one value, more than there are."""
    if known is _CONTENTS:
        return _BYTES_A_VALUE.get(number, 2**32)
    # A shape; everything else is text or an image.
    return 1 if known is _INPUT and number == 3 else 2**32


def _too_much(what: str) -> Rejected:
    return Rejected(413, f"the message has {what}; send numbers as raw_input_contents", kind="too_many_values")


def _content(message: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Return where a field's content begins and ends."""
    if wire_type == 0:
        return at, _varint(message, at)[1]
    if wire_type == 2:
        size, start = _varint(message, at)
        return start, start + size
    if wire_type in (1, 5):
        return at, at + (8 if wire_type == 1 else 4)
    raise malformed("the message is not of the protocol: it has a field of a kind that there is not")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise malformed("the message is not of the protocol: a number does not end")
