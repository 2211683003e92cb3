"""One real `shardlabel serve` of two models in two replicas: asked by Triton's own client, and changed under load."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.serve_process import serving
from tests.support.tiny_model import colour_jpeg
from tests.unit.serve.test_repository import own_model

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

CLIENTS_PYTHON = Path(__file__).parents[2] / ".venv-clients" / "bin" / "python"
OVER_GRPC = """
import sys, tritonclient.grpc as triton
client, model = triton.InferenceServerClient(sys.argv[1]), sys.argv[2]
client.unload_model(model)
print(client.is_model_ready(model))
client.load_model(model)
print(client.is_model_ready(model))
try:
    client.load_model("made-up")
except triton.InferenceServerException as err:
    print(err.status())
"""
BIG, OWN = "efficientnet-lite0", "colours"
JPEG = colour_jpeg("red", 64, 64)


class Asking:
    """Clients that ask one model all the time, each with a connection of its own."""

    def __init__(self, port: int, model: str, clients: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port, model)) for _ in range(clients)]

    def _ask(self, port: int, model: str) -> None:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=30)
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([JPEG], np.object_))
        while not self._stop.is_set():
            try:
                result = client.infer(model, [image])
            except Exception as err:  # noqa: BLE001 (whatever it is, it is a failed request)
                self.failures.append(str(err))
            else:
                version = result.get_response()["model_version"]
                self.answers[f"{version} {result.as_numpy('labels')[0][0].decode()}"] += 1
        client.close()

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_models_are_swapped_loaded_and_unloaded_under_load_and_no_request_fails(tmp_path):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs Linux' /proc")
    own = own_model(tmp_path / "own", OWN)
    options = ["--model", BIG, "--model", str(own), "--model-control", "explicit"]
    with serving(tmp_path, *options, "--min-replicas", "2", "--max-replicas", "2") as endpoint:
        client = triton.InferenceServerClient(f"127.0.0.1:{endpoint.port}", network_timeout=60)
        before = set(endpoint.replicas())

        with Asking(endpoint.port, BIG) as big:
            with Asking(endpoint.port, OWN) as colours:
                time.sleep(1)
                own_model(tmp_path / "own", OWN, -10.0, version="2")
                client.load_model(OWN)
                time.sleep(1)
            client.unload_model(OWN)
            there = [client.is_model_ready(OWN) for _ in range(8)]
            client.load_model(OWN)
            there += [client.is_model_ready(OWN) for _ in range(8)]
            time.sleep(0.5)

        if CLIENTS_PYTHON.is_file():
            done = subprocess.run(
                [CLIENTS_PYTHON, "-c", OVER_GRPC, f"127.0.0.1:{endpoint.grpc_port}", OWN],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.stdout.split() == ["False", "True", "StatusCode.NOT_FOUND"], done.stderr[-2000:]

        names = {(entry["name"], entry["state"]) for entry in client.get_model_repository_index()}
        metrics = [urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics").read() for _ in range(8)]
        after = set(endpoint.replicas())

    assert big.failures == colours.failures == []
    assert sum(big.answers.values()) > 20
    assert colours.answers["1 red"] > 0
    assert colours.answers["2 green"] + colours.answers["2 blue"] > 0
    assert there == [False] * 8 + [True] * 8
    assert names == {(name, "READY") for model in (BIG, OWN) for name in (model, f"{model}-tensor")}
    assert before == after
    assert [len(set(re.findall(rb'_in_flight{.*replica="(\w+)"', text))) for text in metrics] == [2] * 8
