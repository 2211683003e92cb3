"""Read a cluster configuration from `--config FILE` and `--set key=value`, and list its keys."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cluster.manifests.settings import ClusterConfiguration
from models.errors import ConfigError
from pipeline.options import read_table


def build_configuration(settings: list[str], config_file: Path | None = None) -> ClusterConfiguration:
    """Merge a YAML file and `--set` settings, which override the file.

    Args:
        settings: Each `key=value`, with dotted keys as in `list_settings`. Lists are a,b; mappings are k=v,k=v.
        config_file: YAML with the same keys, nested.

    Raises:
        ConfigError: A key is unknown or a value invalid; one line with key, value and what was expected.
    """
    values = read_table(config_file) if config_file is not None else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set needs key=value, got {setting!r}")
        _put(values, key.strip(), text)
    try:
        return ClusterConfiguration.model_validate(values)
    except ValidationError as err:
        raise ConfigError(describe(err, ClusterConfiguration, "setting")) from err


def list_settings() -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default as text, description) of every setting, in order."""
    yield from _walk(ClusterConfiguration, "")


def describe(err: ValidationError, model: type[BaseModel], noun: str) -> str:
    """Describe a validation error in one line: the key, what was got and expected, and the nearest key for a typo."""
    first = err.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [key for key, _, _ in _walk(model, "")]
        known += sorted({key.rpartition(".")[0] for key in known} - {""})
        in_groups = [key for key in known if key.endswith(f".{path}")]
        if in_groups:
            return f"unknown {noun} {path!r}; did you mean {' or '.join(repr(key) for key in in_groups)}?"
        hint = nearest(path, known) or (
            f"; known are {', '.join(known)}" if noun != "setting" else "; see --list-settings"
        )
        return f"unknown {noun} {path!r}{hint}"
    if first["type"] == "missing":
        return f"{noun} {path!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "model_type":
        group = [key for key, _, _ in _walk(model, "") if key.startswith(f"{path}.")]
        return f"{noun} {path!r} is a group, got {first['input']!r}; set {', '.join(group)}"
    field = _find(model, first["loc"])
    about = f" ({field.description})" if field is not None and field.description else ""
    if not path or isinstance(first["input"], dict):
        return f"{path}: {message}{about}" if path else message
    return f"{path}: {message}, got {first['input']!r}{about}"


def nearest(name: str, known: typing.Iterable[str], *, or_all: bool = True) -> str:
    """Return `; did you mean X?` for a name that is close to a known one.

    Args:
        name: As it was given.
        known: The known names.
        or_all: If none is close and they are few, return all known names.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:  # max_replicas for maxReplicas
        folded = {key.lower().replace("_", "").replace("-", ""): key for key in names}
        close = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), folded, n=1, cutoff=0.8)
        close = [folded[match] for match in close]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if or_all and 0 < len(names) <= 12 else ""


def _put(values: dict[str, Any], key: str, text: str) -> None:
    """Set one dotted key; the text of a list or mapping is split."""
    *sections, last = key.split(".")
    group = values
    for section in sections:
        below = group.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {key}: {section!r} is a value, not a group of settings")
        group = below
    field = _find(ClusterConfiguration, tuple(key.split(".")))
    group[last] = _value(key, text, field)


def _value(key: str, text: str, field: FieldInfo | None) -> Any:  # noqa: ANN401 (pydantic checks it next)
    kinds = _kinds(field.annotation) if field is not None else set()
    if text == "" and type(None) in kinds:
        return None
    if tuple in kinds:
        return tuple(_split(text)) if text else ()
    if dict in kinds:
        pairs = [word.partition("=") for word in _split(text)] if text else []
        for name, equals, _ in pairs:
            if not equals:
                raise ConfigError(f"--set {key} needs name=value,name=value, got {name!r}")
        return {name: value for name, _, value in pairs}
    return text


def _split(text: str) -> list[str]:
    """Split at commas that are not inside braces, so that {a,b}.tar stays whole."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += letter
    return words


def _kinds(annotation: Any) -> set[Any]:  # noqa: ANN401
    """Return the plain types in an annotation: str | None gives {str, NoneType}."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    return {origin or annotation}


def _find(model: type[BaseModel], path: tuple[Any, ...]) -> FieldInfo | None:
    field = None
    for part in path:
        if part not in model.model_fields:
            return field
        field = model.model_fields[part]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return field
        model = field.annotation
    return field


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, f"{key}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        yield key, _shown(default), field.description or ""


def _shown(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, dict):
        return ",".join(f"{name}={value}" for name, value in default.items()) or "none"
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    return str(default).lower() if isinstance(default, bool) else str(default)
