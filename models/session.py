"""Build ONNX Runtime sessions: options of each provider, and no session that runs on another than was asked for."""

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

# Where the driver tells what GPUs there are, without CUDA.
_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a GPU is used.

    Attributes:
        batch_size: Images per run, always.
        slots: Batches on their way at a time: one copied in, one computed, one copied out.
        precision: fp16 lets TensorRT compute in it; CUDA computes in what the graph says.
        tf32: Whether float32 products may be rounded to 10 bits: faster, and labels differ from a CPU's sooner.
        cuda_graphs: Whether to record a batch's kernels once and replay them. One batch at a time then.
        workspace: Whether cuDNN may take memory as it likes for a convolution. Without it ONNX Runtime was up to
            2.9 times slower than PyTorch (onnxruntime issue 9162).
    """

    batch_size: int = 256
    slots: int = 3
    precision: Precision = Precision.FP32
    tf32: bool = False
    cuda_graphs: bool = False
    workspace: bool = True


def build_session(graph: bytes, provider: Provider, num_threads: int, gpu: GpuOptions | None = None) -> Any:  # noqa: ANN401 (untyped library)
    """Load a joined graph.

    Args:
        graph: See `models.graph.join`.
        provider: What must run it.
        num_threads: Of one run on a CPU.
        gpu: Options of a GPU.

    Raises:
        ProviderUnavailableError: ONNX Runtime has no such provider, or fell back to another.
        SignatureError: It cannot load the graph.
    """
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider not in available:
        raise ProviderUnavailableError(
            f"provider {provider.value} is not in this ONNX Runtime, which has {', '.join(available)}"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if provider is Provider.CPU:
        # ONNX Runtime would plan memory for each batch size that occurs, and keep all of it: 75 MB of ResNet18's float32
        # model, and not faster (docs/decisions.md).
        options.enable_mem_pattern = False
    # Threads that spin between batches take the core from the decoders beside them.
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
            f"provider {provider.value} was asked for, and ONNX Runtime fell back to {used}; "
            f"see that {_LIBRARIES[provider]} libraries of its build are installed, or use --device cpu"
        )
    return session


_LIBRARIES = {
    Provider.CPU: "the",
    Provider.CUDA: "the CUDA and cuDNN",
    Provider.TENSORRT: "the TensorRT, CUDA and cuDNN",
}


def providers(provider: Provider, gpu: GpuOptions, graph: bytes) -> list[tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's list of providers with their options; the first is what must run."""
    if provider is Provider.CPU:
        return [(provider.value, {})]
    cuda = {
        "cudnn_conv_use_max_workspace": str(int(gpu.workspace)),
        # Searching by trial may end differently in two actors, and then the last bits of scores differ too.
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
    # CUDA takes the nodes that TensorRT has no kernels for.
    return [(provider.value, tensorrt), (Provider.CUDA.value, cuda)]


def engine_folder(graph: bytes) -> Path:
    """Return where TensorRT's engines of a graph for this machine's GPU lie: one GPU's engine is wrong on another."""
    return home() / "tensorrt" / f"{hashlib.sha256(graph).hexdigest()[:16]}-{gpu_name()}"


def gpu_name() -> str:
    """Return the model of the first GPU as a file name, or "unknown"."""
    for path in sorted(_GPUS.glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if model:
            return re.sub(r"\W+", "-", model[1].strip()).lower()
    return "unknown"
