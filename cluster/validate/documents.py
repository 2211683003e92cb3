"""Read manifest files as documents: values with their lines, and the faults found in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

Path = tuple[str | int, ...]
# YAML aliases can expand a small file into a huge tree.
MAX_NODES = 200_000
MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault in a manifest.

    Attributes:
        file: Path of the file, as given.
        line: Line number, from 1.
        document: Kind and name, or the document's number in the file.
        path: Dotted path; for YAML inside a string, the string's path, a space, and the path inside.
        reason: What is wrong, what was got, and what was expected.
    """

    file: str
    line: int
    document: str
    path: str
    reason: str

    def __str__(self) -> str:
        """Return the fault as one line; unprintable characters are escaped."""
        path = f"{self.path}: " if self.path else ""
        text = f"{self.file}:{self.line}: {self.document}: {path}{self.reason}"
        return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document, or one inside a string of another.

    Attributes:
        file: Path of the file, as given.
        name: Kind and name, or the document's number in the file.
        value: The parsed YAML.
        lines: Line of each path, from 1.
        prefix: Path of the string that holds it, or empty.
    """

    file: str
    name: str
    value: Any
    lines: dict[Path, int] = field(default_factory=dict)
    prefix: str = ""

    def fault(self, path: Path, reason: str) -> Fault:
        """Return a fault at a path of this document."""
        at = path
        while at and at not in self.lines:
            at = at[:-1]
        shown = " ".join(part for part in (self.prefix, dotted(path)) if part)
        return Fault(self.file, self.lines.get(at, 1), self.name, shown, reason)

    def get(self, *path: str | int) -> Any:  # noqa: ANN401
        """Return the value at a path; None if there is none."""
        value: Any = self.value
        for part in path:
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and isinstance(part, int):
                value = value[part] if part < len(value) else None
            else:
                return None
        return value

    def items(self, *path: str | int) -> list[Any]:
        """Return the list at a path; an empty list if there is none."""
        value = self.get(*path)
        return value if isinstance(value, list) else []

    def embedded(self, *path: str | int) -> tuple[Document | None, list[Fault]]:
        """Return the YAML document in the string at a path (None if there is none), and its YAML faults."""
        text = self.get(*path)
        if not isinstance(text, str):
            return None, []  # the schema check reports it
        first = self.lines.get(path, 1)
        # A block starts on the line after its key.
        offset = first if "\n" in text else first - 1
        documents, problems = _parse(text, offset)
        faults = [
            Fault(self.file, line, self.name, " ".join(p for p in (dotted(path), dotted(inner)) if p), reason)
            for inner, line, reason in problems
        ]
        if len(documents) > 1:
            faults.append(self.fault(path, f"must be one YAML document, got {len(documents)}"))
        if not documents:
            return None, faults
        value, lines = documents[0]
        return Document(self.file, self.name, value, lines, dotted(path)), faults


def dotted(path: Path) -> str:
    """Return a path as text, as spec.groups[0].name; keys with dots or slashes are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "." in part or "/" in part:
            text += f"[{part!r}]"
        else:
            text += f".{part}" if text else part
    return text


def read_documents(file: FilePath) -> tuple[list[Document], list[Fault]]:
    """Return the documents of a file, and its YAML faults: syntax errors and duplicate keys."""
    shown = str(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        return [], [Fault(shown, 1, "file", "", f"cannot be read: {' '.join(str(err).split())}")]
    parsed, problems = _parse(text, 0)
    documents = [
        Document(shown, _name(value, number), value, lines)
        for number, (value, lines) in enumerate(parsed, 1)
        if value is not None
    ]
    faults = [Fault(shown, line, "file", dotted(path), reason) for path, line, reason in problems]
    if not documents and not faults:
        faults.append(Fault(shown, 1, "file", "", "is empty, expected at least one document"))
    return documents, faults


def _name(value: object, number: int) -> str:
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        metadata = value.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return f"{value['kind']} {name}" if isinstance(name, str) else str(value["kind"])
    return f"document {number}"


Problems = list[tuple[Path, int, str]]


def _parse(text: str, offset: int) -> tuple[list[tuple[Any, dict[Path, int]]], Problems]:
    """Return (value, lines) of each document, and problems as (path, line, reason)."""
    documents: list[tuple[Any, dict[Path, int]]] = []
    problems: Problems = []
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node returned True
            lines: dict[Path, int] = {}
            problems += _walk(node, offset, lines)
            documents.append((loader.construct_document(node), lines))
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line = offset + (mark.line + 1 if mark is not None else 1)
        problems.append(((), line, f"is not YAML: {' '.join(str(err.problem or err.context).split())}"))
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        problems.append(((), offset + 1, f"is not YAML: {' '.join(str(err).split())[:200]}"))
    finally:
        loader.dispose()
    return documents, problems


def _walk(root: yaml.Node, offset: int, lines: dict[Path, int]) -> Iterator[tuple[Path, int, str]]:
    """Fill in the line of every path, and yield duplicate keys: YAML silently takes the last."""
    todo: list[tuple[yaml.Node, Path]] = [(root, ())]
    while todo:
        node, path = todo.pop()
        lines.setdefault(path, offset + node.start_mark.line + 1)
        if len(lines) > MAX_NODES or len(path) > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_NODES} values or {MAX_DEPTH} levels: does an alias contain itself?")
        if isinstance(node, yaml.SequenceNode):
            todo += [(item, (*path, number)) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "?"
                line = offset + key.start_mark.line + 1
                if name in seen:
                    yield (*path, name), line, f"the key {name!r} is given twice; the first would be dropped"
                seen.add(name)
                lines[(*path, name)] = line
                todo.append((value, (*path, name)))
