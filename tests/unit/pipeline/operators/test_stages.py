"""What a part file and its commit record say of where they come from."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.catalog import load_labels, load_spec
from models.decode.decode import DecodeMode, ImageLimits
from models.inference.classifier import Classifier
from models.spec import Precision
from pipeline.config import SourceFormat
from pipeline.dest.writer import OutputSpec
from pipeline.operators import stages
from pipeline.operators.stages import ALONE, UnitSettings, label_here, label_unit
from pipeline.report.pictures import samples_at
from pipeline.session.stage_clock import StageClock
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.reader import ReadSettings
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage
from tests.support.tiny_model import colour_jpeg, colour_shards


@pytest.fixture
def label(tmp_path, tiny_model):
    """Return what labels a shard with some settings, and returns its commit record and its part's metadata."""
    spec = load_spec(str(tiny_model))
    (shard,) = colour_shards(tmp_path / "in", shards=1)
    settings = UnitSettings(
        source=open_storage(str(tmp_path / "in")), dest=open_storage(str(tmp_path / "out")), batch_size=4,
        format=SourceFormat.WEBDATASET, preprocessing=spec.preprocessing, mode=DecodeMode.EXACT, limits=ImageLimits(),
        output=OutputSpec(load_labels(spec), {"shardlabel.model": "tiny"}), rows_id="one",
    )  # fmt: skip
    piece = Slice(shard.name, shard.stat().st_size, "")
    model = label_here(Classifier(spec, precision=Precision.FP32, top_k=2), StageClock(), embeddings=False)

    def run(*, slices=(piece,), unit=0, turn=ALONE, **changed):
        commit = label_unit(replace(settings, **changed), Unit(unit, slices), model, turn=turn)
        return commit, pq.read_schema(tmp_path / "out" / commit.part).metadata

    run.piece = piece
    return run


def unit_id(labelled) -> bytes:
    return labelled[1][b"shardlabel.unit_id"]


def test_a_part_says_of_which_settings_and_shards_it_is(label):
    first = unit_id(label())

    assert unit_id(label()) == first
    assert unit_id(label(rows_id="other")) != first
    assert unit_id(label(slices=(replace(label.piece, limit=1),))) != first


def test_the_same_shard_in_a_bucket_has_the_same_id():
    here = Slice("a.tar", 1024, "")

    assert Unit(0, (replace(here, etag="of a bucket"),)).id("one") == Unit(0, (here,)).id("one")
    assert Unit(0, (replace(here, size=2048),)).id("one") != Unit(0, (here,)).id("one")


def test_a_record_has_the_token_of_its_run(label, monkeypatch):
    monkeypatch.setattr("pipeline.operators.stages.check_token", lambda dest, token: None)

    assert label(token="of this run")[0].token == "of this run"


def test_a_unit_that_waits_for_its_images_leaves_the_core_to_another(label, monkeypatch):
    """And of those that compute there is one at a time, whatever its threads are."""
    core, second_is_done = threading.Lock(), threading.Event()
    really_read, really_decode = stages.read_samples, stages.decode_image
    computing: list[int] = []

    def read(settings, unit, notes):
        if unit.number == 0:
            assert second_is_done.wait(60)
        yield from really_read(settings, unit, notes)

    def decode(*args, **options):
        computing.append(1)
        assert len(computing) == 1
        time.sleep(0.002)
        image = really_decode(*args, **options)
        computing.pop()
        return image

    monkeypatch.setattr(stages, "read_samples", read)
    monkeypatch.setattr(stages, "decode_image", decode)

    def run(number: int) -> int:
        commit, _ = label(unit=number, turn=core)
        if number == 1:
            second_is_done.set()
        return commit.ok

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, range(4))) == [label()[0].ok] * 4


def test_of_a_manifest_only_the_images_at_some_places_are_fetched(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.jpg").write_bytes(colour_jpeg("red"))
    pq.write_table(pa.table({"uri": [f"{name}.jpg" for name in "abcde"]}), tmp_path / "m.parquet")
    columns = ParquetColumns(uri="uri")
    settings = ReadSettings(open_storage(str(tmp_path)), SourceFormat.PARQUET, ImageLimits(), columns)
    unit = Unit(0, (Slice("m.parquet", (tmp_path / "m.parquet").stat().st_size, "", 0, 5),))

    found = list(samples_at(settings, unit, [3, 1]))

    assert [(sample.key, sample.data is not None) for sample in found] == [("1", True), ("3", True)]
