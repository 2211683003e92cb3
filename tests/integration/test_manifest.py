"""Manifests of URIs from end to end: images of the web, of a bucket and of a disk, and all that cannot be had of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import LabelConfig
from pipeline.dry_run import dry_run
from pipeline.report.page import write_report
from pipeline.session.connect import connect
from pipeline.session.local import stop_ray
from pipeline.summary import RunReport
from tests.integration.conftest import Servers
from tests.support.labelling import label, parts
from tests.support.object_server import BUCKET
from tests.support.s3_server import S3Server
from tests.support.web_server import IMAGES, WebServer, running_web

pytestmark = pytest.mark.ray

# What becomes of every twentieth row, in turn: the first part of its path, its status and its error.
FAILURES = [
    ("http://a.example/404", "unreachable", "HTTP 404"),
    ("http://a.example/403", "unreachable", "HTTP 403"),
    ("http://b.example/reset", "unreachable", "the connection was lost"),
    ("http://slow.example/slow", "unreachable", "not all there within 3 s"),
    ("http://a.example/loop", "unreachable", "more than 5 redirects"),
    ("http://b.example/text", "undecodable", None),
    ("http://b.example/large", "too_large", "1000000000000 bytes are more than the 67108864 allowed"),
    (
        "http://127.0.0.1:{port}/ok",
        "unreachable",
        "private address 127.0.0.1 (--allow-private-hosts fetches from there)",
    ),
    (
        "http://c.example/to-private",
        "unreachable",
        "private address 127.0.0.1 (--allow-private-hosts fetches from there)",
    ),
    ("s3://" + BUCKET + "/gone/{rows}", "unreachable", "it does not exist"),
]


@pytest.fixture(scope="module")
def world(servers: Servers) -> Iterator[tuple[WebServer, S3Server]]:
    """Serve a web of all hosts, by a proxy, and a bucket; start a Ray that knows of both."""
    s3 = servers.of("s3")
    assert isinstance(s3, S3Server)
    before = dict(os.environ)
    with running_web() as web:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        # In capitals alone, which gRPC does not read; past it what is on this machine.
        os.environ.update({**s3.environment(), "HTTP_PROXY": web.url, "NO_PROXY": "127.0.0.1,localhost"})
        stop_ray()
        connect(None)
        yield web, s3
        stop_ray()
    os.environ.clear()
    os.environ.update(before)


def write_manifest(path: Path, uris: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"uri": uris, "n": range(len(uris))}), path)


@dataclass(frozen=True)
class Labelled:
    """A run over a manifest of which every twentieth row cannot be had, in one of ten ways."""

    folder: Path
    uris: list[str]
    expected: list[tuple[str, str | None]]
    report: RunReport


@pytest.fixture(scope="module", params=[200, pytest.param(1000, marks=pytest.mark.long)])
def labelled(world, tiny_model, tmp_path_factory, request) -> Labelled:
    web, s3 = world
    web.mended = False
    folder, rows = tmp_path_factory.mktemp("manifest"), request.param
    uris: list[str] = []
    expected: list[tuple[str, str | None]] = []
    for row in range(rows):
        kind, status, error = FAILURES[row // 20 % len(FAILURES)] if row % 20 == 7 else ("", "ok", None)
        if not kind and row % 2:
            kind = f"s3://{BUCKET}/manifest/{rows}"
            s3.put(f"manifest/{rows}/{row}.jpg", IMAGES[row % 3])
        uris.append(f"{kind or f'http://h{row % 9}.example/ok'}/{row}.jpg".format(port=web.port, rows=rows))
        expected.append((status, error))
    write_manifest(folder / "in" / "m.parquet", uris)
    report = label(folder / "in", folder / "out", tiny_model, uri_column="uri", carry="n", fetch_timeout_s=3)
    return Labelled(folder, uris, expected, report)


def test_each_uri_is_a_row_with_its_image_or_why_there_is_none(labelled):
    assert (labelled.report.status, labelled.report.images) == ("done", len(labelled.uris))
    got = pq.read_table(labelled.folder / "out").to_pylist()
    assert [(row["uri"], row["n"], row["key"]) for row in got] == [
        (uri, n, str(n)) for n, uri in enumerate(labelled.uris)
    ]
    assert [row["status"] for row in got] == [status for status, _ in labelled.expected]
    errors = [row["error"] for row in got if row["status"] not in ("ok", "undecodable")]
    for error, expected in zip(errors, [error for _, error in labelled.expected if error], strict=True):
        assert error.startswith(expected)  # how many requests there were depends on the time left
    for row in got:
        if row["status"] == "ok":
            assert row["label"] == ("red", "green", "blue")[row["n"] % 3]
            assert row["content_sha256"] == sha256(IMAGES[row["n"] % 3]).hexdigest()
        else:
            assert (row["content_sha256"] is None) == (row["status"] != "undecodable")


def mend(world: tuple[WebServer, S3Server], uris: list[str]) -> int:
    """Let all be there; return how many failed that the web server can mend."""
    web, s3 = world
    web.mended = True
    for number, uri in enumerate(uris):
        if "/gone/" in uri:
            s3.put(uri.removeprefix(f"s3://{BUCKET}/"), IMAGES[number % 3])
    web.calls.clear()
    return sum(uri.startswith("http") for uri in uris[7::20])


@pytest.mark.skipif(find_spec("pipeline.relabel") is None, reason="there is no relabel")
def test_once_mended_relabel_fetches_those_again_and_no_others_and_all_are_ok(world, labelled, tiny_model):
    from pipeline.relabel.job import relabel

    web, _ = world
    failed = mend(world, labelled.uris)
    old, new = labelled.folder / "out", labelled.folder / "new"
    options = {"output": str(new), "model": str(tiny_model), "progress": "none", "allow_private_hosts": True}

    relabel(str(old), options, "status != 'ok'")

    got = pq.read_table(new).to_pylist()
    assert sum(web.calls.values()) == failed
    assert {row["status"] for row in got} == {"ok"}
    assert [row["uri"] for row in got] == labelled.uris
    assert [row["content_sha256"] for row in got] == [sha256(IMAGES[n % 3]).hexdigest() for n in range(len(got))]
    before = pq.read_table(old).to_pylist()
    assert [row for row in before if row["status"] == "ok"] == [
        {name: value for name, value in new_row.items() if name != "model"}
        for new_row, old_row in zip(got, before, strict=True)
        if old_row["status"] == "ok"
    ]


def test_both_shapes_write_the_same_bytes_and_new_manifests_are_appended(world, tiny_model, tmp_path):
    web, _ = world
    web.mended = True
    for number, image in enumerate(IMAGES):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(image)
    uris = [f"{row % 3}.jpg" if row % 2 else f"{web.url}/ok/{row}.jpg" for row in range(1300)]
    uris[5:8] = ["gone.jpg", "ftp://h/x", ""]
    write_manifest(tmp_path / "in" / "day-1.parquet", uris)
    options = {"uri_column": "uri", "allow_private_hosts": True, "format": "parquet", "append": True}

    fused = label(tmp_path / "in", tmp_path / "out", tiny_model, **options)
    staged = label(tmp_path / "in", tmp_path / "staged", tiny_model, **options, preprocess_cpus=1, actors="1")
    write_manifest(tmp_path / "in" / "day-2.parquet", uris[:10])
    appended = label(tmp_path / "in", tmp_path / "out", tiny_model, **options)

    assert (fused.images, fused.ok, fused.units) == (1300, 1297, 2)
    assert fused.errors == {"unreachable": 1, "unsupported": 1, "empty": 1}
    assert (appended.new_units, appended.images_now) == (1, 10)
    assert staged.status == "done"
    out = parts(tmp_path / "out")
    assert {name: out[name] for name in parts(tmp_path / "staged")} == parts(tmp_path / "staged")


def test_a_dry_run_a_limit_and_the_report_fetch_what_they_need_and_no_more(world, tiny_model, tmp_path):
    web, _ = world
    web.mended = True
    write_manifest(tmp_path / "in" / "m.parquet", [f"http://h.example/ok/{row}.jpg" for row in range(5000)])
    given = {"source": str(tmp_path / "in"), "output": str(tmp_path / "out"), "model": str(tiny_model), "top_k": 3}
    web.calls.clear()

    estimate = dry_run(LabelConfig(**given, uri_column="uri", progress="none"), 20)
    fetched = sum(web.calls.values())
    report = label(tmp_path / "in", tmp_path / "out", tiny_model, uri_column="uri", limit=30)

    assert (estimate.images_labelled, estimate.images_estimated, estimate.units) == (20, 5000, 5)
    assert fetched == 20
    assert (report.images, report.ok, sum(web.calls.values())) == (30, 30, 50)

    write_report(str(tmp_path / "out"), str(tmp_path / "report.html"))

    assert sum(web.calls.values()) <= 80
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg") == 30
