"""Routes that take images: /v1/classify, /v1/embeddings, and /models/M as Hugging Face's image classification has it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from multipart import parse_options_header
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from models.errors import InputError
from serve.config import ServeConfig
from serve.http.asgi import IN_FLIGHT, TIMEOUT, JsonResponse, Rejected, deadline_of
from serve.http.bodies import Held, read_body
from serve.http.images import FORM, Base64, EncodedImage, File, Parsed, Strict, parse_images, to_top_k
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Labelled, Outcome

T = TypeVar("T")
Render = Callable[[Engine, Sequence[Outcome], Parsed], object]

# A larger body is parsed in a thread: base64 of 20 MB takes 30 ms, in which nothing else would be answered.
_INLINE_BYTES = 512 * 1024
_ERRORS = (400, 404, 405, 413, 415, 422, 503, 504)
_CLASSIFY_TEXT = (
    "The body is one image, a form with one or more fields `image`, or JSON with base64. Of several images, one that "
    "cannot be labelled is a result with its status and error; alone, it is the answer's status. Limits: "
    "{0.max_request_bytes:,} bytes, {0.max_images} images of {0.max_pixels:,} pixels, {0.deadline_s:g} s. Bodies may be "
    "compressed (Content-Encoding gzip or deflate)."
)
_EMBEDDINGS_TEXT = (
    "Bodies, limits and errors are those of /v1/classify; JSON may have `input` as OpenAI's clients send it, where each "
    "string is an image in base64 or a data: address. The values are those that `shardlabel label --embeddings` writes. "
    "404 where the model's entry names no embedding tensor."
)
_HUGGING_FACE_TEXT = (
    "The body is one image, or JSON with base64 and parameters. Scores are softmax probabilities, so that "
    "function_to_apply may only be softmax. Limits and errors are those of /v1/classify."
)

_Model = Annotated[str, Field(description="The model's name, where there are several; the first unless given.")]
_Status = Annotated[str, Field(json_schema_extra={"enum": ["ok", "undecodable", "too_large", "unsupported", "empty"]})]
_Pixels = Annotated[int, Field(ge=1, description="Pixels, of the image as stored.")]
_IN_BASE64 = Field(json_schema_extra={"contentEncoding": "base64"})
_OneOrMore = BeforeValidator(
    lambda given: [given] if isinstance(given, str) else given, json_schema_input_type=Base64 | list[Base64]
)


class ImageRoute(Operation):
    """A route that takes images. The model is named by its path, the query, or JSON that has a field for it.

    Args:
        path: Of the route.
        about: What the document says of it beside what all of these routes share. It is held to that: the query has no other
            parameters, and the body is an image or what is said here.
        models: What is served.
        config: Limits and defaults.
        render: Makes the answer's JSON of what became of a request's images, in order.
        embeds: Whether the answer has embeddings.
    """

    def __init__(
        self, path: str, about: About, models: Models, config: ServeConfig, render: Render, *, embeds: bool = False
    ) -> None:
        body = {"image/*": bytes, BINARY: bytes, **about.body}
        super().__init__("POST", path, self._answer, replace(about, errors=_ERRORS, body=body, headers=TIMEOUT))
        self._body_names_model = "model" in about.body[JSON].model_fields
        self._models = models
        self._config = config
        self._render = render
        self._embeds = embeds

    async def _answer(self, request: Request) -> Response:
        deadline = deadline_of(request, self._config.deadline_s)
        query, known = request.query_params, self.about.query
        if not query.keys() <= known.keys():
            unknown = min(query.keys() - known.keys())
            raise Rejected(400, f"there is no query parameter {unknown[:40]!r}; {self.path} takes {', '.join(known)}")
        top_k = to_top_k(query["top_k"]) if "top_k" in query else None
        named = request.path_params.get("model", query.get("model"))
        backend = None
        if named is None and self._body_names_model:
            self._models.admit(1)
        else:
            backend = self._admitted(request, named)
        parsed = await self._read(request, deadline)
        top_k, named = _only("top_k", top_k, parsed.top_k), _only("model", named, parsed.model)
        backend = backend or self._admitted(request, named)
        if self._embeds and backend.spec.embedding is None:
            raise Rejected(
                404,
                f"model {backend.spec.name!r} has no embeddings: its entry names no embedding tensor; "
                "`shardlabel models add --embedding TENSOR` registers a model with one",
            )
        classes = len(backend.labels)
        if top_k is not None and not 1 <= top_k <= classes:
            raise Rejected(400, f"top_k must be between 1 and {classes} (the classes of the model), got {top_k}")
        top_k = min(self._config.top_k, classes) if top_k is None else top_k
        good = [image for image in parsed.images if isinstance(image, bytes)]
        labelled = iter(
            await backend.label(good, top_k=top_k, deadline=deadline, embedding=self._embeds) if good else ()
        )
        outcomes = [next(labelled) if isinstance(image, bytes) else image for image in parsed.images]
        if len(outcomes) == 1 and isinstance(outcomes[0], InputError):
            raise outcomes[0]
        return JsonResponse(self._render(backend, outcomes, parsed))

    def _admitted(self, request: Request, name: str | None) -> Engine:
        """Return the model that a request is for, and let the request in; or raise why not."""
        backend = self._models.find(name)
        request.scope[IN_FLIGHT].model = backend.spec.name
        backend.admit(1)
        return backend

    async def _read(self, request: Request, deadline: float) -> Parsed:
        """Read and parse a request's body; the images are what it holds afterwards."""
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        max_bytes, is_cut = self._config.max_request_bytes, kind in (FORM, JSON)
        held: Held = request.scope[IN_FLIGHT].held

        def parse(body: bytes) -> Parsed:
            # The body, what is cut or parsed out of it, and the images that are copied or decoded from that.
            held.set((3 if is_cut else 1) * len(body))
            parsed = parse_images(body, kind, options, self.about.body, self._config.max_images)
            if is_cut:
                held.set(sum(len(image) for image in parsed.images if isinstance(image, bytes)))
            return parsed

        return await read_body(request, max_bytes, deadline, parse, _INLINE_BYTES if is_cut else max_bytes)


