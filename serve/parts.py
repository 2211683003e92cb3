"""The parts of the endpoint that are packages of their own, found by the first part of a path; see `serve.app`."""

from __future__ import annotations

import importlib
from typing import Any

# Modules with `build(backend, config) -> App`, by the paths that are theirs.
PARTS = {"v2": "serve.oip.http", "": "serve.http.page", "page": "serve.http.page"}


def load_part(name: str) -> Any:  # noqa: ANN401 (a module)
    """Import a part's module; None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is not None and name.startswith(err.name):
            return None
        raise
