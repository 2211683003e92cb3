"""multipart/form-data of a body that is in memory: names and contents of its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from serve.http.asgi import Rejected

MAX_HEADER_BYTES = 8192
MAX_HEADER_LINES = 16
_BOUNDARY = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name=(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form."""

    name: str
    content: bytes


def parse_multipart(content_type: bytes, body: bytes, *, max_parts: int) -> list[Part]:
    """Split a form into its parts, in order.

    Args:
        content_type: The request's, with the boundary.
        body: Whole.
        max_parts: More are refused.

    Raises:
        Rejected: 400 it is not of that form, 413 there are too many parts.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise Rejected(400, "multipart/form-data needs a boundary in its Content-Type")
    delimiter = b"--" + (found[1] or found[2])
    if body.startswith(delimiter):
        position = len(delimiter)
    else:
        position = body.find(b"\r\n" + delimiter)
        if position < 0:
            raise Rejected(400, "the form is malformed: its boundary is not in the body")
        position += 2 + len(delimiter)
    parts: list[Part] = []
    while not body.startswith(b"--", position):
        # Blanks may follow a boundary.
        start = body.find(b"\r\n", position, position + MAX_HEADER_BYTES)
        if start < 0 or body[position:start].strip(b" \t"):
            raise Rejected(400, "the form is malformed: a boundary is not followed by a line break")
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise Rejected(400, "the form is malformed: it ends without its last boundary")
        if len(parts) >= max_parts:
            raise Rejected(413, f"the form has more than {max_parts} parts", kind="too_many_images")
        parts.append(_part(body[start:end]))
        position = end + 2 + len(delimiter)
    return parts


def _part(raw: bytes) -> Part:
    """Parse one part: CRLF, headers, an empty line, content."""
    split = raw.find(b"\r\n\r\n")
    if split < 0 or split > MAX_HEADER_BYTES:
        raise Rejected(400, "the form is malformed: a part's headers do not end")
    lines = raw[:split].split(b"\r\n", MAX_HEADER_LINES)
    if len(lines) > MAX_HEADER_LINES:
        raise Rejected(400, f"the form is malformed: a part has more than {MAX_HEADER_LINES} headers")
    for line in lines:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            name = _NAME.search(value)
            if name is not None:
                return Part((name[1] if name[1] is not None else name[2]).decode("utf-8", "replace"), raw[split + 4 :])
    raise Rejected(400, "the form is malformed: a part has no name")
