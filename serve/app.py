"""What Ray Serve is pointed at, and what everything else builds the endpoint by.

build_asgi(models, config)                all that HTTP reaches (serve.routes); needs no Ray
build_app(ServeConfig) -> Application     `serve run serve.app:build_app model=NAME`, `serve deploy`, `shardlabel serve`
"""

# No `from __future__ import annotations` here: Serve's typed builders want the annotation itself, not its name.

from typing import TYPE_CHECKING

from serve.config import ServeConfig
from serve.http.in_flight import Extras
from serve.routes import build_asgi

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Extras", "build_app", "build_asgi"]


def build_app(args: ServeConfig) -> "Application":
    """Build the Ray Serve application: one deployment, which is ingress, decoder and model.

    Args:
        args: The settings; strings of `serve run serve.app:build_app model=NAME` are converted.

    Raises:
        ConfigError: The settings cannot be used; the message says why.
        UnknownModelError: The catalog has no such model.
    """
    from serve.replica import build_application

    return build_application(args if isinstance(args, ServeConfig) else ServeConfig.model_validate(args))
