from __future__ import annotations

import heapq
import json
from dataclasses import replace

import pytest

from models.errors import ConfigError, SourceError
from pipeline.dest.fingerprint import check_settings, check_source
from pipeline.dest.plan import SINGLE_SHARD_UNITS, UNIT_BYTES, UNIT_IMAGES, cut_units, iter_units, read_plan, write_plan
from pipeline.operators.tasks import in_tasks
from pipeline.sources.unit import Slice, part_name
from pipeline.storage.storage import Storage, open_storage

MIB = 2**20


def slices(count: int, size: int = 10 * MIB) -> list[Slice]:
    return [Slice(f"{i:07d}.tar", size, f"tag{i}") for i in range(count)]


@pytest.fixture
def dest(tmp_path) -> Storage:
    return open_storage(str(tmp_path / "dest"))


def test_each_of_the_first_shards_is_a_unit_of_its_own():
    units = list(cut_units(slices(500)))

    assert [unit.number for unit in units] == list(range(500))
    assert all(len(unit.slices) == 1 for unit in units)


def test_small_shards_share_units_after_the_first_ten_thousand():
    units = list(cut_units(slices(SINGLE_SHARD_UNITS + 1000)))

    grouped = units[SINGLE_SHARD_UNITS:]
    assert len(units[SINGLE_SHARD_UNITS - 1].slices) == 1
    assert all(unit.size <= UNIT_BYTES for unit in grouped)
    assert len(grouped) == 40  # 25 shards of 10 MiB in 256 MiB
    assert sum(len(unit.slices) for unit in units) == SINGLE_SHARD_UNITS + 1000


def test_a_large_shard_is_never_joined_with_another():
    units = list(cut_units([*slices(SINGLE_SHARD_UNITS), *slices(3, UNIT_BYTES + 1)]))

    assert all(len(unit.slices) == 1 for unit in units)


@pytest.mark.parametrize("images", [0, 1, 15, 200, 3_000, 40_000, 100_000])
def test_loose_images_are_in_units_each_once_and_in_order(images):
    units = list(cut_units(slices(images), images=True, first=7))

    assert [piece for unit in units for piece in unit.slices] == list(slices(images))
    assert [unit.number for unit in units] == list(range(7, 7 + len(units)))
    assert all(1 <= len(unit.slices) <= UNIT_IMAGES for unit in units)
    assert len(units) <= 300 + images / UNIT_IMAGES  # each is a file for readers to open


@pytest.mark.parametrize(
    ("images", "workers", "at_most"),
    [(200, 2, 1.1), (200, 16, 1.3), (3_000, 2, 1.05), (3_000, 16, 1.15), (100_000, 2, 1.01), (100_000, 16, 1.02),
     (1_000_000, 128, 1.1)],
)  # fmt: skip
def test_loose_images_keep_all_workers_busy_to_the_end(images, workers, at_most):
    ends = [0] * workers
    for task in in_tasks(list(cut_units(slices(images, size=110_000), images=True)), workers):
        # Whoever is free takes the next; all images take the same time.
        heapq.heapreplace(ends, ends[0] + sum(len(unit.slices) for unit in task))

    assert max(ends) <= at_most * images / workers


def test_units_do_not_depend_on_what_comes_after():
    short, long = list(cut_units(slices(12_000))), list(cut_units(slices(13_000)))

    assert short[:-1] == long[: len(short) - 1]


def test_a_plan_reads_back_as_it_was_written(dest):
    units = list(cut_units(slices(250)))

    written = write_plan(dest, units, {"top-k": 5})

    assert read_plan(dest) == written
    assert (written.units, written.shards, written.bytes) == (250, 250, 2500 * MIB)
    assert list(iter_units(dest, written)) == units


def test_a_plan_of_several_segments_keeps_units_whole(dest, monkeypatch):
    monkeypatch.setattr("pipeline.dest.plan.SEGMENT_ROWS", 7)
    units = list(cut_units(slices(40), images=True))
    units = [*units, *[type(u)(u.number + len(units), u.slices) for u in cut_units(slices(30))]]

    plan = write_plan(dest, units, {})

    assert len(plan.segments) > 1
    assert list(iter_units(dest, plan)) == units


