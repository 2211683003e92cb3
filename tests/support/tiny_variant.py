"""Variants of the tiny model: the same classes with other scores, or with reversed labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def tiny_variant(model: Path, folder: Path, factor: float) -> Path:
    """Write a copy whose logits are `factor` times the mean of each channel; below 0 the weakest channel wins."""
    folder.mkdir(exist_ok=True)
    graph = onnx.load(model)
    (constant,) = graph.graph.initializer
    constant.CopyFrom(numpy_helper.from_array(np.float32(factor), constant.name))
    path = folder / "other.onnx"
    onnx.save(graph, path)
    shutil.copy(model.with_suffix(".toml"), path.with_suffix(".toml"))
    shutil.copy(model.parent / "colours.txt", folder)
    return path
