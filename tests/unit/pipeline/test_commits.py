from __future__ import annotations

import json

import pytest

from models.errors import ConfigError
from pipeline.commits import MERGE_FILES, Commit, CommitLog
from pipeline.storage import Storage, open_storage


def commit(unit: int, **changes) -> Commit:
    values = {
        "unit": unit, "part": f"part-{unit:05d}.parquet", "rows": 10, "ok": 9, "errors": {"undecodable": 1},
        "seconds": 0.5, "bytes_read": 1000, "size": 100, "sha256": "0" * 64, "incomplete": {}, "skipped": {},
    }  # fmt: skip
    return Commit(**{**values, **changes})


@pytest.fixture
def dest(tmp_path) -> Storage:
    return open_storage(str(tmp_path / "dest"))


def test_nothing_is_done_before_the_first_record(dest):
    done, totals = CommitLog(dest, 5).load()

    assert not done.any()
    assert totals.units == 0


def test_records_survive_in_another_process(dest):
    log = CommitLog(dest, 5)
    log.load()
    with log:
        log.append(commit(1))
        log.append(commit(3, incomplete={"a.tar": "broken off"}))

    done, totals = CommitLog(dest, 5).load()

    assert done.tolist() == [False, True, False, True, False]
    assert (totals.rows, totals.ok, totals.errors) == (20, 18, {"undecodable": 2})
    assert totals.incomplete_named == {"a.tar": "broken off"}


def test_the_first_record_is_written_at_once(dest):
    log = CommitLog(dest, 5)
    log.load()

    log.append(commit(2))

    assert CommitLog(dest, 5).load()[0].tolist() == [False, False, True, False, False]


def test_records_of_one_second_share_a_file(dest):
    log = CommitLog(dest, 100)
    log.load()
    with log:
        for unit in range(100):
            log.append(commit(unit))

    assert len(dest.list("_shardlabel/commits")) == 2


def test_many_files_are_merged_and_nothing_is_lost(dest, monkeypatch):
    monkeypatch.setattr("pipeline.commits.FLUSH_SECONDS", 0.0)
    units = 2 * MERGE_FILES + 10
    log = CommitLog(dest, units)
    log.load()

    with log:
        for unit in range(units):
            log.append(commit(unit, rows=unit))

    assert len(dest.list("_shardlabel/commits")) < MERGE_FILES
    done, totals = CommitLog(dest, units).load()
    assert done.all()
    assert totals.rows == sum(range(units))


def test_a_merge_that_was_cut_short_counts_each_unit_once(dest, monkeypatch):
    log = CommitLog(dest, 4)
    log.load()
    for unit in range(4):
        log.append(commit(unit))
        log.flush()
    monkeypatch.setattr(type(dest), "delete", lambda *_: None)  # killed before the small files went

    log.merge()

    done, totals = CommitLog(dest, 4).load()
    assert done.all()
    assert (totals.units, totals.rows) == (4, 40)


def test_merged_records_keep_every_field(dest):
    log = CommitLog(dest, 2)
    log.load()
    given = commit(1, errors={"empty": 3}, incomplete={"x.tar": "broken"}, skipped={"directory": 2})
    log.append(given)
    log.flush()

    log.merge()

    assert list(CommitLog(dest, 2).records()) == [given]


def test_a_later_run_never_writes_over_records(dest):
    for unit in range(3):
        log = CommitLog(dest, 3)
        log.load()
        with log:
            log.append(commit(unit))

    assert CommitLog(dest, 3).load()[0].all()


def test_a_record_of_another_plan_is_an_error(dest):
    dest.write_bytes("_shardlabel/commits/commits-000000000-aaaaaaaa.jsonl", json.dumps(
        {**{f: getattr(commit(9), f) for f in Commit.__slots__}}).encode())  # fmt: skip

    with pytest.raises(ConfigError, match="record of unit 9, and its plan has 5"):
        CommitLog(dest, 5).load()
