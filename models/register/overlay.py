"""Artifacts that were made here of a model: kept beside its entry, which stays as it is.

$SHARDLABEL_HOME/overlays/<name>.toml      which artifacts, of which file they were made, and how they did
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w
from filelock import FileLock

from models.catalog import overlay_path
from models.spec import Artifact, ModelSpec, Precision
from models.store.files import artifact_path, disk_errors, publishing, verify_file


def register_artifacts(spec: ModelSpec, made: Mapping[Precision, tuple[bytes, str]]) -> None:
    """Make files that were made of a model its artifacts, in place of those it had in that precision.

    Args:
        spec: The model; it has an fp32 artifact.
        made: By precision, a file's content and what is to be known about it.

    Raises:
        ArtifactError: The cache cannot be written.
    """
    source = spec.artifact(Precision.FP32).sha256
    entries: dict[str, dict[str, Any]] = {}
    for precision, (content, note) in made.items():
        artifact = Artifact(
            file=f"{spec.name}-{precision}.onnx",
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            made_from=source,
            built_by=f"shardlabel models quantize {spec.name} --calibration SRC",
            note=note,
        )
        path = artifact_path(artifact)
        with publishing(path) as file:
            file.write(content)
        verify_file(path, artifact)
        entries[precision.value] = artifact.model_dump(mode="json", exclude_none=True, exclude={"bundled", "sources"})
    path = overlay_path(spec.name)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        before = tomllib.loads(path.read_text(encoding="utf-8"))["artifacts"] if path.is_file() else {}
        with publishing(path) as file:
            tomli_w.dump({"artifacts": {**before, **entries}}, file)
