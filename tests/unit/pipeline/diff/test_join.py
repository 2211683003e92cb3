"""Every row of two outputs comes once, beside its fellow where there is one, whatever the plans were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import StorageError
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.finished import FinishedDest, open_finished
from pipeline.dest.plan import write_plan
from pipeline.dest.writer import OutputSpec, Row, UnitWriter, build_batch
from pipeline.diff import join
from pipeline.diff.join import ROW, UNIT, Joined, join_rows
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage
from tests.support.made_up_rows import predictions_of

Shards = dict[str, Sequence[str]]


def written(folder: Path, shards: Shards, *, shards_a_unit: int = 1) -> FinishedDest:
    """Write an output of shards with these keys."""
    dest = open_storage(str(folder))
    names = list(shards)
    units = [
        Unit(number, tuple(Slice(name, 9, "") for name in names[start : start + shards_a_unit]))
        for number, start in enumerate(range(0, len(names), shards_a_unit))
    ]
    plan = write_plan(dest, iter(units), {"source": "/nowhere"})
    spec = OutputSpec(("a", "b"), {})
    with CommitLog(dest, plan.units, plan.id) as log:
        for unit in units:
            rows = [Row(piece.shard, key) for piece in unit.slices for key in shards[piece.shard]]
            with UnitWriter(dest.temporary_path(), spec.schema()) as writer:
                writer.write(build_batch(rows, predictions_of([0] * len(rows), classes=2), spec, spec.schema()))
            dest.publish(writer.path, unit.part)
            log.append(Commit(unit.number, unit.part, len(rows), len(rows), {}, 1.0, 9, 9, "0" * 64))
    return open_finished(str(folder))


def keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True))


def all_of(found: list[Joined]) -> tuple[list, list, list, list]:
    return tuple(sorted(row for one in found for row in keys(getattr(one, side)))
                 for side in ("old", "new", "only_old", "only_new"))  # fmt: skip


CONTENT = st.dictionaries(
    st.sampled_from(["a.tar", "b.tar", "c.tar", "d.tar"]),
    st.lists(st.sampled_from("klmnopq"), min_size=1, unique=True),
    min_size=1,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(CONTENT, CONTENT, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_rows_are_joined_by_shard_and_key(tmp_path_factory, left, right, a, b, small):
    folder = tmp_path_factory.mktemp("join")
    old = written(folder / "old", left, shards_a_unit=a)
    new = written(folder / "new", right, shards_a_unit=b)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for name, value in (("CHUNK_ROWS", 2), ("SPILL_ROWS", 3), ("PARTITION_ROWS", 2)):
                patch.setattr(join, name, value)

        found = list(join_rows(old, new))

    have, now = ({(shard, key) for shard in side for key in side[shard]} for side in (left, right))
    assert all_of(found) == (sorted(have & now), sorted(have & now), sorted(have - now), sorted(now - have))
    for one in found:
        assert keys(one.old) == keys(one.new)


def test_units_of_the_same_shards_are_read_side_by_side_and_rows_know_their_places(tmp_path, monkeypatch):
    shards = {"a.tar": "xyz", "b.tar": "xy", "c.tar": "x"}
    old, new = written(tmp_path / "old", shards), written(tmp_path / "new", shards)
    monkeypatch.setattr(
        join, "_joined", lambda *tables: pytest.fail("went by files") if any(map(len, tables)) else None
    )
    monkeypatch.setattr(join, "CHUNK_ROWS", 2)

    found = [one for one in join_rows(old, new) if one is not None]

    places = [(u, r) for one in found for u, r in zip(one.old[UNIT].to_pylist(), one.old[ROW].to_pylist(), strict=True)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    assert [len(one.old) for one in found] == [2, 1, 2, 1]


def test_a_disk_that_takes_no_temporary_files_is_an_error_that_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(join, "SPILL_ROWS", 1)
    old = written(tmp_path / "old", {"a": "abc", "b": "abc"})
    new = written(tmp_path / "new", {"a": "abc", "b": "abc"}, shards_a_unit=2)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(join.pa.ipc, "new_stream", full)

    with pytest.raises(
        StorageError, match=r"cannot write to .*: no space left on the device; point TMPDIR at a larger disk"
    ):
        list(join_rows(old, new))
