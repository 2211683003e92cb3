"""The protocol's part of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from serve.http.openapi import errors
from serve.oip.datatypes import DATATYPES

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_PARAMETERS: Json = {
    "type": "object",
    "description": "timeout (microseconds), top_k, priority, binary_data_output; of an output: binary_data, "
    "classification (this many best classes as value:index:label); of an input: binary_data_size.",
}
_SHAPE: Json = {"type": "array", "items": {"type": "integer"}, "maxItems": 8}
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": _STRING,
        "shape": _SHAPE,
        "datatype": {"enum": list(DATATYPES)},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "description": "Row-major, nested or flat; images as base64 text."},
    },
}
_INFER_REQUEST: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _STRING,
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _STRING, "parameters": _PARAMETERS},
            },
        },
    },
}
_INFER_RESPONSE: Json = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": _STRING,
        "model_version": _STRING,
        "id": _STRING,
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_HEADER_LENGTH: Json = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of the JSON at the head of a body with binary tensors behind it; 0: the body is one image, or "
    "one tensor. Left out: the body is JSON alone.",
    "schema": {"type": "integer", "minimum": 0},
}


def _segment(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


_MODEL, _VERSION = _segment("model"), _segment("version")


def _answer(schema: Json | None = None) -> Json:
    return {"200": {"description": "ok", "content": {"application/json": {"schema": schema or {"type": "object"}}}}}


def _get(summary: str, *statuses: str, parameters: tuple[Json, ...] = ()) -> Json:
    operation = {"summary": summary, "responses": {**_answer(), **errors("401", *statuses)}}
    return {"get": operation | ({"parameters": list(parameters)} if parameters else {})}


def _infer(*parameters: Json) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "post": {
            "summary": "Infer (Open Inference Protocol v2)",
            "description": "Model M takes `image` BYTES [-1], one encoded image an element, and gives probabilities, "
            "label_ids, scores and labels; M-tensor takes and gives the model's own tensors. A bad image refuses the "
            "request, and is named by its index.",
            "parameters": [*parameters, _HEADER_LENGTH],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _INFER_REQUEST}, "application/octet-stream": binary},
            },
            "responses": {
                "200": {
                    "description": "The outputs",
                    "content": {"application/json": {"schema": _INFER_RESPONSE}, "application/octet-stream": binary},
                },
                **errors("400", "401", "404", "405", "413", "415", "422", "503", "504"),
            },
        }
    }


def _repository(summary: str, *statuses: str, parameters: tuple[Json, ...] = (), schema: Json | None = None) -> Json:
    body = {"content": {"application/json": {"schema": {"type": "object"}}}}
    answers = {**_answer(schema), **errors("400", "401", "405", "413", "415", *statuses)}
    operation = {"summary": summary, "requestBody": body, "responses": answers}
    return {"post": operation | ({"parameters": list(parameters)} if parameters else {})}


def _paths_of_a_model(path: str, *parameters: Json) -> Json:
    return {
        path: _get("A model's tensors", "404", parameters=parameters),
        f"{path}/ready": _get("Whether a model is ready", "404", "503", parameters=parameters),
        f"{path}/config": _get("A model's configuration", "404", parameters=parameters),
        f"{path}/stats": _get("Counts of a model's requests in this replica", "404", parameters=parameters),
        f"{path}/infer": _infer(*parameters),
    }


PATHS: Json = {
    "/v2": _get("The server, and the protocol's extensions that it has"),
    "/v2/health/live": _get("Whether the server runs"),
    "/v2/health/ready": _get("Whether the models are ready", "503"),
    "/v2/models": _get("The models' names"),
    "/v2/models/stats": _get("Counts of all models' requests in this replica"),
    **_paths_of_a_model("/v2/models/{model}", _MODEL),
    **_paths_of_a_model("/v2/models/{model}/versions/{version}", _MODEL, _VERSION),
    "/v2/repository/index": _repository("The models with their states", schema={"type": "array"}),
    "/v2/repository/models/{model}/load": _repository("See that a model is loaded", "404", "503", parameters=(_MODEL,)),
    "/v2/repository/models/{model}/unload": _repository("Not offered: answers 404", "404", parameters=(_MODEL,)),
}
