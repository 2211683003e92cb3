"""A model of a few hundred bytes: it averages each colour channel, so that its labels can be computed by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE = 8
ENTRY = """
input = { name = "pixels", layout = "NCHW" }
output = { name = "scores", kind = "logits" }
embedding = "means"
labels = "colours.txt"

[preprocessing]
resize_shorter = 8
crop = 8
interpolation = "bilinear"
scale = 0.00392156862745098
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
"""
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def build_tiny_model(folder: Path) -> Path:
    """Write tiny.onnx, its entry and its labels; logits are ten times the mean of each channel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"], axis=1),
        helper.make_node("Mul", ["means", "ten"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(10), "ten")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "tiny.onnx"
    onnx.save(model, path)
    (folder / "tiny.toml").write_text(ENTRY)
    (folder / "colours.txt").write_text("red\ngreen\nblue\n")
    return path


def colour_jpeg(colour: str, width: int = 20, height: int = 16) -> bytes:
    """Return a JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), COLOURS[colour]).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar of the given members, in order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def colour_shards(folder: Path, *, shards: int = 3, samples: int = 5) -> list[Path]:
    """Write shards in which sample i is red, green or blue by i % 3."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    images = {name: colour_jpeg(name) for name in names}
    return [
        write_tar(
            folder / f"shard-{s:03d}.tar",
            {f"{s:03d}-{i:03d}.{ext}": content for i in range(samples)
             for ext, content in (("jpg", images[names[i % 3]]), ("cls", str(i % 3).encode()))},
        )
        for s in range(shards)
    ]  # fmt: skip