def _only(what: str, outside: T | None, inside: T | None) -> T | None:
    if outside is not None and inside is not None and outside != inside:
        raise Rejected(400, f"{what} is given twice: {str(outside)[:60]} in the query, {str(inside)[:60]} in the body")
    return inside if outside is None else outside


class LabelScore(TypedDict):
    """One of an image's labels, as Hugging Face's clients expect it."""

    label: str
    score: Annotated[float, Field(ge=0, le=1, description="Softmax probability.")]


class Label(LabelScore):
    """One of an image's labels."""

    label_id: Annotated[int, Field(ge=0)]


class Result(TypedDict):
    """What became of one image: labels, best first, or an error."""

    status: _Status
    error: NotRequired[str]
    width: NotRequired[_Pixels]
    height: NotRequired[_Pixels]
    labels: NotRequired[list[Label]]
    accepted: NotRequired[Annotated[bool, Field(description="Whether the first label reaches its class's threshold.")]]


class ClassifyAnswer(TypedDict):
    """One result per image, in order."""

    model: str
    model_version: str
    results: list[Result]


def classify_route(models: Models, config: ServeConfig) -> ImageRoute:
    """Build POST /v1/classify, described with this endpoint's limits."""
    most = min((len(backend.labels) for backend in models), default=config.top_k)
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": min(config.top_k, most)}
    count = WithJsonSchema(schema | {"description": "Labels per image, best first."})
    several = Field(min_length=1, json_schema_extra={"maxItems": config.max_images})

    class ClassifyRequest(Strict):
        """Images in base64, and how many labels each is to get."""

        images: Annotated[list[EncodedImage], several]
        top_k: Annotated[int | None, count] = None

        def parsed(self) -> Parsed:
            return Parsed([image.b64 for image in self.images], self.top_k)

    class ClassifyForm(Strict):
        image: Annotated[list[bytes], several]
        top_k: Annotated[int | None, count] = None

    about = About(
        "Label images",
        {JSON: ClassifyAnswer},
        text=_CLASSIFY_TEXT.format(config),
        body={FORM: ClassifyForm, JSON: ClassifyRequest},
        query={"top_k": Annotated[int, count], "model": _Model},
    )
    return ImageRoute("/v1/classify", about, models, config, _classified)


def _classified(backend: Engine, outcomes: Sequence[Outcome], _: Parsed) -> ClassifyAnswer:
    spec, results = backend.spec, [_result(outcome, backend.labels) for outcome in outcomes]
    return ClassifyAnswer(model=spec.name, model_version=spec.version, results=results)


def _result(outcome: Outcome, names: Sequence[str]) -> Result:
    if isinstance(outcome, InputError):
        result: Result = {"status": outcome.status, "error": str(outcome)}
        if outcome.width is not None and outcome.height is not None:
            result |= {"width": outcome.width, "height": outcome.height}
        return result
    labels: list[Label] = [
        {"label": names[i], "label_id": i, "score": score}
        for i, score in zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
    ]
    result = {"status": "ok", "width": outcome.width, "height": outcome.height, "labels": labels}
    if outcome.accepted is not None:
        result["accepted"] = outcome.accepted
    return result


