"""What is watched ends its process where it takes too long, and only then."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from models.inference.predictions import Predictions
from pipeline.operators.watchdog import PATIENCE, TOO_LONG_EXIT, WatchedLabeller

HANGS = """
import sys, threading, time
from pipeline.operators.watchdog import Watchdog
watchdog = Watchdog(float(sys.argv[1]))
def quick():
    while True:
        with watchdog:
            time.sleep(0.01)
threading.Thread(target=quick, daemon=True).start()
with watchdog:
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("takes", "code"), [("60", TOO_LONG_EXIT), ("0", 0)])
def test_one_piece_that_takes_too_long_ends_the_process_whatever_others_do(takes, code):
    done = subprocess.run([sys.executable, "-c", HANGS, "3", takes], timeout=50, check=False)

    assert done.returncode == code


class Slow:
    """A labeller that takes a tenth of a second for an image."""

    def predict(self, images, *, probabilities=False, embedding=False):
        time.sleep(0.1 * len(images))
        return Predictions(np.zeros((len(images), 1), np.int32), np.zeros((len(images), 1), np.float32))


def test_a_slow_model_has_more_time_than_it_was_given():
    assert WatchedLabeller(Slow(), 8, batch_size=16, timeout_s=1.0).timeout_s >= PATIENCE * 16 * 0.1
    assert WatchedLabeller(Slow(), 8, batch_size=1, timeout_s=1000.0).timeout_s == 1000.0
