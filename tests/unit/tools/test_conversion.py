"""The bundled files are what they are said to be, and the bundled model labels the bundled photographs."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import models
from models.catalog import load_labels, load_spec
from models.graph.int8 import pair_safe_scales, quantize_int8
from models.spec import Precision

FOLDER = Path(models.__file__).parent
INT8 = FOLDER / "artifacts" / "efficientnet-lite0" / "efficientnet-lite0-int8.onnx"
SHARD = FOLDER / "samples" / "photos.tar"
EXPECTED = json.loads((FOLDER / "samples" / "expected.json").read_text())


def members() -> dict[str, bytes]:
    with tarfile.open(SHARD) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def photographs() -> dict[str, bytes]:
    return {Path(name).stem: content for name, content in members().items() if not name.endswith(".cls")}


def reference_input(image: bytes) -> Any:
    """Preprocess as the weights were trained, in the plainest way: float32 of shape (1, 3, 224, 224)."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    ratio = 256 / min(picture.size)
    picture = picture.resize([round(ratio * side) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = picture.width // 2 - 112, picture.height // 2 - 112
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
    return ((pixels - 127) / 128).transpose(2, 0, 1)[None]


@pytest.fixture(scope="module")
def session() -> Any:
    return ort.InferenceSession(INT8, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def graph() -> Any:
    return onnx.load(INT8).graph


def test_bundled_model_is_the_file_that_the_catalog_lists():
    artifact = load_spec("efficientnet-lite0").artifact(Precision.INT8)

    content = INT8.read_bytes()

    assert artifact.bundled
    assert (artifact.file, artifact.size_bytes) == (INT8.name, len(content))
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()


def test_bundled_model_has_the_tensors_that_the_catalog_names(session):
    spec = load_spec("efficientnet-lite0")

    (image,), (logits,) = session.get_inputs(), session.get_outputs()

    assert (image.name, image.type, image.shape) == (spec.input.name, "tensor(float)", ["n_images", 3, 224, 224])
    assert (logits.name, logits.type, logits.shape) == (spec.output.name, "tensor(float)", ["n_images", 1000])


def test_embedding_is_a_float_that_leaves_the_labels_as_they_are(session):
    spec = load_spec("efficientnet-lite0")
    model = onnx.load(INT8)
    model.graph.output.append(helper.make_tensor_value_info(spec.embedding, TensorProto.FLOAT, ["n_images", 1280]))
    with_embedding = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = reference_input(photographs()["coffee"])

    logits, embedding = with_embedding.run(None, {"images": image})

    assert embedding.shape == (1, 1280)
    assert len(np.unique(embedding)) > 256, "quantised to 8 bits, not float"
    np.testing.assert_array_equal(logits, session.run(None, {"images": image})[0])


def test_bundled_model_cannot_overflow_16_bits_on_a_cpu_without_vnni(graph):
    weights = {t.name: numpy_helper.to_array(t).astype(int) for t in graph.initializer}
    weights = {name: w for name, w in weights.items() if name.endswith(".weight_quantized")}
    pointwise = {name: w.reshape(len(w), -1) for name, w in weights.items() if w.ndim == 2 or w.shape[1] > 3}

    assert len(pointwise) == 33
    for name, rows in pointwise.items():
        # The most that two neighbours add up to, where each activation is 0 to 255.
        sums = np.clip(rows, 0, None)[:, 0::2] + np.clip(rows, 0, None)[:, 1::2]
        negative_sums = np.clip(rows, None, 0)[:, 0::2] + np.clip(rows, None, 0)[:, 1::2]
        assert 255 * sums.max() < 2**15, name
        assert 255 * negative_sums.min() >= -(2**15), name
    assert np.abs(weights["stem.weight_quantized"]).max() <= 64


@pytest.mark.parametrize("key", EXPECTED)
def test_bundled_model_labels_photograph(key, session):
    expected = EXPECTED[key]

    (logits,) = session.run(None, {"images": reference_input(photographs()[key])})

    # An own mistake of the model is expected too: what must not change unseen is what it says.
    assert int(logits.argmax()) in {*expected["accepted"], expected["int8"]}


def test_bundled_model_is_right_about_most_photographs():
    right = [key for key, expected in EXPECTED.items() if expected["int8"] in expected["accepted"]]

    assert len(right) >= 6


def test_labels_do_not_depend_on_the_batch(session):
    images = np.concatenate([reference_input(image) for image in photographs().values()])

    (together,) = session.run(None, {"images": images})
    alone = [session.run(None, {"images": images[i : i + 1]})[0] for i in range(len(images))]

    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_every_photograph_has_its_licence_and_no_other_file_has():
    text = (FOLDER / "samples" / "LICENSES.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))

    assert sorted(sections) == [name for name in members() if not name.endswith(".cls")]
    for name, section in sections.items():
        facts = dict(re.findall(r"^- (.+?): (.+)$", section, re.MULTILINE))
        assert sorted(facts) == ["Author and source", "Evidence", "From", "Licence", "Shows"], name
        assert facts["Licence"].startswith(("CC0 1.0", "CC BY 2.0", "public domain")), name


def test_shard_is_small_and_the_same_wherever_it_is_built():
    with tarfile.open(SHARD) as tar:
        files = tar.getmembers()

    assert SHARD.stat().st_size < 1_000_000
    assert {(file.mtime, file.uid, file.gid, file.uname) for file in files} == {(0, 0, 0, "")}
    keys = [Path(file.name).stem for file in files]
    assert keys == sorted(keys)
    assert sorted(set(keys)) == sorted(EXPECTED)
    assert {Path(file.name).suffix for file in files} == {".jpg", ".png", ".webp", ".cls"}


def test_classes_in_the_shard_are_those_that_were_meant():
    names = load_labels(load_spec("efficientnet-lite0"))

    classes = {Path(name).stem: int(content) for name, content in members().items() if name.endswith(".cls")}

    assert {key: names[index] for key, index in classes.items()} == {
        "camera": "tripod",
        "coffee": "espresso",
        "grace_hopper": "military uniform",
    }
    assert all(index in EXPECTED[key]["accepted"] for key, index in classes.items())


@pytest.mark.parametrize(
    ("row", "scale"),
    [
        pytest.param([1.27, 0.0], 0.01, id="one large weight takes the whole range"),
        pytest.param([1.28, 1.28], 0.02, id="two of one sign share it"),
        pytest.param([-1.28, -1.28], 0.02, id="negative ones too"),
        pytest.param([1.27, -1.27], 0.01, id="two of different sign do not add up"),
        pytest.param([0.0, 1.27, 1.27], 0.01, id="neighbours of different pairs do not add up"),
        pytest.param([0.1, 0.1, 1.27], 0.01, id="the last of an odd number stands alone"),
    ],
)
def test_pair_safe_scales_use_as_much_of_the_range_as_is_safe(row, scale):
    (found,) = pair_safe_scales(np.array([row]))

    assert scale <= found < scale * 1.01


def test_pair_safe_scales_never_let_a_pair_overflow():
    rows = np.random.default_rng(1).normal(size=(500, 33))

    scales = pair_safe_scales(rows)

    quantized = np.pad(np.rint(rows / scales[:, None]), ((0, 0), (0, 1)))
    first, second = quantized[:, 0::2], quantized[:, 1::2]
    assert np.abs(quantized).max() <= 127
    assert np.abs(np.where(first * second > 0, first + second, 0)).max() <= 128


def test_pair_safe_scales_of_a_dead_channel_can_be_divided_by():
    assert pair_safe_scales(np.zeros((1, 4)))[0] > 0


def test_quantize_int8_keeps_the_interface_and_the_answers():
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(8, 3, 1, 1)).astype(np.float32)
    last = rng.normal(size=(4, 8)).astype(np.float32)
    bias = np.zeros(4, np.float32)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["images", "kernel"], ["values"], "conv"),
                helper.make_node("Relu", ["values"], ["active"], "relu"),
                helper.make_node("ReduceMean", ["active", "axes"], ["features"], "pool", keepdims=0),
                helper.make_node("Gemm", ["features", "last", "bias"], ["logits"], "gemm", transB=1),
            ],
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n_images", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n_images", 4])],
            [
                numpy_helper.from_array(value, name)
                for name, value in {
                    "kernel": kernel,
                    "last": last,
                    "bias": bias,
                    "axes": np.array([2, 3]),
                }.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    images = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)

    int8 = quantize_int8(model, [images], float_ops={"ReduceMean"})

    def logits(each: onnx.ModelProto) -> Any:
        found = ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        return found.run(["logits"], {"images": images})[0]

    types = {tensor.name: tensor.data_type for tensor in int8.graph.initializer}
    assert types["kernel_quantized"] == types["last_quantized"] == TensorProto.INT8
    expected = logits(model)
    np.testing.assert_allclose(logits(int8), expected, atol=0.03 * np.abs(expected).max())


def test_every_requirement_of_the_conversion_is_pinned():
    lines = (FOLDER.parent / "tools" / "conversion" / "requirements.txt").read_text().splitlines()

    unpinned = [line for line in lines if line and not line.startswith("#") and "==" not in line.split(";")[0]]

    assert not unpinned
    assert "torch==2.13.0" in lines
