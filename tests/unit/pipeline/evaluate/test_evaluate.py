from __future__ import annotations

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.decode.decode import DecodeMode
from models.errors import ConfigError, SourceError
from models.inference.classifier import Device
from pipeline.config import LabelConfig
from pipeline.evaluate.evaluate import compare, evaluate_source
from pipeline.evaluate.text import build_page
from tests.support.tiny_model import build_tiny_model, colour_jpeg, colour_shards, write_tar


def config(model, *source, **more):
    return LabelConfig(source=tuple(map(str, source)), model=str(model), output="none", device=Device.CPU, **more)


def measure(model, *source, label_field=None, **more):
    return evaluate_source(config(model, *source, **more), lambda _: None, label_field=label_field)


def shard(folder, members, name="one.tar"):
    return write_tar(folder / name, members)


def test_rates_intervals_and_confusions_can_be_worked_out_by_hand(tiny_model, tmp_path):
    source = shard(
        tmp_path,
        {
            "a.jpg": colour_jpeg("red"), "a.cls": b"0",
            "b.jpg": colour_jpeg("green"), "b.cls": b"1\n",
            "c.jpg": colour_jpeg("blue"), "c.cls": b"red",
            "d.jpg": colour_jpeg("blue"),
            "e.jpg": b"no image", "e.cls": b"2",
        },
    )  # fmt: skip

    found = measure(tiny_model, source)

    assert (found.images, found.not_decoded, found.without_label) == (4, 1, 1)
    assert (found.top1, found.top5) == (50.0, 75.0)
    assert found.top1_interval == pytest.approx((15.0, 85.0), abs=0.01)
    assert [(one.name, one.images, one.top1) for one in found.per_class] == [
        ("red", 2, 50.0), ("green", 1, 100.0), ("blue", 1, 0.0)
    ]  # fmt: skip
    assert [(one.name, one.label, one.images) for one in found.confusions] == [("red", "blue", 1)]


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param({"a.cls": b"2"}, id="cls-index"),
        pytest.param({"a.cls": b"Blue"}, id="cls-name"),
        pytest.param({"a.json": b'{"caption": "x", "label": "blue"}'}, id="json-name"),
        pytest.param({"a.json": b'{"label": "sky", "label_id": 2}'}, id="json-id-comes-first"),
        pytest.param({"a.cls": b"2", "a.json": b'{"label": 0}'}, id="cls-comes-first"),
    ],
)
def test_a_class_is_read_from_the_members_beside_an_image(tiny_model, tmp_path, beside):
    found = measure(tiny_model, shard(tmp_path, {"a.jpg": colour_jpeg("blue"), **beside}))

    assert (found.images, found.top1) == (1, 100.0)


def test_a_field_that_is_asked_for_comes_before_cls(tiny_model, tmp_path):
    source = shard(tmp_path, {"a.jpg": colour_jpeg("blue"), "a.cls": b"0", "a.json": b'{"truth": "blue"}'})

    assert measure(tiny_model, source, label_field="truth").top1 == 100.0


def test_folders_named_by_class_are_labels(tiny_model, tmp_path):
    for name in ("red", "1", "Blue"):
        (tmp_path / "val" / name).mkdir(parents=True)
    (tmp_path / "val" / "red" / "x.jpg").write_bytes(colour_jpeg("red"))
    (tmp_path / "val" / "1" / "x.jpg").write_bytes(colour_jpeg("green"))
    (tmp_path / "val" / "Blue" / "x.jpg").write_bytes(colour_jpeg("red"))

    found = measure(tiny_model, tmp_path / "val")

    assert (found.images, found.top1) == (3, pytest.approx(66.667))
    assert measure(tiny_model, tmp_path / "val" / "red").top1 == 100.0


