"""Read an untrusted model file: with limits, no paths outside its folder, and no operators of other libraries.

It is parsed in a child process (`models.sandbox.sandbox`). The checks here are those that ONNX Runtime lacks or makes
too late: it reads external data from any path that the file names, and allocates gigabytes for a constant that three
numbers describe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, numpy_helper

from models.errors import ArtifactError, SignatureError

# The limit of a protobuf message, which a joined graph is, less 1 MiB.
MAX_MODEL_BYTES = 2**31 - 2**20
# The largest published classifiers have a few thousand.
MAX_NODES = 50_000
MAX_DEPTH = 8
MAX_RANK = 16
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
# They load other files, or run code that another program compiled.
FORBIDDEN_OPERATORS = frozenset({"EPContext", "SnpeQnn", "PyOp"})
_ELSE = {b"<!doc": "an HTML page", b"<html": "an HTML page", b"version https://git-lfs": "a Git LFS pointer",
         b"PK\x03\x04": "a zip archive, as PyTorch and Keras write", b"\x89HDF": "an HDF5 file, as Keras writes",
         b"\x80\x02": "a Python pickle"}  # fmt: skip


def read_model(path: Path, *, external: bool = False) -> onnx.ModelProto:
    """Read and check a file; the data of external tensors become part of the model.

    Args:
        path: The .onnx file.
        external: Whether its tensors may lie in other files in the same folder.

    Raises:
        ArtifactError: It is too large, not an ONNX model, damaged, or names files that it may not.
        SignatureError: It uses operators that are not allowed, or has too many nodes or nested graphs.
    """
    size = path.stat().st_size
    if size == 0:
        raise ArtifactError(f"{path.name} is empty")
    _check_size(path.name, size)
    content = path.read_bytes()
    for head, what in _ELSE.items():
        if content[:512].lstrip().lower().startswith(head.lower()):
            raise ArtifactError(f"{path.name} is {what}, not an ONNX model")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as err:
        raise ArtifactError(f"{path.name} is not an ONNX model, or is truncated: {first_line(err)}") from err
    _check_model(path.name, model)
    _load_external(path, model, size, allowed=external)
    return model


def _check_size(name: str, size: int) -> None:
    if size > MAX_MODEL_BYTES:
        raise ArtifactError(
            f"{name} has {size / 1e9:.1f} GB with its data, the limit is {MAX_MODEL_BYTES / 1e9:.1f} GB"
        )


def _check_model(name: str, model: onnx.ModelProto) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise ArtifactError(f"{name} is not an ONNX model, or is truncated: it has no graph")
    if not model.opset_import:
        raise ArtifactError(f"{name} is damaged: it names no opset, so its operators are undefined")
    functions = {function.domain for function in model.functions}
    _check_functions(name, model)
    for count, (node, depth) in enumerate(walk_nodes(model), start=1):
        if count > MAX_NODES:
            raise SignatureError(f"{name} has more than {MAX_NODES} nodes")
        if depth > MAX_DEPTH:
            raise SignatureError(f"{name} has graphs nested more than {MAX_DEPTH} deep")
        if node.domain not in DOMAINS | functions:
            raise SignatureError(
                f"{name} needs operators of another library, {node.domain!r} ({node.op_type}); only the operators of "
                "ONNX and ONNX Runtime are allowed"
            )
        if node.op_type in FORBIDDEN_OPERATORS:
            raise SignatureError(f"{name} has the operator {node.op_type}, which loads other files; it is not allowed")
    for tensor in walk_tensors(model):
        _check_tensor(name, tensor)


def _check_functions(name: str, model: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, directly or through others: ONNX Runtime would inline them for ever."""
    key = {(f.domain, f.name): f for f in model.functions}
    calls = {k: {(n.domain, n.op_type) for n in f.node} & key.keys() for k, f in key.items()}
    while calls:
        leaves = {k for k, used in calls.items() if not used & calls.keys()}
        if not leaves:
            raise SignatureError(f"{name} has functions that call themselves: {next(iter(calls))[1]}")
        for leaf in leaves:
            del calls[leaf]


def walk_nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Yield every node of a model, including functions and nested graphs, with its depth."""
    waiting: list[tuple[Iterable[onnx.NodeProto], int]] = [(model.graph.node, 0)]
    waiting += [(function.node, 0) for function in model.functions]
    while waiting:
        nodes, depth = waiting.pop()
        for node in nodes:
            yield node, depth
            waiting += [(graph.node, depth + 1) for graph in _graphs(node)]


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model: weights, including sparse ones, and attributes of nodes."""
    graphs = [model.graph]
    for node, _ in walk_nodes(model):
        graphs += _graphs(node)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _check_tensor(name: str, tensor: TensorProto) -> None:
    """Refuse a weight whose shape and data do not fit each other."""
    if len(tensor.dims) > MAX_RANK or any(dim < 0 for dim in tensor.dims):
        raise ArtifactError(f"{name}: weight {tensor.name!r} has the invalid shape {list(tensor.dims)[:20]}")
    if tensor.data_location == TensorProto.EXTERNAL or not tensor.HasField("raw_data"):
        elements = math.prod(tensor.dims)
        if elements > MAX_MODEL_BYTES:
            raise ArtifactError(
                f"{name}: weight {tensor.name!r} claims {elements:.2g} values, more than a file can hold"
            )
        return
    try:
        numpy_helper.to_array(tensor)
    except Exception as err:
        raise ArtifactError(
            f"{name}: weight {tensor.name!r} of shape {list(tensor.dims)} has {len(tensor.raw_data)} bytes of data, "
            f"which do not fit: {first_line(err)}"
        ) from err


def _load_external(path: Path, model: onnx.ModelProto, size: int, *, allowed: bool) -> None:
    """Read tensors that lie in other files in the model's folder; other folders are refused."""
    for tensor in walk_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        values = {entry.key: entry.value for entry in tensor.external_data}
        location = values.get("location", "")
        if not allowed:
            raise ArtifactError(
                f"{path.name} keeps weights in another file, {location!r}; `shardlabel models add` merges them into one"
            )
        size += _read_external(path, tensor, location, values, size)


def _read_external(path: Path, tensor: TensorProto, location: str, values: dict[str, str], size: int) -> int:
    where = f"{path.name}: data of {tensor.name!r}, {location!r},"
    parts = PurePosixPath(location.replace("\\", "/"))
    if not location or parts.is_absolute() or ".." in parts.parts or ":" in location:
        raise ArtifactError(f"{where} must lie in the model's folder")
    file = path.parent / location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ArtifactError(f"{where} is a link to outside the model's folder")
    if not file.is_file():
        raise ArtifactError(f"{where} is missing from the model's folder")
    try:
        offset = int(values.get("offset", "0"))
        length = int(values.get("length", str(file.stat().st_size - offset)))
    except ValueError as err:
        raise ArtifactError(f"{where} has an offset or length that is not a number: {values}") from err
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ArtifactError(f"{where} has {file.stat().st_size} bytes, expected at least {offset + length}")
    _check_size(path.name, size + length)
    with file.open("rb") as data:
        data.seek(offset)
        tensor.raw_data = data.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    _check_tensor(path.name, tensor)
    return length


def has_external_data(model: onnx.ModelProto) -> bool:
    """Tell whether some of a model's weights lie in other files."""
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in walk_tensors(model))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)


def first_line(err: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
