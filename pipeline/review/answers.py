"""Read reviewers' answers: `answers.csv`, or Label Studio's export as CSV or JSON-MIN."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from models.errors import ConfigError
from pipeline.review.classes import Classes
from pipeline.review.draws import Draw, DrawnRow

WANTED = ("shard", "key", "label")
# Size of a field: Label Studio also exports the picture that a task contains.
MAX_FIELD_BYTES = 128 * 2**20
_DELIMITERS = ",;\t"

Place = tuple[str, str]  # shard and key
_Line = tuple[int, Place, str]  # line or task, place, answer


@dataclass(slots=True)
class Answers:
    """Answers of reviewers.

    Attributes:
        classes: The class that each image shows, by shard and key; NO_CLASS_ID where none fits.
        empty: Lines without an answer.
        where: The file and line of each answer, for errors.
    """

    classes: dict[Place, int] = field(default_factory=dict)
    empty: int = 0
    where: dict[Place, str] = field(default_factory=dict)


def read_answers(files: Iterable[Path], draws: Iterable[Draw], classes: Classes) -> Answers:
    """Read answers to images of these draws. Memory: the draws, and one line.

    Raises:
        ConfigError: A file is not such a list, or an answer is for an image that was not drawn, names no class, or
            contradicts another; the message gives file and line.
    """
    drawn: dict[Place, DrawnRow] = {(row.shard, row.key): row for draw in draws for row in draw.rows}
    answers = Answers()
    for file in files:
        for number, place, text in _lines(file):
            where = f"{file}, {'task' if file.suffix == '.json' else 'line'} {number}"
            if place not in drawn:
                raise ConfigError(
                    f"{where}: no draw of DEST has an image with shard {_short(place[0])} and key {_short(place[1])}; "
                    "expected lines of an answers.csv that `review sample` wrote for this DEST (a spreadsheet changes keys "
                    "that look like numbers: import them as text)"
                )
            if not text.strip():
                answers.empty += place not in answers.classes
                continue
            _add(answers, place, _find(classes, text, where), where, drawn[place])
    return answers


def _add(answers: Answers, place: Place, label_id: int, where: str, row: DrawnRow) -> None:
    before = answers.classes.setdefault(place, label_id)
    if before != label_id:
        raise ConfigError(
            f"{where}: the image with key {_short(row.key)} has another answer than in {answers.where[place]}; "
            "expected one answer for each image: remove one of the two"
        )
    answers.where.setdefault(place, where)


def _find(classes: Classes, text: str, where: str) -> int:
    try:
        return classes.find(text)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err


def _lines(file: Path) -> Iterator[_Line]:
    """Yield a file's answers.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from _json_lines(file, text) if file.suffix == ".json" else _csv_lines(file, text)
    except OSError as err:
        raise ConfigError(f"{file} cannot be read: {err.strerror or err}; give the CSV file with the answers") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file} must be UTF-8, but is not at byte {err.start}; save it again as CSV UTF-8") from err
    except (csv.Error, ValueError, RecursionError) as err:
        raise ConfigError(f"{file} cannot be read as {file.suffix.lstrip('.').upper() or 'CSV'}: {err}") from err


def _csv_lines(file: Path, text: TextIO) -> Iterator[_Line]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    head = text.readline(MAX_FIELD_BYTES)
    text.seek(0)
    reader = csv.reader(text, delimiter=max(_DELIMITERS, key=head.count), strict=True)
    header = [name.strip().lstrip("\ufeff").casefold() for name in next(reader, [])]
    if not set(WANTED) <= set(header):
        got = ", ".join(map(_short, header[:12])) or "nothing"
        raise ConfigError(f"{file}: its first line must name the columns shard, key and label, got {got}")
    at = [header.index(name) for name in WANTED]
    for values in reader:
        if not any(values):
            continue
        if len(values) <= max(at):
            raise ConfigError(f"{file}, line {reader.line_num}: expected {len(header)} values, got {len(values)}")
        yield reader.line_num, (values[at[0]], values[at[1]]), values[at[2]]


def _json_lines(file: Path, text: TextIO) -> Iterator[_Line]:
    tasks = json.load(text)
    if not isinstance(tasks, list):
        raise ConfigError(f"{file} must be a list of tasks, like Label Studio's JSON-MIN, got {type(tasks).__name__}")
    for number, task in enumerate(tasks, 1):
        values = task if isinstance(task, Mapping) else {}
        found = [values.get(name, "" if name == "label" else None) for name in WANTED]
        if not all(isinstance(value, str) for value in found):
            raise ConfigError(
                f"{file}, task {number}: expected shard, key and label as text, like in Label Studio's JSON-MIN"
            )
        yield number, (found[0], found[1]), found[2]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
