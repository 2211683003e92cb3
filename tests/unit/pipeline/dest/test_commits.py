from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict

import pytest

from models.errors import ConfigError, StorageError
from pipeline.dest.commits import Commit, CommitLog, Totals
from pipeline.sources.unit import part_name
from pipeline.storage.storage import Storage, open_storage


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
        log.append(commit(3, incomplete={"a.tar": "truncated"}))

    done, totals = CommitLog(dest, 5).load()

    assert done.tolist() == [False, True, False, True, False]
    assert (totals.rows, totals.ok, totals.errors) == (20, 18, {"undecodable": 2})
    assert totals.incomplete_named == {"a.tar": "truncated"}


def test_a_shard_that_is_damaged_in_several_of_its_pieces_is_one_shard():
    totals = Totals()
    for unit, what in enumerate(["row group 0", "row group 7", "row group 7"]):
        totals.add(commit(unit, incomplete={"a.parquet": what}))
    totals.add(commit(3, incomplete={"b.tar": "truncated"}))

    assert totals.incomplete == 2
    assert totals.incomplete_named == {"a.parquet": "row group 0; row group 7", "b.tar": "truncated"}


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_a_record_is_written_though_no_other_follows(dest):
    log = CommitLog(dest, 5)
    log.load()

    with log:
        for unit in (2, 3):
            log.append(commit(unit))
            wait_until(lambda u=unit: CommitLog(dest, 5).load()[0][u])


def test_a_write_that_fails_in_the_background_fails_the_run(dest, monkeypatch):
    log = CommitLog(dest, 5)
    log.load()

    def full(*_: object) -> None:
        raise StorageError("cannot write: no space left on the device")

    def run() -> None:
        with log:
            log.append(commit(1))
            monkeypatch.setattr(type(dest), "write_bytes", full)
            wait_until(lambda: log._work[0].done())
            log.append(commit(2))

    with pytest.raises(StorageError, match="no space left"):
        run()


def test_a_write_that_fails_at_the_end_fails_the_run_too(dest, monkeypatch):
    log = CommitLog(dest, 5)
    log.load()

    def full(*_: object) -> None:
        raise StorageError("cannot write: no space left on the device")

    monkeypatch.setattr(type(dest), "write_bytes", full)
    with pytest.raises(StorageError, match="no space left"), log:
        log.append(commit(1))


def test_nothing_waits_for_a_merge(dest, monkeypatch):
    monkeypatch.setattr("pipeline.dest.commits.FLUSH_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.dest.commits.MERGE_FILES", 2)
    reached, go_on = threading.Event(), threading.Event()
    real = CommitLog.merge

    def slow(self: CommitLog) -> None:
        reached.set()
        assert go_on.wait(60)
        real(self)

    monkeypatch.setattr(CommitLog, "merge", slow)
    log = CommitLog(dest, 9)
    log.load()

    with log:
        for unit in range(2):
            log.append(commit(unit))
            wait_until(lambda u=unit: CommitLog(dest, 9).load()[0][u])
        assert reached.wait(30)
        log.append(commit(7))
        wait_until(lambda: CommitLog(dest, 9).load()[0][7])
        go_on.set()

    done = CommitLog(dest, 9).load()[0]
    assert done.nonzero()[0].tolist() == [0, 1, 7]
    assert any(file.path.endswith(".parquet") for file in dest.list("_shardlabel/commits"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("commits")]


def test_records_of_one_second_share_a_file(dest):
    log = CommitLog(dest, 100)
    log.load()
    with log:
        for unit in range(100):
            log.append(commit(unit))

    assert len(dest.list("_shardlabel/commits")) <= 3  # on a busy machine more than a second may pass


def test_many_files_are_merged_and_nothing_is_lost(dest, monkeypatch):
    monkeypatch.setattr("pipeline.dest.commits.FLUSH_SECONDS", 0.001)
    monkeypatch.setattr("pipeline.dest.commits.MERGE_FILES", 16)
    units = 200
    log = CommitLog(dest, units)
    log.load()

    with log:
        for unit in range(units):
            log.append(commit(unit, rows=unit))
            log.flush()
        wait_until(lambda: any(name.endswith(".parquet") for name in log.names()))

    done, totals = CommitLog(dest, units).load()
    assert done.all()
    assert totals.rows == sum(range(units))
    assert totals.units == units


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


def test_records_of_another_plan_are_passed_over_and_said(dest, caplog):
    for plan, units in (("old", 9), ("new", 5)):
        log = CommitLog(dest, units, plan)
        log.load()
        with log:
            log.append(commit(units - 1))
            log.append(commit(units - 2))

    done, totals = CommitLog(dest, 5, "new").load()

    assert done.tolist() == [False, False, False, True, True]
    assert totals.rows == 20
    assert "2 commit records of another plan are ignored" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_record_keeps_its_plan(dest, kind):
    log = CommitLog(dest, 5, "this")
    log.load()
    log.append(commit(1))
    log.flush()
    if kind == "parquet":
        log.merge()

    assert [record.plan for record in CommitLog(dest, 5, "this").records()] == ["this"]
    assert [name.rpartition(".")[2] for name in log.names()] == [kind]


RECORD = asdict(commit(1))
BROKEN = [
    pytest.param(
        json.dumps({**RECORD, "unit": 9, "part": part_name(9)}), "unit 9 with part-00009", id="no unit of the plan"
    ),
    pytest.param(json.dumps({**RECORD, "part": "../../etc/passwd"}), "unit 1 with ../../etc", id="another file"),
    pytest.param(json.dumps({**RECORD, "rows": "many"}), "field rows: ", id="wrong type"),
    pytest.param(json.dumps({**RECORD, "colour": 7}), "newer version.*field colour: ", id="of a newer version"),
    pytest.param(json.dumps({"unit": 1}), "field part: ", id="fields missing"),
    pytest.param("[]", "damaged", id="a list"),
    pytest.param('{"unit": 1, "pa', "damaged", id="cut off"),
    pytest.param("\x80\x00", "damaged", id="no text"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_record_that_cannot_be_read_is_one_error_that_names_the_file(dest, line, message):
    dest.write_bytes("_shardlabel/commits/commits-000000000-aaaaaaaa.jsonl", line.encode("latin-1"))

    with pytest.raises(ConfigError, match=rf"commits-000000000-aaaaaaaa\.jsonl.*{message}"):
        CommitLog(dest, 5).load()


def test_merged_records_that_cannot_be_read_are_one_error_that_names_the_file(dest):
    dest.write_bytes("_shardlabel/commits/commits-000000000-aaaaaaaa.parquet", b"PAR1 no more")

    with pytest.raises(ConfigError, match=r"commits-000000000-aaaaaaaa\.parquet is damaged"):
        CommitLog(dest, 5).load()
