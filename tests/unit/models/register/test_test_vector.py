from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from cluster.cli import build_app
from models.catalog import ENTRIES, load_spec
from models.errors import ArtifactError
from models.register.test_vector import check_test_vector
from models.spec import Precision
from tests.conftest import SAMPLE_DATA
from tests.support.tiny_model import SIDE

ZOO = SAMPLE_DATA.parents[1] / "zoo"


@pytest.fixture
def vector(tmp_path, tiny_model, monkeypatch):
    """A test vector of the tiny model, whose output is ten times the mean of each channel."""
    monkeypatch.setattr("models.register.test_vector.VECTORS", tmp_path)
    given = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    return tmp_path / f"{load_spec(str(tiny_model)).name}.test-vector.npz", given


@pytest.mark.parametrize(("error", "holds"), [(0.0, True), (5e-4, True), (0.02, False)])
def test_a_vector_holds_to_a_thousandth(vector, tiny_model, error, holds):
    path, given = vector
    np.savez(path, input=given, output=10 * given.mean(axis=(2, 3)) + np.float32(error))
    spec = load_spec(str(tiny_model))

    if holds:
        assert "passes the zoo's test vector" in check_test_vector(spec, Precision.FP32, tiny_model)
    else:
        with pytest.raises(ArtifactError, match=r"fails the zoo's test vector: largest difference 0\.02"):
            check_test_vector(spec, Precision.FP32, tiny_model)


def test_a_model_without_a_vector_is_not_compared(tiny_model):
    assert check_test_vector(load_spec(str(tiny_model)), Precision.FP32, tiny_model) is None


@pytest.mark.data
def test_the_vector_that_ships_is_the_zoos_own_bit_for_bit():
    if not ZOO.is_dir():
        pytest.skip(f"the zoo's vector is not here: {ZOO}")
    with np.load(ENTRIES / "resnet18-v2.test-vector.npz") as arrays:
        for name, file in (("input", "input_0.pb"), ("output", "output_0.pb")):
            theirs = numpy_helper.to_array(onnx.TensorProto.FromString((ZOO / file).read_bytes()))
            np.testing.assert_array_equal(arrays[name], theirs)


def test_verify_without_the_file_says_what_to_run():
    done = CliRunner().invoke(build_app(), ["models", "verify", "resnet18-v2"])

    assert isinstance(done.exception, ArtifactError)
    assert "`shardlabel models verify resnet18-v2 --pull`" in str(done.exception)
    assert "resnet18-v2 fp32: not cached, not checked" in done.stdout
