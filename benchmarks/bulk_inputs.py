"""The images and models that every tool of `benchmarks.bulk` gets: the same bytes, in the form that each reads.

Few images are made many by hard links, so that any number takes no more room than one. That is what the published
benchmark does too (80,358 images, ten times each); after the first round all of it lies in the page cache, for everybody.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from models.catalog import load_spec
from models.inference.classifier import Classifier
from models.spec import ModelSpec, Precision

PATHS_PER_FILE = 100


@dataclass(frozen=True, slots=True)
class Mode:
    """What is measured: a model, and whether it takes longer than decoding.

    Attributes:
        model: Name or path.
        precision: Which artifact.
        inference_bound: See `benchmarks.peers.common.Job`.
        share: Of `--images`, so that slow models take no hours.
    """

    model: str
    precision: str
    inference_bound: bool
    share: float


def prepare_images(folder: Path, tars: Sequence[Path], images: int) -> int:
    """Lay out shards/, images/ and urls/ below a folder, unless they lie there; return how many images there are.

    Args:
        folder: For these images alone.
        tars: WebDataset tars with .jpg members; repeated, in order, until there are enough.
        images: At least so many: shards are whole.
    """
    done = folder / "images.txt"
    if done.exists():
        return int(done.read_text())
    unique = [_unpack(tar, folder / "unique" / tar.stem) for tar in tars]
    for name in ("shards", "images", "urls"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    paths: list[str] = []
    number = 0
    while len(paths) < images:
        tar, members = unique[number % len(unique)]
        (folder / "shards" / f"shard-{number:05d}.tar").hardlink_to(tar)
        for member in members:
            link = folder / "images" / f"{number:05d}-{member.name}"
            link.hardlink_to(member)
            paths.append(str(link))
        number += 1
    for first in range(0, len(paths), PATHS_PER_FILE):
        table = pa.table({"image_url": paths[first : first + PATHS_PER_FILE]})
        pq.write_table(table, folder / "urls" / f"{first // PATHS_PER_FILE:05d}.parquet")
    done.write_text(str(len(paths)))
    return len(paths)


def _unpack(tar: Path, folder: Path) -> tuple[Path, list[Path]]:
    """Copy a tar and its images; links of the copies need nobody's leave."""
    folder.mkdir(parents=True)
    copy = Path(shutil.copyfile(tar, folder / "shard.tar"))
    found = []
    with tarfile.open(copy) as file:
        for member in file:
            if member.name.endswith(".jpg"):
                path = folder / Path(member.name).name
                path.write_bytes(file.extractfile(member).read())
                found.append(path)
    return copy, found


def prepare_model(name: str, folder: Path, tars: Sequence[Path]) -> Mode:
    """Build what a mode needs, and its joined graph, so that no run has to.

    Args:
        name: `decode` (a model that costs nothing), `int8` (the bundled model), `fp32` and `resnet-int8` (the graph of
            ResNet18-v2 with made-up weights).
        folder: For models that are built.
        tars: Images that the ranges of int8 are taken from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "decode":
        mode = Mode(str(_free_model(folder)), "fp32", inference_bound=False, share=1.0)
    elif name == "int8":
        mode = Mode("efficientnet-lite0", "int8", inference_bound=True, share=1.0)
    elif name == "fp32":
        mode = Mode(str(_resnet(folder)), "fp32", inference_bound=True, share=0.2)
    elif name == "resnet-int8":
        mode = Mode(str(_resnet_int8(folder, tars)), "int8", inference_bound=True, share=0.5)
    else:
        raise SystemExit(f"--modes: expected decode, int8, fp32 or resnet-int8, got {name!r}")
    Classifier(load_spec(mode.model), precision=Precision(mode.precision))
    return mode


def _free_model(folder: Path) -> Path:
    """Write a model that looks at 49 pixels of an image: preprocessing and labels as EfficientNet-Lite0's."""
    path = folder / "free.onnx"
    weights = np.random.default_rng(0).normal(0, 0.1, (7 * 7 * 3, 1000)).astype(np.float32)
    constants = {
        "starts": np.asarray([16, 16]), "ends": np.asarray([224, 224]), "axes": np.asarray([1, 2]),
        "steps": np.asarray([32, 32]), "weights": weights,
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["pixels", "starts", "ends", "axes", "steps"], ["some"]),
            helper.make_node("Flatten", ["some"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "free",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 224, 224, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 1000])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    _write_entry(path, load_spec("efficientnet-lite0"), 'name = "pixels", layout = "NHWC"', "scores", "fp32")
    return path


def _resnet(folder: Path) -> Path:
    from tests.support.made_up_resnet import build_made_up_resnet

    path, spec = folder / "resnet18-fp32.onnx", load_spec("resnet18-v2")
    if not path.exists():
        build_made_up_resnet(path)
        _write_entry(path, spec, f'name = "{spec.input.name}", layout = "NCHW"', spec.output.name, "fp32")
    return path


def _resnet_int8(folder: Path, tars: Sequence[Path]) -> Path:
    from models.graph.int8 import quantize_int8
    from tools.conversion.measure import read_photographs

    path, spec = folder / "resnet18-int8.onnx", load_spec("resnet18-v2")
    if not path.exists():
        images = read_photographs(tars[:1], spec).images[:16]
        onnx.save(quantize_int8(onnx.load(_resnet(folder)), (image[np.newaxis] for image in images)), path)
        _write_entry(path, spec, f'name = "{spec.input.name}", layout = "NCHW"', spec.output.name, "int8")
    return path


def _write_entry(path: Path, like: ModelSpec, tensor: str, output: str, precision: str) -> None:
    """Write the entry beside a model file, with another model's preprocessing and labels."""
    p = like.preprocessing
    shutil.copyfile(like.folder / like.labels, path.with_suffix(".txt"))
    path.with_suffix(".toml").write_text(
        f'input = {{ {tensor} }}\noutput = {{ name = "{output}", kind = "logits" }}\n'
        f'labels = "{path.with_suffix(".txt").name}"\nprecision = "{precision}"\n\n[preprocessing]\n'
        f'resize_shorter = {p.resize_shorter}\ncrop = {p.crop}\ninterpolation = "{p.interpolation}"\n'
        f"scale = {p.scale!r}\nmean = {list(p.mean)}\nstd = {list(p.std)}\n"
    )
