from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from models.catalog import load_spec
from models.errors import ArtifactError, ConfigError
from models.spec import Artifact, ModelSpec, Precision
from models.store import download, files
from models.store.files import artifact_path, home, publishing, verify_file
from models.store.locate import is_cached, locate

BODY = b"the bytes of a model"
ARTIFACT = Artifact(
    file="some.onnx",
    sha256=hashlib.sha256(BODY).hexdigest(),
    size_bytes=len(BODY),
    sources=("http://127.0.0.1:9/some.onnx",),
)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SHARDLABEL_MODEL_MIRROR", raising=False)


@pytest.fixture
def hashed(monkeypatch):
    """Collect the paths that are read to be hashed."""
    paths: list[Path] = []
    real = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: paths.append(path) or real(path))
    return paths


def spec_with(folder: Path, **changes: object) -> ModelSpec:
    artifact = ARTIFACT.model_copy(update=changes)
    return load_spec("resnet18-v2").model_copy(
        update={"name": "some", "artifacts": {Precision.FP32: artifact}, "folder": folder}
    )


def put(path: Path, content: bytes = BODY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_home_is_read_from_the_environment_at_each_call(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")

    monkeypatch.setenv("SHARDLABEL_HOME", "~/models")
    assert home() == Path("/home/somebody/models")
    monkeypatch.setenv("SHARDLABEL_HOME", "")
    assert home() == Path("/home/somebody/.cache/shardlabel")


def test_home_says_what_to_set_where_the_user_has_no_home(monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", "~nobody-of-that-name/x")

    with pytest.raises(ConfigError, match="set SHARDLABEL_HOME"):
        home()


def test_artifacts_of_one_name_and_other_content_lie_apart():
    other = ARTIFACT.model_copy(update={"sha256": "0" * 64})

    assert artifact_path(ARTIFACT) == home() / "artifacts" / ARTIFACT.sha256 / "some.onnx"
    assert artifact_path(other) != artifact_path(ARTIFACT)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        pytest.param(BODY + b"!", ("has 21 bytes", "expected 20"), id="size"),
        pytest.param(b"T" + BODY[1:], ("has SHA-256", ARTIFACT.sha256), id="byte"),
        pytest.param(None, ("cannot read", "No such file"), id="missing"),
    ],
)
def test_verify_file_says_what_is_wrong_and_what_to_do(tmp_path, content, parts):
    path = tmp_path / "some.onnx"
    if content is not None:
        put(path, content)

    with pytest.raises(ArtifactError) as caught:
        verify_file(path, ARTIFACT)

    assert all(part in str(caught.value) for part in (str(path), *parts, "shardlabel models pull"))


def test_verify_file_hashes_each_time_and_locate_only_once(tmp_path, hashed):
    path = put(artifact_path(ARTIFACT))

    for _ in range(3):
        assert locate(spec_with(tmp_path), Precision.FP32) == path
    assert len(hashed) == 1
    verify_file(path, ARTIFACT)
    assert len(hashed) == 2


@pytest.mark.parametrize("keeps_mtime", [False, True])
def test_locate_finds_a_byte_that_changed_since_the_last_check(tmp_path, keeps_mtime):
    path = put(artifact_path(ARTIFACT))
    locate(spec_with(tmp_path), Precision.FP32)
    before = path.stat()
    time.sleep(0.02)  # two ticks of the clock that stamps files

    path.write_bytes(b"T" + BODY[1:])
    if keeps_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(ArtifactError, match=r"SHA-256 .*delete it and run `shardlabel models pull some`"):
        locate(spec_with(tmp_path), Precision.FP32)


def test_locate_needs_no_writable_cache_for_a_file_that_is_there(tmp_path, monkeypatch):
    path = put(artifact_path(ARTIFACT))

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)

    assert locate(spec_with(tmp_path), Precision.FP32) == path
    assert download.fetch("some", ARTIFACT) == path


