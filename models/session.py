"""Build ONNX Runtime sessions with each provider's options; a session that would run on another provider is refused."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.device import Provider
from models.errors import ProviderUnavailableError, SignatureError
from models.malloc import give_back_freed_memory
from models.spec import Precision
from models.store.files import home

# Where the driver lists the GPUs, readable without CUDA.
_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a GPU is used.

    Attributes:
        batch_size: Images of every run.
        slots: Batches in flight at a time: one copied in, one computed, one copied out.
        precision: fp16 lets TensorRT compute in float16; CUDA computes in the types of the graph.
        tf32: Whether float32 products may be rounded to 10 bits: faster, but more labels differ from a CPU's.
        cuda_graphs: Whether to record a batch's kernels once and replay them. Then only one batch is in flight.
        workspace: Whether cuDNN may use unlimited memory for a convolution. Without it ONNX Runtime was up to
            2.9 times slower than PyTorch (onnxruntime issue 9162).
    """

    batch_size: int = 256
    slots: int = 3
    precision: Precision = Precision.FP32
    tf32: bool = False
    cuda_graphs: bool = False
    workspace: bool = True


def build_session(graph: bytes, provider: Provider, num_threads: int, gpu: GpuOptions | None = None) -> Any:  # noqa: ANN401 (untyped library)
    """Load a graph.

    Args:
        graph: The bytes of a joined graph (see `models.graph.join`), or of a model file.
        provider: The execution provider that must run it.
        num_threads: Threads of one run on a CPU.
        gpu: Options for a GPU.

    Raises:
        ProviderUnavailableError: ONNX Runtime has no such provider, or fell back to another.
        SignatureError: ONNX Runtime cannot load the graph.
    """
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider not in available:
        raise ProviderUnavailableError(
            f"this build of ONNX Runtime has no {provider.value}, only {', '.join(available)}; use --device cpu, or "
            "install the build for this device"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if provider is Provider.CPU:
        # Otherwise ONNX Runtime plans memory for each batch size and keeps it: 75 MB for ResNet18's float32 model, and
        # no faster (docs/decisions.md).
        options.enable_mem_pattern = False
    # Threads that spin between batches take CPU time from the decoders on the same core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider is not Provider.CPU:
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(graph, options, providers=providers(provider, gpu or GpuOptions(), graph))
    except Exception as err:  # ONNX Runtime's errors share no base but Exception
        raise SignatureError(f"ONNX Runtime cannot load this model: {err}") from err
    give_back_freed_memory()
    used = session.get_providers()[0]
    if used != provider.value:
        raise ProviderUnavailableError(
            f"provider {provider.value} was asked for, but ONNX Runtime fell back to {used}; "
            f"install {_LIBRARIES[provider]} libraries that its build needs, or use --device cpu"
        )
    return session


_LIBRARIES = {
    Provider.CPU: "the",
    Provider.CUDA: "the CUDA and cuDNN",
    Provider.TENSORRT: "the TensorRT, CUDA and cuDNN",
}


def providers(provider: Provider, gpu: GpuOptions, graph: bytes) -> list[tuple[str, dict[str, str]]]:
    """Return the list of providers for ONNX Runtime with their options; the first must run the graph."""
    if provider is Provider.CPU:
        return [(provider.value, {})]
    cuda = {
        "cudnn_conv_use_max_workspace": str(int(gpu.workspace)),
        # A search by trial runs may choose different kernels in two actors; then the last bits of scores differ.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(gpu.tf32)),
        "enable_cuda_graph": str(int(gpu.cuda_graphs)),
    }
    if provider is Provider.CUDA:
        return [(provider.value, cuda)]
    cache = engine_folder(graph)
    cache.mkdir(parents=True, exist_ok=True)
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": str(int(gpu.precision is Precision.FP16)),
        "trt_cuda_graph_enable": str(int(gpu.cuda_graphs)),
    }
    # CUDA runs the nodes that TensorRT has no kernels for.
    return [(provider.value, tensorrt), (Provider.CUDA.value, cuda)]


def engine_folder(graph: bytes) -> Path:
    """Return the folder of TensorRT's engines for a graph on this machine's GPU; an engine fits one GPU model only."""
    return home() / "tensorrt" / f"{hashlib.sha256(graph).hexdigest()[:16]}-{gpu_name()}"


def gpu_name() -> str:
    """Return the model of the first GPU as a file name, or "unknown"."""
    for path in sorted(_GPUS.glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if model:
            return re.sub(r"\W+", "-", model[1].strip()).lower()
    return "unknown"
