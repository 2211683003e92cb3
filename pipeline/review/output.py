"""What every form of a draw has in common: its folder, the list of answers to fill in, and what could not be had."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from models.errors import ConfigError, StorageError
from pipeline.operators.stages import UnitSettings
from pipeline.review.classes import Classes
from pipeline.review.draws import Draw, DrawnRow
from pipeline.review.pictures import Picture, Save, fetch_pictures
from pipeline.sources.unit import Unit
from pipeline.storage.retries import reason

ANSWERS_FILE = "answers.csv"
MISSING_FILE = "missing.csv"
ANSWERS_COLUMNS = ("shard", "key", "label", "predicted", "score", "stratum", "picture")


@dataclass(frozen=True, slots=True)
class Material:
    """All that a draw's files are made of.

    Attributes:
        draw: What was drawn.
        dest: DEST, for people.
        model: That labelled DEST.
        classes: Of DEST.
        settings: How SOURCE is read.
        units: The plan's, in order.
    """

    draw: Draw
    dest: str
    model: str
    classes: Classes
    settings: UnitSettings
    units: Iterable[Unit]


@dataclass(slots=True)
class Written:
    """What was written for a draw.

    Attributes:
        lines: What to tell the user.
        missing: Pictures that could not be had.
    """

    lines: list[str]
    missing: list[Picture] = field(default_factory=list)


def check_output(output: str) -> Path:
    """Return the folder that --output names; refuse one that holds something, before anything is drawn.

    Raises:
        ConfigError: It is not empty, no folder, or no place on this machine.
    """
    if "://" in output:
        raise ConfigError(f"--output must be a folder of this machine, where the images are looked at, got {output}")
    try:
        folder = Path(output).expanduser()
        is_file = folder.exists() and not folder.is_dir()
        is_empty = is_file or not folder.is_dir() or next(folder.iterdir(), None) is None
    except (OSError, RuntimeError, ValueError) as err:  # the second: nobody is called ~so
        raise ConfigError(f"--output {output} cannot be used: {reason(err)}; give another folder") from err
    if is_file:
        raise ConfigError(f"--output {output} must be a folder, and is a file; give another --output")
    if not is_empty:
        raise ConfigError(f"--output {output} already holds files, which may be another draw; give an empty folder")
    return folder


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make the folder; turn what the disk says while it is written to into one of our errors.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as err:
        raise StorageError(f"cannot write {folder}: {reason(err)}") from err


def fetch(material: Material, save: Save) -> tuple[dict[tuple[int, int], Picture], list[Picture]]:
    """Fetch the pictures of what is shown; return what became of each, by unit and position, and those missing."""
    shown = material.draw.shown
    fetched = fetch_pictures(material.settings, material.units, shown, save)
    console = Console(stderr=True)
    shows = console.is_interactive and console.file.isatty()
    counted = track(fetched, "reading pictures", len(shown), console=console, transient=True, disable=not shows)
    pictures = {(one.row.unit, one.row.position): one for one in counted}
    return pictures, [one for row in shown if (one := pictures[row.unit, row.position]).file is None]


def write_answers(folder: Path, draw: Draw, classes: Classes, pictures: Mapping[tuple[int, int], Picture]) -> None:
    """Write the list to fill in: a line per image, with an empty label."""
    with (folder / ANSWERS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ANSWERS_COLUMNS)
        for row in draw.shown:
            picture = pictures.get((row.unit, row.position))
            name = classes.names[row.label_id]
            where = picture.file if picture and picture.file else ""
            writer.writerow([row.shard, row.key, "", name, f"{row.score:.6g}", row.stratum.value, where])


def write_missing(folder: Path, missing: Iterable[Picture]) -> None:
    """Write which pictures could not be had and why, where there are any."""
    rows = [(one.row.shard, one.row.key, one.why) for one in missing]
    if rows:
        with (folder / MISSING_FILE).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("shard", "key", "why"), *rows])


def numbered(draw: Draw) -> dict[tuple[int, int], int]:
    """Return the number of each shown image in its draw, from 1, by unit and position."""
    return {(row.unit, row.position): number for number, row in enumerate(draw.shown, 1)}


def shown_by_class(draw: Draw) -> dict[int, list[DrawnRow]]:
    """Return the shown images of each class, in the draw's order."""
    found: dict[int, list[DrawnRow]] = {}
    for row in draw.shown:
        found.setdefault(row.label_id, []).append(row)
    return found