def test_locate_takes_a_bundled_file_from_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("models.store.locate.BUNDLED", tmp_path / "package")
    spec = spec_with(tmp_path, bundled=True, sources=())

    assert not is_cached(spec, Precision.FP32)
    with pytest.raises(ArtifactError, match="reinstall"):
        locate(spec, Precision.FP32)
    path = put(tmp_path / "package" / "some" / "some.onnx")
    assert is_cached(spec, Precision.FP32)
    assert locate(spec, Precision.FP32) == path


def test_locate_takes_a_users_model_from_its_folder_and_leaves_nothing_beside_it(tmp_path):
    folder = tmp_path / "mine"
    spec = spec_with(folder, sources=())

    assert not is_cached(spec, Precision.FP32)
    with pytest.raises(ArtifactError, match=r"not found at .*mine/some\.onnx"):
        locate(spec, Precision.FP32)
    path = put(folder / "some.onnx")
    assert is_cached(spec, Precision.FP32)
    assert locate(spec, Precision.FP32) == path
    assert list(folder.iterdir()) == [path]


def test_locate_says_how_to_build_or_import_a_file_or_do_without(tmp_path):
    spec = spec_with(tmp_path, sources=(), built_by="make bundle")
    spec.artifacts[Precision.INT8] = ARTIFACT

    with pytest.raises(ArtifactError) as caught:
        locate(spec, Precision.FP32)
    assert str(caught.value) == (
        f"some.onnx of some (fp32) cannot be downloaded, and is not at {artifact_path(ARTIFACT)}: build it with "
        "`make bundle` in a source checkout, or import a built file with `shardlabel models pull some --precision fp32 "
        "--from FILE`, or use --precision int8"
    )
    path = put(artifact_path(ARTIFACT))
    assert locate(spec, Precision.FP32) == path


def test_locate_downloads_what_is_not_here_only_if_it_may(tmp_path, monkeypatch):
    fetched: list[str] = []
    monkeypatch.setattr(download, "fetch", lambda name, artifact, progress: fetched.append(name))
    spec = spec_with(tmp_path)

    assert not is_cached(spec, Precision.FP32)
    with pytest.raises(ArtifactError, match="run `shardlabel models pull some`"):
        locate(spec, Precision.FP32, download=False)
    assert fetched == []
    locate(spec, Precision.FP32)
    assert fetched == ["some"]


def test_is_cached_is_false_for_a_file_of_another_size(tmp_path):
    put(artifact_path(ARTIFACT), BODY[:-1])

    assert not is_cached(spec_with(tmp_path), Precision.FP32)


def test_publishing_shows_the_file_only_when_it_is_complete(tmp_path):
    path = put(tmp_path / "folder" / "some.onnx", b"before")

    with publishing(path) as file:
        file.write(BODY)
        file.flush()
        assert path.read_bytes() == b"before"

    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


def test_publishing_leaves_nothing_when_the_block_fails(tmp_path):
    def write_half(path: Path) -> None:
        with publishing(path) as file:
            file.write(BODY)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "some.onnx")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, r"disk is full .*MB free.*SHARDLABEL_HOME"),
        (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "set SHARDLABEL_HOME to a writable folder"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_publishing_explains_a_disk_error_and_removes_the_half_file(tmp_path, monkeypatch, code, advice):
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    def write(path: Path) -> None:
        with publishing(path) as file:
            file.write(BODY)

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(ArtifactError, match=advice):
        write(tmp_path / "some.onnx")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_publishing_says_that_a_folder_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(ArtifactError, match="set SHARDLABEL_HOME"), publishing(tmp_path / "some.onnx"):
        pass


def test_publishing_removes_what_killed_processes_left_and_no_more(tmp_path):
    stale = put(tmp_path / "some.onnx.dead.tmp")
    os.utime(stale, (time.time() - 3600, time.time() - 3600))
    others = [put(tmp_path / "some.onnx.alive.tmp"), put(tmp_path / "other.onnx")]

    with publishing(tmp_path / "some.onnx") as file:
        file.write(BODY)

    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "some.onnx", *others])
