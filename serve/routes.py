"""Every route of the endpoint, put together: what `serve.replica` hands to Ray Serve, and unit tests call."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from models.errors import NotReadyError
from serve.config import ServeConfig
from serve.http.application import Application
from serve.http.asgi import JsonResponse, Rejected
from serve.http.bodies import BodyMemory
from serve.http.image_routes import classify_route, embeddings_route, hugging_face_route
from serve.http.in_flight import Extras
from serve.http.openapi import JSON, About, Operation, documented
from serve.http.page.routes import page_routes
from serve.metrics import CONTENT_TYPE
from serve.model.models import Models
from serve.oip.endpoint import VERSION, Endpoint
from serve.oip.http import oip_routes


def build_asgi(models: Models, config: ServeConfig, extras: Extras | None = None) -> Application:
    """Return all that HTTP reaches, as one ASGI application. Needs no Ray."""
    extras = extras or Extras(memory=BodyMemory(config.max_body_memory))
    routes = [
        classify_route(models, config),
        hugging_face_route(models, config),
        embeddings_route(models, config),
        *_status_routes(models, extras),
        *oip_routes(Endpoint(models, config, extras.control)),
        *page_routes(models, config.max_request_bytes),
    ]
    described = ", ".join(f"{each.spec.name} ({each.precision})" for each in models)
    info = {
        "title": f"shardlabel: {', '.join(models.names)}",
        "version": VERSION,
        "description": f"Labels images with {described}.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    routes = documented(routes, info, has_keys=config.api_keys_file is not None)
    return Application(routes, extras)


def _status_routes(models: Models, extras: Extras) -> list[Operation]:
    async def health(_: Request) -> Response:
        if not models.is_ready:
            raise NotReadyError("not ready: no model can answer yet")
        return JsonResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        if extras.render_metrics is None:
            raise Rejected(404, "this endpoint was built without metrics", kind="no_route")
        return Response(await extras.render_metrics(), media_type=CONTENT_TYPE)

    about_health = About("Whether a model is ready", {JSON: dict[str, str]}, errors=(503,), needs_key=False)
    about_metrics = About("Metrics of all replicas, for Prometheus", {"text/plain": str})
    return [Operation("GET", "/healthz", health, about_health), Operation("GET", "/metrics", metrics, about_metrics)]
