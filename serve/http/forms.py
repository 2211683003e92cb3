"""multipart/form-data of a body that is in memory: names and contents of its parts."""

from __future__ import annotations

from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from serve.http.asgi import Rejected

MAX_HEADER_BYTES = 8192
MAX_HEADER_LINES = 16


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form."""

    name: str
    content: bytes


def parse_multipart(content_type: str, body: bytes, *, max_parts: int) -> list[Part]:
    """Split a form into its parts, in order.

    Args:
        content_type: The request's, with the boundary.
        body: Whole.
        max_parts: More are refused.

    Raises:
        Rejected: 400 it is not of that form, 413 there are too many parts.
    """
    _, options = parse_options_header(content_type)
    if not options.get("boundary"):
        raise Rejected(400, "multipart/form-data needs a boundary in its Content-Type")
    parts: list[Part] = []
    name = ""
    pieces: list[bytes] = []
    try:
        with PushMultipartParser(
            options["boundary"], max_header_size=MAX_HEADER_BYTES, max_header_count=MAX_HEADER_LINES
        ) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    if len(parts) >= max_parts:
                        raise Rejected(413, f"the form has more than {max_parts} parts", kind="too_many_images")
                    name, pieces = event.name, []
                elif event is None:
                    parts.append(Part(name, b"".join(pieces)))
                else:
                    pieces.append(bytes(event))
    except ParserLimitReached as err:
        raise Rejected(
            400, f"the form is malformed: a part has more than {MAX_HEADER_LINES} headers, or one is too long"
        ) from err
    except MultipartError as err:
        raise Rejected(400, f"the form is malformed: {str(err)[:200]}") from err
    return parts
