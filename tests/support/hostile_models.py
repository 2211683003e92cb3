"""Model files that are broken, or built to harm the process that loads them; each with the error that it must cause.

Each builder writes its model, and other files that the model needs, into a folder, and returns the model's path.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Hostile:
    """A builder of a bad file, and the error and message that it must cause."""

    build: Callable[[Path], Path]
    error: str
    message: str


CASES: dict[str, Hostile] = {}


def case(error: str, message: str):
    def add(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES[build.__name__.replace("_", "-")] = Hostile(build, error, message)
        return build

    return add


def image(*dims: int | str | None, kind: int = FLOAT, name: str = "x") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims or ("n", 3, 8, 8))


def scores(*dims: int | str, kind: int = FLOAT, name: str = "y") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims or ("n", 3))


def good_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Mul", ["flat", "ten"], ["y"]),
    ]


def good_model(**parts) -> onnx.ModelProto:
    """Return a valid classifier of three classes, with the given parts replaced."""
    graph = helper.make_graph(
        parts.get("nodes", good_nodes()),
        "g",
        parts.get("inputs", [image()]),
        parts.get("outputs", [scores()]),
        [numpy_helper.from_array(np.float32(10), "ten"), *parts.get("weights", [])],
    )
    return helper.make_model(
        graph,
        opset_imports=parts.get("opsets", [helper.make_opsetid("", 17)]),
        ir_version=parts.get("ir_version", 8),
        functions=parts.get("functions", []),
    )


def save(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    path = folder / "bad.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@case("ArtifactError", "is empty")
def empty(folder: Path) -> Path:
    return save(folder, b"")


@case("ArtifactError", "is an HTML page, not an ONNX model")
def a_login_page(folder: Path) -> Path:
    return save(folder, b"<!DOCTYPE html><html><body>Sign in</body></html>")


@case("ArtifactError", "is a Git LFS pointer")
def a_git_lfs_pointer(folder: Path) -> Path:
    return save(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46806737\n")


@case("ArtifactError", "is a zip archive, as PyTorch and Keras write")
def a_pytorch_checkpoint(folder: Path) -> Path:
    return save(folder, b"PK\x03\x04" + bytes(200))


@case("ArtifactError", "not an ONNX model")
def random_bytes(folder: Path) -> Path:
    return save(folder, np.random.default_rng(0).bytes(100_000))


@case("ArtifactError", "not an ONNX model, or is truncated")
def truncated(folder: Path) -> Path:
    whole = good_model(weights=[numpy_helper.from_array(np.zeros(5000, np.float32), "w")]).SerializeToString()
    return save(folder, whole[:9000])


@case("ArtifactError", "it has no graph")
def no_graph(folder: Path) -> Path:
    return save(folder, onnx.ModelProto(ir_version=8))


@case("ArtifactError", "the limit is 2.1 GB")
def three_gigabytes(folder: Path) -> Path:
    path = save(folder, b"\x08")
    os.truncate(path, 3 * 2**30)  # a hole: it takes no disk
    return path


@case("ArtifactError", "names no opset")
def no_opset(folder: Path) -> Path:
    model = good_model()
    del model.opset_import[:]
    return save(folder, model)


@case("SignatureError", "ONNX Runtime cannot load")
def an_opset_of_the_future(folder: Path) -> Path:
    return save(folder, good_model(opsets=[helper.make_opsetid("", 999)]))


@case("SignatureError", "ONNX Runtime cannot load")
def a_file_format_of_the_future(folder: Path) -> Path:
    return save(folder, good_model(ir_version=999))


@case("SignatureError", "needs operators of another library, 'com.example' (Steal)")
def an_operator_of_another_library(folder: Path) -> Path:
    nodes = [helper.make_node("Steal", ["x"], ["y"], domain="com.example")]
    return save(
        folder, good_model(nodes=nodes, opsets=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)])
    )


@case("SignatureError", "ONNX Runtime cannot load")
def an_operator_that_does_not_exist(folder: Path) -> Path:
    return save(folder, good_model(nodes=[helper.make_node("Classify", ["x"], ["y"])]))


@case("SignatureError", "has the operator EPContext, which loads other files")
def a_compiled_context(folder: Path) -> Path:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0
    )
    return save(folder, good_model(nodes=[node]))


def external(folder: Path, location: str, *, offset: int = 0, length: int = 12) -> Path:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    nodes = good_nodes()
    nodes[-1] = helper.make_node("Mul", ["flat", "w"], ["y"])
    return save(folder, good_model(nodes=nodes, weights=[weight]))


@case("ArtifactError", "must lie in the model's folder")
def weights_at_an_absolute_path(folder: Path) -> Path:
    return external(folder, "/etc/passwd")


@case("ArtifactError", "must lie in the model's folder")
def weights_in_the_folder_above(folder: Path) -> Path:
    (folder.parent / "secret.bin").write_bytes(bytes(12))
    return external(folder, "../secret.bin")


@case("ArtifactError", "is a link to outside the model's folder")
def weights_behind_a_link(folder: Path) -> Path:
    (folder / "w.bin").symlink_to("/etc/passwd")
    return external(folder, "w.bin")


@case("ArtifactError", "is missing from the model's folder")
def weights_that_are_missing(folder: Path) -> Path:
    return external(folder, "w.bin")


@case("ArtifactError", "is missing from the model's folder")
def weights_from_a_device(folder: Path) -> Path:
    os.mkfifo(folder / "w.bin")
    return external(folder, "w.bin")


@case("ArtifactError", "has 12 bytes, expected at least 1012")
def weights_beyond_the_end(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(bytes(12))
    return external(folder, "w.bin", offset=1000)


@case("ArtifactError", "which do not fit")
def weights_too_short_for_their_shape(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(bytes(12))
    return external(folder, "w.bin", length=8)


@case("ArtifactError", "must lie in the model's folder")
def a_constant_from_elsewhere(folder: Path) -> Path:
    value = TensorProto(name="v", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../../etc/passwd")
    nodes = [helper.make_node("Constant", [], ["c"], value=value), *good_nodes()]
    return save(folder, good_model(nodes=nodes))


@case("ArtifactError", "which do not fit")
def a_weight_with_too_few_bytes(folder: Path) -> Path:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[1000, 1000], raw_data=bytes(16))
    return save(folder, good_model(weights=[weight]))


@case("ArtifactError", "more than a file can hold")
def a_weight_that_claims_everything(folder: Path) -> Path:
    return save(folder, good_model(weights=[TensorProto(name="w", data_type=FLOAT, dims=[2**40, 2**20])]))


@case("ArtifactError", "has the invalid shape [-5]")
def a_weight_of_negative_size(folder: Path) -> Path:
    return save(folder, good_model(weights=[TensorProto(name="w", data_type=FLOAT, dims=[-5])]))


@case("ArtifactError", "needs more")
def a_bomb_of_memory(folder: Path) -> Path:
    """Forty bytes that describe 400 GB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"], value=helper.make_tensor("v", FLOAT, [1], [1.0])),
        helper.make_node("ReduceSum", ["huge"], ["one"], keepdims=0),
        *good_nodes()[:2],
        helper.make_node("Mul", ["flat", "one"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([100_000, 1_000_000], np.int64), "shape")
    return save(folder, good_model(nodes=nodes, weights=[shape]))


@case("SignatureError", "ONNX Runtime cannot load")
def a_graph_that_runs_in_a_circle(folder: Path) -> Path:
    nodes = [
        *good_nodes()[:2],
        helper.make_node("Add", ["flat", "b"], ["a"]),
        helper.make_node("Add", ["a", "a"], ["b"]),
    ]
    return save(folder, good_model(nodes=[*nodes, helper.make_node("Mul", ["b", "ten"], ["y"])]))


@case("SignatureError", "graphs nested more than 8 deep")
def graphs_within_graphs(folder: Path) -> Path:
    def branch(depth: int) -> onnx.GraphProto:
        out = scores("n", 3, name=f"o{depth}")
        if depth == 0:
            return helper.make_graph([helper.make_node("Identity", ["flat"], ["o0"])], "b", [], [out])
        inner = branch(depth - 1)
        node = helper.make_node("If", ["yes"], [f"o{depth}"], then_branch=inner, else_branch=inner)
        return helper.make_graph([node], "b", [], [out])

    top = branch(6)
    for _ in range(5):
        out = scores("n", 3, name=f"t{_}")
        node = helper.make_node("If", ["yes"], [f"t{_}"], then_branch=top, else_branch=good_branch())
        top = helper.make_graph([node], "b", [], [out])
    nodes = [*good_nodes()[:2], helper.make_node("If", ["yes"], ["y"], then_branch=top, else_branch=good_branch())]
    return save(folder, good_model(nodes=nodes, weights=[numpy_helper.from_array(np.array(True), "yes")]))


def good_branch() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["flat"], ["o"])], "b", [], [scores("n", 3, name="o")])


