"""What Ray Serve is pointed at: `serve run serve.app:build_app model=NAME`, `serve deploy`, and `shardlabel serve`."""

# No `from __future__ import annotations` here: Serve's typed builders want the annotation itself, not its name.

from typing import TYPE_CHECKING

from serve.config import ServeConfig

if TYPE_CHECKING:
    from ray.serve import Application


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
