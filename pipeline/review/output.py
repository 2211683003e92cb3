"""Write a recorded draw to files, as often as you like: a list of answers to fill in, and a page or tasks with pictures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from rich.console import Console
from rich.progress import track

from models.decode.headers import ImageLimits
from models.errors import SourceError
from pipeline.dest.plan import Plan, iter_units
from pipeline.html import pages
from pipeline.report.files import writing_to
from pipeline.report.pictures import Picture, fetch_pictures, for_browser, reader_settings
from pipeline.report.scan import Place
from pipeline.review.classes import NO_CLASS, Classes
from pipeline.review.draws import Draw, DrawnRow
from pipeline.storage.storage import Storage

ANSWERS_FILE = "answers.csv"
MISSING_FILE = "missing.csv"
PAGE_FILE = "index.html"
ANSWERS_COLUMNS = ("shard", "key", "label", "predicted", "score", "stratum", "picture")
# With fewer images per class than this, the page has no heading for each class.
SPARSE = 4
# Length of a file or folder name: a character takes at most 4 bytes, and file systems allow 255 bytes.
_LONGEST_NAME = 48
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")

Pictures = dict[Place, Picture[DrawnRow, str]]


@dataclass(frozen=True, slots=True)
class Material:
    """What a draw's files are made from."""

    dest: Storage
    plan: Plan
    draw: Draw
    classes: Classes

    @property
    def model(self) -> str:
        """Name of the model that labelled DEST."""
        return str(self.plan.settings.get("model", "unknown"))

    @property
    def numbers(self) -> dict[Place, int]:
        """The number of each shown image in the draw, from 1."""
        return {row.place: number for number, row in enumerate(self.draw.shown, 1)}

    def fetch(self, save: Callable[[DrawnRow, bytes, ImageLimits], str]) -> Pictures:
        """Fetch the pictures of the shown rows; `save` stores one, and returns its path.

        Raises:
            SourceError: SOURCE cannot be opened from the settings in DEST.
        """
        shown = self.draw.shown
        try:
            settings = reader_settings(self.dest, self.plan)
        except SourceError as err:
            raise SourceError(f"{err}; give --to csv") from err
        units = iter_units(self.dest, self.plan)
        fetched = fetch_pictures(settings, units, shown, lambda row, data: save(row, data, settings.limits))
        console = Console(stderr=True)
        shows = console.is_interactive and console.file.isatty()
        counted = track(fetched, "reading pictures", len(shown), console=console, transient=True, disable=not shows)
        return {one.row.place: one for one in counted}


Write = Callable[[Material, Path], tuple[Pictures, list[str]]]
"""Writes files to a folder; returns the results for the pictures, and what to tell the user."""


def write_draw(
    write: Write, dest: Storage, plan: Plan, draw: Draw, folder: Path
) -> tuple[list[str], list[Picture[DrawnRow, str]]]:
    """Write a draw's files; return what to tell the user, and the pictures that could not be read.

    Args:
        write: Writes the files in one form.
        dest: Storage of DEST.
        plan: Plan of DEST.
        draw: The recorded draw.
        folder: A new or empty folder.

    Raises:
        SourceError: SOURCE cannot be opened from the settings in DEST.
        StorageError: The folder cannot be written, or DEST cannot be read.
    """
    material = Material(dest, plan, draw, Classes.of(dest, plan, draw.rows))
    with writing_to(folder):
        pictures, lines = write(material, folder)
        found = [pictures[row.place] for row in draw.shown if row.place in pictures]
        missing = [one for one in found if one.saved is None]
        if missing:
            rows = [("shard", "key", "why"), *((one.row.shard, one.row.key, one.why) for one in missing)]
            with (folder / MISSING_FILE).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
    return lines, missing


def write_list(material: Material, folder: Path, pictures: Pictures | None = None) -> tuple[Pictures, list[str]]:
    """Write the list of answers to fill in: a line per image, with an empty label."""
    with (folder / ANSWERS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ANSWERS_COLUMNS)
        for row in material.draw.shown:
            name = material.classes.names[row.label_id]
            where = pictures[row.place].saved if pictures else None
            writer.writerow([row.shard, row.key, "", name, f"{row.score:.6g}", row.stratum.value, where or ""])
    return {}, [f"fill in the column `label` of {folder / ANSWERS_FILE}"]


def file_name(text: str) -> str:
    """Return text as part of a file name: the letters, digits and `_ - .` at its end, never a path.

    >>> file_name("../../etc/passwd")
    'etc_passwd'
    """
    return _NOT_IN_NAMES.sub("_", text)[-_LONGEST_NAME:].strip("._-")


def write_page(material: Material, folder: Path) -> tuple[Pictures, list[str]]:
    """Write a folder of pictures for each class, and a page on which a click is an answer."""
    numbers, names = material.numbers, material.classes.names

    def save(row: DrawnRow, data: bytes, limits: ImageLimits) -> str:
        content, ending = for_browser(data, limits)
        place = f"{row.label_id:04d}-{file_name(names[row.label_id])}"
        (folder / place).mkdir(exist_ok=True)
        path = f"{place}/{numbers[row.place]:05d}-{file_name(row.key)}.{ending}"
        (folder / path).write_bytes(content)
        return path

    pictures = material.fetch(save)
    _, (others,) = write_list(material, folder, pictures)
    (folder / PAGE_FILE).write_text(_page(material, pictures), encoding="utf-8", errors="replace")
    return pictures, [
        f"open {folder / PAGE_FILE}, answer there, and save the answers as a CSV file, for `shardlabel review score`",
        f"or {others}",
    ]


def _page(material: Material, pictures: Pictures) -> str:
    draw, names = material.draw, material.classes.names
    by_class: dict[int, list[DrawnRow]] = {}
    for row in draw.shown:
        by_class.setdefault(row.label_id, []).append(row)
    is_sparse = len(draw.shown) < SPARSE * len(by_class)
    # As JSON: long values in HTML are shortened, but a key must come back unchanged.
    rows = [(row.shard, row.key, names[row.label_id]) for row in draw.shown]
    return pages.render(
        "review.html",
        draw=draw,
        dest=material.dest.describe(),
        model=material.model,
        names=names,
        none=NO_CLASS,
        num_classes=len(by_class),
        sections={None: draw.shown} if is_sparse else by_class,
        numbers=material.numbers,
        links={place: Markup(quote(one.saved)) for place, one in pictures.items() if one.saved is not None},
        why={place: one.why for place, one in pictures.items()},
        rows=Markup(json.dumps(rows).replace("<", "\\u003c")),
        img_src="'self' file: data:",
    )
