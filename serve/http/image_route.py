"""What the routes that take images have in common: a request is let in, read, labelled and answered."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from models.errors import InputError
from serve.config import ServeConfig
from serve.http.asgi import MODEL, JsonResponse, Rejected, deadline_of
from serve.http.images import FORM, JsonBody, Parsed, read_images, whole_number
from serve.http.openapi import About, Operation
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Outcome

T = TypeVar("T")


class ImageRoute(Operation):
    """A route that takes images. The model is named by its path, the query, or JSON that has a field for it.

    Args:
        path: Of the route.
        about: What the document says of it; a form is taken where its body has one.
        json_kind: What JSON has to be.
        models: What is served.
        config: Limits and defaults.
    """

    gives_embeddings: ClassVar[bool] = False

    def __init__(self, path: str, about: About, json_kind: type[JsonBody], models: Models, config: ServeConfig) -> None:
        super().__init__("POST", path, self._answer, about)
        self._json_kind = json_kind
        self._body_names_model = "model" in json_kind.model_fields
        self._allow_form = FORM in about.body
        self._models = models
        self._config = config

    def render(self, backend: Engine, outcomes: list[Outcome], parsed: Parsed) -> Any:  # noqa: ANN401 (JSON)
        """Return the answer to a request; `outcomes` are those of its images, in order."""
        raise NotImplementedError

    def check(self, backend: Engine, top_k: int | None) -> None:
        """Raise `Rejected` where the model cannot do what is asked for."""

    async def _answer(self, request: Request) -> Response:
        config = self._config
        deadline = deadline_of(request, config.deadline_s)
        named = request.path_params.get("model", request.query_params.get("model"))
        backend = None
        if named is None and self._body_names_model:
            self._models.admit(1)
        else:
            backend = self._admitted(request, named)
        asked = request.query_params.get("top_k")
        top_k = None if asked is None else whole_number(asked)
        parsed = await read_images(request, config, deadline, self._json_kind, allow_form=self._allow_form)
        top_k = _only("top_k", top_k, parsed.top_k)
        name = _only("model", named, parsed.model)
        if backend is None:
            backend = self._admitted(request, name)
        self.check(backend, top_k)
        good = [image for image in parsed.images if isinstance(image, bytes)]
        top_k = _chosen(top_k, config.top_k, len(backend.labels))
        labelled = iter(
            await backend.label(good, top_k=top_k, deadline=deadline, embedding=self.gives_embeddings) if good else ()
        )
        outcomes = [next(labelled) if isinstance(image, bytes) else image for image in parsed.images]
        if len(outcomes) == 1 and isinstance(outcomes[0], InputError):
            raise outcomes[0]
        return JsonResponse(self.render(backend, outcomes, parsed))

    def _admitted(self, request: Request, name: str | None) -> Engine:
        """Return the model that a request is for, and let the request in; or raise why not."""
        backend = self._models.find(name)
        request.scope[MODEL] = backend.spec.name
        backend.admit(1)
        return backend


def _only(what: str, outside: T | None, inside: T | None) -> T | None:
    if outside is not None and inside is not None and outside != inside:
        raise Rejected(400, f"{what} is given twice: {str(outside)[:60]} in the query, {str(inside)[:60]} in the body")
    return inside if outside is None else outside


def _chosen(asked: int | None, default: int, num_classes: int) -> int:
    if asked is None:
        return min(default, num_classes)
    if not 1 <= asked <= num_classes:
        raise Rejected(400, f"top_k must be between 1 and {num_classes} (the classes of the model), got {asked}")
    return asked
