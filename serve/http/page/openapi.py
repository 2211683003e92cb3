"""The page's section of the OpenAPI document."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def _get(summary: str, content_type: str, schema: Json) -> Json:
    """Return a GET that needs no key."""
    answer = {"description": "ok", "content": {content_type: {"schema": schema}}}
    return {"get": {"summary": summary, "security": [], "responses": {"200": answer}}}


_TEXT: Json = {"type": "string"}
_SAMPLE: Json = {
    "type": "object",
    "required": ["name", "title", "author", "source", "licence", "licence_url", "image", "thumbnail"],
    "additionalProperties": _TEXT,
}

OPENAPI_PATHS: dict[str, object] = {
    "/": _get("A page to label images on", "text/html", _TEXT),
    "/page/state": _get(
        "What the page shows of this endpoint",
        "application/json",
        {
            "type": "object",
            "required": ["ready", "model", "precision", "max_request_bytes"],
            "properties": {
                "ready": {"type": "boolean"},
                "model": _TEXT,
                "precision": _TEXT,
                "max_request_bytes": {"type": "integer", "minimum": 1},
            },
        },
    ),
    "/page/samples": _get(
        "The bundled photographs, and whose they are",
        "application/json",
        {"type": "object", "required": ["samples"], "properties": {"samples": {"type": "array", "items": _SAMPLE}}},
    ),
}
