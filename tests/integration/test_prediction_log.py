"""A real `shardlabel serve --host --prediction-log`, stopped; then `report`, `verify` and `diff` on what it left."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dest.verify import verify_dest
from pipeline.diff.compare import compare
from pipeline.report.findings import gather
from tests.support.labelled_dest import label_without_ray
from tests.support.listening import listening
from tests.support.made_up_log import add_part
from tests.support.serve_process import ServeProcess, serving

pytestmark = [pytest.mark.timeout(300)]

MODEL = "efficientnet-lite0"
HOST = "127.0.0.2"
SAMPLES = Path(__file__).parents[2] / "models" / "samples" / "photos.tar"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[ServeProcess]:
    """Start one endpoint for the tests below, the last of which stops it."""
    folder = tmp_path_factory.mktemp("serve")
    options = ["--model", MODEL, "--host", HOST, "--max-replicas", "1", "--prediction-log", str(folder / "log")]
    with serving(folder, *options) as running:
        yield running


def elsewhere(running: ServeProcess) -> set[tuple[str, int]]:
    places = listening({running.process.pid, *running.descendants()})
    return {place for place in places if place[0] != "127.0.0.1"}


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_another_address_is_listened_on_by_what_clients_ask_alone(endpoint):
    wanted = {(HOST, endpoint.port), (HOST, endpoint.grpc_port)}
    # While Ray has HAProxy read its configuration anew, another process takes the place of the one that was looked up.
    deadline = time.monotonic() + 10
    while (found := elsewhere(endpoint)) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)

    assert found == wanted


def ask(endpoint: ServeProcess, image: bytes, request_id: str) -> int:
    headers = {"Content-Type": "image/jpeg", "X-Request-Id": request_id}
    with contextlib.suppress(urllib.error.HTTPError):
        return urllib.request.urlopen(
            urllib.request.Request(f"http://{HOST}:{endpoint.port}/v1/classify?top_k=1", image, headers)
        ).status
    return 0


def shardlabel(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).parent / "shardlabel"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.ray
def test_what_was_answered_is_there_after_the_end_and_is_read_as_an_output(endpoint, tmp_path):
    with tarfile.open(SAMPLES) as tar:
        photos = {m.name: tar.extractfile(m).read() for m in tar if not m.name.endswith(".cls")}
    assert [ask(endpoint, image, name) for name, image in photos.items()] == [200] * len(photos)
    ask(endpoint, photos["chelsea.jpg"], "again")
    ask(endpoint, photos["chelsea.jpg"][:2000], "cut")
    assert endpoint.stop() == 0

    log = endpoint.log.parent / "log"
    rows = [row for part in sorted(log.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    keys = {name: sha256(image).hexdigest() for name, image in photos.items()}
    assert {row["request_id"]: row["key"] for row in rows} == {
        **keys, "again": keys["chelsea.jpg"], "cut": sha256(photos["chelsea.jpg"][:2000]).hexdigest(),
    }  # fmt: skip
    assert {row["request_id"]: row["status"] for row in rows} == {
        **dict.fromkeys(keys, "ok"),
        "again": "ok",
        "cut": "undecodable",
    }

    reported = shardlabel("report", str(log), "--output", str(tmp_path / "log.html"))
    assert f"{len(rows)} images: {len(rows) - 1} ok, 1 undecodable" in reported.stdout
    assert shardlabel("verify", str(log)).returncode == 0

    # The same images in bulk, from a list of them.
    for name, image in photos.items():
        (tmp_path / name).write_bytes(image)
    pq.write_table(pa.table({"uri": [str(tmp_path / name) for name in photos]}), tmp_path / "list.parquet")
    label_without_ray(tmp_path / "list.parquet", tmp_path / "bulk", MODEL, uri_column="uri", format="parquet", top_k=5)
    found = json.loads(shardlabel("diff", str(tmp_path / "bulk"), str(log), "--json").stdout.splitlines()[-1])
    assert (found["both"], found["agreement"], found["repeats_new"]) == (len(photos), 100.0, 1)
    assert found["score_shift"]["mean_abs"] < 1e-5

    refused = shardlabel("label", str(SAMPLES), "--model", MODEL, "--output", str(log))
    assert refused.returncode == 2
    assert "is a prediction log of `serve`" in refused.stderr


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_log_in_a_bucket_is_written_and_read_as_one_on_a_disk(place, tmp_path):
    add_part(place.uri, [("a", 0), ("b", 1)])
    dest = add_part(place.uri, [("a", 1)])
    add_part(tmp_path, [("a", 2), ("b", 1)])

    assert verify_dest(dest).ok
    assert gather(dest).sentence() == "3 images: 3 ok; 2 of 2 units are finished"
    found = compare(place.uri, str(tmp_path)).report
    assert (found.both, found.same_label, found.repeats_old) == (2, 1, 1)
    assert [(flip.old_label, flip.new_label) for flip in found.flips] == [("dog", "owl")]
