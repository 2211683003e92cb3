"""Names of the classes of a DEST: how a class is shown to a reviewer, and which class an answer means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.catalog import load_spec
from models.errors import ConfigError, ModelError
from models.labels import ClassFinder, ClassName, LabelText, label_texts, load_classes
from pipeline.dest.fingerprint import class_names
from pipeline.dest.finished import open_part
from pipeline.dest.plan import Plan
from pipeline.review.draws import DrawnRow
from pipeline.sources.unit import part_name
from pipeline.storage.storage import Storage

# Part files to read for names of classes that no drawn image has: the k best labels of each row give many.
PARTS = 8
# An answer that means: not the predicted class, whatever else the image may show.
NO_CLASS = "none"
NO_CLASS_ID = -1
_WITH_ID = re.compile(r"(.*) \((\d{1,9})\)", re.DOTALL)


class Classes:
    """The classes of a DEST, by index: those of its model if the catalog has it, else those that its rows name.

    Args:
        plan: Plan of DEST.
        rows: The drawn rows; their labels take precedence over all other names.
        others: Names of other classes, if the catalog does not have the model.

    Attributes:
        names: Name of each class in questions and answers; all different.
    """

    def __init__(self, plan: Plan, rows: Iterable[DrawnRow], others: Mapping[int, str] | None = None) -> None:
        drawn = {row.label_id: row.label for row in rows}
        known = of_model(plan)
        named = {**(others or {}), **drawn}
        classes, labels = known or _of_rows(named)
        self._finder = ClassFinder(classes)
        self._labels = [drawn.get(index, label) for index, label in enumerate(labels)]
        # Without the model, a number that no row has may still be a class; it has no name.
        shown = range(len(labels)) if known else sorted(named)
        self.names = {index: self._unique_name(index) for index in shown}

    @classmethod
    def of(cls, dest: Storage, plan: Plan, rows: Sequence[DrawnRow]) -> Classes:
        """Return the classes of a DEST; part files are read for their names if the catalog does not have the model.

        Raises:
            StorageError: A part file cannot be read.
        """
        units = sorted({row.unit for row in rows})
        others: dict[int, str] = {}
        for unit in units[:: max(1, len(units) // PARTS)][:PARTS] if of_model(plan) is None else []:
            others |= _names_in(dest, part_name(unit))
        return cls(plan, rows, others)

    def find(self, text: str) -> int:
        """Return the class that an answer means; NO_CLASS_ID for `none`.

        Raises:
            ConfigError: It is no class of DEST; the message gives similar names.
        """
        text = text.strip()
        index = self._exact(text)
        if index is not None:
            return index
        if text.casefold() == NO_CLASS:
            return NO_CLASS_ID
        why = self._finder.explain(text).partition(": expected")[0].replace("of this model", "of DEST")
        like = difflib.get_close_matches(text, self.names.values(), 3) if "not a class" in why else []
        near = f"; similar names are {', '.join(map(repr, like))}" if like else ""
        raise ConfigError(f"{why}{near}; expected a class's name or number, or {NO_CLASS!r} where no class fits")

    def _exact(self, text: str) -> int | None:
        index = self._finder.find(text)
        numbered = _WITH_ID.fullmatch(text) if index is None else None
        if numbered and int(numbered[2]) < len(self._labels) and self._labels[int(numbered[2])] == numbered[1]:
            return int(numbered[2])
        return index

    def _unique_name(self, index: int) -> str:
        """Return a class's label, followed by its number if the label alone is ambiguous."""
        label = self._labels[index]
        return label if self._finder.find(label) == index else f"{label} ({index})"


def of_model(plan: Plan) -> tuple[list[ClassName], list[str]] | None:
    """Return the classes of the plan's model and their labels, if the catalog has exactly that model."""
    settings = plan.settings
    try:
        spec = load_spec(str(settings.get("model")))
        labels = label_texts(spec, LabelText(settings.get("labels", "name")))
        is_same = class_names(labels) == settings.get("class names")
        return (list(load_classes(spec)), list(labels)) if is_same else None
    except (ModelError, ConfigError, ValueError):
        return None


def _of_rows(labels: dict[int, str]) -> tuple[list[ClassName], list[str]]:
    """Return the classes that rows name, with placeholder names for those in between."""
    found = [labels.get(index, f"class {index}") for index in range(max(labels, default=-1) + 1)]
    return [ClassName(None, label) for label in found], found


def _names_in(dest: Storage, part: str) -> dict[int, str]:
    """Return the classes among the k best of the rows in a part file's first row group."""
    with open_part(dest, part) as source:
        file = pq.ParquetFile(source)
        if not file.num_row_groups:
            return {}
        table = file.read_row_group(0, columns=["top_ids", "top_labels"])
    if not {"top_ids", "top_labels"} <= set(table.column_names):
        return {}
    ids, first = np.unique(pc.list_flatten(table["top_ids"]).to_numpy(), return_index=True)
    labels = pc.list_flatten(table["top_labels"]).take(first).to_pylist()
    return dict(zip(ids.tolist(), labels, strict=True))
