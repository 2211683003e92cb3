"""Register artifacts that were built on this machine from a model, without changing the model's entry.

$SHARDLABEL_HOME/overlays/<name>.toml      the artifacts, the files they were built from, and their accuracy
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
    """Register files built from a model as its artifacts; they replace those it had in the same precision.

    Args:
        spec: The model's entry; it has an fp32 artifact.
        made: By precision, a file's content and a note about it.

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
