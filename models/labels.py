"""Names of a model's classes: the synset id, all synonyms, and the one name that becomes a `label`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from models.errors import ArtifactError, ConfigError, SignatureError
from models.spec import ModelSpec

_SYNSET = re.compile(r"n\d{8}")


class LabelText(StrEnum):
    """Which of a class's names is written as its `label`."""

    NAME = "name"
    WNID = "wnid"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ClassName:
    """One class, from one line of the labels file.

    Attributes:
        wnid: Synset id of WordNet, as ImageNet uses it; None if the file has none.
        names: All synonyms as written in the file, joined by ", ".
    """

    wnid: str | None
    names: str

    @property
    def name(self) -> str:
        """The first synonym."""
        return self.names.split(",")[0].strip()

    def text(self, kind: LabelText) -> str:
        """Return the kind of name asked for.

        >>> ClassName("n01440764", "tench, Tinca tinca").text(LabelText.NAME)
        'tench'
        """
        if kind is LabelText.WNID:
            return self.wnid or self.name
        return self.name if kind is LabelText.NAME else self.names


def load_classes(spec: ModelSpec) -> tuple[ClassName, ...]:
    """Return the names of each class, by class index.

    Raises:
        ArtifactError: The labels file is missing, empty or not UTF-8.
    """
    path = spec.folder / spec.labels
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactError(f"labels of {spec.name}: cannot read {path}: {err}") from err
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ArtifactError(f"labels of {spec.name}: {path} is empty, expected one class a line")
    return tuple(_parse(line.strip()) for line in lines)


def _parse(line: str) -> ClassName:
    head, _, rest = line.partition(" ")
    if not _SYNSET.fullmatch(head):
        return ClassName(None, line)
    return ClassName(head, rest.strip() or head)


def check_classes(spec: ModelSpec, num_classes: int) -> None:
    """Refuse labels that belong to another model: classes would get wrong names or none.

    Raises:
        SignatureError: The labels file names more or fewer classes than the model has.
    """
    named = len(load_classes(spec))
    if named != num_classes:
        raise SignatureError(
            f"{spec.name} has {num_classes} classes, but its labels file {spec.labels} names {named}; use the labels "
            "file that belongs to this model"
        )


def label_texts(spec: ModelSpec, kind: LabelText) -> tuple[str, ...]:
    """Return the text of each class in the output, by class index.

    Raises:
        ArtifactError: The labels file cannot be read.
        ConfigError: Synset ids are asked for, but a class has none.
    """
    classes = load_classes(spec)
    without = next((index for index, one in enumerate(classes) if one.wnid is None), None)
    if kind is LabelText.WNID and without is not None:
        raise ConfigError(
            f"--labels wnid: class {without} of {spec.name} ({classes[without].name!r}) has no synset id in "
            f"{spec.labels}; use name or all"
        )
    return tuple(one.text(kind) for one in classes)


@dataclass(slots=True)
class ClassFinder:
    """Find a class by its index, its synset id, a synonym, or the whole list of synonyms.

    Upper and lower case are equal, and so are `_`, `-` and a blank. A name that two classes share (ImageNet has two
    cranes) finds neither: use the index, the synset id or the whole list.
    """

    classes: Sequence[ClassName]
    _by_name: dict[str, int] = field(default_factory=dict)
    _ambiguous: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found: dict[str, list[int]] = {}
        for index, one in enumerate(self.classes):
            for key in {_plain(one.names), *(_plain(name) for name in one.names.split(","))}:
                found.setdefault(key, []).append(index)
            if one.wnid is not None:
                found[one.wnid] = [index]
        self._by_name = {key: indices[0] for key, indices in found.items() if len(indices) == 1}
        self._ambiguous = {key: indices for key, indices in found.items() if len(indices) > 1}

    def find(self, text: str) -> int | None:
        """Return the class's index; None if no class, or more than one, has that name."""
        if text.isascii() and text.lstrip("+").isdigit():
            index = int(text) if len(text) < 10 else -1
            return index if 0 <= index < len(self.classes) else None
        return self._by_name.get(_plain(text))

    def explain(self, text: str) -> str:
        """Say why `find` returned None."""
        indices = self._ambiguous.get(_plain(text))
        if indices:
            ids = ", ".join(f"{index} ({self.classes[index].names})" for index in indices[:4])
            return f"{text[:60]!r} is a name of several classes: {ids}"
        last = len(self.classes) - 1
        return f"{text[:60]!r} is not a class of this model: expected 0 to {last}, or a synset id or name of its labels"


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").replace("-", " ").casefold().split())
