"""DEST and SOURCE: whatever they are called, nothing that SOURCE names is written over or deleted."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from models.errors import ConfigError, SourceError
from pipeline.config import LabelConfig
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import read_plan
from pipeline.dest.resume import prepare
from pipeline.sources.overlap import Overlap
from pipeline.sources.reader import slices
from pipeline.sources.source import open_source
from pipeline.sources.unit import part_name, part_number
from pipeline.storage.storage import Storage, open_storage

SETTINGS = {"model": "tiny"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"only copy of {name}".encode())


def contents() -> dict[str, bytes]:
    """Return all files but DEST's state, links as the files that they lead to."""
    found = {}
    for folder, folders, names in os.walk(".", followlinks=True):
        folders[:] = [name for name in folders if name != "_shardlabel"]
        for path in (Path(folder, name) for name in names):
            found[str(path)] = path.read_bytes() if path.exists() else b"GONE"
    return found


def begin(source: str | list[str], dest: str, *, overwrite: bool = False) -> list[str]:
    """Do what a run does before it labels; return the shards that it would label."""
    config = LabelConfig(source=source, output=dest, overwrite=overwrite)
    storage = open_storage(config.output)
    opened = open_source(config.source, config.format, exclude=storage)
    work = prepare(config, storage, SETTINGS, opened, lambda: slices(opened), lambda piece, most: most)
    with work.log:
        pass
    return [file.shard for file in opened.files()]


def finish(dest: str, *, shards: int = 3) -> None:
    """Leave a run of so many units behind, of other shards than any test's."""
    touch(*(f"elsewhere/{i}.tar" for i in range(shards)))
    begin("elsewhere", dest)
    touch(*(f"{dest}/part-{i:05d}.parquet" for i in range(shards)))


PARTS = tuple(f"part-{i:05d}.parquet" for i in range(3))
SAME = [
    pytest.param("data", "data", id="the folder itself"),
    pytest.param("data/", "./data", id="written otherwise"),
    pytest.param("data", "x/../data", id="with two dots"),
    pytest.param("data", "link", id="DEST is a link to it"),
    pytest.param("link", "data", id="SOURCE is a link to it"),
    pytest.param("data", "file://{here}/data", id="as a file URI"),
    pytest.param("file://{here}/link", "data", id="as a file URI of a link"),
    pytest.param("data/*.parquet", "data", id="a glob"),
    pytest.param("data/part-{00000..00002}.parquet", "data", id="a range"),
    pytest.param("data/part-00001.parquet", "data", id="one file"),
    pytest.param("@list.txt", "data", id="a list"),
    pytest.param("links", "data", id="links to its files"),
    pytest.param("hops", "data", id="links through it to files elsewhere"),
]


@pytest.fixture
def same(tmp_path: Path) -> None:
    """Lay out source files that are called as a run's own."""
    touch(*(f"data/{name}" for name in PARTS), "x/nothing", "real/a.parquet")
    Path("link").symlink_to("data")
    Path("list.txt").write_text("".join(f"data/{name}\n" for name in PARTS))
    Path("links").mkdir()
    for i, name in enumerate(PARTS):
        Path(f"links/{i}.parquet").symlink_to(tmp_path / "data" / name)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("source", "dest"), SAME)
@pytest.mark.parametrize("with_plan", [False, True])
@pytest.mark.usefixtures("same")
def test_a_file_of_source_is_never_deleted(tmp_path, source, dest, overwrite, with_plan):
    source, dest = (text.replace("{here}", str(tmp_path)) for text in (source, dest))
    if with_plan:  # of a run whose unit names are those of the source's files
        for name in PARTS:
            Path("data", name).rename(name)
        finish("data")
        for name in PARTS:
            Path(name).replace(Path("data", name))
    Path("data/part-00002.parquet").rename("real/b.parquet")
    Path("data/part-00002.parquet").symlink_to(tmp_path / "real/b.parquet")
    Path("hops").mkdir()
    Path("hops/a.parquet").symlink_to(tmp_path / "data/part-00002.parquet")
    before = contents()

    # With a plan DEST's own files are passed over by what is come upon from above: then there is nothing else in SOURCE.
    with pytest.raises(SourceError) as caught:
        begin(source, dest, overwrite=overwrite)

    assert contents() == before
    assert "--overwrite" not in str(caught.value)
    assert "in DEST" in str(caught.value)


def record(dest: str, *units: int) -> None:
    log = CommitLog(open_storage(dest), 3)
    log.load()
    with log:
        for unit in units:
            log.append(Commit(unit, part_name(unit), 1, 1, {}, 0.1, 1, 1, "0" * 64))


