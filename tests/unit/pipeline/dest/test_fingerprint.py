"""What may differ between two runs of one DEST, and what may not: every setting is one or the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.calibration import Calibration, parse_calibration
from models.catalog import load_spec
from models.device import SimulatedDevice
from models.errors import ConfigError, ProviderUnavailableError
from models.inference.classifier import Device, DeviceChoice, Provider
from models.labels import label_texts
from models.spec import Artifact, Layout, ModelSpec, OutputKind, Precision
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.fingerprint import check_settings, choose_as_begun, fingerprint, rows_id
from pipeline.dest.plan import read_plan, write_plan
from pipeline.sources.source import Source
from pipeline.storage.storage import Storage, open_storage
from tests.support.calibrations import build_calibration

CPU = DeviceChoice(Provider.CPU, Precision.FP32, "")
GPU = DeviceChoice(Provider.CUDA, Precision.FP32, "")
# Another value of each setting. A new setting is in neither table, and fails the test until somebody decides.
CHANGES_ROWS: dict[str, Any] = {
    "format": SourceFormat.PARQUET, "top_k": 2, "embeddings": True, "image_column": "i", "key_column": "k",
    "carry": ("a",), "decode": "exact", "max_pixels": 9, "max_image_bytes": 9, "image_timeout_s": 9.0, "limit": 9,
    "part": "1/2",
    "labels": "all", "source": ("other",), "model": "efficientnet-lite0", "precision": "fp16", "device": Device.CUDA,
    "calibration": "calibration.json", "uri_column": "u", "allow_private_hosts": True,
}  # fmt: skip
# With the reason why no byte of a part depends on it.
CHANGES_NO_ROW: dict[str, tuple[Any, str]] = {
    "output": ("elsewhere", "where the same bytes go"),
    "batch_size": (7, "scores on a CPU do not depend on the batch; on a GPU it is compared"),
    "preprocess_cpus": (1, "how many do it"),
    "actors": ("1", "how many do it"),
    "gpus_per_actor": (0.5, "how many do it"),
    "cuda_graphs": (True, "the same kernels, recorded"),
    "shape": ("fused", "both shapes are made of the same stages"),
    "max_error_rate": (0.5, "decides the exit code, and when to stop"),
    "overwrite": (True, "whether there is anything to compare"),
    "append": (True, "which shards, and not what is written of one"),
    "missing_ok": (True, "whether there is anything to compare"),
    "connections_per_host": (1, "how fast, and what cannot be had may be had another time"),
    "requests_per_second": (1.0, "how fast"),
    "fetch_timeout_s": (1.0, "how long, and what cannot be had may be had another time"),
    "address": ("auto", "where it runs"),
    "shared_filesystem": (True, "where it runs"),
    "progress": ("none", "what is shown"),
}
SPEC_CHANGES: dict[str, Any] = {
    "name": "other",
    "input": {"layout": Layout.NHWC},
    "output": {"kind": OutputKind.PROBABILITIES},
    "embedding": "features",
    "preprocessing": {"crop": 7},
    "labels": "other.txt",
    "artifacts": {Precision.FP32: Artifact(file="x.onnx", sha256="0" * 64, size_bytes=1)},
}
SPEC_NO_CHANGE: dict[str, tuple[Any, str]] = {
    "version": ("2", "only shown"),
    "description": ("other", "only shown"),
    "licence": ("other", "only shown"),
    "homepage": ("https://localhost", "only shown"),
    "reported": ((), "only shown"),
    "reported_note": ("other", "only shown"),
    "folder": (None, "what is in its files is compared, not where they lie"),
}


@pytest.fixture
def spec(tiny_model: Path) -> ModelSpec:
    return load_spec(str(tiny_model))


def of(config: LabelConfig, spec: ModelSpec, choice: DeviceChoice = CPU) -> dict[str, Any]:
    """Return the fingerprint of a run whose settings these are, as `run` makes it, without looking for SOURCE."""
    if config.model != "tiny":
        spec = load_spec(config.model)
    if config.precision != "auto":
        choice = DeviceChoice(choice.provider, Precision(config.precision), "")
    if config.device is Device.CUDA:
        choice = DeviceChoice(Provider.CUDA, choice.precision, "")
    source = Source(open_storage(config.source[0]), config.format, lambda: iter(()))
    calibration = None if config.calibration is None else build_calibration(spec)
    return fingerprint(config, source, spec, choice, label_texts(spec, config.labels), calibration)


def settings(**changes: Any) -> LabelConfig:
    return LabelConfig.model_validate({"source": "in", "output": "out", "model": "tiny", **changes})


def test_every_setting_is_decided_upon():
    assert set(CHANGES_ROWS) | set(CHANGES_NO_ROW) == set(LabelConfig.model_fields)
    assert set(SPEC_CHANGES) | set(SPEC_NO_CHANGE) == set(ModelSpec.model_fields)
    assert not set(CHANGES_ROWS) & set(CHANGES_NO_ROW)


@pytest.mark.parametrize("name", CHANGES_ROWS)
def test_a_setting_that_changes_rows_is_compared(spec, name, tmp_path):
    before = of(settings(labels="name"), _with_synsets(spec, tmp_path))
    after = of(settings(**{name: CHANGES_ROWS[name]}), _with_synsets(spec, tmp_path))

    assert before != after


@pytest.mark.parametrize("name", CHANGES_NO_ROW)
def test_a_setting_that_changes_no_row_may_differ(spec, name):
    value, _ = CHANGES_NO_ROW[name]

    assert of(settings(), spec) == of(settings(**{name: value}), spec)


def _with_synsets(spec: ModelSpec, folder: Path) -> ModelSpec:
    (folder / "labels.txt").write_text("n00000001 red, scarlet\nn00000002 green\nn00000003 blue\n")
    (folder / "other.txt").write_text("n00000001 crimson\nn00000002 green\nn00000003 blue\n")
    return spec.model_copy(update={"labels": "labels.txt", "folder": folder})


@pytest.mark.parametrize("name", SPEC_CHANGES)
def test_what_the_graph_and_the_labels_are_made_of_is_compared_key_by_key(spec, name, tmp_path):
    spec = _with_synsets(spec, tmp_path)
    change = SPEC_CHANGES[name]
    before = getattr(spec, name)
    after = before.model_copy(update=change) if isinstance(change, dict) and name != "artifacts" else change
    dest = open_storage(str(tmp_path / "out"))
    plan = write_plan(dest, [], of(settings(), spec))

    with pytest.raises(ConfigError, match=r"was begun with .* and now it is .*give the same"):
        check_settings(plan, of(settings(), spec.model_copy(update={name: after})), dest)


def test_each_key_of_input_output_and_preprocessing_is_compared(spec):
    named = set(of(settings(), spec))

    for name in ("input", "output", "preprocessing"):
        keys = type(getattr(spec, name)).model_fields
        assert {f"{name}.{key}" for key in keys} <= named


@pytest.mark.parametrize("name", SPEC_NO_CHANGE)
def test_what_is_only_shown_of_an_entry_may_differ(spec, name, tmp_path):
    value, _ = SPEC_NO_CHANGE[name]
    if name == "folder":
        (tmp_path / spec.labels).write_bytes((spec.folder / spec.labels).read_bytes())
        value = tmp_path

    assert of(settings(), spec) == of(settings(), spec.model_copy(update={name: value}))


def test_other_lines_in_the_labels_file_are_a_difference_that_is_named(spec, tmp_path):
    spec = _with_synsets(spec, tmp_path)
    dest = open_storage(str(tmp_path / "out"))
    plan = write_plan(dest, [], of(settings(), spec))
    (tmp_path / "labels.txt").write_text("n00000001 crimson\nn00000002 green\nn00000003 blue\n")

    with pytest.raises(ConfigError, match="was begun with class names "):
        check_settings(plan, of(settings(), spec), dest)


def test_the_batch_of_a_gpu_is_compared_and_taken_from_the_plan(spec, tmp_path):
    assert of(settings(batch_size=128), spec, GPU) != of(settings(), spec, GPU)

    dest = begun(tmp_path, spec, settings(batch_size=128), GPU)
    config, choice = choose_as_begun(settings(), spec, dest, has_gpu=True)
    assert of(config, spec, choice) == read_plan(dest).settings


def begun(folder: Path, spec: ModelSpec, config: LabelConfig, choice: DeviceChoice) -> Storage:
    dest = open_storage(str(folder / "out"))
    write_plan(dest, [], of(config, spec, choice))
    return dest


@pytest.mark.parametrize("choice", [CPU, GPU, DeviceChoice(Provider.CPU, Precision.FP16, "")])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_auto_is_what_dest_was_begun_with_on_any_machine_that_has_it(spec, tmp_path, choice, has_gpu):
    dest = begun(tmp_path, spec, settings(), choice)

    if choice.provider is Provider.CUDA and not has_gpu:
        with pytest.raises(
            ProviderUnavailableError, match=r"out was begun with fp32 on CUDAExecutionProvider, so `auto`"
        ):
            choose_as_begun(settings(), spec, dest, has_gpu=has_gpu)
        return
    config, found = choose_as_begun(settings(), spec, dest, has_gpu=has_gpu)
    assert (found.provider, found.precision) == (choice.provider, choice.precision)
    assert found.reason.endswith("out was begun with")
    assert of(config, spec, found) == read_plan(dest).settings


def test_of_another_model_the_model_is_the_difference_and_not_a_precision_that_it_lacks(spec, tmp_path):
    dest = open_storage(str(tmp_path / "out"))
    write_plan(dest, [], of(settings(), spec, CPU) | {"precision": "int8"})
    other = spec.model_copy(update={"name": "other"})

    config, choice = choose_as_begun(settings(), other, dest, has_gpu=False)

    with pytest.raises(ConfigError, match=f"begun with model {spec.name}, and now it is other"):
        check_settings(read_plan(dest), of(config, other, choice), dest)


def test_overwrite_and_an_empty_dest_take_what_the_machine_has(spec, tmp_path):
    dest = begun(tmp_path, spec, settings(), GPU)

    assert choose_as_begun(settings(overwrite=True), spec, dest, has_gpu=False)[1].provider is Provider.CPU
    empty = open_storage(str(tmp_path / "empty"))
    assert choose_as_begun(settings(), spec, empty, has_gpu=True)[1].provider is Provider.CUDA


def test_another_device_or_precision_that_is_asked_for_is_a_difference(spec, tmp_path):
    dest = begun(tmp_path, spec, settings(), CPU)

    for change, message in (({"device": "cuda"}, "provider CPU"), ({"precision": "fp16"}, "precision fp32")):
        config, choice = choose_as_begun(settings(**change), spec, dest, has_gpu=True)
        with pytest.raises(ConfigError, match=f"begun with {message}"):
            check_settings(read_plan(dest), of(config, spec, choice), dest)


def test_made_up_labels_are_never_resumed_as_real_ones(spec, tmp_path):
    made_up = DeviceChoice(Provider.SIMULATED, Precision.FP32, "", 100.0)
    dest = begun(tmp_path, spec, settings(device=SimulatedDevice(100.0)), made_up)

    config, choice = choose_as_begun(settings(), spec, dest, has_gpu=False)
    with pytest.raises(ConfigError, match="begun with precision simulated"):
        check_settings(read_plan(dest), of(config, spec, choice), dest)


def test_the_same_rows_have_one_id_wherever_source_lies():
    settings = {"source": "/data/in", "model": "a", "top-k": 5}

    assert rows_id({**settings, "source": "s3://bucket/in"}) == rows_id(settings)
    assert rows_id({**settings, "top-k": 2}) != rows_id(settings)


def test_another_calibration_is_a_difference_and_one_that_is_laid_out_otherwise_is_none(spec, tmp_path):
    source = Source(open_storage("in"), SourceFormat.WEBDATASET, lambda: iter(()))
    names = label_texts(spec, settings().labels)

    def calibrated(calibration: Calibration | None) -> dict[str, Any]:
        return fingerprint(settings(), source, spec, CPU, names, calibration)

    first = build_calibration(spec)
    dest = open_storage(str(tmp_path / "out"))
    plan = write_plan(dest, [], calibrated(first))

    check_settings(plan, calibrated(parse_calibration(json.dumps(json.loads(first.to_text())).encode(), "")), dest)
    for other in (None, build_calibration(spec, temperature=2.1), build_calibration(spec, pooled=0.6)):
        with pytest.raises(ConfigError, match=r"was begun with calibration [0-9a-f]{64}, and now it is "):
            check_settings(plan, calibrated(other), dest)
    with pytest.raises(ConfigError, match="was begun with calibration null, and now it is "):
        check_settings(write_plan(open_storage(str(tmp_path / "b")), [], calibrated(None)), calibrated(first), dest)