def test_loose_images_of_no_class_are_an_error_that_says_where_their_class_is_from(tiny_model, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.jpg").write_bytes(colour_jpeg("red"))

    with pytest.raises(
        SourceError, match=r"the class of x\.jpg is unknown: 'pictures' .* the folder of a loose image names its class$"
    ):
        measure(tiny_model, tmp_path / "pictures")


def parquet(path, labels, names=None, column="label"):
    table = pa.table({"image": [colour_jpeg(c) for c in ("red", "green", "blue")], column: labels})
    if names:
        features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("labels", "names", "top1"),
    [
        pytest.param([0, 1, 2], None, 100.0, id="index"),
        pytest.param(["red", "green", "2"], None, 100.0, id="text"),
        pytest.param([2, 1, 0], ["blue", "green", "red"], 100.0, id="hugging-face-names-in-another-order"),
        pytest.param([0, 1, 2], ["red", "green", "azure"], 100.0, id="hugging-face-same-order"),
        pytest.param([0, None, 0], None, 50.0, id="null-is-no-label"),
    ],
)
def test_a_parquet_column_is_the_label(tiny_model, tmp_path, labels, names, top1):
    assert measure(tiny_model, parquet(tmp_path / "a.parquet", labels, names)).top1 == top1


def test_a_parquet_column_of_another_name_has_to_be_told(tiny_model, tmp_path):
    path = parquet(tmp_path / "a.parquet", [0, 1, 2], column="truth")

    assert measure(tiny_model, path, label_field="truth").top1 == 100.0
    with pytest.raises(ConfigError, match=r"no column has the classes; .*--label-field \(image, truth"):
        measure(tiny_model, path)
    with pytest.raises(ConfigError, match="image holds binary; a class is an integer or a string"):
        measure(tiny_model, path, label_field="image")


@pytest.mark.parametrize("content", [b"3", b"-1", b"mauve", b""])
def test_a_class_that_the_model_does_not_have_is_an_error_that_names_the_sample(tiny_model, tmp_path, content):
    source = shard(tmp_path, {"x/a.jpg": colour_jpeg("red"), "x/a.cls": content})

    with pytest.raises(
        SourceError, match=r"the class of x/a in one\.tar is unknown: .* expected 0 to 2, or a synset id"
    ):
        measure(tiny_model, source)


def test_a_source_without_labels_is_an_error(tiny_model, tmp_path):
    with pytest.raises(SourceError, match=r"has no \.cls members, and no \.json members with a class"):
        measure(tiny_model, shard(tmp_path, {"a.jpg": colour_jpeg("red")}))


def test_a_limit_stops_reading(tiny_model, tmp_path):
    colour_shards(tmp_path / "many", shards=2, samples=40)

    assert measure(tiny_model, tmp_path / "many", limit=50).images == 50


