"""Convert a float32 model to float16: twice as fast on a GPU, made at the first use, and compared with float32 first.

The model's own nodes compute in float16. The preprocessing before them and the softmax and top-k after them stay
float32, and so do the inputs and outputs of the joined graph: a caller sees no difference.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from models.decode.mode import DecodeMode
from models.device import Provider
from models.errors import SignatureError
from models.graph.cache import cached_graph, load_joined_graph
from models.graph.temperature import TEMPERATURE_VERSION, divide_logits
from models.session import build_session
from models.spec import ModelSpec, Precision

logger = logging.getLogger(__name__)

# Part of the cache's key: raise it when the conversion changes.
HALF_VERSION = 1
# How far a probability may move; float16 has 11 bits, and rounds some fifty times on the way through a network.
TOLERANCE = 0.02
# Below float16's largest value, 65504, since other images may give larger values than the photographs.
LARGEST = 16_000.0
_OURS = "shardlabel_"


def load_graph(spec: ModelSpec, precision: Precision, path: Path, temperature: float = 1.0) -> bytes:
    """Return the joined graph of a precision; float16 is made from float32 if the model has no float16 file.

    Args:
        spec: The model's entry.
        precision: One that `spec` has, or fp16.
        path: The file of `spec.artifact(precision)`; already verified.
        temperature: A calibration's temperature; the logits are divided by it.

    Raises:
        ArtifactError: The file is not an ONNX model.
        SignatureError: It lacks the tensors that the entry names, or its labels change in float16.
    """
    artifact = spec.artifact(precision)
    if temperature != 1.0:
        made = f"fp16-{HALF_VERSION}-" if spec.is_made(precision) else ""
        variant = f"{made}temperature-{temperature!r}-{TEMPERATURE_VERSION}"
        return cached_graph(
            spec, artifact, variant, lambda: divide_logits(load_graph(spec, precision, path), temperature)
        )
    if not spec.is_made(precision):
        return load_joined_graph(spec, artifact, path)

    def make() -> bytes:
        whole = load_joined_graph(spec, artifact, path)
        half = to_half(whole)
        check_half(spec, whole, half)
        return half

    return cached_graph(spec, artifact, f"fp16-{HALF_VERSION}", make)


def to_half(graph: bytes) -> bytes:
    """Convert the model's own nodes of a joined graph; takes a second for 47 MB."""
    # Imported here: only the first start needs them. The converter is ONNX Runtime's; the onnx package has none.
    import onnx
    from onnxruntime.transformers import float16

    model = onnx.load_model_from_string(graph)
    before, own, after = _parts(model.graph)
    made = {name for node in own for name in node.output}
    used = {name for node in own for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in used]
    taken = sorted({name for node in before for name in node.output} & used)
    given = sorted({name for node in after for name in node.input} & made)
    # Converted apart: next to nodes that stay float32, the converter rounds to float16 and back, even probabilities.
    inner = onnx.helper.make_graph(
        own,
        "own",
        *([onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
          for names in (taken, given)),
        weights,
    )  # fmt: skip
    inner_model = onnx.helper.make_model(inner, opset_imports=model.opset_import, ir_version=model.ir_version)
    half = float16.convert_float_to_float16(inner_model, keep_io_types=True).graph
    kept = [weight for weight in model.graph.initializer if weight.name not in used]
    # Copied, since the lists that hold them are cleared below.
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*before, *half.node, *after)]
    initializers = [onnx.TensorProto.FromString(t.SerializeToString()) for t in (*kept, *half.initializer)]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    return bytes(model.SerializeToString())


def _parts(graph: Any) -> tuple[list[Any], list[Any], list[Any]]:  # noqa: ANN401 (untyped library)
    """Split the nodes into the preprocessing, the model itself, and those that turn its output into labels."""
    outputs = {output.name for output in graph.output}
    before: list[Any] = []
    own: list[Any] = []
    after: list[Any] = []
    for node in graph.node:
        names = {*node.input, *node.output}
        if outputs & names or any(name.startswith(_OURS) for name in names):
            (after if own else before).append(node)
        else:
            own.append(node)
    return before, own, after


def check_half(spec: ModelSpec, whole: bytes, half: bytes) -> None:
    """Compare both graphs on the bundled photographs, on the CPU.

    The CPU provider rounds the weights to float16 but computes in float32. So values beyond float16's largest, which
    would overflow on a GPU, are searched for in the float32 model.

    Raises:
        SignatureError: A probability differs by more than TOLERANCE, or a value exceeds LARGEST.
    """
    from models.decode.photographs import bundled_photographs  # loads decoders, which only the first use needs

    images = bundled_photographs(spec.preprocessing, DecodeMode.EXACT)
    expected, found = (_probabilities(graph, images) for graph in (whole, half))
    worst = float(np.abs(found - expected).max())
    if not worst <= TOLERANCE:  # also true for a NaN
        raise SignatureError(
            f"{spec.name} in float16 differs from float32: a probability by {worst:.3f} on {len(images)} photographs, "
            f"expected at most {TOLERANCE}; use --precision fp32"
        )
    largest = _largest_value(whole, images)
    if not largest <= LARGEST:
        raise SignatureError(
            f"{spec.name} has inner values up to {largest:.0f}, too near to float16's 65504; use --precision fp32"
        )
    logger.info("fp16 model=%s difference=%.5f largest=%.0f images=%d", spec.name, worst, largest, len(images))


def _largest_value(graph: bytes, images: np.ndarray) -> float:
    """Return the largest absolute value in the outputs of the model's own nodes."""
    import onnx

    model = onnx.load_model_from_string(graph)
    names = [name for node in _parts(model.graph)[1] for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = build_session(model.SerializeToString(), Provider.CPU, num_threads=1)
    largest = 0.0
    for image in images:
        for value in session.run(names, {"images": image[None]}):
            if value.dtype == np.float32 and value.size:
                largest = max(largest, float(np.abs(value).max()))
    return largest


def _probabilities(graph: bytes, images: np.ndarray) -> np.ndarray:
    session = build_session(graph, Provider.CPU, num_threads=1)
    values = [session.run(["probabilities"], {"images": image[None]})[0] for image in images]
    return np.concatenate(values)
