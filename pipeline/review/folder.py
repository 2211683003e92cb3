"""A draw as a folder: a folder of pictures per class, and a page on which a click is an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from pipeline.html import pages
from pipeline.review.classes import NO_CLASS
from pipeline.review.draws import DrawnRow
from pipeline.review.output import (
    Material,
    Written,
    fetch,
    numbered,
    shown_by_class,
    write_answers,
    write_missing,
    writing_to,
)
from pipeline.review.pictures import Picture, for_browser

PAGE_FILE = "index.html"
# Images per class below which classes stand on the page without headings of their own.
SPARSE = 4
# Of names of files and folders: at most 4 bytes a character, and file systems take 255 bytes.
_LONGEST_NAME = 48
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


def file_name(text: str) -> str:
    """Return text as a part of a file's name: letters, digits and `_ - .` of its end, never a path.

    >>> file_name("../../etc/passwd")
    'etc_passwd'
    """
    return _NOT_IN_NAMES.sub("_", text)[-_LONGEST_NAME:].strip("._-")


def write_folder(material: Material, folder: Path) -> Written:
    """Write pictures, page and list of answers.

    Raises:
        StorageError: The folder cannot be written.
    """
    numbers, names = numbered(material.draw), material.classes.names

    def save(row: DrawnRow, data: bytes) -> str:
        content, ending = for_browser(data, material.settings.limits)
        place = f"{row.label_id:04d}-{file_name(names[row.label_id])}"
        (folder / place).mkdir(exist_ok=True)
        path = f"{place}/{numbers[row.unit, row.position]:05d}-{file_name(row.key)}.{ending}"
        (folder / path).write_bytes(content)
        return path

    with writing_to(folder):
        pictures, missing = fetch(material, save)
        write_answers(folder, material.draw, material.classes, pictures)
        write_missing(folder, missing)
        (folder / PAGE_FILE).write_text(_page(material, pictures), encoding="utf-8", errors="replace")
    return Written(
        [
            f"open {folder / PAGE_FILE}, answer there, and save the answers as a CSV file",
            f"or fill in the column `label` of {folder / 'answers.csv'}",
        ],
        missing,
    )


def _page(material: Material, pictures: Mapping[tuple[int, int], Picture]) -> str:
    draw, names = material.draw, material.classes.names
    by_class = shown_by_class(draw)
    is_sparse = len(draw.shown) < SPARSE * len(by_class)
    # As JSON: what is written in HTML is cut where it is very long, and a key must come back as it is.
    rows = [(row.shard, row.key, names[row.label_id]) for row in draw.shown]
    return pages.render(
        "review.html",
        draw=draw,
        dest=material.dest,
        model=material.model,
        names=names,
        none=NO_CLASS,
        num_classes=len(by_class),
        sections={None: draw.shown} if is_sparse else by_class,
        numbers=numbered(draw),
        links={place: Markup(quote(one.file)) for place, one in pictures.items() if one.file is not None},
        why={place: one.why for place, one in pictures.items()},
        rows=Markup(json.dumps(rows).replace("<", "\\u003c")),
        img_src="'self' file: data:",
    )
