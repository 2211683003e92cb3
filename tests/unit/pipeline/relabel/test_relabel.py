"""A relabelling without Ray: where all rows are copied, how new rows are put between them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from models.decode.decode import ImageLimits
from models.errors import ConfigError, SourceError, StorageError
from pipeline.config import SourceFormat
from pipeline.dest import merge
from pipeline.dest.finished import open_finished
from pipeline.dest.merge import Relabelling
from pipeline.dest.verify import verify_dest
from pipeline.dest.writer import OutputSpec
from pipeline.operators.stages import UnitNotes, UnitSettings, read_samples
from pipeline.relabel.job import relabel
from pipeline.relabel.like_old import check_like
from pipeline.relabel.where import parse_where
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage
from tests.support.labelled_dest import label_without_ray
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar
from tests.support.tiny_variant import tiny_variant


@pytest.fixture
def old(tmp_path: Path, tiny_model: Path) -> Path:
    """Return a finished DEST of three shards of five images."""
    colour_shards(tmp_path / "in")
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    return tmp_path / "old"


def again(old: Path, model: Path | None, where: str | None = "score < 0", **options: Any):
    given = {"output": str(old.parent / "new"), "progress": "none", **options}
    return relabel(str(old), {"model": None if model is None else str(model), **given}, where)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_where_no_row_is_meant_all_are_copied_without_reading_source(old, tiny_model):
    before = contents(old)
    for shard in (old.parent / "in").iterdir():
        shard.write_bytes(b"gone bad")

    report = again(old, tiny_model)

    assert (report.status, report.relabelled_now, report.copied_now, report.bytes_read) == ("done", 0, 15, 0)
    assert report.sentences().startswith(f"no row had to be labelled for which score < 0, copied 15 rows of {old}\n")
    first, second = pq.read_table(old), pq.read_table(old.parent / "new")
    assert second.drop_columns(["model"]).equals(first)
    assert set(second["model"].to_pylist()) == {"tiny:fp32:fast"}
    assert verify_dest(open_storage(str(old.parent / "new"))).ok
    assert contents(old) == before
    assert again(old, tiny_model).sentences().startswith("nothing to do: all 3 units")


def test_what_was_relabelled_can_be_relabelled_and_its_rows_keep_their_models(old, tiny_model):
    again(old, tiny_model)
    other = tiny_variant(tiny_model, old.parent / "m", 3.0)

    again(old.parent / "new", other, "model != 'tiny:fp32:fast'", output=str(old.parent / "third"))

    third = pq.read_table(old.parent / "third")
    assert third.drop_columns(["model"]).equals(pq.read_table(old))
    assert set(third["model"].to_pylist()) == {"tiny:fp32:fast"}
    models = json.loads(third.schema.metadata[b"shardlabel.models"])
    assert set(models) == {"tiny:fp32:fast", "other:fp32:fast"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"top_k": 2}, "must have the same top-k: OLD has 3, and now it is 2", id="top-k"),
        pytest.param({"labels": "all"}, 'the same labels: OLD has "name", and now it is "all"', id="labels"),
        pytest.param({"embeddings": True}, "the same embeddings: OLD has false, and now it is true", id="embeddings"),
        pytest.param({"model": "efficientnet-lite0"}, "class names: the present model has other classes", id="classes"),
        pytest.param({"output": "old"}, "OLD .*old and DEST .*old are the same folder", id="one folder"),
        pytest.param({"output": "old/new"}, "or one contains the other", id="inside"),
        pytest.param({"output": "."}, "or one contains the other", id="around"),
        pytest.param({"output": "in"}, "SOURCE names shard-000.tar, which lies in DEST", id="source"),
        pytest.param({"model": None}, "was labelled with tiny, which the catalog does not have; give --model", id="model"),
    ],
)  # fmt: skip
def test_what_cannot_stand_beside_olds_rows_is_refused_and_nothing_is_written(old, tiny_model, options, words):
    if "output" in options:
        options = {**options, "output": str(old.parent / options["output"])}
    before = contents(old.parent)

    with pytest.raises((ConfigError, SourceError), match=words):
        again(old, **{"model": tiny_model, **options})

    assert contents(old.parent) == before


def test_the_number_of_labels_that_old_has_is_not_taken_for_one_that_was_asked_for(old, tiny_model):
    label_without_ray(old.parent / "in", old, "efficientnet-lite0", overwrite=True, top_k=5, limit=1)

    with pytest.raises(ConfigError, match="must have the same top-k: OLD has 5, and now it is 3; use `label` into"):
        again(old, tiny_model)
    with pytest.raises(ConfigError, match=r"--top-k must be between 1 and 3 \(classes of tiny\), got 5"):
        again(old, tiny_model, top_k=5)


def test_a_dest_that_is_unfinished_or_none_is_refused(tmp_path, tiny_model):
    colour_shards(tmp_path / "in")
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model, finish=2)
    (tmp_path / "empty").mkdir()

    for name, words in (("old", "is unfinished: 2 of 3 units"), ("empty", "no plan in it"), ("no", "no such folder")):
        with pytest.raises(SourceError, match=words):
            again(tmp_path / name, tiny_model)


def test_dest_goes_on_with_nothing_but_the_same_old_and_condition(old, tiny_model):
    again(old, tiny_model)

    with pytest.raises(ConfigError, match=r"was begun with where score < 0, and now it is score < 0\.1"):
        again(old, tiny_model, "score < 0.1")
    other = tiny_variant(tiny_model, old.parent / "m", 3.0)
    with pytest.raises(ConfigError, match="was begun with model tiny, and now it is other"):
        again(old, other)
    colour_shards(old.parent / "in", samples=4)
    label_without_ray(old.parent / "in", old, tiny_model, overwrite=True)
    with pytest.raises(ConfigError, match=r"new was begun when .*old had other rows; give another --output"):
        again(old, tiny_model)
    label_without_ray(old.parent / "in", old.parent / "labelled", tiny_model)
    with pytest.raises(ConfigError, match="labelled belongs to a run of `label`; give another --output, or --overwr"):
        again(old, tiny_model, output=str(old.parent / "labelled"))
    assert again(old, tiny_model, overwrite=True).copied_now == 12


def test_an_old_that_is_overwritten_meanwhile_is_noticed(old, tiny_model, monkeypatch):
    def overwritten(*args: Any) -> Any:
        label_without_ray(old.parent / "in", old, tiny_model, overwrite=True, decode="exact", top_k=2)
        return matching(*args)

    from pipeline.relabel import job

    matching = job.matching_rows
    monkeypatch.setattr(job, "matching_rows", overwritten)

    with pytest.raises(SourceError, match="was labelled again while it was read"):
        again(old, tiny_model)


def test_a_column_of_source_that_is_called_model_is_not_taken_for_ours(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    table = pa.table({"image": [colour_jpeg("red")] * 2, "model": ["Canon", "Nikon"]})
    pq.write_table(table, tmp_path / "in/a.parquet")
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model, carry=["model"])

    with pytest.raises(ConfigError, match="carries a column model of SOURCE"):
        again(tmp_path / "old", tiny_model)


def read(folder: Path, kind: SourceFormat, unit: Unit, old: Path, where: Any, tiny: Any = None) -> list[str]:
    settings = UnitSettings(
        source=open_storage(str(folder)), dest=open_storage("unused"), format=kind, preprocessing=tiny,
        mode="fast", limits=ImageLimits(), batch_size=4, output=OutputSpec((), {}),
        relabelling=Relabelling(open_storage(str(old)), where, "new", "old"),
    )  # fmt: skip
    return [sample.key for sample in read_samples(settings, unit, UnitNotes())]


def test_only_the_samples_that_are_wanted_are_read_and_their_number_must_be_olds(old, tmp_path):
    folder = tmp_path / "in"
    shard = next(iter(sorted(folder.iterdir())))
    unit = Unit(0, (Slice(shard.name, shard.stat().st_size, ""),))
    keys = pq.read_table(old / unit.part)["key"].to_pylist()

    assert read(folder, SourceFormat.WEBDATASET, unit, old, pc.field("key").isin([keys[1], keys[3]])) == keys[1::2]
    for count, words in ((4, "gives 4 samples, and gave 5"), (6, "gives more than 5 samples, and gave 5")):
        write_tar(shard, {f"{i}.jpg": b"x" for i in range(count)})
        unit = Unit(0, (Slice(shard.name, shard.stat().st_size, ""),))
        with pytest.raises(SourceError, match=words):
            read(folder, SourceFormat.WEBDATASET, unit, old, None)


def test_loose_images_that_are_not_wanted_are_not_read(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / f"in/{i}.jpg").write_bytes(colour_jpeg("red"))
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    slices = tuple(Slice(f"{i}.jpg", (tmp_path / f"in/{i}.jpg").stat().st_size, "") for i in range(4))
    for i in (0, 1, 3):
        (tmp_path / f"in/{i}.jpg").write_bytes(b"another size")  # an error, were it read

    keys = read(tmp_path / "in", SourceFormat.IMAGES, Unit(0, slices), tmp_path / "old", pc.field("key") == "2.jpg")

    assert keys == ["2.jpg"]


def test_new_rows_stand_where_the_old_ones_stood_and_must_be_of_the_same_samples(old, tmp_path, tiny_model):
    other = tiny_variant(tiny_model, tmp_path / "m", 3.0)
    label_without_ray(tmp_path / "in", tmp_path / "all-new", other)
    part, where = "part-00001.parquet", pc.field("label") == "green"
    schema = OutputSpec((), {}).schema()
    relabelling = Relabelling(open_storage(str(old)), where, "new", "before")
    wanted = relabelling.wanted(part)
    before, after = pq.read_table(old / part), pq.read_table(tmp_path / "all-new" / part)
    labelled, out = tmp_path / "labelled.parquet", tmp_path / "out.parquet"
    pq.write_table(after.filter(wanted), labelled)

    relabelling.merge(part, schema, labelled, out)

    assert (len(wanted), int(wanted.sum())) == (5, 2)
    merged = pq.read_table(out)
    for name in before.column_names:
        pairs = zip(before[name].to_pylist(), after[name].to_pylist(), wanted, strict=True)
        assert merged[name].to_pylist() == [now if is_new else was for was, now, is_new in pairs], name
    assert merged["model"].to_pylist() == ["new" if one else "before" for one in wanted]
    assert not labelled.exists()
    pq.write_table(after.filter(~wanted), labelled)
    with pytest.raises(SourceError, match=r"SOURCE now gives key .* where it was"):
        relabelling.merge(part, schema, labelled, out)
    pq.write_table(pa.concat_tables([after.filter(wanted), after.slice(0, 1)]), labelled)
    with pytest.raises(SourceError, match="SOURCE now gives more samples"):
        relabelling.merge(part, schema, labelled, out)
    assert not out.exists()
    assert not labelled.exists()


def test_what_a_copied_unit_lacked_of_its_shard_is_still_told(tmp_path, tiny_model):
    shards = colour_shards(tmp_path / "in", shards=2, samples=9)
    shards[1].write_bytes(shards[1].read_bytes()[:-8000])
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)

    report = again(tmp_path / "old", tiny_model)

    assert list(report.incomplete) == ["shard-001.tar"]


def test_two_artifacts_of_one_name_are_told_apart(old, tiny_model):
    first, second = (
        tiny_variant(tiny_model, old.parent / folder, factor) for folder, factor in (("m", 3.0), ("n", 4.0))
    )
    label_without_ray(old.parent / "in", old, first, overwrite=True)

    again(old, second)

    models = json.loads(pq.read_schema(old.parent / "new/part-00000.parquet").metadata[b"shardlabel.models"])
    name, other = models
    assert (name, len(other)) == ("other:fp32:fast", len(name) + 9)
    assert other == f"{name}@{models[other][:8]}"


def test_without_a_model_it_has_to_be_the_very_file_that_old_was_labelled_with(old):
    finished = open_finished(str(old))
    now = {**finished.plan.settings, "artifact": "f" * 64}

    check_like(finished, now, is_same_model=False)
    with pytest.raises(ConfigError, match=r"another file of tiny \(.* and now f{8}\.\.\.\); give --model tiny"):
        check_like(finished, now, is_same_model=True)


def test_a_part_that_is_damaged_or_gone_is_named(old, tiny_model):
    part = old / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(StorageError, match=r"part-00001\.parquet cannot be read: .*shardlabel verify"):
        again(old, tiny_model)
    part.unlink()
    with pytest.raises(StorageError, match=r"part-00001\.parquet"):
        again(old, tiny_model)
    pq.write_table(pq.read_table(old / "part-00000.parquet").slice(1), part)
    with pytest.raises(StorageError, match="holds 4 rows, its commit record says 5"):
        again(old, tiny_model)


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("not (quality >= 0)", [False, True, False, False]),
        ("quality != 1.0", [False, True, False, False]),
        ("not quality <= 0.5", [True, True, True, False]),
        ("quality = 1", [True, False, True, False]),
        ("score < 2", [True, False, False, False]),
    ],
)
def test_rows_that_are_no_number_are_compared_as_floats_are(tmp_path, where, wanted):
    values = {"quality": [1.0, float("nan"), 1.0, None], "score": [1.0, float("nan"), None, 3.0]}
    table = pa.table({name: pa.array(column, pa.float32()) for name, column in values.items()})
    pq.write_table(table, tmp_path / "part.parquet")
    found = Relabelling(open_storage(str(tmp_path)), parse_where(where, table.schema).expression, "new", "old")

    assert found.wanted("part.parquet", (tmp_path / "part.parquet").stat().st_size).tolist() == wanted


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_columns_of_views_are_merged(tmp_path, kind):
    values = ["ab", None, "x" * 40] if kind == pa.string_view() else [b"ab", None, b"x" * 40]
    schema = pa.schema([("shard", pa.string()), ("key", pa.string()), ("status", pa.string()), ("more", kind)])
    rows = {"shard": ["s"] * 3, "key": ["a", "b", "c"], "status": ["ok"] * 3, "more": pa.array(values, kind)}
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "old.parquet")
    pq.write_table(pa.table(rows, schema=schema).slice(1, 1), tmp_path / "new.parquet")
    found = Relabelling(open_storage(str(tmp_path)), pc.field("key") == "b", "new", "old")

    found.merge("old.parquet", schema, tmp_path / "new.parquet", tmp_path / "out.parquet")

    out = pq.read_table(tmp_path / "out.parquet")
    assert out["more"].to_pylist() == values
    assert out["model"].to_pylist() == ["old", "new", "old"]


def test_rows_that_carry_much_are_merged_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "MERGE_BYTES", 2**20)
    pq.write_table(pa.table({"more": [bytes([i]) * 10_000 for i in range(200)] * 5}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"more": [b""] * 1_000}), tmp_path / "b.parquet")

    large, small = (
        [len(batch) for batch in merge._batches(pq.ParquetFile(tmp_path / name))] for name in ("a.parquet", "b.parquet")
    )

    assert max(large) < 1_000 == small[0]