class ImageClassificationParameters(Strict):
    """What Hugging Face's clients may ask for."""

    top_k: Annotated[int, Field(ge=1, description="Labels of the image, best first.")] | None = None
    function_to_apply: Literal["softmax"] | None = None


class ImageClassificationRequest(Strict):
    """An image, as Hugging Face's clients send it where there are parameters."""

    inputs: File
    parameters: ImageClassificationParameters | None = None
    options: Annotated[Any, Field(description="Of the older API: taken, and without effect.")] = None

    def parsed(self) -> Parsed:
        """Return the parsed request."""
        return Parsed([self.inputs], None if self.parameters is None else self.parameters.top_k)


def hugging_face_route(models: Models, config: ServeConfig) -> ImageRoute:
    """Build POST /models/M."""
    about = About(
        "Label an image (Hugging Face's image classification)",
        {JSON: list[LabelScore]},
        text=_HUGGING_FACE_TEXT,
        body={JSON: ImageClassificationRequest},
        query={"top_k": Annotated[int, Field(ge=1, description="Labels of the image, best first.")]},
    )
    return ImageRoute("/models/{model}", about, models, config, _labels_of_one)


def _labels_of_one(backend: Engine, outcomes: Sequence[Outcome], _: Parsed) -> list[LabelScore]:
    (outcome,) = outcomes
    assert isinstance(outcome, Labelled), "the error of an image that is alone is raised"
    best = zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
    return [{"label": backend.labels[index], "score": score} for index, score in best]


class Embedding(TypedDict):
    """One image's embedding, or why there is none."""

    object: Literal["embedding"]
    index: Annotated[int, Field(ge=0, description="The image's place in the request.")]
    status: _Status
    error: NotRequired[str]
    embedding: NotRequired[list[float] | Annotated[str, Field(description="float32, little-endian."), _IN_BASE64]]


class EmbeddingsAnswer(TypedDict):
    """One embedding per image, in order."""

    object: Literal["list"]
    model: str
    model_version: str
    data: list[Embedding]
    usage: dict[str, int]


def embeddings_route(models: Models, config: ServeConfig) -> ImageRoute:
    """Build POST /v1/embeddings, which answers in the form that OpenAI's clients expect."""
    several = Field(min_length=1, json_schema_extra={"maxItems": config.max_images})

    class EmbeddingsRequest(Strict):
        """Images to embed: `images` as for /v1/classify, or `input` as OpenAI's clients send it."""

        model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["images"]}, {"required": ["input"]}]})

        images: Annotated[list[EncodedImage], several] = Field(default=[])
        input: Annotated[list[File], several, _OneOrMore] = Field(default=[])
        model: Annotated[str | None, Field(description="The model's name; the first unless given.")] = None
        encoding_format: Literal["float", "base64"] = "float"
        dimensions: Annotated[None, Field(description="The model's embeddings have one width.")] = None
        user: Annotated[Any, Field(description="Taken, and without effect.")] = None

        @model_validator(mode="after")
        def _check(self) -> EmbeddingsRequest:
            if bool(self.images) == bool(self.input):
                raise ValueError("it must have images or input, and not both")
            return self

        def parsed(self) -> Parsed:
            images = self.input or [image.b64 for image in self.images]
            return Parsed(images, encoding=self.encoding_format, model=self.model)

    class EmbeddingsForm(Strict):
        image: Annotated[list[bytes], several]

    body = {FORM: EmbeddingsForm, JSON: EmbeddingsRequest}
    about = About("Embed images", {JSON: EmbeddingsAnswer}, text=_EMBEDDINGS_TEXT, body=body, query={"model": _Model})
    return ImageRoute("/v1/embeddings", about, models, config, _embedded, embeds=True)


def _embedded(backend: Engine, outcomes: Sequence[Outcome], parsed: Parsed) -> EmbeddingsAnswer:
    data = [_embedding(index, outcome, parsed.encoding) for index, outcome in enumerate(outcomes)]
    # Clients read the usage: an image has no tokens.
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    spec = backend.spec
    return EmbeddingsAnswer(object="list", model=spec.name, model_version=spec.version, data=data, usage=usage)


def _embedding(index: int, outcome: Outcome, encoding: str) -> Embedding:
    if isinstance(outcome, InputError):
        return {"object": "embedding", "index": index, "status": outcome.status, "error": str(outcome)}
    values: Any = outcome.embedding  # as numpy holds it: a list of floats would be 20 times as large
    if encoding == "base64":
        values = base64.b64encode(values.astype("<f4", copy=False).tobytes()).decode()
    return {"object": "embedding", "index": index, "status": "ok", "embedding": values}
