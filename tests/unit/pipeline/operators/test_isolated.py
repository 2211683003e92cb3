"""The isolated decoder lives through what the tests do to its child: kill it, stop it, feed it nonsense."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.errors import EmptyImageError, InputError, SignatureError, UndecodableImageError
from models.inference.classifier import Classifier
from models.spec import Precision
from pipeline.operators.isolated import IsolatedDecoder, IsolatedLabeller
from tests.support.hostile_models import ON_WHITE
from tests.support.tiny_model import SIDE, colour_jpeg


@pytest.fixture
def decoder(tiny_model):
    spec = load_spec(str(tiny_model))
    with IsolatedDecoder(spec.preprocessing, DecodeMode.EXACT, ImageLimits(), timeout_s=20.0) as decoder:
        decoder.decode(colour_jpeg("red"), np.empty((SIDE, SIDE, 3), np.uint8))  # starts the child
        yield decoder


def out() -> np.ndarray:
    return np.zeros((SIDE, SIDE, 3), np.uint8)


def test_it_decodes_as_the_process_itself_would(decoder, tiny_model):
    spec, data, pixels = load_spec(str(tiny_model)), colour_jpeg("green", 30, 21), out()

    image = decoder.decode(data, pixels)

    direct = decode_image(data, spec.preprocessing, DecodeMode.EXACT, ImageLimits())
    assert (image.width, image.height) == (30, 21)
    assert (pixels == direct.pixels).all()


@pytest.mark.parametrize(("data", "kind"), [(b"", EmptyImageError), (b"GIF89a nonsense", InputError)])
def test_what_is_wrong_with_an_image_comes_back_as_its_own_error(decoder, data, kind):
    with pytest.raises(kind):
        decoder.decode(data, out())


def test_a_child_that_dies_costs_one_image(decoder):
    child = decoder._child._process.pid
    os.kill(child, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (child, signal.SIGKILL)).start()

    with pytest.raises(UndecodableImageError, match=r"the decoder died \(signal SIGKILL\)"):
        decoder.decode(colour_jpeg("red"), out())

    assert decoder.decode(colour_jpeg("red"), out()).width == 20


def test_a_child_that_hangs_is_ended_in_time_and_costs_one_image(decoder):
    decoder._child.timeout_s = 0.3
    os.kill(decoder._child._process.pid, signal.SIGSTOP)
    started = time.perf_counter()

    with pytest.raises(UndecodableImageError, match=r"took longer than 0\.3 s"):
        decoder.decode(colour_jpeg("red"), out())

    assert time.perf_counter() - started < 5
    decoder._child.timeout_s = 20.0
    assert decoder.decode(colour_jpeg("red"), out()).width == 20


def test_a_request_that_cannot_be_sent_costs_one_image_and_waits_for_nobody(decoder, monkeypatch):
    def full(_: object) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    child = decoder._child._process
    threading.Timer(10.0, child.kill).start()  # so that this test ends
    monkeypatch.setattr(decoder._child._connection, "send", full)

    with pytest.raises(UndecodableImageError, match=r"the decoder died \(exit 0\)"):
        decoder.decode(colour_jpeg("red"), out())

    assert decoder.decode(colour_jpeg("red"), out()).width == 20


def test_a_module_of_the_users_own_project_is_not_what_a_child_imports(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "pipeline.py").touch()
    monkeypatch.chdir(tmp_path)
    spec = load_spec(str(tiny_model))

    with IsolatedDecoder(spec.preprocessing, DecodeMode.FAST, ImageLimits(), timeout_s=20.0) as decoder:
        assert decoder.decode(colour_jpeg("red"), out()).width > 0


def test_no_child_is_left_behind(tiny_model):
    spec = load_spec(str(tiny_model))
    with IsolatedDecoder(spec.preprocessing, DecodeMode.FAST, ImageLimits(), timeout_s=20.0) as decoder:
        decoder.decode(colour_jpeg("red"), out())
        child = decoder._child._process.pid

    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_start_of_a_child_does_not_count_as_the_time_of_an_image(tiny_model):
    spec = load_spec(str(tiny_model))
    # A process takes longer to start than a small image to decode, on any machine.
    with IsolatedDecoder(spec.preprocessing, DecodeMode.FAST, ImageLimits(), timeout_s=0.2) as decoder:
        decoder._child._start()
        decoder._child.timeout_s = 20.0
        assert decoder.decode(colour_jpeg("red"), out()).width == 20


def test_a_child_that_hangs_ends_with_the_process_that_started_it():
    code = (
        "import functools, os, threading, time; from pipeline.operators.isolated import Child\n"
        "child = Child(functools.partial(functools.partial, time.sleep), 60.0)\n"
        "threading.Thread(target=child.call, args=(1000,), daemon=True).start()\n"
        "while child._process is None: time.sleep(0.1)\n"
        "time.sleep(3); print(child._process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    deadline = time.monotonic() + 20
    while (path := Path(f"/proc/{int(done.stdout)}")).exists() and path.joinpath("stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child goes on"
        time.sleep(0.1)


@pytest.mark.parametrize("name", ON_WHITE)
def test_the_image_that_a_model_fails_on_is_found_and_the_others_are_labelled(tmp_path, name):
    load = partial(Classifier, load_spec(str(ON_WHITE[name](tmp_path))), precision=Precision.FP32, top_k=3)
    images = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    images[0, ..., 2], images[1], images[2, ..., 1] = 250, 255, 250  # blue, white, green

    with IsolatedLabeller(load, 5.0, embedding=False) as labeller:
        predictions, faults = labeller.predict(images)

    assert predictions.label_ids[:, 0].tolist() == [2, 1]
    assert list(faults) == [1]
    assert "the model" in faults[1]


def test_a_model_that_does_not_load_any_more_is_no_fault_of_the_images(tmp_path, tiny_model):
    load = partial(Classifier, load_spec(str(tiny_model)), precision=Precision.FP32, top_k=3, graph=b"damaged")

    with IsolatedLabeller(load, 5.0, embedding=False) as labeller, pytest.raises(SignatureError):
        labeller.predict(np.zeros((3, SIDE, SIDE, 3), np.uint8))
