"""Register a user's own classifier under a name, so that every command accepts it like a model of the catalog.

    $SHARDLABEL_HOME/models/<name>.toml          its entry
    $SHARDLABEL_HOME/models/<name>.labels.txt    one class a line
    $SHARDLABEL_HOME/artifacts/<sha256>/...      its file, addressed by content like all others

The entry is written last: a killed process leaves unused files, but no incomplete model.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import tomli_w
from filelock import FileLock

from models.catalog import ENTRIES, load_spec
from models.errors import ConfigError
from models.register.preprocessing import Recipe
from models.sandbox.sandbox import run_trial
from models.spec import Artifact, ModelSpec
from models.store.files import artifact_path, disk_errors, home, publishing, verify_file

# Name of the project's own labels: ImageNet-1k, with synset ids and all synonyms.
IMAGENET_LABELS = "imagenet"
BACKGROUND = 1001


@dataclass(frozen=True, slots=True)
class Registration:
    """The user's settings for a model; None means that they are read from its file.

    Attributes:
        path: The .onnx file.
        name: Name to register it under.
        labels: A file with one class a line, a JSON file of names, or "imagenet".
        recipe: Its preprocessing.
        input: Name of the input tensor.
        output: Name of the output tensor.
        layout: NCHW or NHWC.
        kind: logits or probabilities.
        embedding: Name of the tensor of penultimate features.
        description: A sentence for `models list`.
        licence: Licence of the weights.
        replace: Whether to replace a model registered under this name.
    """

    path: Path
    name: str
    labels: str
    recipe: Recipe
    input: str | None = None
    output: str | None = None
    layout: str | None = None
    kind: str | None = None
    embedding: str | None = None
    description: str | None = None
    licence: str = "unknown"
    replace: bool = False


def register_model(wanted: Registration) -> tuple[ModelSpec, list[str]]:
    """Examine a file in a child process, and register it.

    Returns:
        Its entry, and remarks for the user.

    Raises:
        ConfigError: The name is taken, the labels do not fit, or the file leaves open something that was not given.
        ArtifactError: The file is not an ONNX model, is damaged, or names files outside its folder; or the cache cannot
            be written.
        SignatureError: It is not an image classifier, or not one that can be run here.
    """
    folder = home() / "models"
    _check_name(wanted, folder)
    lines = read_labels(wanted.labels)
    if not wanted.path.is_file():
        raise ConfigError(f"model file {wanted.path} does not exist")
    with tempfile.TemporaryDirectory(prefix="shardlabel-") as temporary:
        out = Path(temporary) / "model.onnx"
        found = run_trial(_request(wanted, out), wanted.path)
        _check_labels(wanted, found["classes"], lines)
        content = out.read_bytes()
    entry = _entry(wanted, found, content)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        _check_name(wanted, folder)
        _publish(entry, content, folder, lines)
    return load_spec(wanted.name), list(found["remarks"])


def _check_name(wanted: Registration, folder: Path) -> None:
    name = wanted.name
    if not ModelSpec.is_name(name):
        raise ConfigError(f"--name must be lower-case letters, digits, '.', '_' and '-', got {name!r}")
    if (ENTRIES / f"{name}.toml").is_file():
        raise ConfigError(f"--name {name}: the catalog has a model of that name; choose another name")
    if (folder / f"{name}.toml").is_file() and not wanted.replace:
        raise ConfigError(f"--name {name}: this name is already registered; choose another, or give --replace")


def read_labels(text: str) -> list[str]:
    """Return the lines of a labels file; for JSON (a list, or an object such as `id2label`) the names by index.

    Raises:
        ConfigError: It cannot be read, or a class has no name.
    """
    path = ENTRIES / "synset.txt" if text == IMAGENET_LABELS else Path(text)
    try:
        content = path.read_text(encoding="utf-8-sig")
        lines = _json_names(orjson.loads(content)) if path.suffix == ".json" else content.splitlines()
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(f"--labels {text} cannot be read: {err}") from err
    while lines and not lines[-1].strip():
        lines.pop()
    empty = next((index for index, line in enumerate(lines) if not line.strip()), None)
    if not lines or empty is not None:
        where = "it is empty" if not lines else f"class {empty} has no name"
        raise ConfigError(f"--labels {text}: {where}; expected one class a line")
    return [" ".join(line.split()) for line in lines]


def _json_names(values: Any) -> list[str]:  # noqa: ANN401 (JSON)
    if isinstance(values, dict):
        values = values.get("id2label") or values.get("label_names") or values
    if isinstance(values, dict):
        values = [values[str(index)] for index in range(len(values))]
    return [str(value) for value in values]


def _request(wanted: Registration, out: Path) -> dict[str, Any]:
    recipe = wanted.recipe
    preprocessing = {
        "resize_shorter": recipe.resize_shorter, "crop": recipe.crop, "interpolation": recipe.interpolation.value,
        "fit": recipe.fit.value, "scale": recipe.scale, "mean": recipe.mean, "std": recipe.std,
    }  # fmt: skip
    return {
        "task": "examine", "path": str(wanted.path.absolute()), "out": str(out), "preprocessing": preprocessing,
        "crop_share": recipe.crop_share, "channels": recipe.channels.value, "input": wanted.input,
        "output": wanted.output, "layout": wanted.layout, "kind": wanted.kind, "embedding": wanted.embedding,
    }  # fmt: skip


def _check_labels(wanted: Registration, classes: int, lines: list[str]) -> None:
    if len(lines) == classes:
        return
    hint = ""
    if classes == BACKGROUND and len(lines) == BACKGROUND - 1:
        hint = "; class 0 of TensorFlow's models is 'background': put that line first"
    raise ConfigError(
        f"--labels {wanted.labels} names {len(lines)} classes, but {wanted.path.name} has {classes}{hint}"
    )


def _entry(wanted: Registration, found: dict[str, Any], content: bytes) -> dict[str, Any]:
    name, precision = wanted.name, found["precision"]
    artifact = {
        "file": f"{name}-{precision}.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    entry = {
        "name": name,
        "description": wanted.description or f"{wanted.path.name}, a user's model",
        "licence": wanted.licence,
        "labels": f"{name}.labels.txt",
        **({"embedding": wanted.embedding} if wanted.embedding else {}),
        **{key: found[key] for key in ("input", "output", "preprocessing")},
        "artifacts": {precision: artifact},
    }
    try:
        ModelSpec.model_validate({**entry, "folder": home()})
    except ValueError as err:
        raise ConfigError(f"{wanted.path.name} cannot be registered: {' '.join(str(err).split())[:300]}") from err
    return entry


def _publish(entry: dict[str, Any], content: bytes, folder: Path, lines: list[str]) -> None:
    (values,) = entry["artifacts"].values()
    artifact = Artifact.model_validate(values)
    path = artifact_path(artifact)
    with publishing(path) as file:
        file.write(content)
    verify_file(path, artifact)
    with publishing(folder / entry["labels"]) as file:
        file.write(("\n".join(lines) + "\n").encode())
    with publishing(folder / f"{entry['name']}.toml") as file:
        tomli_w.dump(entry, file)


def remove_model(name: str) -> list[Path]:
    """Remove what was registered under a name, and return the removed files.

    The catalog's own models stay; what `models quantize` added to them is removed.

    Raises:
        ConfigError: Nothing was registered under that name.
    """
    folders = (home() / "models", home() / "overlays")
    paths = [folder / f"{name}{suffix}" for folder in folders for suffix in (".toml", ".labels.txt")]
    present = [path for path in paths if path.is_file()]
    if not ModelSpec.is_name(name) or not present:
        raise ConfigError(f"nothing is registered under the name {name!r}; the catalog's own models cannot be removed")
    for path in present:
        with disk_errors(path):
            path.unlink()
    return present
