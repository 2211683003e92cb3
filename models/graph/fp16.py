"""float16 of a float32 model: twice the rate on a GPU, made at the first use, and compared before it is believed.

The model's own nodes compute in float16; the preprocessing before them and the softmax and top-k behind them stay
float32, and so do the inputs and outputs of the joined graph: a caller sees no difference.
"""

from __future__ import annotations

import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from models.device import Provider
from models.errors import SignatureError
from models.graph.cache import cached_graph, load_joined_graph
from models.graph.temperature import TEMPERATURE_VERSION, divide_logits
from models.session import build_session
from models.spec import ModelSpec, Precision

logger = logging.getLogger(__name__)

# Part of the cache's key: raise it when the conversion changes.
HALF_VERSION = 1
SAMPLES = Path(__file__).parents[1] / "samples" / "photos.tar"
# A probability may move so far; float16 has 11 bits, and rounds some fifty times on the way through a network.
TOLERANCE = 0.02
# Values of other images may be larger than those of the photographs.
LARGEST = 16_000.0
_OURS = "shardlabel_"


def load_graph(spec: ModelSpec, precision: Precision, path: Path, temperature: float = 1.0) -> bytes:
    """Return the joined graph of a precision; float16 is made of float32 where the model has no such file.

    Args:
        spec: The model's entry.
        precision: One that `spec` has, or fp16.
        path: The file of `spec.artifact(precision)`; already verified.
        temperature: Of a calibration: the logits are divided by it.

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
    # Here, since no start but the first needs them. The converter is ONNX Runtime's own; the onnx package has none.
    import onnx
    from onnxruntime.transformers import float16

    model = onnx.load_model_from_string(graph)
    before, own, after = _parts(model.graph)
    made = {name for node in own for name in node.output}
    used = {name for node in own for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in used]
    taken = sorted({name for node in before for name in node.output} & used)
    given = sorted({name for node in after for name in node.input} & made)
    # Apart from the rest: next to nodes that stay float32 the converter rounds to float16 and back, probabilities too.
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
    # Copied first: what is cleared below is what these are.
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*before, *half.node, *after)]
    initializers = [onnx.TensorProto.FromString(t.SerializeToString()) for t in (*kept, *half.initializer)]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    return bytes(model.SerializeToString())


def _parts(graph: Any) -> tuple[list[Any], list[Any], list[Any]]:  # noqa: ANN401 (untyped library)
    """Return the nodes of the preprocessing, of the model itself, and of what makes labels of its output."""
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

    The CPU's provider rounds the weights to float16, and computes in float32; so what a GPU would not survive, a value
    beyond float16's largest, is looked for in the float32 model.

    Raises:
        SignatureError: A probability differs by more than TOLERANCE, or a value comes near to float16's largest.
    """
    images = _photographs(spec)
    expected, found = (_probabilities(graph, images) for graph in (whole, half))
    worst = float(np.abs(found - expected).max())
    if not worst <= TOLERANCE:  # a NaN too
        raise SignatureError(
            f"{spec.name} in float16 differs from float32: a probability by {worst:.3f} on {len(images)} photographs, "
            f"where {TOLERANCE} is expected at most; use --precision fp32"
        )
    largest = _largest_value(whole, images)
    if not largest <= LARGEST:
        raise SignatureError(
            f"{spec.name} has values up to {largest:.0f} inside, where float16 ends at 65504; use --precision fp32"
        )
    logger.info("fp16 model=%s difference=%.5f largest=%.0f images=%d", spec.name, worst, largest, len(images))


def _largest_value(graph: bytes, images: np.ndarray) -> float:
    """Return the largest absolute value that any of the model's own nodes gives."""
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


def _photographs(spec: ModelSpec) -> np.ndarray:
    """Return the bundled photographs as the model wants them; uint8 of shape (n_images, crop, crop, 3)."""
    from models.decode.decode import DecodeMode, ImageLimits, decode_image

    limits, crops = ImageLimits(), []
    with tarfile.open(SAMPLES) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.endswith((".jpg", ".png", ".webp")):
                crops.append(decode_image(file.read(), spec.preprocessing, DecodeMode.EXACT, limits).pixels)
    return np.stack(crops)


def _probabilities(graph: bytes, images: np.ndarray) -> np.ndarray:
    session = build_session(graph, Provider.CPU, num_threads=1)
    values = [session.run(["probabilities"], {"images": image[None]})[0] for image in images]
    return np.concatenate(values)
