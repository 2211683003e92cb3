"""A prediction log of made-up answers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pipeline.dest.prediction_log import CLASS_NAMES_KEY, LOG_FIELDS, begin_log, write_part
from pipeline.dest.writer import OutputSpec, Row, build_batch
from pipeline.storage.storage import Storage, open_storage
from tests.support.made_up_rows import predictions_of

CLASSES = ("cat", "dog", "owl")


def add_part(
    folder: Path | str, answers: list[tuple[str, int | None]], *, model: str = "m", classes: tuple[str, ...] = CLASSES
) -> Storage:
    """Add a part file with the given images and classes; an image with None could not be decoded."""
    dest = open_storage(str(folder))
    begin_log(dest)
    metadata = {
        f"shardlabel.{name}": value for name, value in (("model", model), ("precision", "int8"), ("decode", "fast"))
    }
    output = OutputSpec(classes, {**metadata, CLASS_NAMES_KEY: "".join(classes)}, carried=LOG_FIELDS)
    rows = [
        Row(
            model, key, "ok" if best is not None else "undecodable", None if best is not None else "cut off", 4, 2,
            carried=(None, "id", f"{model}:int8:fast@0", datetime(2026, 1, 2, tzinfo=UTC)),
        )
        for key, best in answers
    ]  # fmt: skip
    found = predictions_of([best for _, best in answers if best is not None], classes=len(classes))
    write_part(dest, output, [build_batch(rows, found, output, output.schema())], 2.0, 100)
    return dest
