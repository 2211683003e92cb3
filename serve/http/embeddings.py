"""POST /v1/embeddings: images in, the model's penultimate features out, in the form that OpenAI's clients expect."""

from __future__ import annotations

import base64

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InputError
from models.inference.predictions import Float32Array
from serve.config import ServeConfig
from serve.http.answers import (
    Embedding,
    EmbeddingsAnswer,
    EmbeddingsForm,
    EmbeddingsInput,
    EmbeddingsRequest,
    ModelQuery,
    TimeoutSeconds,
)
from serve.http.asgi import TIMEOUT_HEADER, JsonResponse, Rejected, deadline_of
from serve.http.image_json import check_number, decoded, images_of, json_object, kind_of, only_keys
from serve.http.images import FORM, Parsed, find_model, label_images, read_images
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.model.models import Models
from serve.model.outcomes import Outcome

_KEYS = ("images", "input", "model", "encoding_format", "dimensions", "user")
_TEXT = (
    "The body is one image, a form with one or more fields `image`, or JSON: `images` as for /v1/classify, or `input` as "
    "OpenAI's clients send it, where each string is an image in base64 or a data: address. The values are those that "
    "`shardlabel label --embeddings` writes. Of several images, one that cannot be read has a status and an error in place "
    "of its embedding; alone, it is the answer's status. 404 where the model's entry names no embedding tensor."
)


def embeddings_route(models: Models, config: ServeConfig) -> Operation:
    """Return the route, described with this endpoint's limits."""
    about = About(
        "Embed images",
        {JSON: EmbeddingsAnswer},
        errors=(400, 404, 405, 413, 415, 422, 503, 504),
        text=_TEXT,
        body={"image/*": bytes, BINARY: bytes, FORM: EmbeddingsForm, JSON: EmbeddingsRequest | EmbeddingsInput},
        query={"model": ModelQuery},
        headers={TIMEOUT_HEADER: TimeoutSeconds},
    )

    async def answer(request: Request) -> Response:
        deadline = deadline_of(request, config.deadline_s)
        named = request.query_params.get("model")
        if named is None:  # the body may name one
            models.admit(1)
        else:
            find_model(request, models, named)
        parsed = await read_images(request, config, deadline, _parse_json)
        if named is not None and parsed.model not in (None, named):
            raise Rejected(400, f"model is given twice: {named[:60]!r} in the query, {parsed.model[:60]!r} in the body")
        backend = find_model(request, models, parsed.model if named is None else named)
        spec = backend.spec
        if spec.embedding is None:
            raise Rejected(
                404,
                f"model {spec.name!r} has no embeddings: its entry names no embedding tensor; "
                "`shardlabel models add --embedding TENSOR` registers a model with one",
            )
        if parsed.top_k is not None:
            raise Rejected(400, "embeddings have no top_k; leave it out, or ask /v1/classify for labels")
        outcomes = await label_images(backend, parsed, deadline, top_k=1, embedding=True)
        data = [_embedding(index, outcome, as_base64=parsed.as_base64) for index, outcome in enumerate(outcomes)]
        # Clients read the usage: an image has no tokens.
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return JsonResponse(
            EmbeddingsAnswer(object="list", model=spec.name, model_version=spec.version, data=data, usage=usage)
        )

    return Operation("POST", "/v1/embeddings", answer, about)


def _embedding(index: int, outcome: Outcome, *, as_base64: bool) -> Embedding:
    if isinstance(outcome, InputError):
        return {"object": "embedding", "index": index, "status": outcome.status, "error": str(outcome)}
    assert outcome.embedding is not None, "it was asked for"
    values = _as_base64(outcome.embedding) if as_base64 else outcome.embedding
    return {"object": "embedding", "index": index, "status": "ok", "embedding": values}


def _as_base64(values: Float32Array) -> str:
    return base64.b64encode(values.astype("<f4", copy=False).tobytes()).decode()


def _parse_json(body: bytes, max_images: int) -> Parsed:
    request = json_object(body, max_images, '{"images": [{"b64": "..."}]} or {"input": ["<base64>"]}')
    only_keys(request, _KEYS)
    if ("images" in request) == ("input" in request):
        raise Rejected(400, "the body must have images or input, and not both")
    model = request.get("model")
    if model is not None and not isinstance(model, str):
        raise Rejected(400, f"model must be a string, got {kind_of(model)}")
    encoding = request.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise Rejected(400, f"encoding_format must be float or base64, got {str(encoding)[:40]!r}")
    if request.get("dimensions") is not None:
        raise Rejected(400, "dimensions cannot be chosen: the model's embeddings have one width; leave it out")
    images = images_of(request["images"], max_images) if "images" in request else _inputs(request["input"], max_images)
    return Parsed(images, None, alone=len(images) == 1, as_base64=encoding == "base64", model=model)


def _inputs(given: object, max_images: int) -> list[bytes | InputError]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Rejected(
            400, "input must be an image in base64 or a list of them; text and tokens have no embedding here"
        )
    check_number(len(texts), max_images, "input is empty")
    if any(text.startswith(("http://", "https://")) for text in texts):
        raise Rejected(400, "input must be images in base64; nothing is fetched from addresses")
    return decoded(texts, "input")
