from __future__ import annotations

import pytest

from models.errors import ConfigError
from pipeline.config import LabelConfig, build_config

GIVEN = {"source": ("a.tar",), "output": "out"}


def test_the_defaults_are_those_of_the_contract():
    config = build_config(GIVEN)

    assert (config.model, config.precision, config.device) == ("resnet18-v2", "auto", "auto")
    assert (config.top_k, config.decode, config.max_error_rate) == (5, "fast", 1.0)
    assert (config.max_pixels, config.max_image_bytes) == (100_000_000, 64 * 2**20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"source": None}, "SOURCE is missing", id="no-source"),
        pytest.param({"output": None}, "--output is missing", id="no-output"),
        pytest.param({"top_k": 0}, "--top-k: input should be greater than or equal to 1, got 0", id="top-k"),
        pytest.param({"precision": "fp8"}, "--precision: .*got 'fp8' .*auto, fp32, int8 or fp16", id="precision"),
        pytest.param({"device": "tpu"}, "--device: .*'auto', 'cpu', 'cuda' or 'tensorrt', got 'tpu'", id="device"),
        pytest.param({"decode": "quick"}, "--decode: .*'fast' or 'exact', got 'quick'", id="decode"),
        pytest.param({"actors": "4:2"}, "actors must be N or MIN:MAX with 1 <= MIN <= MAX, got 4:2", id="actors"),
        pytest.param({"actors": "many"}, "--actors: must be N or MIN:MAX, as 2:8, got 'many'", id="actors-text"),
        pytest.param({"part": "0/8"}, "part must be I/N with 1 <= I <= N, got 0/8", id="part"),
        pytest.param({"part": "3"}, "--part: must be I/N, as 3/8, got '3'", id="part-number"),
        pytest.param({"part": "x"}, "--part: must be I/N, as 3/8, got 'x'", id="part-text"),
        pytest.param({"max_error_rate": 7}, "--max-error-rate: .*less than or equal to 1, got 7", id="rate"),
        pytest.param({"batch_size": 0}, "--batch-size: .*got 0", id="batch"),
        pytest.param({"colour": "red"}, "unknown option 'colour'; known options are source, format", id="unknown"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_which_and_what_was_expected(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_config({**GIVEN, **options})

    assert "\n" not in str(caught.value)


def test_a_config_file_gives_options_and_the_command_line_comes_first(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("source: [x.tar, y.tar]\noutput: there\ntop-k: 3\nmax_error_rate: 0.5\n")

    config = build_config({"top_k": 7, "output": None}, file)

    assert config == LabelConfig(source=("x.tar", "y.tar"), output="there", top_k=7, max_error_rate=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("topk: 3\n", "unknown option 'topk'", id="unknown-key"),
        pytest.param("- a\n", "must be a mapping of options, got list", id="list"),
        pytest.param("a: [\n", "cannot be read", id="no-yaml"),
        pytest.param("[" * 5000, "cannot be read", id="too-deep"),
    ],
)
def test_a_wrong_config_file_is_an_error_that_says_why(tmp_path, text, message):
    file = tmp_path / "job.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=message):
        build_config(GIVEN, file)


def test_a_config_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        build_config(GIVEN, tmp_path / "none.yaml")
