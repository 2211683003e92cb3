"""Find out the entry of a model from its file: tensors, layout, batch, precision, and kind of output.

Runs in the child process of `models.sandbox.sandbox`. Tensor names are not interpreted: shapes tell the layout, and a
run over photographs tells logits from probabilities, and whether the batch axis is really dynamic or fixed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from models.decode.mode import DecodeMode
from models.decode.photographs import bundled_photographs
from models.errors import ConfigError, SignatureError
from models.graph.join import join_graph
from models.sandbox.ort import load_session, run_session
from models.sandbox.untrusted_onnx import has_external_data, read_model, walk_nodes
from models.spec import Artifact, InputType, Layout, ModelSpec, OutputKind, Precision, Preprocessing

INPUT_TYPES = {
    TensorProto.FLOAT: InputType.FLOAT32,
    TensorProto.FLOAT16: InputType.FLOAT16,
    TensorProto.UINT8: InputType.UINT8,
}
OUTPUT_TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
_QUANTISED = {"QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul"}
# The error of a sum of a thousand float16 probabilities.
SUM_TOLERANCE = 5e-3
# Largest difference of a score between an image alone and the same image in a batch.
BATCH_TOLERANCE = 1e-3
DEFAULT_SIDE = 224


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Examine a file, and write a copy that holds its weights, even if they lie in other files.

    Args:
        request: `path`; `out`, the path of the copy; the user's `input`, `output`, `layout`, `kind`, `channels` (each
            may be None); and `preprocessing`, whose `crop` and `resize_shorter` may be None.

    Returns:
        `input`, `output`, `preprocessing` as in an entry, `precision`, `classes`, and `remarks`.

    Raises:
        ArtifactError: The file is not an ONNX model, is damaged, or names files outside its folder.
        SignatureError: It is not an image classifier, or not one that can be run here.
        ConfigError: The file leaves something open, or contradicts what the user said.
    """
    path = Path(request["path"])
    model = read_model(path, external=True)
    name = path.name
    tensor_in = _input(name, model, request["input"])
    tensor_out = _output(name, model, request["output"])
    found = _found(name, tensor_in, request)
    spec = _spec(found, tensor_out.name, request)
    content = model.SerializeToString()
    remarks: list[str] = []
    batch = _dims(tensor_in)[0]
    kind, classes = _run(name, spec, content, batch, request["kind"], model, remarks)
    external = has_external_data(onnx.load(path, load_external_data=False))
    if batch is not None and _is_free(name, spec, content):
        content = _freed(model, tensor_in, tensor_out)
        load_session(name, content)
        remarks.append(f"its batch axis is {batch} in the file, but any number works: it is dynamic in the cached copy")
    elif batch is not None:
        found["input"]["batch"] = batch
        remarks.append(f"runs {batch} image{'s' * (batch > 1)} at a time: its batch axis is fixed")
    if not external and found["input"].get("batch") == batch:
        content = path.read_bytes()  # unchanged, so that the SHA-256 is that of the user's file
    Path(request["out"]).write_bytes(content)
    return {
        **found,
        "output": {"name": tensor_out.name, "kind": kind.value},
        "precision": _precision(model).value,
        "classes": classes,
        "remarks": remarks,
    }


def _input(name: str, model: onnx.ModelProto, wanted: str | None) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if wanted is not None:
        inputs = [one for one in inputs if one.name == wanted] or inputs
        if inputs and inputs[0].name != wanted:
            raise ConfigError(f"{name} has no input {wanted!r}; it has {', '.join(one.name for one in inputs)}")
    if len(inputs) != 1:
        have = ", ".join(one.name for one in inputs) or "none"
        raise SignatureError(f"{name} must have one input, an image; it has {have}")
    (tensor,) = inputs
    kind = tensor.type.tensor_type.elem_type
    if kind not in INPUT_TYPES:
        what = TensorProto.DataType.Name(kind).lower() if kind else "not a tensor"
        raise SignatureError(f"{name}: input {tensor.name!r} is {what}, expected float32, float16 or uint8")
    rank = len(_dims(tensor))
    if rank != 4:
        raise SignatureError(f"{name}: input {tensor.name!r} has {rank} axes, expected the 4 of a batch of images")
    return tensor


