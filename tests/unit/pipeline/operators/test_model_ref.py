"""What is settled of a model before anything is read."""

from __future__ import annotations

import pytest

from models.errors import ConfigError
from pipeline.config import LabelConfig
from pipeline.operators.model_ref import settle_model


def config(model, **options) -> LabelConfig:
    return LabelConfig(source="in", output="out", model=str(model), **options)


def test_a_model_with_fewer_classes_than_the_default_of_labels_gives_all_of_them(tiny_model):
    settled, _, labels = settle_model(config(tiny_model))

    assert settled.top_k == len(labels) == 3


@pytest.mark.parametrize("top_k", [4, 5, 6])
def test_more_labels_than_classes_is_an_error_where_they_are_asked_for(tiny_model, top_k):
    with pytest.raises(ConfigError, match=rf"--top-k must be between 1 and 3 \(classes of tiny\), got {top_k}"):
        settle_model(config(tiny_model, top_k=top_k))
