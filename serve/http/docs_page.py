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
summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#222}h2{border-color:#333}}
"""


def docs_page(document: Json) -> str:
    """Render an OpenAPI document."""
    title, about = (_text(document["info"][key]) for key in ("title", "description"))
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
            )
            parts.append(_details("Details", operation))
    return "".join([*parts, *(_details(name, part) for name, part in document["components"].items()), "</html>"])


def _details(name: str, part: Json) -> str:
    text = orjson.dumps(part, option=orjson.OPT_INDENT_2).decode()
    return f"<details><summary>{_text(name)}</summary><pre>{_text(text)}</pre></details>"


def _text(value: object) -> str:
    return html.escape(str(value))