def _output(name: str, model: onnx.ModelProto, wanted: str | None) -> onnx.ValueInfoProto:
    outputs = list(model.graph.output)
    if wanted is not None:
        outputs = [one for one in outputs if one.name == wanted]
        if not outputs:
            have = ", ".join(one.name for one in model.graph.output)
            raise ConfigError(f"{name} has no output {wanted!r}; it has {have}")
    floats = [one for one in outputs if one.type.tensor_type.elem_type in OUTPUT_TYPES]
    if not floats:
        have = ", ".join(one.name for one in outputs) or "none"
        raise SignatureError(f"{name} has no output of scores (float32 or float16); it has {have}")
    if len(floats) > 1:
        raise ConfigError(f"{name} has several outputs ({', '.join(one.name for one in floats)}); choose by --output")
    return floats[0]


def _dims(tensor: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.type.tensor_type.shape.dim]


def _found(name: str, tensor: onnx.ValueInfoProto, request: dict[str, Any]) -> dict[str, Any]:
    """Return the entry's `input` and `preprocessing`, from the shapes in the file and the user's settings."""
    dims = _dims(tensor)
    layouts = [kind for kind, axis in ((Layout.NCHW, 1), (Layout.NHWC, 3)) if dims[axis] == 3]
    if request["layout"] is not None:
        layout = Layout(request["layout"])
        if layouts and layout not in layouts:
            raise ConfigError(f"{name}: input {tensor.name!r} has the shape {_shown(dims)}, which is not {layout}")
    elif len(layouts) == 1:
        layout = layouts[0]
    elif any(dims[axis] is None for axis in (1, 3)) or layouts:
        raise ConfigError(f"{name}: the shape {_shown(dims)} does not tell the layout; give --layout NCHW or NHWC")
    else:
        raise SignatureError(f"{name}: input {tensor.name!r} has the shape {_shown(dims)}, expected 3 channels")
    height, width = dims[2:] if layout is Layout.NCHW else dims[1:3]
    side = _side(name, height, width, request["preprocessing"]["crop"])
    preprocessing = {**request["preprocessing"], "crop": side}
    if preprocessing["resize_shorter"] is None:
        preprocessing["resize_shorter"] = round(side / request["crop_share"])
    found = {
        "name": tensor.name,
        "layout": layout.value,
        "dtype": INPUT_TYPES[tensor.type.tensor_type.elem_type].value,
        "channels": request["channels"] or "RGB",
    }
    return {"input": found, "preprocessing": preprocessing}


def _side(name: str, height: int | None, width: int | None, wanted: int | None) -> int:
    sides = {side for side in (height, width) if side is not None}
    if len(sides) > 1:
        raise SignatureError(f"{name} takes images of {width} x {height} pixels; only square inputs are supported")
    if sides and wanted is not None and wanted not in sides:
        raise ConfigError(f"{name} takes images of {sides.pop()} pixels a side, the preprocessing crops to {wanted}")
    return sides.pop() if sides else wanted or DEFAULT_SIDE


