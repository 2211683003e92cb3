from __future__ import annotations

import pytest

from models.catalog import load_spec
from models.device import Device, DeviceChoice, Provider, choose
from models.errors import ProviderUnavailableError
from models.inference.pinned_memory import PinnedBuffer
from models.session import GpuOptions, gpu_name, providers
from models.spec import Precision


def test_cuda_is_given_the_options_that_convolutions_need():
    [(name, options)] = providers(Provider.CUDA, GpuOptions(tf32=False, cuda_graphs=True), b"")

    assert name == "CUDAExecutionProvider"
    assert options["cudnn_conv_use_max_workspace"] == "1"
    assert options["enable_cuda_graph"] == "1"
    assert options["use_tf32"] == "0"


def test_tensorrt_keeps_its_engines_by_graph_and_gpu(own_home):
    first, second = (
        providers(Provider.TENSORRT, GpuOptions(precision=precision), graph)
        for precision, graph in ((Precision.FP16, b"one"), (Precision.FP32, b"two"))
    )

    assert [name for name, _ in first] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    folder = first[0][1]["trt_engine_cache_path"]
    assert folder.startswith(str(own_home / "tensorrt"))
    assert folder.endswith(gpu_name())
    assert folder != second[0][1]["trt_engine_cache_path"]
    assert (first[0][1]["trt_fp16_enable"], second[0][1]["trt_fp16_enable"]) == ("1", "0")


def test_a_gpu_is_named_by_what_its_driver_says(tmp_path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 1\n")
    monkeypatch.setattr("models.session._GPUS", tmp_path)

    assert gpu_name() == "nvidia-h200"


def test_memory_that_cannot_be_pinned_is_plain_memory(caplog, monkeypatch):
    monkeypatch.setattr("models.inference.pinned_memory.load_runtime", lambda: None)

    buffer = PinnedBuffer((2, 3), pin=True)

    buffer.array[:] = 7
    assert (buffer.array.sum(), buffer.is_pinned) == (42, False)
    assert "cannot pin 6 bytes" in caplog.text
    buffer.close()


def test_auto_on_a_gpu_makes_float16_of_float32():
    spec = load_spec("resnet18-v2")

    choice = choose(spec, Device.AUTO, "auto", has_gpu=True)

    assert (choice.provider, choice.precision) == (Provider.CUDA, Precision.FP16)
    assert spec.artifact(Precision.FP16) == spec.artifact(Precision.FP32)
    assert Precision.FP16 not in spec.artifacts


def test_auto_on_a_cpu_makes_nothing():
    choice = choose(load_spec("resnet18-v2"), Device.AUTO, "auto", has_gpu=False)

    assert isinstance(choice, DeviceChoice)
    assert choice.precision is not Precision.FP16


def test_tensorrt_without_a_gpu_is_refused():
    with pytest.raises(ProviderUnavailableError, match="--device tensorrt needs a GPU, but none was found"):
        choose(load_spec("resnet18-v2"), Device.TENSORRT, "auto", has_gpu=False)
