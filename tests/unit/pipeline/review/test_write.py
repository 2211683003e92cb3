"""A draw as files: pictures that are those of their rows, names that stay in the folder, and what cannot be had."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.errors import ConfigError, SourceError, StorageError
from pipeline.config import SourceFormat
from pipeline.dest.plan import open_plan
from pipeline.report import pictures
from pipeline.report.files import empty_folder
from pipeline.review import label_studio
from pipeline.review.output import file_name, write_draw, write_list, write_page
from pipeline.review.ranking import By
from pipeline.review.sample import Wanted, draw_sample
from tests.support.tiny_dest import make_dest
from tests.support.tiny_model import COLOURS, colour_jpeg, colour_shards, write_tar


def picture(colour, kind="JPEG", size=(20, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, kind)
    return buffer.getvalue()


FORMS = {"folder": write_page, "label-studio": label_studio.write_tasks, "csv": write_list}


def drawn(dest, per_class=100):
    plan = open_plan(dest)
    return plan, draw_sample(dest, plan, Wanted(By.MARGIN, per_class)).draw


def written(dest, form, folder, per_class=100):
    plan, draw = drawn(dest, per_class)
    return draw, write_draw(FORMS[form], dest, plan, draw, folder)


def listed(folder, name="answers.csv"):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def colour_of(data):
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean((0, 1))
    return min(COLOURS, key=lambda name: np.abs(pixels - COLOURS[name]).max())


@pytest.mark.parametrize("kind", list(SourceFormat)[1:])
def test_every_picture_is_that_of_its_row_whatever_source_is_made_of(tmp_path, tiny_model, kind):
    colours = [list(COLOURS)[i % 3] for i in range(12)]
    if kind is SourceFormat.WEBDATASET:
        colour_shards(tmp_path / "in", shards=2, samples=6)
    elif kind is SourceFormat.PARQUET:
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table({"image": [colour_jpeg(c) for c in colours]}), tmp_path / "in" / "a.parquet")
    else:
        for i, colour in enumerate(colours):
            (tmp_path / "in" / str(i % 2)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / str(i % 2) / f"{i}.jpg").write_bytes(colour_jpeg(colour))
    dest = make_dest(tmp_path, tiny_model, kind=kind)

    draw, (_, missing) = written(dest, "folder", tmp_path / "look")

    rows = listed(tmp_path / "look")
    assert missing == []
    assert len(rows) == len(draw.shown) == 12
    assert {(row["shard"], row["key"]) for row in rows} == {(row.shard, row.key) for row in draw.shown}
    for row in rows:
        data = (tmp_path / "look" / row["picture"]).read_bytes()
        assert colour_of(data) == row["predicted"]
        assert row["picture"].split("/")[0].endswith(f"-{row['predicted']}")
        assert row["label"] == ""


def test_pictures_are_the_same_bytes_where_browsers_show_them_and_jpeg_where_not(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    kinds = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
    members = {f"{ending}.{ending}": picture("red", kind) for ending, kind in kinds.items()}
    write_tar(tmp_path / "in" / "a.tar", members)
    dest = make_dest(tmp_path, tiny_model)

    written(dest, "folder", tmp_path / "look")

    for row in listed(tmp_path / "look"):
        path = tmp_path / "look" / row["picture"]
        shown = row["key"] if row["key"] in ("jpg", "png", "gif", "webp") else "jpg"
        assert path.suffix == f".{shown}"
        assert (path.read_bytes() == members[f"{row['key']}.{row['key']}"]) is (row["key"] == shown)
        assert colour_of(path.read_bytes()) == "red"


@pytest.mark.parametrize(
    "key",
    [
        "../../../up",
        "/etc/passwd",
        "a" * 900,
        "..",
        "con",
        "ü/漢字 ' \" < > & | %2e%2e",
        "a\n\x00b",
        "\u202eevil",
        "-rf",
    ],
)
def test_a_name_stays_in_its_folder_whatever_the_key_is(key):
    name = f"00001-{file_name(key)}.jpg"

    assert Path(name).name == name
    assert len(name.encode()) < 255
    assert re.fullmatch(r"[\w.-]+", name)


def test_hostile_keys_and_labels_are_written_and_shown_as_text(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    key = '"><script>alert(1)</script>&/../x'
    write_tar(tmp_path / "in" / "a.tar", {f"{key}.jpg": colour_jpeg("red")})
    dest = make_dest(tmp_path, tiny_model)

    written(dest, "folder", tmp_path / "look")

    page = (tmp_path / "look" / "index.html").read_text()
    (row,) = listed(tmp_path / "look")
    assert row["key"] == key
    assert "<script>alert" not in page
    found = re.search(r'<script type="application/json" id="rows"[^>]*>(.*?)</script>', page)
    assert json.loads(found[1]) == [["a.tar", key, "red"]]
    everything = [path for path in (tmp_path / "look").rglob("*") if path.is_file()]
    assert len(everything) == 3
    assert f'src="{row["picture"]}"' in page


def test_pictures_that_cannot_be_had_are_named_with_the_reason_and_the_others_are_there(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=4, samples=5)
    dest = make_dest(tmp_path, tiny_model)
    (tmp_path / "in" / "shard-000.tar").unlink()
    write_tar(tmp_path / "in" / "shard-002.tar", {"x.jpg": colour_jpeg("red")})

    draw, (_, missing) = written(dest, "folder", tmp_path / "look")

    named = listed(tmp_path / "look", "missing.csv")
    assert len(missing) == len(named) == 10
    assert {(row["shard"], row["why"].partition(": ")[0]) for row in named} >= {
        ("shard-000.tar", f"cannot read {tmp_path}/in/shard-000.tar")
    }
    assert any("shard-002.tar has changed since" in row["why"] for row in named)
    rows = listed(tmp_path / "look")
    assert len(rows) == len(draw.shown) == 20
    assert {row["shard"] for row in rows if row["picture"]} == {"shard-001.tar", "shard-003.tar"}
    assert (tmp_path / "look" / "index.html").read_text().count("no picture") == 10


def test_a_source_that_does_not_answer_is_not_asked_for_every_shard(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=12, samples=1)
    dest = make_dest(tmp_path, tiny_model)
    asked = []

    def read(settings, unit, places):
        asked.append(unit.number)
        raise StorageError("cannot read: timed out") from TimeoutError()

    monkeypatch.setattr(pictures, "samples_at", read)
    monkeypatch.setattr(pictures, "SHARDS_AHEAD", 1)

    _, (_, missing) = written(dest, "folder", tmp_path / "look")

    assert len(asked) == pictures.MAX_SILENT
    assert len(missing) == 12
    assert [one.why for one in missing].count("SOURCE does not answer (cannot read: timed out)") == 9


def test_a_folder_that_cannot_be_written_is_an_error_and_no_missing_picture(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    dest = make_dest(tmp_path, tiny_model)
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"cannot write .*file/look"):
        written(dest, "folder", tmp_path / "file" / "look")


def test_a_shard_is_read_no_further_than_the_last_picture_that_is_wanted(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=1, samples=30)
    dest = make_dest(tmp_path, tiny_model)
    plan, draw = drawn(dest, 1)
    read = []
    real = pictures.samples_at

    def counted(*args):
        for sample in real(*args):
            read.append(sample.key)
            yield sample

    monkeypatch.setattr(pictures, "samples_at", counted)
    write_draw(write_page, dest, plan, draw, tmp_path / "look")

    assert len(read) == 1 + max(row.position for row in draw.shown) < 30


def test_a_list_alone_reads_no_picture(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    dest = make_dest(tmp_path, tiny_model)
    (tmp_path / "in" / "shard-000.tar").unlink()

    draw, (_, missing) = written(dest, "csv", tmp_path / "look")

    assert missing == []
    assert [path.name for path in (tmp_path / "look").iterdir()] == ["answers.csv"]
    assert len(listed(tmp_path / "look")) == len(draw.shown)


def test_label_studio_gets_tasks_with_small_pictures_and_a_choice_of_every_class(tmp_path, tiny_model, monkeypatch):
    (tmp_path / "in").mkdir()
    members = {f"{colour}.png": picture(colour, "PNG", (3000, 1500)) for colour in COLOURS}
    write_tar(tmp_path / "in" / "a.tar", members)
    dest = make_dest(tmp_path, tiny_model)
    monkeypatch.setattr(label_studio, "MAX_FILE_BYTES", 30_000)

    draw, _ = written(dest, "label-studio", tmp_path / "look")

    files = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert files == ["labels.xml", "tasks-001.json", "tasks-002.json"]
    tasks = [task for name in files[1:] for task in json.loads((tmp_path / "look" / name).read_text())]
    view = ElementTree.parse(tmp_path / "look" / "labels.xml").getroot()
    (control,) = view.findall("Choices")
    choices = [choice.get("value") for choice in control]
    assert (control.get("name"), choices) == ("label", ["red", "green", "blue", "none"][: len(choices)])
    assert [(task["data"]["shard"], task["data"]["key"]) for task in tasks] == [(r.shard, r.key) for r in draw.shown]
    for task in tasks:
        start, _, content = task["data"]["image"].partition(",")
        image = base64.b64decode(content)
        assert start == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(image)).size == (1024, 512)
        assert colour_of(image) == task["data"]["key"]
        (result,) = task["predictions"][0]["result"]
        assert (result["from_name"], result["to_name"], result["type"]) == ("label", "image", "choices")
        assert result["value"]["choices"] == [task["data"]["key"]]


def test_a_dest_that_does_not_say_how_source_was_read_is_refused(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    dest = make_dest(tmp_path, tiny_model)
    plan, draw = drawn(dest)
    plan = replace(plan, settings={**plan.settings, "format": "of tomorrow"})

    with pytest.raises(SourceError, match=r"does not say how SOURCE was read .*; give --to csv"):
        write_draw(write_page, dest, plan, draw, tmp_path / "look")


@pytest.mark.parametrize(
    ("output", "said"),
    [("s3://b/x", "must be a folder on this machine"), ("file", "must be a folder, but is a file"),
     ("full", "--output full already holds files; give an empty folder"),
     ("~nobody-is-called-so/x", "cannot be used: .*; give another folder"), ("x" * 300, "cannot be used: .*name too long")],
)  # fmt: skip
def test_an_output_that_cannot_take_a_draw_is_refused(tmp_path, monkeypatch, output, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match=said):
        empty_folder("--output", output)
    assert empty_folder("--output", "empty").name == "empty"
    assert empty_folder("--output", "new/deep").name == "deep"
