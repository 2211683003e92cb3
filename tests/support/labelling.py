"""Run `label` in this process, as the integration tests do."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import LabelConfig
from pipeline.job import RunReport, run


def label(source: Path | str, output: Path, model: Path, **options) -> RunReport:
    """Label with the tiny model's top 3, silently, in one actor: starting one takes two seconds of a core."""
    settings = {"source": (str(source),), "output": str(output), "model": str(model), "top_k": 3, "progress": "none"}
    return run(LabelConfig(**{**settings, "actors": "1", **options}))


def parts(folder: Path) -> dict[str, bytes]:
    """Return the part files' bytes by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}
