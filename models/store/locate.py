"""Find a model's verified file: bundled, beside its entry, in the cache, or downloaded now."""

from __future__ import annotations

import os
from pathlib import Path

from models.errors import ArtifactError
from models.spec import Artifact, ModelSpec, Precision
from models.store.files import Progress, artifact_path, is_file, verify_once

BUNDLED = Path(__file__).parents[1] / "artifacts"
# Another folder of bundled models: `submit` sends only code, and names the folder that is installed on the cluster.
ARTIFACTS_VARIABLE = "SHARDLABEL_ARTIFACTS"


def is_cached(spec: ModelSpec, precision: Precision) -> bool:
    """Tell whether a file of the right size is here, so that `locate` needs no network. Hashes nothing."""
    artifact = spec.artifact(precision)
    path, _ = _place(spec, artifact)
    return is_file(path) and path.stat().st_size == artifact.size_bytes


def locate(spec: ModelSpec, precision: Precision, *, download: bool = True, progress: Progress | None = None) -> Path:
    """Return the local, verified file of a model: bundled, beside its entry, cached, or downloaded now.

    Args:
        spec: The model's entry.
        precision: Which of its artifacts.
        download: Whether to download a missing file; otherwise a missing file is an error.
        progress: Called during a download.

    Raises:
        ArtifactError: The file differs from the entry, cannot be written, has to be built first, or is missing and
            `download` is false.
        DownloadError: No source had it.
    """
    artifact = spec.artifact(precision)
    path, remedy = _place(spec, artifact)
    if is_file(path):
        verify_once(path, artifact, remedy)
        return path
    # Imported here: files are nearly always cached, and the download's modules take long to import.
    from models.store.download import fetch, sources_of

    what = f"{artifact.file} of {spec.name} ({precision})"
    if artifact.built_by and not sources_of(artifact):
        others = "".join(f", or use --precision {other}" for other in spec.artifacts if other is not precision)
        raise ArtifactError(
            f"{what} cannot be downloaded, and is not at {path}: build it with {artifact.build_step}, or import a built "
            f"file with `shardlabel models pull {spec.name} --precision {precision} --from FILE`{others}"
        )
    if artifact.bundled or not sources_of(artifact):
        raise ArtifactError(f"{what} is missing: not found at {path}; {remedy}")
    if not download:
        raise ArtifactError(f"{what} is not cached: run `shardlabel models pull {spec.name}`")
    return fetch(spec.name, artifact, progress=progress)


def _place(spec: ModelSpec, artifact: Artifact) -> tuple[Path, str]:
    """Return the path where an artifact is or should be, and what to do if the file there is missing or wrong."""
    if artifact.bundled:
        return _bundled_path(spec, artifact), "reinstall shardlabel, here or in the cluster's image"
    cached, beside = artifact_path(artifact), spec.folder / artifact.file
    fetchable = artifact.sources or artifact.built_by
    if is_file(beside) or not (fetchable or is_file(cached)):
        return beside, f"put the right file there, or correct the entry in {spec.folder}"
    if artifact.sources:
        return cached, f"delete it and run `shardlabel models pull {spec.name}` again"
    return cached, f"delete it and run {artifact.build_step or '`shardlabel models add --replace`'} again"


def _bundled_path(spec: ModelSpec, artifact: Artifact) -> Path:
    """Return a bundled file's path: in this installation, in ARTIFACTS_VARIABLE's folder, or in the cache."""
    ours = BUNDLED / spec.name / artifact.file
    named = os.environ.get(ARTIFACTS_VARIABLE)
    elsewhere = [Path(named) / spec.name / artifact.file] if named else []
    return next((path for path in (ours, *elsewhere, artifact_path(artifact)) if is_file(path)), ours)