def test_how_far_it_is_is_told_now_and_then(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.evaluate.scoring.SAY_EVERY_S", 0.0)
    colour_shards(tmp_path / "many", shards=1, samples=40)
    said = []

    evaluate_source(config(tiny_model, tmp_path / "many"), said.append)

    assert "shardlabel: 16 images so far, top-1 100.00 %" in said


def speckled(seed: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_two_ways_are_compared_on_the_same_images(tiny_model, tmp_path):
    members = {f"{i:03d}.{ext}": content for i in range(60) for ext, content in (("png", speckled(i)), ("cls", b"1"))}
    source = shard(tmp_path, members)

    found = compare(config(tiny_model, source), "fast", "exact", lambda _: None)

    alone = [measure(tiny_model, source, decode=mode) for mode in (DecodeMode.FAST, DecodeMode.EXACT)]
    assert (found.a.top1, found.b.top1) == (alone[0].top1, alone[1].top1)
    assert found.only_a - found.only_b == round((found.a.top1 - found.b.top1) * 60 / 100)
    assert found.agreement == pytest.approx(100 * (60 - len(found.changed)) / 60, abs=1e-3)
    assert found.as_json()["images"] == 60


def test_a_way_that_is_compared_with_itself_agrees_on_every_image(tiny_model, tmp_path):
    colour_shards(tmp_path / "s", shards=1, samples=7)

    found = compare(config(tiny_model, tmp_path / "s"), "fp32", "fp32:fast", lambda _: None)

    assert (found.agreement, found.only_a, found.only_b, found.mcnemar_p, found.changed) == (100.0, 0, 0, 1.0, [])


def test_models_of_other_classes_are_not_compared(tiny_model, tmp_path):
    colour_shards(tmp_path / "s", shards=1, samples=3)

    with pytest.raises(ConfigError, match=r"have different classes \(3 and 1000\)"):
        compare(config(tiny_model, tmp_path / "s"), "fp32", "efficientnet-lite0:int8", lambda _: None)


def run(*arguments):
    return CliRunner().invoke(build_app(), ["evaluate", *map(str, arguments)])


def test_json_is_all_of_standard_output_and_has_the_figures(tiny_model, tmp_path):
    colour_shards(tmp_path / "s", shards=1, samples=6)

    done = run(tmp_path / "s", "--model", tiny_model, "--json")

    values = json.loads(done.stdout)
    assert done.exit_code == 0
    assert {"images": 6, "top1": 100.0, "top5": 100.0, "reported_top1": None, "reported_top5": None}.items() <= (
        values.items()
    )


def test_the_terminal_shows_the_figures_and_the_page_holds_them_all(tiny_model, tmp_path):
    source = shard(tmp_path, {"a.jpg": colour_jpeg("red"), "a.cls": b"0", "b.jpg": colour_jpeg("red"), "b.cls": b"1"})
    page = tmp_path / "page.html"

    done = run(source, "--model", tiny_model, "--output", page)

    assert done.exit_code == 0
    assert re.search(r"measured +50\.00 +9\.5 to 90\.5 +100\.00", done.stdout)
    assert "1 green" in done.stdout
    text = page.read_text()
    assert "<svg" in text
    assert "50.00 %" in text
    assert "green" in text
    assert not re.search(r"(src|href)=|url\(|<script|@import", text)


def test_a_comparison_is_shown_and_has_a_page(tiny_model, tmp_path):
    colour_shards(tmp_path / "s", shards=1, samples=6)
    page = tmp_path / "page.html"

    done = run(tmp_path / "s", "--model", tiny_model, "--compare", "fast", "exact", "--output", page)

    assert done.exit_code == 0
    assert "same label on 100.00 % of the images" in done.stdout
    assert "p = 1" in page.read_text()


def test_a_page_escapes_what_the_source_says(tiny_model, tmp_path):
    name = "<b>&amp"
    source = shard(tmp_path, {f"{name}.jpg": colour_jpeg("red"), f"{name}.cls": b"1"})
    found = measure(tiny_model, source)

    assert "<b>" not in build_page(found, "<b>").replace("<body>", "")


def test_names_are_printed_as_they_are(tmp_path):
    (tmp_path / "model").mkdir()
    model = build_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "colours.txt").write_text("[/b]\n:car:\nblue\n")
    source = shard(tmp_path, {"a.jpg": colour_jpeg("red"), "a.cls": b"1"})

    done = run(source, "--model", model)

    assert done.exit_code == 0, done.exception
    assert re.search(r"1 :car: +0 \[/b\] +1", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int7"], "--precision: input should be 'auto', 'fp32', 'int8' or 'fp16', got 'int7'"),
        (["--device", "simulated:20"], "--device: a simulated device makes up its labels"),
        (["--compare", "fp32", ":"], "--compare takes a precision"),
        (["--output", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
    ],
)
def test_wrong_options_are_refused(tiny_model, tmp_path, arguments, message):
    colour_shards(tmp_path / "s", shards=1, samples=3)

    done = run(tmp_path / "s", "--model", tiny_model, *arguments)

    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


@pytest.mark.data
def test_the_bundled_model_is_about_as_good_as_measured_before(sample_data):
    found = measure("efficientnet-lite0", f"{sample_data}/*.tar", precision="int8")

    # 89.0 / 97.0 on the machine that it was quantised on; other CPUs round otherwise in the last bit.
    assert found.images == 500
    assert found.top1 == pytest.approx(89.0, abs=0.8)
    assert found.top5 == pytest.approx(97.0, abs=0.8)
    assert (found.reported_top1, found.not_decoded) == (75.1, 0)
