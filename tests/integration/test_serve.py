"""One real `shardlabel serve` on a local Ray, in the order of its life: asked, overloaded, robbed of a replica, stopped."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve_load import Load, sample_images
from tests.support.listening import beyond_loopback, listening
from tests.support.serve_process import ServeProcess, command, environment, serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
MODEL = "efficientnet-lite0"
SAMPLES = ROOT / "models" / "samples" / "photos.tar"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs Linux' /proc")
    folder = tmp_path_factory.mktemp("serve")
    options = ["--model", MODEL, "--min-replicas", "2", "--max-replicas", "2", "--max-queue", "64"]
    with serving(folder, *options, "--access-log", str(folder / "access.log")) as running:
        yield running


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    with tarfile.open(SAMPLES) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if not m.name.endswith(".cls")}


def ask(endpoint: ServeProcess, method: str, path: str, body: bytes = b"", **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def classify(endpoint: ServeProcess, body: bytes, kind: str, query: str = ""):
    status, _, content = ask(endpoint, "POST", f"/v1/classify{query}", body, content_type=kind)
    return status, json.loads(content)


def test_all_ways_in_give_the_same_answer(endpoint, photos):
    image = photos["chelsea.jpg"]
    form = b'--B\r\nContent-Disposition: form-data; name="image"; filename="c.jpg"\r\n\r\n' + image + b"\r\n--B--\r\n"
    in_json = json.dumps({"images": [{"b64": base64.b64encode(image).decode()}]}).encode()

    answers = [
        classify(endpoint, image, "image/jpeg"),
        classify(endpoint, image, "application/octet-stream"),
        classify(endpoint, form, "multipart/form-data; boundary=B"),
        classify(endpoint, in_json, "application/json"),
    ]

    assert answers[0][0] == 200
    assert all(answer == answers[0] for answer in answers)
    assert "cat" in answers[0][1]["results"][0]["labels"][0]["label"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_the_readme_asks_is_answered_as_the_readme_says(endpoint, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (start,) = re.findall(r"^    \$ \S*shardlabel serve (.*)$", readme, re.MULTILINE)
    (ask,) = re.findall(r"^    \$ (curl .*)$", readme, re.MULTILINE)
    told = json.loads(readme[readme.index(ask) + len(ask) :].partition("\n\n")[0])
    with tarfile.open(SAMPLES) as tar:
        tar.extract("chelsea.jpg", tmp_path, filter="data")

    there = ask.replace("127.0.0.1:8000", f"127.0.0.1:{endpoint.port}")
    asked = subprocess.run(shlex.split(there), cwd=tmp_path, capture_output=True, check=True)

    assert shlex.split(start, comments=True) == ["--model", MODEL], (
        "the endpoint of these tests is not the one that the README starts"
    )
    answer = json.loads(asked.stdout)
    (label,), (told_label,) = answer["results"][0].pop("labels"), told["results"][0].pop("labels")
    assert answer == told
    assert label.pop("score") == pytest.approx(told_label.pop("score"), abs=1e-5)
    assert label == told_label


def test_nothing_listens_beyond_loopback(endpoint):
    pids = {endpoint.process.pid, *endpoint.descendants()}

    assert {("127.0.0.1", endpoint.port), ("127.0.0.1", endpoint.grpc_port)} <= set(listening(pids))
    assert beyond_loopback(pids) == {}
    assert endpoint.is_live_over_grpc()


def test_labels_are_those_of_bulk(endpoint, photos, tmp_path):
    import pyarrow.parquet as pq

    dest = tmp_path / "labels"
    done = subprocess.run(
        [command()[0], "label", str(SAMPLES), "--output", str(dest), "--model", MODEL, "--progress", "none"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["key"]: row for row in pq.read_table(dest).to_pylist()}

    for name, image in photos.items():
        (result,) = classify(endpoint, image, "image/*")[1]["results"]
        row = rows[name.partition(".")[0]]
        assert [label["label_id"] for label in result["labels"]] == row["top_ids"]
        np.testing.assert_allclose([label["score"] for label in result["labels"]], row["top_scores"], atol=1e-5)
        assert (result["width"], result["height"]) == (row["width"], row["height"])


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status"),
    [
        ("POST", "/v1/classify", b"no image", "image/jpeg", 422),
        ("POST", "/v1/classify", b"", "image/jpeg", 400),
        ("POST", "/v1/classify", b"{", "application/json", 400),
        ("POST", "/v1/classify", b"%PDF-1.4 " + b"x" * 100, "image/jpeg", 415),
        ("POST", "/v1/classify", b"x", "text/plain", 415),
        ("POST", "/v1/classify", b"x" * (20 * 2**20 + 1), "image/jpeg", 413),
        ("GET", "/v1/classify", b"", "", 405),
        ("GET", "/made/up", b"", "", 404),
    ],
)
def test_what_is_wrong_has_its_status_and_json(endpoint, method, path, body, kind, status):
    got, headers, content = ask(endpoint, method, path, body, content_type=kind)

    assert got == status
    assert headers["content-type"] == "application/json"
    assert list(json.loads(content)) == ["error"]


def test_an_image_of_too_many_pixels_is_413(endpoint):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (20_000, 6_000)).save(buffer, "PNG")

    assert classify(endpoint, buffer.getvalue(), "image/png")[0] == 413


def test_what_is_no_http_is_400(endpoint):
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=10) as connection:
        connection.sendall(b"HELLO\x00 there\r\n\r\n")
        answer = connection.recv(65536)

    assert answer.split()[1] == b"400"


def test_metrics_of_all_replicas_come_from_any(endpoint, photos):
    for image in [*photos.values()] * 3:
        classify(endpoint, image, "image/jpeg")
    time.sleep(1.5)

    text = ask(endpoint, "GET", "/metrics")[2].decode()

    assert len({line.split('replica="')[1].split('"')[0] for line in text.splitlines() if "replica=" in line}) == 2
    for name in ("requests_total", "errors_total", "queue_depth", "batch_size_bucket", "images_total"):
        assert f"shardlabel_{name}{{" in text
    for stage in ("decode", "queue", "infer"):
        assert f'stage="{stage}"' in text


def test_a_second_endpoint_on_the_port_says_who_holds_it(endpoint):
    done = subprocess.run(
        command("--model", MODEL, "--port", str(endpoint.port)),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert f"port {endpoint.port} is in use by process" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_overload_is_answered_at_once_with_when_to_come_back(endpoint, photos):
    answers = []
    images = [photos["chelsea.jpg"], photos["rocket.jpg"]]

    def burst(number: int) -> None:
        began = time.monotonic()
        body = images[number % 2]
        answers.append(
            (*ask(endpoint, "POST", "/v1/classify", body, content_type="image/jpeg"), time.monotonic() - began)
        )

    threads = [threading.Thread(target=burst, args=(i,)) for i in range(250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 250
    assert {answer[0] for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer[0] == 503]
    assert all(int(headers["retry-after"]) >= 1 and "error" in json.loads(body) for _, headers, body, _ in refused)
    assert classify(endpoint, images[0], "image/jpeg")[0] == 200


def test_the_death_of_a_replica_fails_no_request(endpoint):
    images = sample_images(None)
    with Load("127.0.0.1", endpoint.port, images, 6) as load:
        time.sleep(1.5)
        os.kill(endpoint.replicas()[0], signal.SIGKILL)
        time.sleep(4)

    assert load.tally.failed == 0, load.tally.summary()
    assert set(load.tally.statuses) == {200}


def test_the_access_log_has_every_request(endpoint, photos):
    photo, name = next(iter(photos.values())), f"log-{time.time()}"
    sent = [
        ("POST", "/v1/classify", photo, "image/jpeg", 200),
        ("POST", "/v1/classify", b"no image", "image/jpeg", 422),
        ("POST", "/v1/classify", b"words", "text/plain", 415),
        ("GET", "/v1/classify", None, "", 405),
        ("GET", "/nothing", None, "", 404),
    ]
    for method, path, body, content_type, status in sent:
        assert ask(endpoint, method, path, body, content_type=content_type, x_request_id=name)[0] == status
    assert endpoint.is_live_over_grpc()

    def lines() -> list[dict]:
        log = (endpoint.log.parent / "access.log").read_text().splitlines()
        return [json.loads(line) for line in log]

    def are_all_noted() -> bool:
        return sum(line["request_id"] == name for line in lines()) == len(sent) and "gRPC" in {
            line["method"] for line in lines()
        }

    deadline = time.monotonic() + 10
    while not are_all_noted() and time.monotonic() < deadline:
        time.sleep(0.1)
    noted = [(line["method"], line["path"], line["status"]) for line in lines() if line["request_id"] == name]
    assert sorted(noted) == sorted((method, path, status) for method, path, _, _, status in sent)
    assert {(line["client"], line["status"]) for line in lines() if line["method"] == "gRPC"} == {("127.0.0.1", 200)}


def test_it_stops_without_failing_what_it_serves_and_leaves_nothing(endpoint):
    left = endpoint.descendants()
    load = Load("127.0.0.1", endpoint.port, sample_images(None), 6)
    with load:
        time.sleep(1.0)
        code = endpoint.stop()

    # Once it has stopped, nobody can connect: that is no request that failed.
    problems = {text: n for text, n in load.tally.problems.items() if "refused" not in text}
    assert code == 0, endpoint.output()
    assert not problems
    assert set(load.tally.statuses) == {200}
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/exe").exists() for pid in left):
        time.sleep(0.1)
    assert not [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left if Path(f"/proc/{pid}/exe").exists()]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(endpoint.url, timeout=5)
