"""The OpenAPI document, and a page of it that needs nothing from outside."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serve.config import ServeConfig
from serve.model.backend import Backend

Json = dict[str, Any]

_ERRORS = {
    "400": "malformed: the message says what was expected",
    "401": "no key, or one that is not known",
    "404": "no such route or model",
    "405": "another method; the header Allow lists those there are",
    "413": "too many bytes, images or pixels",
    "415": "not an image type, or an encoding that is not read here",
    "422": "the image cannot be decoded",
    "503": "overloaded or not ready; the header Retry-After says when to try again",
    "504": "the deadline passed first",
}


def errors(*statuses: str) -> Json:
    """Return the responses of an operation that stand for these statuses; all have one form."""
    return {status: {"$ref": f"#/components/responses/E{status}"} for status in statuses}


def openapi_document(config: ServeConfig, backend: Backend, more_paths: Mapping[str, object]) -> Json:
    """Return the OpenAPI 3.1 document of this endpoint, with its own limits in it."""
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": f"shardlabel: {backend.spec.name}",
            "version": _version(),
            "description": f"Labels images with {backend.spec.name} ({backend.precision}).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/classify": {"post": _classify(config, len(backend.labels))},
            "/healthz": {"get": _get("Whether the model is ready", "application/json", {"type": "object"}, "503")},
            "/metrics": {"get": _get("Metrics of all replicas, for Prometheus", "text/plain", {"type": "string"})},
            "/openapi.json": {"get": _get("This document", "application/json", {"type": "object"})},
            "/docs": {"get": _get("This document as a page", "text/html", {"type": "string"})},
            **more_paths,
        },
        "components": {"schemas": _schemas(config, len(backend.labels)), "responses": _responses()},
    }
    if config.api_keys_file is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _version() -> str:
    try:
        return version("shardlabel")
    except PackageNotFoundError:
        return "0"


def _get(summary: str, content_type: str, schema: Json, *statuses: str) -> Json:
    ok = {"description": "ok", "content": {content_type: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": ok, **errors("401", *statuses)}}


def _classify(config: ServeConfig, num_classes: int) -> Json:
    binary: Json = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {
            "image": {
                "type": "array",
                "minItems": 1,
                "maxItems": config.max_images,
                "items": {"type": "string", "format": "binary"},
            },
            "top_k": {"type": "integer", "minimum": 1, "maximum": num_classes},
        },
    }
    return {
        "summary": "Label images",
        "operationId": "classify",
        "description": "The body is one image, a form with one or more fields `image`, or JSON with base64. Of several "
        "images, one that cannot be labelled is a result with its status and error; alone, it is the answer's status. "
        f"Limits: {config.max_request_bytes:,} bytes, {config.max_images} images of {config.max_pixels:,} pixels, "
        f"{config.deadline_s:g} s. Bodies may be packed (Content-Encoding gzip or deflate).",
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "Labels per image, best first.",
                "schema": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": num_classes,
                    "default": min(config.top_k, num_classes),
                },
            },
            {
                "name": "x-request-timeout-seconds",
                "in": "header",
                "description": "A shorter deadline than the endpoint's own, seconds.",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": binary,
                "application/octet-stream": binary,
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": {"$ref": "#/components/schemas/ClassifyRequest"}},
            },
        },
        "responses": {
            "200": {
                "description": "One result per image, in order",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ClassifyAnswer"}}},
            },
            **errors("400", "401", "405", "413", "415", "422", "503", "504"),
        },
    }


def _schemas(config: ServeConfig, num_classes: int) -> Json:
    size = {"type": "integer", "minimum": 1, "description": "Pixels, of the image as stored."}
    label = {
        "type": "object",
        "required": ["label", "label_id", "score"],
        "properties": {
            "label": {"type": "string"},
            "label_id": {"type": "integer", "minimum": 0, "maximum": num_classes - 1},
            "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "Softmax probability."},
        },
    }
    image = {
        "type": "object",
        "required": ["b64"],
        "additionalProperties": False,
        "properties": {"b64": {"type": "string", "contentEncoding": "base64", "description": "The file in base64."}},
    }
    result = {
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {"enum": ["ok", "undecodable", "too_large", "unsupported", "empty"]},
            "error": {"type": "string"},
            "width": size,
            "height": size,
            "labels": {"type": "array", "items": {"$ref": "#/components/schemas/Label"}},
        },
    }
    return {
        "Label": label,
        "Result": result,
        "ClassifyRequest": {
            "type": "object",
            "required": ["images"],
            "additionalProperties": False,
            "properties": {
                "images": {"type": "array", "minItems": 1, "maxItems": config.max_images, "items": image},
                "top_k": {"type": "integer", "minimum": 1, "maximum": num_classes},
            },
        },
        "ClassifyAnswer": {
            "type": "object",
            "required": ["model", "model_version", "results"],
            "properties": {
                "model": {"type": "string"},
                "model_version": {"type": "string"},
                "results": {"type": "array", "items": {"$ref": "#/components/schemas/Result"}},
            },
        },
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    }


def _responses() -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: Json = {f"E{status}": {"description": text, "content": content} for status, text in _ERRORS.items()}
    responses["E503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return responses


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{font-size:1.1rem;border-top:1px solid #ddd;padding-top:1rem}code,pre{font-family:ui-monospace,monospace}
pre{background:#f5f5f5;padding:.75rem;overflow-x:auto;font-size:.85rem}.m{font-weight:700;margin-right:.5rem}
table{border-collapse:collapse}td,th{text-align:left;padding:.15rem 1rem .15rem 0;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#222}h2{border-color:#333}}
"""


def docs_page(document: Json) -> bytes:
    """Render an OpenAPI document as one HTML page without scripts."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(document['info']['title'])}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
        f"<h1>{_text(document['info']['title'])}</h1><p>{_text(document['info']['description'])} ",
        "<a href=openapi.json>openapi.json</a></p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if isinstance(operation, dict):
                parts.append(_operation(path, method, operation))
    schemas = json.dumps(document["components"]["schemas"], indent=1)
    parts.append(f"<h2>Schemas</h2><pre>{_text(schemas)}</pre></html>")
    return "".join(parts).encode()


def _operation(path: str, method: str, operation: Json) -> str:
    lines = [
        f"<h2><span class=m>{_text(method.upper())}</span><code>{_text(path)}</code></h2>",
        f"<p><b>{_text(operation.get('summary', ''))}.</b> {_text(operation.get('description', ''))}</p>",
    ]
    rows = [
        f"<tr><td><code>{_text(p['name'])}</code><td>{_text(p['in'])}<td>{_text(p.get('description', ''))}"
        for p in operation.get("parameters", ())
        if "name" in p
    ]
    rows += [
        f"<tr><td><code>{_text(kind)}</code><td>body<td>"
        for kind in operation.get("requestBody", {}).get("content", ())
    ]
    rows += [
        f"<tr><td>{_text(status)}<td>answer<td>{_text(_ERRORS.get(status, response.get('description', '')))}"
        for status, response in operation.get("responses", {}).items()
    ]
    return "".join(lines) + f"<table>{''.join(rows)}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
