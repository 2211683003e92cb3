"""A DEST to which shards are added: what is new, what changed, what is gone, and a plan that grows or stays whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from models.errors import ConfigError, SourceError, StorageError
from pipeline.config import LabelConfig
from pipeline.dest import growth
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.fingerprint import check_source
from pipeline.dest.growth import PlannedSlices, planned_first
from pipeline.dest.plan import (
    PLAN_FILE,
    SINGLE_SHARD_UNITS,
    Plan,
    cut_units,
    extend_plan,
    iter_units,
    read_plan,
    write_plan,
)
from pipeline.dest.resume import ResumeState, clear, prepare
from pipeline.dest.verify import verify_dest
from pipeline.sources.reader import columns_of, slices
from pipeline.sources.source import open_source
from pipeline.sources.unit import Slice, Unit, part_name
from pipeline.storage.storage import Storage, open_storage
from tests.support.shard_factory import parquet_bytes

SETTINGS = {"model": "tiny"}


def shard(name: str, size: int = 9, etag: str = "e", **run: int) -> Slice:
    return Slice(f"{name}.tar", size, etag, **run)


def shards(names: str) -> list[Slice]:
    return [shard(name) for name in names]


def grown(dest: Storage, *generations: str) -> Plan:
    """Plan the first shards, and add the others by and by."""
    plan = write_plan(dest, cut_units(shards(generations[0])), SETTINGS)
    for names in generations[1:]:
        plan = extend_plan(dest, plan, cut_units(shards(names), first=plan.units))
    return plan


def new(dest: Storage, plan: Plan, found: Iterable[Slice], **options: bool) -> str:
    return "".join(piece.shard[0] for piece in PlannedSlices(dest, plan).new(found, **options))


@pytest.fixture
def dest(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "dest"))


def test_a_plan_grows_behind_what_it_had_and_reads_back_as_it_was_written(dest):
    first = grown(dest, "bd")
    segment = dest.read_bytes("_shardlabel/plan/units-00000.parquet")
    units = list(iter_units(dest, first))

    plan = extend_plan(dest, first, cut_units(shards("ace"), first=2))
    last = extend_plan(dest, plan, cut_units(shards("f"), first=5))

    assert read_plan(dest) == last
    assert (last.units, last.shards, last.bytes) == (6, 6, 54)
    assert [piece.shard[0] for unit in iter_units(dest, last) for piece in unit.slices] == [*"bdacef"]
    assert list(iter_units(dest, last))[:2] == units
    assert [unit.number for unit in iter_units(dest, last)] == [*range(6)]
    assert last.earlier == {first.id: 2, plan.id: 5}
    assert dest.read_bytes("_shardlabel/plan/units-00000.parquet") == segment


def test_a_plan_that_did_not_grow_is_written_as_ever(dest):
    plan = grown(dest, "ab")
    content = dest.read_bytes(PLAN_FILE)

    assert [*json.loads(content)] == ["settings", "units", "shards", "bytes", "segments", "id", "version"]
    assert json.loads(content)["version"] == 2
    assert extend_plan(dest, plan, []) == plan
    assert dest.read_bytes(PLAN_FILE) == content
    assert len(dest.list("_shardlabel/plan")) == 2


def test_units_that_are_added_are_cut_as_those_of_their_place():
    late = list(cut_units(shards("abc"), first=SINGLE_SHARD_UNITS))

    assert [(unit.number, len(unit.slices)) for unit in late] == [(SINGLE_SHARD_UNITS, 3)]


def test_a_grown_plan_that_was_tampered_with_is_damaged(dest):
    grown(dest, "a", "b")
    dest.write_bytes(PLAN_FILE, dest.read_bytes(PLAN_FILE).replace(b'": 1\n', b'": 0\n'))

    with pytest.raises(ConfigError, match="damaged"):
        read_plan(dest)


def test_a_plan_that_another_run_has_extended_meanwhile_is_not_written_over(dest):
    stale = grown(dest, "a")
    theirs = extend_plan(dest, stale, cut_units(shards("b"), first=1))

    with pytest.raises(StorageError, match="another run has just written it"):
        extend_plan(dest, stale, cut_units(shards("c"), first=1))

    assert read_plan(dest) == theirs
    assert [piece.shard for unit in iter_units(dest, theirs) for piece in unit.slices] == ["a.tar", "b.tar"]


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_new_shards_are_told_from_planned_ones_in_any_order(dest, monkeypatch, batch):
    monkeypatch.setattr(growth, "_BATCH", batch)
    plan = grown(dest, "dfb", "c")

    assert new(dest, plan, shards("abcdefg")) == "aeg"
    assert new(dest, plan, shards("gfedcba")) == "gea"
    assert new(dest, plan, shards("bcdf")) == ""


def test_all_is_new_to_a_plan_of_nothing(dest):
    assert new(dest, write_plan(dest, [], SETTINGS), shards("ab")) == "ab"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(shard("b", size=10), r"b\.tar has changed .*its size was 9 bytes and is 10", id="size"),
        pytest.param(shard("b", etag="x"), r"b\.tar has changed .*rewritten", id="etag"),
    ],
)
def test_a_changed_shard_is_refused_by_name_among_new_ones(dest, change, message):
    plan = grown(dest, "a", "bc")

    with pytest.raises(SourceError, match=message):
        new(dest, plan, [shard("0"), shard("a"), change, shard("c")], missing_ok=True)


def test_a_parquet_file_that_the_plan_cut_otherwise_is_the_same_file(dest):
    """As an older version did, whose plan goes on with the units that it has."""
    plan = write_plan(dest, cut_units([Slice("b.parquet", 9, "e", 0, 4), Slice("b.parquet", 9, "e", 4, 6)]), SETTINGS)
    now = [Slice("b.parquet", 9, "e", 0, 2), Slice("b.parquet", 9, "e", 2, 5), Slice("b.parquet", 9, "e", 5, 6)]

    check_source(dest, plan, now)
    assert new(dest, plan, now) == ""
    with pytest.raises(SourceError, match=r"b\.parquet has changed .*rewritten"):
        check_source(dest, plan, [replace(piece, etag="x") for piece in now])


def parts(name: str, *edges: int) -> list[Slice]:
    return [shard(name, start=start, stop=stop) for start, stop in pairwise(edges)]


def test_a_tar_that_is_planned_in_parts_is_one_shard_of_the_source(dest):
    plan = write_plan(dest, cut_units([shard("a"), *parts("b", 0, 4, 7, 9), shard("c")]), SETTINGS)
    planned = PlannedSlices(dest, plan)

    check_source(dest, plan, shards("abc"))
    assert new(dest, plan, shards("dcba")) == "d"
    with pytest.raises(SourceError, match=r"b\.tar has changed .*its size was 9 bytes and is 10"):
        check_source(dest, plan, [shard("a"), shard("b", size=10), shard("c")])
    with pytest.raises(SourceError, match=r"b\.tar has changed .*rewritten"):
        new(dest, plan, [shard("a"), shard("b", etag="x"), shard("c")])
    with pytest.raises(SourceError, match=r"expected shard b\.tar, found c\.tar"):
        check_source(dest, plan, shards("ac"))
    with pytest.raises(SourceError, match=r"shard b\.tar is gone; "):
        new(dest, plan, shards("ac"))
    assert [*planned.new(shards("ac"), missing_ok=True)] == []
    assert [(unit, piece.shard) for unit, piece in planned.gone()] == [(1, "b.tar"), (2, "b.tar"), (3, "b.tar")]


def test_a_listing_without_etags_is_compared_by_size(dest):
    plan = grown(dest, "ab")

    assert new(dest, plan, [replace(piece, etag="") for piece in shards("abc")]) == "c"


def test_the_parts_of_a_large_file_are_new_together(dest):
    plan = grown(dest, "a")
    parquet = [Slice("b.parquet", 9, "e", start=0, stop=3), Slice("b.parquet", 9, "e", start=3, stop=6)]

    assert list(PlannedSlices(dest, plan).new([*parquet, shard("a")])) == parquet


def test_gone_shards_are_refused_by_name_or_let_be_and_told(dest):
    plan = grown(dest, "ab", "cd")
    planned = PlannedSlices(dest, plan)

    with pytest.raises(SourceError, match=r"shard b\.tar is gone, and 1 more; .*--missing-ok"):
        new(dest, plan, shards("ace"))
    assert [piece.shard for piece in planned.new(shards("ace"), missing_ok=True)] == ["e.tar"]
    assert [(unit, piece.shard) for unit, piece in planned.gone()] == [(1, "b.tar"), (3, "d.tar")]


def test_names_with_one_hash_are_told_apart_by_their_text(dest, monkeypatch):
    monkeypatch.setattr(growth, "_hashes", lambda piece: (len(piece.shard), piece.size, 0))
    plan = grown(dest, "a")

    assert new(dest, plan, [shard("a"), shard("b", size=8)]) == "b"


def record(unit: int) -> Commit:
    return Commit(unit, part_name(unit), 1, 1, {}, 0.1, 1, 1, "0" * 64)


def test_records_stay_those_of_the_plan_that_first_had_their_unit(dest):
    first = grown(dest, "ab")
    with CommitLog.of(dest, first) as log:
        log.append(record(0))
    plan = extend_plan(dest, first, cut_units(shards("c"), first=2))
    with CommitLog.of(dest, plan) as log:
        done, totals = log.load()
        assert (done.tolist(), totals.units) == ([True, False, False], 1)
        log.append(record(2))
        log.append(record(1))

    records = {commit.unit: commit.plan for commit in CommitLog.of(dest, plan).records()}

    assert records == {0: first.id, 1: first.id, 2: plan.id}


def test_a_late_record_of_a_plan_that_grew_otherwise_is_passed_over(dest):
    """An output that was started anew with the same shards has the id of before, and may grow by others."""
    first = grown(dest, "a")
    other = extend_plan(dest, first, cut_units(shards("b"), first=1))
    with CommitLog.of(dest, other) as log:
        log.append(record(1))
    late = [(file.path, dest.read_bytes(file.path)) for file in dest.list("_shardlabel/commits")]
    clear(dest, other)
    again = grown(dest, "a", "c")
    for name, content in late:
        dest.write_bytes(name, content)

    assert again.earlier == other.earlier
    assert CommitLog.of(dest, again).load()[0].tolist() == [False, False]


def begin(folder: Path, **options: object) -> ResumeState:
    """Do what a run does before it labels, of the shards in folder/in."""
    config = LabelConfig(source=str(folder / "in"), output=str(folder / "out"), **options)
    dest = open_storage(config.output)
    opened = open_source(config.source, config.format, exclude=dest)
    return prepare(config, dest, SETTINGS, opened, lambda: slices(opened), lambda piece, most: most)


def put(folder: Path, names: str) -> None:
    (folder / "in").mkdir(exist_ok=True)
    for name in names:
        (folder / "in" / f"{name}.tar").write_bytes(b"shard")


def finish(work: ResumeState, *units: int) -> None:
    with work.log as log:
        for unit in units:
            log.append(record(unit))


def planned(folder: Path) -> str:
    dest = open_storage(str(folder / "out"))
    plan = read_plan(dest)
    assert plan is not None
    return "".join(piece.shard[0] for unit in iter_units(dest, plan) for piece in unit.slices)


def test_append_adds_what_is_new_and_the_rest_is_as_with_any_run(tmp_path):
    put(tmp_path, "bd")

    assert begin(tmp_path, append=True).new_units == 2
    put(tmp_path, "ac")
    with pytest.raises(SourceError, match=r"found a\.tar \(if that is new, --append labels it too\)"):
        begin(tmp_path)
    assert begin(tmp_path, append=True).new_units == 2
    assert planned(tmp_path) == "bdac"
    assert begin(tmp_path).new_units is None
    assert begin(tmp_path, append=True).new_units == 0
    put(tmp_path, "e")
    with pytest.raises(SourceError, match=r"shard e\.tar is new; label it too with --append"):
        begin(tmp_path)
    assert planned(tmp_path) == "bdac"


def test_append_refuses_other_settings_and_more_than_it_can_do(tmp_path):
    put(tmp_path, "a")
    begin(tmp_path)
    put(tmp_path, "b")
    config = LabelConfig(source=str(tmp_path / "in"), output=str(tmp_path / "out"), append=True)
    dest = open_storage(config.output)
    opened = open_source(config.source, config.format, exclude=dest)

    with pytest.raises(ConfigError, match="begun with model tiny"):
        prepare(config, dest, {"model": "other"}, opened, lambda: slices(opened), lambda piece, most: most)
    with pytest.raises(ConfigError, match="--append adds to what --overwrite removes"):
        begin(tmp_path, append=True, overwrite=True)
    with pytest.raises(ConfigError, match="--append labels everything that is new"):
        begin(tmp_path, append=True, limit=5)

    assert planned(tmp_path) == "a"


def test_a_shard_that_is_gone_is_let_be_where_it_is_labelled_and_else_named(tmp_path):
    put(tmp_path, "abc")
    finish(begin(tmp_path), 0)
    for name in "ab":
        (tmp_path / "in" / f"{name}.tar").unlink()
    put(tmp_path, "d")

    with pytest.raises(SourceError, match=r"shard a\.tar is gone, and 1 more"):
        begin(tmp_path, append=True)
    assert planned(tmp_path) == "abc"
    work = begin(tmp_path, append=True, missing_ok=True)

    assert planned(tmp_path) == "abcd"
    assert work.lost == {1: "b.tar"}
    assert work.done.tolist() == [True, True, False, False]
    assert work.totals.units == 1


def test_an_append_that_is_cut_short_anywhere_leaves_the_old_plan_or_the_new_one(tmp_path, monkeypatch):
    put(tmp_path, "bd")
    finish(begin(tmp_path), 0, 1)
    put(tmp_path, "ac")
    write = Storage.write_bytes
    cut = 0
    while True:
        left = cut

        def stop(storage: Storage, name: str, content: bytes) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            write(storage, name, content)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Storage, "write_bytes", stop)
            begin(tmp_path, append=True)
            break
        assert planned(tmp_path) == "bd"
        cut += 1

    assert cut == 2  # the segment and plan.json
    assert planned(tmp_path) == "bdac"
    assert begin(tmp_path).done.tolist() == [True, True, False, False]
    assert len(list((tmp_path / "out/_shardlabel/plan").iterdir())) == 3


def test_overwrite_removes_what_a_grown_plan_names(tmp_path):
    put(tmp_path, "a")
    begin(tmp_path)
    put(tmp_path, "b")
    finish(begin(tmp_path, append=True), 0, 1)
    for unit in range(2):
        (tmp_path / "out" / part_name(unit)).write_bytes(b"rows")

    begin(tmp_path, overwrite=True)

    assert planned(tmp_path) == "ab"
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["plan.json", "units-00000.parquet"]


def test_the_columns_of_a_grown_dest_stay_those_of_its_first_shards(tmp_path):
    (tmp_path / "in").mkdir()
    picture = pa.array([b"jpeg"], pa.binary())
    old = {"image": picture, "n": pa.array([1], pa.int64())}
    new = {"photo": picture, "image": pa.array(["a name"]), "n": pa.array([1], pa.int32())}
    (tmp_path / "in/b.parquet").write_bytes(parquet_bytes(old))
    (tmp_path / "in/c.parquet").write_bytes(parquet_bytes(old))
    begin(tmp_path)
    (tmp_path / "in/a.parquet").write_bytes(parquet_bytes(new))
    (tmp_path / "in/b.parquet").unlink()

    config = LabelConfig(source=str(tmp_path / "in"), output="elsewhere", carry=("n",))
    source = open_source(config.source, config.format)
    columns = columns_of(planned_first(source, open_storage(str(tmp_path / "out"))), config)

    assert (columns.image, [field.type for field in columns.carried]) == ("image", [pa.int64()])
    assert columns_of(planned_first(source, open_storage(config.output)), config).image == "photo"


def test_verify_looks_for_the_units_of_all_of_a_grown_plan(dest):
    first = grown(dest, "a")
    plan = extend_plan(dest, first, [Unit(1, (shard("b"),))])
    with CommitLog.of(dest, plan) as log:
        log.append(record(1))

    found = verify_dest(dest)

    assert (found.units, found.finished) == (2, 1)
    assert "1 of 2 units are not finished, the first is 0" in found.faults
