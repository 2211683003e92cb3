"""Find a model by its name in the catalog, or by the path of an ONNX file with its entry beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models.errors import ConfigError, UnknownModelError
from models.labels import load_classes
from models.spec import Artifact, ModelSpec, Precision
from models.store.files import file_sha256, home

ENTRIES = Path(__file__).parent / "entries"
DEFAULT_MODEL = "resnet18-v2"


def entry_folders() -> tuple[Path, ...]:
    """Return the folders that hold entries: the project's, then the user's."""
    return (ENTRIES, home() / "models")


def model_names() -> list[str]:
    """List the names in the catalog, sorted."""
    return sorted({path.stem for folder in entry_folders() for path in folder.glob("*.toml")})


def load_spec(name: str) -> ModelSpec:
    """Load a model's entry.

    Args:
        name: A name in the catalog, or the path of an ONNX file. The entry of such a file lies beside it under the same
            name, with the suffix .toml, .yaml or .yml, and may leave out `name`, `artifacts` and `description`.

    Raises:
        UnknownModelError: No such name, or no such file.
        ConfigError: The entry is malformed; the message names the key.
    """
    if name.endswith(".onnx"):
        return _load_own(Path(name))
    if ModelSpec.is_name(name):
        for folder in entry_folders():
            path = folder / f"{name}.toml"
            if path.is_file():
                return _with_overlay(_parse(path, _read(path)))
    names = model_names()
    near = get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UnknownModelError(
        f"model must be one of {', '.join(names)}, or the path of an .onnx file, got {name!r}{hint}"
    )


def overlay_path(name: str) -> Path:
    """Return the file that lists the artifacts built on this machine from a model; the model's entry is not changed."""
    return home() / "overlays" / f"{name}.toml"


def _with_overlay(spec: ModelSpec) -> ModelSpec:
    """Add the artifacts that `models quantize` built from this model's file; they replace the entry's own."""
    path = overlay_path(spec.name)
    if not path.is_file():
        return spec
    sources = {artifact.sha256 for artifact in spec.artifacts.values()}
    try:
        added = {Precision(key): Artifact.model_validate(one) for key, one in _read(path)["artifacts"].items()}
    except (KeyError, ValueError, AttributeError) as err:
        reason = err.errors()[0]["msg"] if isinstance(err, ValidationError) else err
        raise ConfigError(f"model entry {path} is damaged ({reason}); delete it and quantise the model again") from err
    fitting = {precision: one for precision, one in added.items() if one.made_from in sources}
    return spec.model_copy(update={"artifacts": {**spec.artifacts, **fitting}})


def load_all() -> Iterator[ModelSpec]:
    """Yield every entry, by name."""
    for name in model_names():
        yield load_spec(name)


def load_labels(spec: ModelSpec) -> tuple[str, ...]:
    """Return the name of each class, by class index; the first one if a class has several synonyms.

    Raises:
        ArtifactError: The labels file is missing or empty.
    """
    return tuple(one.name for one in load_classes(spec))


def _load_own(path: Path) -> ModelSpec:
    if not path.is_file():
        raise UnknownModelError(f"model file {path} does not exist; give the path of a file or a name from the catalog")
    beside = next((p for s in (".toml", ".yaml", ".yml") if (p := path.with_suffix(s)).is_file()), None)
    if beside is None:
        raise ConfigError(
            f"model {path} needs an entry beside it: write {path.with_suffix('.toml')} with input, output, "
            "preprocessing and labels, as in docs/models.md; or register the model: "
            f"shardlabel models add {path} --name NAME --labels FILE --preprocess imagenet"
        )
    entry = _read(beside)
    entry.setdefault("name", path.stem.lower())
    entry.setdefault("description", f"{path.name}, a user's model")
    entry.setdefault("licence", "unknown")
    precision = entry.pop("precision", Precision.FP32.value)
    digest = file_sha256(path)
    entry["artifacts"] = {precision: {"file": path.name, "sha256": digest, "size_bytes": path.stat().st_size}}
    return _parse(beside, entry)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        entry = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise ConfigError(f"model entry {path} cannot be read: {err}") from err
    if not isinstance(entry, dict):
        raise ConfigError(f"model entry {path} must be a mapping of keys to values, got {type(entry).__name__}")
    return entry


def _parse(path: Path, entry: dict[str, Any]) -> ModelSpec:
    try:
        spec = ModelSpec.model_validate({**entry, "folder": path.parent})
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the entry"
        raise ConfigError(f"model entry {path}: {where}: {first['msg']}") from err
    # Entries may come from untrusted people, and the lines of the labels file are written into every output.
    folder = path.parent.resolve()
    for name in (spec.labels, *(artifact.file for artifact in spec.artifacts.values())):
        if not (folder / name).resolve().is_relative_to(folder):
            raise ConfigError(
                f"model entry {path} names {name!r}, which is outside the entry's folder or is a link to outside; "
                "put the file itself beside the entry"
            )
    return spec
