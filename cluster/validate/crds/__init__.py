"""KubeRay's resource schemas, trimmed to what manifests are checked against; README.md names their source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import orjson

SCHEMA_FILE = Path(__file__).parent / "kuberay.json"


@cache
def kuberay_schemas() -> dict[str, Any]:
    """Return the bundle: `kinds` (name to schema), the `$defs` that they refer to, and `source`."""
    bundle: dict[str, Any] = orjson.loads(SCHEMA_FILE.read_bytes())
    return bundle
