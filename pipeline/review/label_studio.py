"""A draw in Label Studio's import format: tasks that contain the pictures, pre-labelled, and the labelling configuration.

A picture is a reduced `data:` URI in its task, so you can drop such a file on any project. The alternative, local files,
needs a server started with a document root, and a local storage for each project.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from models.decode.headers import ImageLimits
from pipeline.report.pictures import as_jpeg
from pipeline.review.classes import NO_CLASS
from pipeline.review.draws import DrawnRow
from pipeline.review.output import Material, Pictures

CONFIG_FILE = "labels.xml"
# Label Studio's exports name the column of answers after this control, and `review score` reads column `label`.
_CONTROL = "label"
# Characters that XML does not allow.
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
LONGEST_SIDE = 1024
# Label Studio accepts uploads of 250 MB, older versions 50 MB.
MAX_FILE_BYTES = 40 * 10**6
# With more classes than this, a searchable list replaces the buttons.
MAX_BUTTONS = 20


def write_tasks(material: Material, folder: Path) -> tuple[Pictures, list[str]]:
    """Write tasks and configuration; return the results for the pictures, and what to tell the user."""
    numbers = material.numbers
    with tempfile.TemporaryDirectory(dir=folder, prefix="pictures-") as aside:

        def save(row: DrawnRow, data: bytes, limits: ImageLimits) -> str:
            path = Path(aside) / f"{numbers[row.place]:05d}.jpg"
            path.write_bytes(as_jpeg(data, limits, LONGEST_SIDE))
            return str(path)

        pictures = material.fetch(save)
        files = [(row, pictures[row.place].saved) for row in material.draw.shown]
        num_files = _write(folder, (_task(material, row, Path(one).read_bytes()) for row, one in files if one))
    (folder / CONFIG_FILE).write_bytes(_config(list(material.classes.names.values())))
    them = f"{folder}/tasks-*.json" if num_files > 1 else str(folder / "tasks-001.json")
    return pictures, [
        f"make a Label Studio project, paste {folder / CONFIG_FILE} as its labelling code, and import {them}",
        "export as CSV or JSON-MIN when done: `review score` reads both",
    ]


def _task(material: Material, row: DrawnRow, jpeg: bytes) -> dict[str, Any]:
    predicted = material.classes.names[row.label_id]
    return {
        "data": {
            "image": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}",
            "shard": row.shard,
            "key": row.key,
            "predicted": predicted,
            "score": round(row.score, 6),
            "stratum": row.stratum.value,
            "draw": material.draw.number,
            "about": f"{predicted}, score {row.score:.3f}: {row.key}",
        },
        "predictions": [
            {
                "model_version": material.model,
                "score": round(row.score, 6),
                "result": [
                    {"id": f"{row.unit}-{row.position}", "from_name": _CONTROL, "to_name": "image", "type": "choices",
                     "value": {"choices": [predicted]}}
                ],
            }
        ],
    }  # fmt: skip


def _write(folder: Path, tasks: Iterator[dict[str, Any]]) -> int:
    """Write tasks to files of up to MAX_FILE_BYTES, with one task in memory at a time; return the number of files."""
    number = size = 0
    for task in tasks:
        text = json.dumps(task)
        is_first = not size or size + len(text) > MAX_FILE_BYTES
        if is_first and size:
            _append(folder, number, "\n]\n")
        number, size = (number + 1, 0) if is_first else (number, size)
        size += _append(folder, number, ("[\n" if is_first else ",\n") + text)
    if size:
        _append(folder, number, "\n]\n")
    return number


def _append(folder: Path, number: int, text: str) -> int:
    with (folder / f"tasks-{number:03d}.json").open("a", encoding="utf-8") as file:
        return file.write(text)


def _config(names: list[str]) -> bytes:
    """Return the labelling configuration: the picture, the prediction, and a choice of one class or none."""
    view = Xml.Element("View")
    Xml.SubElement(view, "Image", name="image", value="$image")
    Xml.SubElement(view, "Text", name="about", value="$about")
    choices = Xml.SubElement(view, "Choices", name=_CONTROL, toName="image", choice="single", required="true")
    choices.set(*("layout", "select") if len(names) > MAX_BUTTONS else ("showInline", "true"))
    for name in dict.fromkeys([*names, NO_CLASS]):
        Xml.SubElement(choices, "Choice", value=_NO_XML.sub("", name))
    Xml.indent(view)
    return bytes(Xml.tostring(view, encoding="utf-8")) + b"\n"
