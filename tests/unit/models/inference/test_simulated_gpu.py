from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.catalog import load_spec
from models.device import Provider, SimulatedDevice, choose
from models.inference.simulated_gpu import SimulatedClassifier


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (60, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize("text", ["simulated", "simulated:", "simulated:0", "simulated:-1", "simulated:fast", "cuda:0"])
def test_a_simulated_device_without_a_rate_is_refused(text):
    with pytest.raises(ValueError, match="simulated:RATE"):
        SimulatedDevice.parse(text)


def test_labels_depend_on_the_pixels_alone_and_not_on_the_batch(images):
    classifier = SimulatedClassifier(1e9, num_classes=1000, top_k=5)

    whole = classifier.predict(images)
    again = SimulatedClassifier(1e9, num_classes=1000, top_k=5).predict(images[::-1])
    single = classifier.predict(images[7:8])

    assert (whole.label_ids == again.label_ids[::-1]).all()
    assert (whole.label_ids[7] == single.label_ids[0]).all()
    assert len(set(whole.label_ids[:, 0].tolist())) > 30
    assert all(len(set(row)) == 5 for row in whole.label_ids.tolist())
    assert (whole.label_ids.dtype, whole.scores.dtype) == (np.int32, np.float32)
    assert (np.diff(whole.scores) < 0).all()


def test_no_images_give_no_rows():
    found = SimulatedClassifier(100, num_classes=10, top_k=3).predict(np.empty((0, 224, 224, 3), np.uint8))

    assert found.label_ids.shape == found.scores.shape == (0, 3)


def test_probabilities_agree_with_the_labels(images):
    found = SimulatedClassifier(1e9, num_classes=10, top_k=3).predict(images, probabilities=True)

    best = np.argsort(-found.probabilities, axis=1)[:, :3]
    assert (best == found.label_ids).all()
    assert (np.take_along_axis(found.probabilities, best, axis=1) == found.scores).all()


def test_batches_queue_behind_one_another_and_take_no_core(images):
    classifier = SimulatedClassifier(300, num_classes=10, top_k=3)
    started, used = time.perf_counter(), time.process_time()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(classifier.predict, [images] * 3))

    assert 0.6 <= time.perf_counter() - started < 5
    assert time.process_time() - used < 0.3


def test_a_simulated_choice_needs_no_file_and_says_that_its_labels_are_made_up():
    choice = choose(load_spec("resnet18-v2"), SimulatedDevice(5000), "auto", has_gpu=False)

    assert (choice.provider, choice.rate, choice.arithmetic) == (Provider.SIMULATED, 5000, "simulated")
    assert "SIMULATED GPU of 5000 images/s" in choice.reason
