"""Chooses the flips to show, and reads their pictures: a bounded number, from few units."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from models.decode.headers import ENDINGS, sniff_format
from pipeline.diff.compare import Compared
from pipeline.diff.difference import Flip
from pipeline.report.files import writing_to
from pipeline.report.pictures import read_thumbnails

# Most flips on a page. A folder of examples holds as many as are remembered of each pair.
PAGE_FLIPS = 48
PAGE_OF_PAIR = 4
# Each unit is read up to its last wanted picture.
MAX_UNITS = 32
CSV_COLUMNS = ("file", "shard", "key", "old_label", "old_score", "new_label", "new_score")


def chosen_flips(flips: list[list[Flip]], *, everything: bool = False) -> Iterator[Flip]:
    """Yield flips of each pair in turn, from MAX_UNITS units at most.

    Args:
        flips: Flips of each pair of classes.
        everything: Whether to yield all; else some for a page.
    """
    units: set[int] = set()
    count = 0
    for some in zip_longest(*(pair if everything else pair[:PAGE_OF_PAIR] for pair in flips)):
        for flip in some:
            if flip is None or (flip.unit not in units and len(units) == MAX_UNITS):
                continue
            if not everything and count == PAGE_FLIPS:
                return
            units.add(flip.unit)
            count += 1
            yield flip


def write_examples(folder: Path, found: Compared, flips: list[Flip]) -> tuple[dict[tuple[int, int], bytes], list[str]]:
    """Write the images of flips as they are in SOURCE, and flips.csv that describes each.

    Returns:
        See `read_thumbnails`.

    Raises:
        StorageError: The folder cannot be written.
    """
    numbers = {flip.place: number for number, flip in enumerate(flips, 1)}
    files: dict[tuple[int, int], str] = {}

    def keep(flip: Flip, data: bytes) -> None:
        labels = f"{_plain(flip.old_label)}-to-{_plain(flip.new_label)}"
        name = f"{numbers[flip.place]:04d}-{labels}.{ENDINGS[sniff_format(data)]}"
        (folder / name).write_bytes(data)
        files[flip.place] = name

    source = found.source
    with writing_to(folder):
        pictures = read_thumbnails(source.dest, source.plan, source.metadata, flips, keep)
        with (folder / "flips.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(CSV_COLUMNS)
            for flip in flips:
                name = files.get(flip.place, "")
                scores = (f"{flip.old_score:.6f}", f"{flip.new_score:.6f}")
                table.writerow((name, flip.shard, flip.key, flip.old_label, scores[0], flip.new_label, scores[1]))
    return pictures


def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "label"
