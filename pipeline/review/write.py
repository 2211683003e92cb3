"""A recorded draw to files, in the form that is asked for; the same draw can be written any number of times."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq

from models.errors import SourceError
from pipeline.dest.plan import Plan, iter_units
from pipeline.operators.stages import UnitSettings
from pipeline.report.contact_sheet import reader_settings
from pipeline.review.classes import Classes
from pipeline.review.draws import Draw
from pipeline.review.folder import write_folder
from pipeline.review.label_studio import write_label_studio
from pipeline.review.output import ANSWERS_FILE, Material, Written, write_answers, writing_to
from pipeline.sources.unit import part_name
from pipeline.storage.storage import Storage

_WITH_PICTURES: dict[str, Callable[[Material, Path], Written]] = {
    "folder": write_folder,
    "label-studio": write_label_studio,
}


def write_draw(dest: Storage, plan: Plan, draw: Draw, form: str, folder: Path) -> Written:
    """Write a draw's files.

    Args:
        dest: DEST.
        plan: Its plan.
        draw: As it is recorded.
        form: folder, label-studio or csv.
        folder: Where to; new or empty.

    Raises:
        SourceError: SOURCE cannot be opened, by what DEST says of it.
        StorageError: The folder cannot be written, or DEST not be read.
    """
    classes = Classes.of(dest, plan, draw.rows)
    model = str(plan.settings.get("model", "unknown"))
    if form not in _WITH_PICTURES:
        with writing_to(folder):
            write_answers(folder, draw, classes, {})
        return Written([f"fill in the column `label` of {folder / ANSWERS_FILE}"])
    settings = _reader_settings(dest, plan, draw)
    material = Material(draw, dest.describe(), model, classes, settings, iter_units(dest, plan))
    return _WITH_PICTURES[form](material, folder)


def _reader_settings(dest: Storage, plan: Plan, draw: Draw) -> UnitSettings:
    """Return how DEST's run read SOURCE, by the plan and by the metadata of a part file.

    Raises:
        SourceError: They do not say.
    """
    try:
        with closing(dest.open_random(part_name(draw.rows[0].unit))) as file:
            metadata = pq.read_schema(file).metadata or {}
        texts = {key.decode(): value.decode("utf-8", "replace") for key, value in metadata.items()}
        return reader_settings(dest, plan, texts)
    except (KeyError, ValueError) as err:
        why = str(err).splitlines()[0]
        raise SourceError(
            f"{dest.describe()} does not say how SOURCE was read ({why}), so there are no pictures; give --to csv"
        ) from err
