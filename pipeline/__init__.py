"""Bulk labelling on Ray Data: shards in, Parquet out, each image exactly once.

From Python (docs/python.md):

* `label` adds labels to any `ray.data.Dataset`, lazily.
* `read_shards` reads shards into a `ray.data.Dataset`, as the command does.
* `run` runs the command's job from a `LabelConfig`: exactly once, resumable. It returns a `RunReport`.

Importing this package loads neither Ray nor pyarrow: each name is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.apart import run
    from pipeline.config import LabelConfig
    from pipeline.operators.label_dataset import label
    from pipeline.operators.read import read_shards
    from pipeline.summary import RunReport

__all__ = ["LabelConfig", "RunReport", "label", "read_shards", "run"]

_HOMES = {
    "LabelConfig": "pipeline.config",
    "RunReport": "pipeline.summary",
    "label": "pipeline.operators.label_dataset",
    "read_shards": "pipeline.operators.read",
    "run": "pipeline.apart",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any exported name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
