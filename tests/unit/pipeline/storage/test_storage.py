"""Storage: writes that are whole or not at all, look-ups, and what paths and URIs mean."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.errors import SourceError, StorageError
from pipeline.storage.local_disk import remove_stale
from pipeline.storage.retries import retried
from pipeline.storage.storage import Storage, iter_lines, open_storage
from pipeline.storage.stores import absolute, open_store, split_location
from pipeline.storage.uris import display_uri


def test_what_is_written_is_there_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "new/dest"))

    storage.write_bytes("_shardlabel/plan/plan.json", b"1")
    storage.write_bytes("_shardlabel/plan/plan.json", b"22")

    assert storage.read_bytes("_shardlabel/plan/plan.json") == b"22"
    files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert files == ["new/dest/_shardlabel/plan/plan.json"]


def test_publishing_moves_the_file_in_one_step(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    temporary = storage.temporary_path()
    temporary.write_bytes(b"part")

    storage.publish(temporary, "part-00000.parquet")

    assert (tmp_path / "part-00000.parquet").read_bytes() == b"part"
    assert not temporary.exists()
    assert temporary.is_relative_to(tmp_path / "_shardlabel" / "tmp")


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_write_that_fails_leaves_what_was_there_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("a", b"before")

    def full(*args: Any, **options: Any) -> Any:
        if step == "write":
            args[0].touch()  # what fitted is there
        raise OSError(errno.ENOSPC, "No space left on device")

    target: dict[str, tuple[Any, str]] = {
        "write": (Path, "write_bytes"),
        "fsync": (os, "fsync"),
        "rename": (Path, "replace"),
    }
    monkeypatch.setattr(*target[step], full)
    with pytest.raises(StorageError, match=r"cannot write .*/a: no space left on the device"):
        storage.write_bytes("a", b"after")
    monkeypatch.undo()

    assert storage.read_bytes("a") == b"before"
    assert [file.path for file in storage.list(recursive=True)] == ["a"]


def test_a_full_disk_is_an_error_that_says_so() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    storage = Storage("/dev", "/dev")

    def write_full() -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(StorageError, match="no space left on the device"):
        retried(f"write {storage.describe('full')}", write_full)


def test_a_place_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "dest").write_bytes(b"a file")

    with pytest.raises(StorageError, match=r"cannot write .*/dest: (Not a directory|File exists)"):
        open_storage(str(tmp_path / "dest")).write_bytes("a", b"x")


def test_a_read_only_place_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:  # root, as whom tests may run, is refused nothing
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(StorageError, match=r"cannot write .*: permission denied"):
        open_storage(str(tmp_path)).write_bytes("a", b"x")


def test_deleting_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("a", b"x")

    storage.delete("a")
    storage.delete("a")

    assert storage.stat("a") is None


def test_files_of_dead_processes_go_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, new, other = (tmp_path / name for name in ("shardlabel-1.tmp", "shardlabel-2.tmp", "else.tmp"))
    for path in (old, new, other):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))

    remove_stale.__wrapped__()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["else.tmp", "shardlabel-2.tmp"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/a/b", ("", "/a/b")), ("/a//b/", ("", "/a/b")), ("/", ("", "/")), ("/a/./b", ("", "/a/b")),
        ("file:///a/b%20c", ("", "/a/b c")), ("file://localhost/a#b", ("", "/a#b")), ("FILE:///a", ("", "/a")),
        ("s3://bucket", ("s3://bucket", "bucket")), ("s3://bucket/", ("s3://bucket", "bucket")),
        ("s3://bucket/a b/%20?.tar", ("s3://bucket", "bucket/a b/%20?.tar")),
        ("s3://b/x?region=eu-west-1&scheme=http", ("s3://b?region=eu-west-1&scheme=http", "b/x")),
        ("s3://id:se%2Fcret@b/x", ("s3://id:se%2Fcret@b", "b/x")),
        ("gs://anonymous@b/x", ("gs://anonymous@b", "b/x")),
        ("abfss://cont@acc.dfs.core.windows.net/a", ("az://cont?account_name=acc", "cont/a")),
        ("abfss://:k%2Fy@acc.blob.core.windows.net/cont/a", ("az://cont?account_key=k%2Fy&account_name=acc", "cont/a")),
        ("az://cont/a/b", ("az://cont", "cont/a/b")), ("abfs://acc@cont/a", ("az://cont?account_name=acc", "cont/a")),
        ("https://host:1/a%20b/c.tar", ("https://host:1", "host:1/a b/c.tar")),
        ("http://host/a?sig=x%2F&e=1", ("http://host?sig=x%2F&e=1", "host/a")),
    ],
)  # fmt: skip
def test_split_location(uri: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)

    assert split_location(uri) == expected


def test_endpoints_of_emulators_travel_in_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:10000/devstoreaccount1/")

    assert split_location("gs://b/x")[0] == "gs://b?endpoint_override=localhost%3A4443&scheme=http"
    assert split_location("az://c/x")[0] == (
        "az://c?blob_storage_authority=127.0.0.1%3A10000%2Fdevstoreaccount1&blob_storage_scheme=http"
    )


def test_the_environment_names_endpoint_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000/")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)

    root_uri, _ = split_location("s3://b/x")
    own, _ = split_location("s3://b/x?endpoint_override=other:1&scheme=https&region=r")

    assert root_uri == "s3://b?endpoint_override=localhost%3A9000&scheme=http&region=us-east-1"
    assert own == "s3://b?endpoint_override=other%3A1&scheme=https&region=r"


@pytest.mark.parametrize(
    "uri", ["s3:///x", "file://host/x", "s3://", "ftp://host/x", "az://:key@acc.blob.core.windows.net"]
)
def test_uris_that_cannot_be_are_errors(uri: str) -> None:
    with pytest.raises(SourceError, match=display_uri(uri)):
        split_location(uri)


def test_public_buckets_are_read_without_keys() -> None:
    store = open_storage("s3://b/x?region=r&anonymous=true").store

    assert store.config["skip_signature"]


def test_an_unknown_option_is_an_error_that_names_it() -> None:
    with pytest.raises(SourceError, match=r"cannot open s3://b: .*'colour'"):
        open_storage("s3://id:key@b/x?region=r&colour=red")


def test_keys_in_a_uri_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    storage = open_storage("s3://id:secret@b/x?region=r")

    assert "secret" not in repr(storage) + storage.describe("y")
    assert storage.describe("y") == "s3://b/x/y"


def test_absolute_paths_go_through_links_before_they_go_up(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/b")

    assert absolute(f"{tmp_path}/link/../x") == str(tmp_path.resolve() / "a/x")


def test_storage_is_picklable_and_works_in_other_processes(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("a", b"content")
    pickled = pickle.dumps(storage)

    code = f"import pickle; print(pickle.loads({pickled!r}).read_bytes('a'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "b'content'"
    assert len(pickled) < 500


def test_lines_are_read_one_by_one_in_any_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\nna\xefve\n" + b"x" * 2_000_000 + b"\nlast")

    lines = list(iter_lines(open_storage(str(tmp_path)), "list"))

    assert lines[:4] == ["one", "two", "", "na\udcefve"]
    assert [len(lines[4]), lines[5]] == [2_000_000, "last"]


def test_a_listing_and_a_look_up_agree(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("x/a", b"1")
    storage.write_bytes("x/b", b"22")

    assert storage.list("x") == [storage.stat("x/a"), storage.stat("x/b")]
    assert storage.list("nowhere") == []
    assert storage.stat("x") is None
    assert storage.is_folder("x")
    assert not storage.is_folder("x/a")


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take AWS's keys out of the environment, and forget what was opened."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    open_store.cache_clear()


@pytest.mark.usefixtures("no_keys")
def test_a_profiles_keys_are_used_where_boto3_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = ID\naws_secret_access_key = SECRET\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")

    provider = open_store("s3://b?region=r").credential_provider

    assert (provider()["access_key_id"], provider()["secret_access_key"]) == ("ID", "SECRET")


@pytest.mark.usefixtures("no_keys")
def test_a_profile_without_boto3_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setitem(sys.modules, "boto3", None)

    with pytest.raises(SourceError, match="AWS_PROFILE is set, and profiles need boto3: pip install boto3"):
        open_store("s3://b?region=r")
