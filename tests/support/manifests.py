"""Valid manifests, and changes that break them in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from cluster.manifests.yaml_text import dump
from cluster.validate.files import validate

Change = Callable[[Any], None]


@cache
def rendered(target: str) -> tuple[Any, ...]:
    """Return the documents of a target rendered with the defaults."""
    return tuple(yaml.safe_load_all(render(Target(target), build_configuration([]))))


def documents(target: str) -> list[Any]:
    """Return a copy of the documents, for changes."""
    return copy.deepcopy(list(rendered(target)))


def put(*path: str | int, to: object) -> Change:
    """Set a value in the last document of a manifest."""

    def change(documents: list[Any]) -> None:
        _at(documents[-1], path[:-1])[path[-1]] = to

    return change


def drop(*path: str | int) -> Change:
    """Remove a key."""

    def change(documents: list[Any]) -> None:
        del _at(documents[-1], path[:-1])[path[-1]]

    return change


def rename(*path: str | int, to: str) -> Change:
    """Misspell a key."""

    def change(documents: list[Any]) -> None:
        table = _at(documents[-1], path[:-1])
        table[to] = table.pop(path[-1])

    return change


def inside(text_path: tuple[str | int, ...], change: Change) -> Change:
    """Change the YAML inside a text of the last document."""

    def outer(documents: list[Any]) -> None:
        table = _at(documents[-1], text_path[:-1])
        inner = [yaml.safe_load(table[text_path[-1]])]
        change(inner)
        table[text_path[-1]] = dump(inner[0])

    return outer


def replace(*path: str | int, old: str, new: str) -> Change:
    """Replace a part of a text, which must contain it."""

    def change(documents: list[Any]) -> None:
        table = _at(documents[-1], path[:-1])
        assert old in table[path[-1]], table[path[-1]]
        table[path[-1]] = table[path[-1]].replace(old, new)

    return change


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def faults_of(folder: Path, text: str, name: str = "manifest.yaml") -> list[str]:
    """Return the faults of a text as lines."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    ((_, _, faults),) = validate([file])
    return [str(fault) for fault in faults]


def write(documents: list[Any]) -> str:
    """Return documents as a file's text."""
    return "---\n".join(dump(document) for document in documents)
