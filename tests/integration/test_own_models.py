"""A model that was added by name, in bulk: fixed batch, names of its classes, what it may not be resumed with."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from models.errors import ConfigError, SignatureError
from models.register.preprocessing import NAMED
from models.register.register import Registration, register_model, remove_model
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import label
from tests.support.tiny_model import build_tiny_model, colour_shards
from tests.unit.models.register.test_register import build

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.fixture
def mine(tmp_path) -> Iterator[str]:
    """Register a model whose batch axis is fixed in fact, with synset ids."""
    names = ["n00000001 red, crimson", "n00000002 green", "n00000003 blue, azure"]
    (tmp_path / "l.txt").write_text("\n".join(names))
    path = build(tmp_path / "m.onnx", batch=1, hard_batch=True)
    register_model(Registration(path, "fixed", str(tmp_path / "l.txt"), NAMED["unit"]))
    yield "fixed"
    remove_model("fixed")


@pytest.mark.parametrize(
    ("label", "kind", "names"),
    [
        (label_without_ray, "name", ["red", "green", "blue"]),
        (label_without_ray, "wnid", ["n00000001", "n00000002", "n00000003"]),
        (label, "all", ["red, crimson", "green", "blue, azure"]),
    ],
)
def test_an_added_model_labels_with_the_names_that_are_asked_for(tmp_path, mine, label, kind, names):
    colour_shards(tmp_path / "in", shards=1, samples=6)

    label(tmp_path / "in", tmp_path / "out", mine, labels=kind)

    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["label"] for row in rows] == names * 2
    assert [row["label_id"] for row in rows] == [0, 1, 2] * 2


def test_a_run_is_not_resumed_with_other_names(tmp_path, mine):
    colour_shards(tmp_path / "in", shards=1, samples=3)
    label_without_ray(tmp_path / "in", tmp_path / "out", mine, labels="wnid")

    with pytest.raises(ConfigError, match="was begun with labels wnid"):
        label(tmp_path / "in", tmp_path / "out", mine)


def test_labels_of_another_number_of_classes_stop_a_run_before_it_writes(tmp_path):
    colour_shards(tmp_path / "in", shards=1, samples=3)
    (tmp_path / "model").mkdir()
    model = build_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "colours.txt").write_text("red\ngreen\nblue\nmauve\n")

    with pytest.raises(SignatureError, match=r"tiny has 3 classes, but its labels file colours\.txt names 4"):
        label(tmp_path / "in", tmp_path / "out", model)

    assert not list((tmp_path / "out").glob("*.parquet"))
