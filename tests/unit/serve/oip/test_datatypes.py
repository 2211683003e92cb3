"""All data types, from bytes and from JSON."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve.http.asgi import Rejected
from serve.oip.datatypes import DTYPES, join_elements, split_elements
from serve.oip.tensor import InputTensor

NUMERIC = sorted(DTYPES)
WHOLE = [name for name in NUMERIC if "INT" in name]


def tensor(datatype: str, shape: tuple[int, ...], payload: object) -> InputTensor:
    return InputTensor("x", datatype, shape, payload)


@pytest.mark.parametrize("datatype", [name for name in NUMERIC if name != "BF16"])
@given(data=st.data())
def test_numbers_come_back_from_bytes_and_from_json(datatype, data):
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    values = data.draw(hnp.arrays(DTYPES[datatype], hnp.array_shapes(max_dims=3, max_side=4), elements=elements))

    from_bytes = tensor(datatype, values.shape, memoryview(values.tobytes())).numbers()
    from_json = tensor(datatype, values.shape, values.tolist()).numbers()

    for got in (from_bytes, from_json):
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values)


def test_bytes_are_viewed_and_not_copied():
    content = memoryview(np.arange(6, dtype="<f4").tobytes())

    assert np.shares_memory(tensor("FP32", (2, 3), content).numbers(), np.frombuffer(content, "u1"))


def test_bf16_becomes_float32():
    # 1.0, -2.0 and 3.140625: the upper half of a float32.
    content = bytes.fromhex("803f 00c0 4940")

    got = tensor("BF16", (3,), memoryview(content)).numbers()

    assert got.dtype == np.float32
    assert got.tolist() == [1.0, -2.0, 3.140625]
    assert tensor("BF16", (2,), [1, 2.5]).numbers().tolist() == [1.0, 2.5]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_a_byte_too_few_or_too_many_is_refused(datatype):
    size = DTYPES[datatype].itemsize * 3

    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(Rejected, match=rf"have {wrong} bytes, and {datatype} of shape \[3\] has {size}"):
            tensor(datatype, (3,), memoryview(bytes(wrong))).numbers()


@pytest.mark.parametrize("datatype", WHOLE)
def test_whole_numbers_are_neither_rounded_nor_wrapped_around(datatype):
    limits = np.iinfo(DTYPES[datatype])

    assert tensor(datatype, (2,), [int(limits.min), int(limits.max)]).numbers().tolist() == [limits.min, limits.max]
    for wrong in ([1.0], [1.5], [True], ["1"], [None], [int(limits.max) + 1], [int(limits.min) - 1], [10**30]):
        with pytest.raises(Rejected):
            tensor(datatype, (1,), wrong).numbers()


@pytest.mark.parametrize(
    ("datatype", "wrong"),
    [("BOOL", [1]), ("BOOL", ["true"]), ("FP32", ["1"]), ("FP32", [True]), ("FP64", [{}]), ("FP16", [None])],
)
def test_values_of_another_kind_are_refused(datatype, wrong):
    with pytest.raises(Rejected, match=datatype):
        tensor(datatype, (1,), wrong).numbers()


def test_bool_bytes_other_than_0_and_1_are_refused():
    with pytest.raises(Rejected, match="0 or 1"):
        tensor("BOOL", (2,), memoryview(b"\x01\x02")).numbers()


def test_strings_among_numbers_cost_no_memory():
    # numpy would pad each of the others to the longest: 4 TB.
    values: list[object] = ["x" * 1_000_000, *[1] * 1_000_000]

    with pytest.raises(Rejected, match="string"):
        tensor("FP32", (len(values),), values).numbers()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_elements_come_back(elements):
    joined = join_elements(elements)

    got = split_elements(memoryview(joined), len(elements), "x")

    assert [bytes(element) for element in got] == elements


@given(st.binary(max_size=64), st.integers(0, 8))
def test_any_bytes_are_elements_or_refused(content, count):
    try:
        got = split_elements(memoryview(content), count, "x")
    except Rejected:
        return

    assert join_elements(got) == content