def test_no_plan_is_none_and_a_damaged_one_is_an_error(dest):
    assert read_plan(dest) is None

    dest.write_bytes("_shardlabel/plan/plan.json", b'{"version": 1, "settings"')

    with pytest.raises(ConfigError, match="damaged"):
        read_plan(dest)


def test_a_plan_of_another_version_is_refused(dest):
    dest.write_bytes("_shardlabel/plan/plan.json", b'{"version": 99}')

    with pytest.raises(ConfigError, match="version 99"):
        read_plan(dest)


def test_other_settings_are_refused_with_the_difference(dest):
    plan = write_plan(dest, [], {"model": "a", "top-k": 5})

    check_settings(plan, {"model": "a", "top-k": 5}, dest)
    with pytest.raises(ConfigError, match=r"begun with top-k 5, and now it is 3"):
        check_settings(plan, {"model": "a", "top-k": 3}, dest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda s: [s[0], replace(s[1], size=1), s[2]], "0000001.tar has changed.*is 1", id="size"),
        pytest.param(lambda s: [s[0], replace(s[1], etag="x"), s[2]], "0000001.tar.*rewritten", id="etag"),
        pytest.param(lambda s: s[:2], "expected shard 0000002.tar, found nothing", id="gone"),
        pytest.param(lambda s: [*s, Slice("z.tar", 1, "")], "z.tar is new", id="new"),
        pytest.param(lambda s: [*s[:1], *s[2:]], "expected shard 0000001.tar, found 0000002.tar", id="middle"),
    ],
)  # fmt: skip
def test_a_changed_source_is_refused_with_the_shard(dest, change, message):
    planned = slices(3)
    plan = write_plan(dest, cut_units(planned), {})

    check_source(dest, plan, planned)
    with pytest.raises(SourceError, match=message):
        check_source(dest, plan, change(planned))


def test_part_names_are_those_of_the_contract():
    assert part_name(7) == "part-00007.parquet"
    assert part_name(1_234_567) == "part-1234567.parquet"


def test_a_plan_has_an_id_that_is_of_its_settings_and_units(tmp_path):
    first, second = (
        write_plan(open_storage(str(tmp_path / name)), cut_units(slices(9)), {"top-k": 5}) for name in "ab"
    )
    others = [
        write_plan(open_storage(str(tmp_path / "c")), cut_units(slices(9)), {"top-k": 4}),
        write_plan(open_storage(str(tmp_path / "d")), cut_units(slices(9, size=7)), {"top-k": 5}),
        write_plan(open_storage(str(tmp_path / "e")), cut_units(slices(8)), {"top-k": 5}),
    ]

    assert first.id == second.id
    assert len({plan.id for plan in [first, *others]}) == 4


def test_a_segment_that_is_not_as_it_was_written_is_an_error_that_names_it(dest):
    plan = write_plan(dest, cut_units(slices(9)), {})
    segment = "_shardlabel/plan/units-00000.parquet"
    dest.write_bytes(segment, dest.read_bytes(segment) + b"x")

    with pytest.raises(ConfigError, match=r"units-00000\.parquet is damaged"):
        list(iter_units(dest, plan))


def test_a_plan_of_the_first_version_is_read_and_overwritten_and_not_resumed(dest):
    plan = write_plan(dest, cut_units(slices(9)), {"top-k": 5})
    old = {"settings": {"top-k": 5}, "units": 9, "shards": 9, "bytes": 1, "segments": [*plan.segments], "version": 1}
    dest.write_bytes("_shardlabel/plan/plan.json", json.dumps(old).encode())

    read = read_plan(dest)

    assert read is not None
    assert list(iter_units(dest, read)) == list(iter_units(dest, plan))
    with pytest.raises(ConfigError, match="begun by an older version"):
        check_settings(read, {"top-k": 5}, dest)


def test_a_setting_that_only_the_plan_knows_is_a_difference(dest):
    plan = write_plan(dest, [], {"top-k": 5, "colour": "grey"})

    with pytest.raises(ConfigError, match="begun with colour grey, and now it is null"):
        check_settings(plan, {"top-k": 5}, dest)
