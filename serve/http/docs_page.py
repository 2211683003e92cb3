"""The OpenAPI document as one HTML page, without scripts: it needs nothing from outside."""

from __future__ import annotations

import html
from typing import Any

import orjson

Json = dict[str, Any]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{font-size:1.1rem;border-top:1px solid #ddd;padding-top:1rem}code,pre{font-family:ui-monospace,monospace}
pre{background:#f5f5f5;padding:.75rem;overflow-x:auto;font-size:.85rem}.m{font-weight:700;margin-right:.5rem}
table{border-collapse:collapse}td,th{text-align:left;padding:.15rem 1rem .15rem 0;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#222}h2{border-color:#333}}
"""


def docs_page(document: Json) -> str:
    """Render an OpenAPI document."""
    title, about = (_text(document["info"][key]) for key in ("title", "description"))
    responses = document["components"]["responses"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{about} <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(
                f"<h2><span class=m>{method.upper()}</span><code>{_text(path)}</code></h2>"
                f"<p><b>{_text(operation['summary'])}.</b> {_text(operation['description'])}</p>"
                f"<table>{''.join(_rows(operation, responses))}</table>"
            )
    schemas = orjson.dumps(document["components"]["schemas"], option=orjson.OPT_INDENT_2).decode()
    parts.append(f"<h2>Schemas</h2><pre>{_text(schemas)}</pre></html>")
    return "".join(parts)


def _rows(operation: Json, responses: Json) -> list[str]:
    cells = [(p["name"], p["in"], p["schema"].get("description", "")) for p in operation["parameters"]]
    cells += [(kind, "body", "") for kind in operation.get("requestBody", {}).get("content", ())]
    cells += [
        (status, "answer", responses[f"E{status}"]["description"] if "$ref" in response else response["description"])
        for status, response in operation["responses"].items()
    ]
    return [f"<tr><td><code>{_text(name)}</code><td>{place}<td>{_text(text)}" for name, place, text in cells]


def _text(value: object) -> str:
    return html.escape(str(value))