def _shown(dims: list[int | None]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def _spec(found: dict[str, Any], output: str, request: dict[str, Any]) -> ModelSpec:
    """Return an entry for the trial run, without a softmax after the output."""
    artifact = Artifact(file="model.onnx", sha256="0" * 64, size_bytes=1)
    try:
        preprocessing = Preprocessing.model_validate(found["preprocessing"])
        return ModelSpec(
            name="trial", description="", licence="", labels="", folder=Path(request["path"]).parent,
            input=found["input"], output={"name": output, "kind": OutputKind.PROBABILITIES},  # type: ignore[arg-type]
            embedding=request["embedding"], preprocessing=preprocessing, artifacts={Precision.FP32: artifact},
        )  # fmt: skip
    except ValueError as err:
        raise ConfigError(f"the preprocessing does not fit the model: {' '.join(str(err).split())[:300]}") from err


def _values(name: str, spec: ModelSpec, content: bytes, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Run the joined graph, in batches of the size that the entry says; return the model's own output."""
    session = load_session(name, join_graph(spec, content))
    size = spec.input.batch or len(images)
    rows = []
    for start in range(0, len(images), size):
        piece = np.resize(images[start : start + size], (size, *images.shape[1:]))
        feed = {"images": piece, "k": np.ones(1, np.int64)}
        (values,) = run_session(name, session, ["probabilities"], feed)
        if values.shape[0] != size:
            raise SignatureError(f"{name} returned {values.shape[0]} rows for {size} images")
        rows.append(values[: len(images[start : start + size])])
    return np.concatenate(rows)


def _run(
    name: str, spec: ModelSpec, content: bytes, batch: int | None, wanted: str | None, model: onnx.ModelProto,
    remarks: list[str],
) -> tuple[OutputKind, int]:  # fmt: skip
    """Run the photographs, and tell from the output the kind of scores and the number of classes."""
    images = bundled_photographs(spec.preprocessing, DecodeMode.FAST)
    values = _values(name, _with_batch(spec, batch), content, images)
    if values.ndim != 2 or values.shape[1] < 2:
        raise SignatureError(
            f"{name} returned values of shape {values.shape} for {len(images)} images, expected one score per class"
        )
    if not np.isfinite(values).all():
        raise SignatureError(f"{name} returned NaN or infinite values for photographs")
    if len(np.unique(values, axis=0)) == 1:
        remarks.append(
            "returned the same scores for every photograph: are its weights trained, and is the preprocessing right?"
        )
    return _kind(name, values, wanted, model, spec.output.name), int(values.shape[1])


def _kind(
    name: str, values: npt.NDArray[np.float32], wanted: str | None, model: onnx.ModelProto, output: str
) -> OutputKind:
    within = bool((values >= 0).all() and (values <= 1 + SUM_TOLERANCE).all())
    is_sum_one = bool(np.abs(values.sum(axis=1) - 1).max() <= SUM_TOLERANCE)
    if wanted is not None:
        if wanted == OutputKind.PROBABILITIES and not (within and is_sum_one):
            raise ConfigError(f"--kind probabilities: the scores of {name} for photographs do not add up to 1")
        return OutputKind(wanted)
    if within and is_sum_one:
        return OutputKind.PROBABILITIES
    last = next((node for node, _ in walk_nodes(model) if output in node.output), None)
    if within and last is not None and last.op_type == "Sigmoid":
        raise SignatureError(
            f"{name} ends in a Sigmoid, which scores each class independently, but only one label per image is "
            "supported; give --kind logits to rank its scores anyway"
        )
    return OutputKind.LOGITS


def _with_batch(spec: ModelSpec, batch: int | None) -> ModelSpec:
    return spec.model_copy(update={"input": spec.input.model_copy(update={"batch": batch})})


def _is_free(name: str, spec: ModelSpec, content: bytes) -> bool:
    """Tell whether a model with a fixed batch axis in its file gives the same scores for any number of images."""
    images = bundled_photographs(spec.preprocessing, DecodeMode.FAST)
    try:
        together = _values(name, spec, content, images[:3])
        alone = np.concatenate([_values(name, spec, content, images[row : row + 1]) for row in range(3)])
    except SignatureError:
        return False
    scale = max(1.0, float(np.abs(alone).max()))
    return bool(np.allclose(together, alone, rtol=BATCH_TOLERANCE, atol=BATCH_TOLERANCE * scale))


def _freed(model: onnx.ModelProto, *tensors: onnx.ValueInfoProto) -> bytes:
    """Return the model with its batch axis declared dynamic."""
    for stated in tensors:
        stated.type.tensor_type.shape.dim[0].Clear()
        stated.type.tensor_type.shape.dim[0].dim_param = "n_images"
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def _precision(model: onnx.ModelProto) -> Precision:
    if any(node.op_type in _QUANTISED for node, _ in walk_nodes(model)):
        return Precision.INT8
    sizes: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    return Precision.FP16 if sizes[TensorProto.FLOAT16] > sizes[TensorProto.FLOAT] else Precision.FP32
