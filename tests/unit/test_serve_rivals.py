"""The comparison of servers: what is sent, what is counted, and that nothing is left running."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from multipart import MultipartParser, parse_options_header

from benchmarks.serve_rivals.__main__ import ratios, summarise, table
from benchmarks.serve_rivals.contenders import Contender, contenders
from benchmarks.serve_rivals.labeller import KINDS, make_labeller
from benchmarks.serve_rivals.load import Bodies, as_body, read_images, run_load
from benchmarks.serve_rivals.running import running

ROOT = Path(__file__).parents[2]
BUSY_EVERY = 5

TINY_SERVER = """
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        answer = json.dumps(dict(label_ids=[7], child=child.pid)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def busy_server() -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that answers every fifth request with 503, and keeps what it was sent."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(503 if len(got) % BUSY_EVERY == 0 else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/classify", got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("tool", ["own", "wrk"])
def test_only_answers_with_200_count_for_the_rate(busy_server, tool):
    if tool == "wrk" and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed (apt-get install wrk)")
    url, got = busy_server
    images = [b"\xff\xd8 one", b"\xff\xd8 two \x00\n", b"\xff\xd8 three"]

    with Bodies(images, "raw") as bodies:
        load = run_load(url, bodies, clients=3, seconds=1, tool=tool)

    assert set(got) == set(images)
    assert load.tool == tool
    assert load.bad == pytest.approx(load.answers / BUSY_EVERY, abs=2)
    assert 0 < load.rate < load.answers
    assert 0 < load.p50_ms <= load.p99_ms < 1000


def test_a_body_of_each_kind_holds_the_image():
    image = bytes(range(256))

    raw, base64_json, form = (as_body(image, kind) for kind in ("raw", "base64", "form"))

    assert raw == (image, "image/jpeg")
    assert base64.b64decode(json.loads(base64_json[0])["image_data"]) == image
    (part,) = MultipartParser(io.BytesIO(form[0]), parse_options_header(form[1])[1]["boundary"])
    assert (part.name, part.raw) == ("image", image)


def test_images_are_jpegs():
    assert all(image.startswith(b"\xff\xd8") for image in read_images(10))


def test_both_labellers_cut_the_same_crops_and_see_the_same_in_them():
    ours, plain = map(make_labeller, KINDS)
    images = read_images(10)
    crops = [ours.decode(data) for data in images]

    apart = [np.abs(plain.decode(data).astype(int) - crop).mean() for data, crop in zip(images, crops, strict=True)]
    assert np.median(apart) < 6  # of 255: another filter; a crop shifted by 8 pixels is 19 apart
    for a, b in zip(ours.label(crops), plain.label(crops), strict=True):
        assert a["label_ids"] == b["label_ids"]
        assert a["scores"] == pytest.approx(b["scores"], abs=0.01)


def test_the_rivals_have_the_projects_own_versions_of_what_they_share():
    pinned = re.compile(r"^([a-z0-9-]+)==([^ ;\n]+)(?: ?; ?(.*))?$", re.MULTILINE)
    ours = {(name, version) for name, version, _ in pinned.findall((ROOT / "constraints.txt").read_text())}
    theirs = {
        (name, version)
        for name, version, _ in pinned.findall((ROOT / "benchmarks" / "requirements-serve.txt").read_text())
    }

    assert {name for name, _ in theirs - ours} == {"litserve", "bentoml", "mlcommons-loadgen"}
    assert {"numpy", "onnxruntime-gpu", "pillow", "simplejpeg", "uvicorn"} <= {name for name, _ in theirs & ours}


def test_medians_spreads_and_ratios_are_of_the_rounds():
    def start(rate: float) -> dict:
        return {
            "loads": {"8": {"rate": rate, "p50_ms": 1.0, "p99_ms": 2.0, "bad": 1}},
            "memory_mb": 10.0,
            "start_s": 1.0,
        }

    def bare(rate: float) -> dict:
        return {"loads": {"1": {"rate": 1.0, "p50_ms": 5.0}, "all": {"rate": rate, "p50_ms": 6.0}}}

    rounds = [
        {"shardlabel": start(ours), "other": start(theirs), "bare": bare(200.0)}
        for ours, theirs in ((100.0, 50.0), (120.0, 120.0), (90.0, 30.0))
    ]

    summary = summarise(rounds)

    assert summary["shardlabel"]["loads"]["8"]["rate"] == 100.0
    assert summary["shardlabel"]["loads"]["8"]["rate_spread"] == 0.3
    assert summary["shardlabel"]["loads"]["8"]["bad"] == 3
    assert ratios(rounds, "8") == {"other": 2.0, "bare": 0.5}
    assert "bare: 200.0" in table(summary, {"shardlabel": "Ours", "other": "Theirs"}, ["8"])


def _tiny(ids: str = "label_ids") -> Contender:
    return Contender(
        "tiny", "Tiny", (sys.executable, "-c", TINY_SERVER, "{port}"), "/classify", "raw", lambda answer: answer[ids]
    )


def test_a_server_is_ended_with_all_that_it_started():
    with Bodies([b"image"], "raw") as bodies:
        with running(_tiny(), bodies, [[7]]) as server:
            pids = server.processes()

        assert len(pids) == 2
        until = time.monotonic() + 5
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < until
            time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_server_that_gives_other_labels_is_not_measured():
    with (
        Bodies([b"image"], "raw") as bodies,
        pytest.raises(AssertionError, match="other labels"),
        running(_tiny(), bodies, [[8]]),
    ):
        pass


def test_every_contenders_command_can_be_filled_in():
    names = {"port": "1", "port2": "2", "port3": "3", "folder": "/f"}

    for contender in contenders(Path("/rivals")):
        assert all(part.format(**names) for part in contender.command)
        assert all(isinstance(value.format(**names), str) for value in contender.environment.values())
    assert len({contender.name for contender in contenders(Path("/rivals"))}) == 8
