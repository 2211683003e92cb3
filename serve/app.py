"""What Ray Serve is pointed at, and what everything else builds the endpoint by.

    build_asgi(backend, config)               all that HTTP reaches (serve.routes); needs no Ray
    build_app(ServeConfig) -> Application     `serve run serve.app:build_app model=NAME`, `serve deploy`, `shardlabel serve`

gRPC. Serve calls the method of the ingress class that is named as the RPC, with the request's bytes where the servicer
function registers no deserializer, and sends what `SerializeToString()` of the result gives. `serve.replica` mixes in
`serve.oip.grpc.ingress.Methods`: a class whose `async def ModelInfer(self, request, grpc_context)` and so on use
`self.backend: Backend` and `self.config: ServeConfig`; `serve.oip.grpc.service.add_to_server(servicer, server)` is the
servicer function. Errors that a method raises are its own to turn into gRPC's codes.
"""

# No `from __future__ import annotations` here: Serve's typed builders want the annotation itself, not its name.

from typing import TYPE_CHECKING

from serve.config import ServeConfig
from serve.http.application import Extras
from serve.routes import build_asgi

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Extras", "build_app", "build_asgi"]


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
