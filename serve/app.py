"""The endpoint as one raw ASGI application, and the Ray Serve application around it.

    build_asgi(backend, config)        everything that HTTP reaches; needs no Ray, so unit tests give it a fake backend
    build_app(ServeConfig) -> Application     `serve run serve.app:build_app model=NAME`, `serve deploy`, `shardlabel serve`

How routes are mounted. A *part* is a sub-application: `(backend, config) -> asgi.App` (see `serve.http.asgi`), found by the
first part of the path. It is called as `await part(scope, receive, send)` with the scope as it came (no root_path is
cut off), takes its deadline from `asgi.deadline_of`, reads bodies by `bodies.read_body` (bounded and counted; gzip and
deflate undone), and may raise `asgi.Rejected` or an error of `models.errors` until it has begun to answer: here that
becomes `{"error": ...}`, a count and a line in the access log. Keys are asked for before a part is called, but not for
the paths in `serve.http.application.OPEN`.

    /v2, /v2/...           serve.oip.http.build(backend, config)
    /, /page/...           serve.http.page.build(backend, config)

A part may bring its own section of the OpenAPI document: a module-level `OPENAPI_PATHS: dict[str, object]` beside
`build`. A part that is not installed is left out, and its paths are 404.

gRPC. Serve calls the method of the ingress class that is named as the RPC, with the request's bytes where the servicer
function registers no deserializer, and sends what `SerializeToString()` of the result gives. `serve.replica` mixes in
`serve.oip.grpc.ingress.Methods` where it is installed: a class whose `async def ModelInfer(self, request,
grpc_context)` and so on use `self.backend: Backend` and `self.config: ServeConfig`;
`serve.oip.grpc.service.add_to_server(servicer, server)` is the servicer function. Errors that a method raises are its
own to turn into gRPC's codes.
"""

# No `from __future__ import annotations` here: Serve's typed builders want the annotation itself, not its name.

from typing import TYPE_CHECKING

from serve.config import ServeConfig
from serve.http.application import Endpoint, Extras
from serve.http.asgi import App
from serve.model.backend import Backend

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Extras", "build_app", "build_asgi"]


def build_asgi(backend: Backend, config: ServeConfig, extras: Extras | None = None) -> App:
    """Return the whole endpoint as one ASGI application; see the head of this file."""
    return Endpoint(backend, config, extras or Extras())


def build_app(args: ServeConfig) -> "Application":
    """Build the Ray Serve application: one deployment, which is ingress, decoder and model.

    Args:
        args: The settings; strings of `serve run serve.app:build_app model=NAME` are converted.

    Raises:
        ConfigError: They cannot be used; says why.
        UnknownModelError: There is no such model.
    """
    from serve.replica import build_application

    return build_application(args if isinstance(args, ServeConfig) else ServeConfig.model_validate(args))