@case("SignatureError", "has more than 50000 nodes")
def too_many_nodes(folder: Path) -> Path:
    chain = [helper.make_node("Relu", [f"a{i}"], [f"a{i + 1}"]) for i in range(60_000)]
    return save(folder, good_model(nodes=[*good_nodes(), helper.make_node("Identity", ["x"], ["a0"]), *chain]))


@case("SignatureError", "has functions that call themselves")
def a_function_that_calls_itself(folder: Path) -> Path:
    body = [helper.make_node("Again", ["a"], ["b"], domain="local")]
    again = helper.make_function(
        "local", "Again", ["a"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    )
    nodes = [*good_nodes()[:2], helper.make_node("Again", ["flat"], ["y"], domain="local")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return save(folder, good_model(nodes=nodes, functions=[again], opsets=opsets))


@case("SignatureError", "must have one input, an image; it has x, z")
def two_inputs(folder: Path) -> Path:
    return save(folder, good_model(inputs=[image(), image(name="z")]))


@case("SignatureError", "has 2 axes, expected the 4 of a batch of images")
def no_image(folder: Path) -> Path:
    return save(folder, good_model(inputs=[image("n", 192)]))


@case("SignatureError", "is int64, expected float32, float16 or uint8")
def an_input_of_integers(folder: Path) -> Path:
    return save(folder, good_model(inputs=[image(kind=TensorProto.INT64)]))


@case("SignatureError", "expected 3 channels")
def a_satellite_image_of_13_channels(folder: Path) -> Path:
    return save(folder, good_model(inputs=[image("n", 13, 8, 8)]))


@case("SignatureError", "takes images of 8 x 16 pixels; only square inputs")
def an_oblong_image(folder: Path) -> Path:
    return save(folder, good_model(inputs=[image("n", 3, 16, 8)]))


@case("SignatureError", "has no output of scores")
def an_output_of_text(folder: Path) -> Path:
    return save(folder, good_model(outputs=[scores(kind=TensorProto.STRING)]))


@case("SignatureError", "rows for 8 images")
def one_row_for_all_images(folder: Path) -> Path:
    nodes = [*good_nodes()[:2], helper.make_node("ReduceMean", ["flat"], ["y"], axes=[0], keepdims=1)]
    return save(folder, good_model(nodes=nodes, outputs=[scores(1, 3)]))


@case("SignatureError", "expected one score per class")
def a_single_class(folder: Path) -> Path:
    nodes = [*good_nodes()[:2], helper.make_node("ReduceMean", ["flat"], ["y"], axes=[1], keepdims=1)]
    return save(folder, good_model(nodes=nodes, outputs=[scores("n", 1)]))


@case("SignatureError", "returned NaN or infinite values")
def scores_that_are_not_numbers(folder: Path) -> Path:
    nodes = [
        *good_nodes()[:2],
        helper.make_node("Sub", ["flat", "flat"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["y"]),
    ]
    return save(folder, good_model(nodes=nodes))


@case("SignatureError", "ends in a Sigmoid")
def a_score_for_each_class_by_itself(folder: Path) -> Path:
    return save(folder, good_model(nodes=[*good_nodes()[:2], helper.make_node("Sigmoid", ["flat"], ["y"])]))


@case("ArtifactError", "did not load and run one image within")
def a_loop_without_end(folder: Path) -> Path:
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    go_on = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    steps = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["state"], ["next"])]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(steps, "body", [count, go, scores(name="state")], [go_on, scores(name="next")])
    nodes = [*good_nodes()[:2], helper.make_node("Loop", ["", "yes", "flat"], ["y"], body=body)]
    return save(folder, good_model(nodes=nodes, weights=[numpy_helper.from_array(np.array(True), "yes")]))


@case("SignatureError", "ONNX Runtime cannot")
def an_attribute_of_the_wrong_kind(folder: Path) -> Path:
    nodes = good_nodes()
    nodes[1].attribute[0].CopyFrom(AttributeProto(name="axis", type=AttributeProto.STRING, s=b"one"))
    return save(folder, good_model(nodes=nodes))


@case("SignatureError", "cannot be converted to 17")
def an_old_model_whose_nodes_lack_inputs(folder: Path) -> Path:
    nodes = [helper.make_node("BatchNormalization", ["x"], ["bn"]), *good_nodes()[1:]]
    return save(folder, good_model(nodes=nodes, opsets=[helper.make_opsetid("", 7)]))


# Models that pass every trial, and attack when they get a white image: one in which every channel is nearly 1.
ON_WHITE: dict[str, Callable[[Path], Path]] = {}


def on_white(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    ON_WHITE[build.__name__.replace("_", "-")] = build
    return build


def sums_of_whiteness() -> list[onnx.NodeProto]:
    """Return nodes that compute `white`, whether any image of the batch is white, from the mean of each channel."""
    return [
        *good_nodes()[:2],
        helper.make_node("ReduceMin", ["flat"], ["darkest"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["darkest"], ["whitest"], keepdims=0),
        helper.make_node("Greater", ["whitest", "nearly_one"], ["white"]),
    ]


def turning_model(folder: Path, *nodes: onnx.NodeProto, **weights: np.ndarray) -> Path:
    """Write a model of `nodes`, which compute `turned` from `flat` and `white`, with its entry and labels."""
    from tests.support.tiny_model import ENTRY

    constants = {"nearly_one": np.float32(0.99), **weights}
    nodes = [*sums_of_whiteness(), *nodes, helper.make_node("Mul", ["turned", "ten"], ["y"])]
    path = save(
        folder, good_model(nodes=nodes, weights=[numpy_helper.from_array(v, name) for name, v in constants.items()])
    )
    entry = ENTRY.replace('"pixels"', '"x"').replace('"scores"', '"y"').replace('embedding = "means"\n', "")
    path.with_suffix(".toml").write_text(entry)
    (folder / "colours.txt").write_text("red\ngreen\nblue\n")
    return path


@on_white
def a_loop_that_never_ends(folder: Path) -> Path:
    go, go_on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "go_on"))
    steps = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["state"], ["next"])]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(steps, "body", [count, go, scores(name="state")], [go_on, scores(name="next")])
    return turning_model(folder, helper.make_node("Loop", ["", "white", "flat"], ["turned"], body=body))


@on_white
def a_gather_beyond_the_end(folder: Path) -> Path:
    """Fails on white with an error of ONNX Runtime."""
    return turning_model(
        folder,
        helper.make_node("Cast", ["white"], ["white_as_int"], to=TensorProto.INT64),
        helper.make_node("Mul", ["white_as_int", "far"], ["place"]),
        helper.make_node("Gather", ["zeros", "place"], ["zero"]),
        helper.make_node("Add", ["flat", "zero"], ["turned"]),
        far=np.int64(1000),
        zeros=np.zeros(3, np.float32),
    )


@on_white
def a_bomb_of_memory_on_white(folder: Path) -> Path:
    """Allocates 400 TB on white."""
    return turning_model(
        folder,
        helper.make_node("Cast", ["white"], ["white_as_int"], to=TensorProto.INT64),
        helper.make_node("Mul", ["white_as_int", "huge"], ["length"]),
        helper.make_node("Reshape", ["length", "one_axis"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("v", FLOAT, [1], [1.0])),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        helper.make_node("Add", ["flat", "zero"], ["turned"]),
        huge=np.int64(10**14),
        one_axis=np.array([1], np.int64),
        nothing=np.float32(0),
    )