@pytest.mark.parametrize(
    ("source", "dest", "expected"),
    [
        pytest.param("data/*.tar", "data/labels", ["a.tar", "b.tar"], id="labels beside the shards"),
        pytest.param("data", "data/labels", ["a.tar", "b.tar", "more/c.tar"], id="labels in the folder of shards"),
        pytest.param("link", "data/labels", ["a.tar", "b.tar", "more/c.tar"], id="through a link"),
        pytest.param("file://{here}/data", "link/labels", ["a.tar", "b.tar", "more/c.tar"], id="both otherwise"),
        pytest.param("data/**/*.tar", "data/labels", ["a.tar", "b.tar", "more/c.tar"], id="a glob over DEST"),
        pytest.param("data/more", "data-labels", ["c.tar"], id="apart"),
        pytest.param("data/more", "data/more-labels", ["c.tar"], id="a name that begins alike"),
    ],
)
def test_labels_may_lie_beside_their_shards(tmp_path, source, dest, expected):
    touch("data/a.tar", "data/b.tar", "data/more/c.tar")
    Path("link").symlink_to("data")
    source = source.replace("{here}", str(tmp_path))

    assert begin(source, dest) == expected
    touch(*(f"{dest}/{part_name(unit)}" for unit in range(len(expected))))
    assert begin(source, dest) == expected
    assert begin(source, dest, overwrite=True) == expected
    assert not list(Path(dest).glob("*.parquet"))


def test_shards_that_lie_in_dest_are_refused_and_not_passed_over():
    touch("data/a.tar", "data/labels/b.tar")

    with pytest.raises(SourceError, match=r"SOURCE names labels/b\.tar, which lies in DEST data/labels"):
        begin("data", "data/labels")
    with pytest.raises(SourceError, match=r"SOURCE names b\.tar, which lies in DEST data\b"):
        begin("data/labels", "data")
    assert begin("data/*.tar", "data/labels") == ["a.tar"]


def test_dest_with_parquet_files_and_no_plan_is_never_emptied():
    touch("in/a.tar", "out/part-00000.parquet")

    with pytest.raises(SourceError, match=r"already holds part-00000\.parquet") as caught:
        begin("in", "out", overwrite=True)

    assert Path("out/part-00000.parquet").exists()
    assert "--overwrite" not in str(caught.value)


def test_overwrite_removes_what_the_plan_names_and_refuses_before_that_where_there_is_more():
    touch("in/a.tar")
    finish("out")
    record("out", 0, 1)
    touch("out/notes.txt", "out/_shardlabel/reviews/mine.json", "out/sub/part-00000.parquet", "out/part-00003.parquet")
    before = contents()

    with pytest.raises(SourceError, match=r"already holds part-00003\.parquet, which no plan of a run names"):
        begin("in", "out", overwrite=True)
    assert contents() == before
    assert CommitLog(open_storage("out"), 3).load()[0].tolist() == [True, True, False]

    Path("out/part-00003.parquet").unlink()
    assert begin("in", "out", overwrite=True) == ["a.tar"]
    left = [str(path) for path in sorted(Path("out").rglob("*")) if path.is_file()]
    assert left == [
        "out/_shardlabel/plan/plan.json", "out/_shardlabel/plan/units-00000.parquet", "out/_shardlabel/reviews/mine.json",
        "out/notes.txt", "out/sub/part-00000.parquet"]  # fmt: skip


@pytest.mark.parametrize("damage", [b"", b"{", b'{"units": 1000000000}', b"[]", b'{"version": 99, "units": 9}'])
def test_a_damaged_plan_deletes_nothing(damage):
    touch("in/a.tar")
    finish("out")
    Path("out/_shardlabel/plan/plan.json").write_bytes(damage)
    before = contents()

    with pytest.raises(ConfigError) as caught:
        begin("in", "out", overwrite=True)

    assert contents() == before
    assert "--overwrite" not in str(caught.value)


def test_a_plan_that_was_tampered_with_names_no_more_files_than_it_did():
    touch("in/a.tar")
    finish("out")
    touch("out/part-00007.parquet")
    plan = Path("out/_shardlabel/plan/plan.json")
    plan.write_text(plan.read_text().replace('"units": 3', '"units": 9'))

    with pytest.raises(ConfigError, match="damaged"):
        begin("in", "out", overwrite=True)

    assert Path("out/part-00007.parquet").exists()


