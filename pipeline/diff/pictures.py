"""Pictures of flips, read from SOURCE: a bounded number, of few units."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.decode.headers import ENDINGS, sniff_format
from models.errors import ConfigError, InputError, ShardlabelError, StorageError
from pipeline.dest.finished import FinishedDest
from pipeline.dest.plan import iter_units
from pipeline.diff.compare import Compared
from pipeline.diff.difference import Flip
from pipeline.operators.stages import UnitSettings
from pipeline.report.contact_sheet import MAX_FAILURES, reader_settings, thumbnail
from pipeline.sources.reader import read_unit
from pipeline.sources.unit import Unit

BoolArray = npt.NDArray[np.bool_]

# On a page; and in a folder of examples, which holds as many as are remembered of each pair.
PAGE_FLIPS = 48
PAGE_OF_PAIR = 4
# Each is read up to the last picture that is wanted.
MAX_UNITS = 32


@dataclass(slots=True)
class Pictures:
    """Flips, and their images as they stand in SOURCE.

    Attributes:
        flips: Those of the most frequent pairs of classes first.
        images: The encoded image by (unit, row), where it could be had.
        thumbnails: Small JPEGs by (unit, row).
        problems: Why pictures are missing, a sentence each.
    """

    flips: list[Flip]
    images: dict[tuple[int, int], bytes] = field(default_factory=dict)
    thumbnails: dict[tuple[int, int], bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_flips(found: Compared, *, everything: bool = False) -> Pictures:
    """Choose flips and read their pictures. One that cannot be read is told in `problems`.

    Args:
        found: The comparison.
        everything: Whether to keep the images themselves, of all that are remembered of the pairs; else thumbnails of
            some for a page.
    """
    pictures = Pictures(list(_chosen(found.flips, everything=everything)))
    if not pictures.flips:
        return pictures
    source = found.source
    try:
        settings = reader_settings(source.dest, source.plan, source.metadata)
    except (ShardlabelError, KeyError, ValueError) as err:
        pictures.problems.append(f"SOURCE cannot be read: {err}")
        return pictures
    by_unit: dict[int, dict[int, Flip]] = {}
    for flip in pictures.flips:
        by_unit.setdefault(flip.unit, {})[flip.row] = flip
    failures = 0
    for unit in _units(source, by_unit):
        try:
            wanted = np.zeros(int(source.rows[unit.number]), np.bool_)
            wanted[list(by_unit[unit.number])] = True
            _read_unit(pictures, settings, unit, wanted, by_unit[unit.number], keep=everything)
        except ShardlabelError as err:
            failures += 1
            pictures.problems.append(str(err))
            if failures == MAX_FAILURES:
                break
    missing = sum(flip.place not in pictures.thumbnails for flip in pictures.flips)
    if missing:
        pictures.problems.append(f"{missing} of {len(pictures.flips)} pictures are missing")
    return pictures


def _chosen(flips: list[list[Flip]], *, everything: bool) -> Iterator[Flip]:
    """Yield flips of each pair in turn, of MAX_UNITS units at most."""
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


def _units(source: FinishedDest, wanted: Iterable[int]) -> Iterator[Unit]:
    left = set(wanted)
    for unit in iter_units(source.dest, source.plan):
        if unit.number in left:
            left.remove(unit.number)
            yield unit
        if not left:
            return


def _read_unit(
    pictures: Pictures, settings: UnitSettings, unit: Unit, wanted: BoolArray, flips: dict[int, Flip], *, keep: bool
) -> None:
    """Read a unit up to the last row that is wanted."""
    samples = read_unit(settings, unit, lambda shard, notes: None, wanted)
    for place, sample in zip(sorted(flips), samples, strict=False):
        flip = flips[place]
        if sample.key != flip.key:
            pictures.problems.append(f"{flip.shard}: SOURCE now has {sample.key} where {flip.key} was")
        elif sample.data is not None:
            try:
                pictures.thumbnails[flip.place] = thumbnail(sample.data, settings)
            except InputError as err:
                pictures.problems.append(f"{sample.key}: {err}")
                continue
            if keep:
                pictures.images[flip.place] = sample.data


def check_folder(folder: Path) -> None:
    """Refuse a folder for examples that holds anything.

    Raises:
        ConfigError: It does, or is no folder.
    """
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as err:
        raise ConfigError(f"--examples {folder} cannot be used: {err.strerror}; give another folder") from err
    if is_taken:
        raise ConfigError(
            f"--examples {folder}: expected a new or an empty folder, and there is something; give another"
        )


def write_examples(folder: Path, pictures: Pictures) -> str:
    """Write the images as they are in SOURCE, and flips.csv that says what each is; return what to tell the user.

    Raises:
        StorageError: The folder cannot be written.
    """
    columns = ("file", "shard", "key", "old_label", "old_score", "new_label", "new_score")
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "flips.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(columns)
            for number, flip in enumerate(pictures.flips, 1):
                image = pictures.images.get(flip.place)
                name = ""
                if image is not None:
                    ending = ENDINGS[sniff_format(image)]
                    name = f"{number:04d}-{_plain(flip.old_label)}-to-{_plain(flip.new_label)}.{ending}"
                    (folder / name).write_bytes(image)
                    count += 1
                scores = (f"{flip.old_score:.6f}", f"{flip.new_score:.6f}")
                table.writerow((name, flip.shard, flip.key, flip.old_label, scores[0], flip.new_label, scores[1]))
    except OSError as err:
        raise StorageError(f"--examples {folder} cannot be written: {err.strerror or err}") from err
    return f"wrote {count} images and flips.csv to {folder}"


def _plain(label: str) -> str:
    """Return a label as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "label"