def test_an_overwrite_that_is_cut_short_anywhere_leaves_a_run_that_can_be_overwritten_or_resumed(monkeypatch):
    touch("in/a.tar")
    delete = Storage.delete
    cut = 0
    while True:
        finish(dest := f"out-{cut}")
        record(dest, 0, 1, 2)
        left = cut

        def stop(storage: Storage, name: str) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            delete(storage, name)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Storage, "delete", stop)
            begin("in", dest, overwrite=True)
            break
        done = CommitLog(open_storage(dest), 3).load()[0]
        assert all(Path(dest, part_name(unit)).exists() for unit in range(3) if done[unit])
        if Path(dest, "_shardlabel/plan/units-00000.parquet").exists() and read_plan(open_storage(dest)):
            begin("elsewhere", dest)
        assert begin("in", dest, overwrite=True) == ["a.tar"]
        cut += 1
    assert cut > 5


def test_what_a_killed_run_left_is_removed_and_nothing_else_where_a_link_leads(tmp_path):
    touch("in/a.tar", "precious/a.jpg", f"precious/{'0' * 32}.tmp")
    Path("out/_shardlabel").mkdir(parents=True)
    Path("out/_shardlabel/tmp").symlink_to(tmp_path / "precious")

    begin("in", "out")

    assert Path("precious/a.jpg").exists()


BUCKETS = [
    "s3://bucket/data", "s3://bucket/data/", "S3://bucket/data", "s3://KEY:SECRET@bucket/data", "s3://Bucket/data",
    "s3://bucket/data?endpoint_override=HOST:9000&scheme=http", "s3://bucket/data?endpoint_override=http://host:9000/",
    "s3://bucket/data?endpoint_override=127.0.0.1:9000", "s3://bucket/data?region=eu-west-1", "s3://bucket//data",
    "s3://bucket/x/../data", "s3://bucket/./data",
]  # fmt: skip


@pytest.mark.parametrize("uri", BUCKETS)
def test_a_bucket_is_known_by_any_of_its_uris(monkeypatch, uri):
    monkeypatch.setattr("pipeline.storage.storage.open_store", lambda uri: None)
    for other in BUCKETS:
        overlap = Overlap(open_storage(uri), open_storage(other))

        with pytest.raises(SourceError, match=r"SOURCE names part-00000\.parquet, which lies in DEST") as caught:
            overlap.refuse("part-00000.parquet")
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "dest", "within"),
    [
        pytest.param("gs://bucket/data", "gcs://bucket/data", True, id="google's two schemes"),
        pytest.param("abfss://box@lake.dfs.core.windows.net/data", "abfs://lake:KEY@box/data", True,
                     id="azure's forms"),
        pytest.param("s3://bucket/data", "s3://bucket", True, id="the whole bucket"),
        pytest.param("s3://bucket/data", "s3://bucket/data/x", False, id="below"),
        pytest.param("s3://bucket/data", "s3://bucket/dat", False, id="a name that begins alike"),
        pytest.param("s3://bucket/data", "s3://bucket-2/data", False, id="another bucket"),
        pytest.param("s3://bucket/data", "gs://bucket/data", False, id="another storage"),
        pytest.param("s3://bucket/data", "/bucket/data", False, id="a disk"),
    ],
)  # fmt: skip
def test_other_places_are_told_apart(monkeypatch, source, dest, within):
    monkeypatch.setattr("pipeline.storage.storage.open_store", lambda uri: None)
    overlap = Overlap(open_storage(source), open_storage(dest))

    with pytest.raises(SourceError) if within else nullcontext():
        overlap.refuse("part-00000.parquet")


@pytest.mark.parametrize("names", [("part-00000.parquet",), ("sub/a.parquet", "_shardlabel/x/a.parquet")])
def test_a_dest_that_is_source_under_a_name_that_shows_nothing_of_it_is_refused(monkeypatch, names):
    """A mounted bucket, a bind mount, a disk that does not tell capitals: stood for by comparing no names at all."""
    finish("out")
    touch(*(f"out/{name}" for name in names))
    monkeypatch.setattr(Overlap, "_within", lambda self, path: None)
    before = contents()

    with pytest.raises(SourceError, match="from which this run reads, is DEST out"):
        begin([f"out/{name}" for name in names], "out", overwrite=True)

    assert contents() == before
    assert not [path for path in Path("out").rglob("*") if "seen-in" in path.name]


@pytest.mark.parametrize(
    ("name", "unit"),
    [("part-00000.parquet", 0), ("part-00012.parquet", 12), ("part-123456.parquet", 123_456),
     ("part-0.parquet", None), ("part-000001.parquet", None), ("part-².parquet", None), ("part-٠٠٠٠٠.parquet", None),
     ("part-00000.parquet.parquet", None), ("sub/part-00000.parquet", None), ("part--0001.parquet", None),
     ("part-.parquet", None), (f"part-{'1' * 5000}.parquet", None), ("00000", None)],
)  # fmt: skip
def test_only_the_names_that_runs_write_are_units(name, unit):
    assert part_number(name) == unit
