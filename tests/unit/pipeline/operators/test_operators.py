"""The operators without Ray's processes: what they do to a block, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits
from models.errors import ConfigError
from pipeline.config import LabelConfig, build_config
from pipeline.operators.columns import PIXELS, LabelColumns
from pipeline.operators.decode import PIECE_ROWS, DecodeImages, chunk_arrays
from pipeline.operators.stages import DecodeSettings
from tests.support.shard_factory import huggingface_images
from tests.support.tiny_model import SIDE, colour_jpeg

NAMES = pa.dictionary(pa.int32(), pa.string())


@pytest.fixture
def settings(tiny_model):
    return DecodeSettings(load_spec(str(tiny_model)).preprocessing, DecodeMode.FAST, ImageLimits())


def decode(settings, table: pa.Table, columns: LabelColumns | None = None) -> pa.Table:
    return pa.concat_tables(DecodeImages(settings, columns or LabelColumns("bytes"))(table))


def test_importing_the_package_loads_neither_ray_nor_pyarrow():
    code = "import sys, pipeline; from pipeline import LabelConfig\n"
    code += "sys.exit(', '.join({'ray', 'pyarrow'} & sys.modules.keys()) or 0)"

    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)

    assert done.stderr.strip() == ""


def test_what_the_package_says_it_has_is_there_and_nothing_else():
    import pipeline
    import pipeline.job

    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        _ = pipeline.lable


def test_settings_take_paths_and_lists_and_refuse_with_the_projects_error(tmp_path):
    config = LabelConfig(source=[tmp_path / "a.tar", "b.tar"], output=tmp_path, carry="name")

    assert (config.source, config.output) == ((str(tmp_path / "a.tar"), "b.tar"), str(tmp_path))
    assert config.carry == ("name",)
    assert LabelConfig(source=tmp_path, output="out").source == (str(tmp_path),)
    assert build_config({"source": "a", "output": "b"}) == LabelConfig(source="a", output="b")
    with pytest.raises(ConfigError, match="--top-k: input should be greater than or equal to 1, got 0"):
        LabelConfig(source="a", output="b", top_k=0)


def test_rows_in_are_rows_out_in_order_with_pixels_of_those_that_decode(settings):
    count = 2 * PIECE_ROWS + 3
    images = [colour_jpeg("green", 20 + i % 5) if i % 3 else b"no image" for i in range(count)]
    table = pa.table({"bytes": pa.array(images, pa.binary()), "number": range(count)})

    pieces = list(DecodeImages(settings, LabelColumns("bytes"))(table))

    assert [piece.num_rows for piece in pieces] == [PIECE_ROWS, PIECE_ROWS, 3]
    decoded = pa.concat_tables(pieces)
    assert decoded["number"].to_pylist() == list(range(count))
    assert decoded["status"].to_pylist() == ["ok" if i % 3 else "undecodable" for i in range(count)]
    assert decoded["width"].to_pylist() == [20 + i % 5 if i % 3 else None for i in range(count)]
    pixels = np.concatenate([chunk_arrays(chunk) for chunk in decoded[PIXELS].chunks])
    assert pixels.shape == (count, SIDE, SIDE, 3)
    assert [int(image.max()) > 0 for image in pixels] == [i % 3 > 0 for i in range(count)]


def test_an_empty_block_stays_empty_and_one_with_columns_gets_the_others(settings):
    operator = DecodeImages(settings, LabelColumns("bytes"))

    assert list(operator(pa.table({}))) == []
    (decoded,) = operator(pa.table({"bytes": pa.array([], pa.binary())}))
    assert (decoded.num_rows, decoded.column_names) == (0, ["bytes", "status", "error", "width", "height", PIXELS])


@pytest.mark.parametrize(
    ("images", "statuses"),
    [
        (pa.array([colour_jpeg("red"), b"", None], pa.large_binary()), ["ok", "empty", "empty"]),
        (
            huggingface_images([{"bytes": colour_jpeg("red"), "path": "a"}, {"bytes": None, "path": "a"}, None]),
            ["ok", "unsupported", "empty"],
        ),
    ],
    ids=["bytes", "hugging-face"],
)
def test_what_is_no_bytes_is_a_row_that_says_so(settings, images, statuses):
    decoded = decode(settings, pa.table({"bytes": images}))

    assert decoded["status"].to_pylist() == statuses
    assert [error is None for error in decoded["error"].to_pylist()] == [status == "ok" for status in statuses]


def test_pixels_are_decoded_as_a_lossless_file_of_them(settings):
    import io

    from PIL import Image
    from ray.data.extensions import ArrowTensorArray

    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 41, 3), dtype=np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())

    of_pixels = decode(settings, pa.table({"bytes": ArrowTensorArray.from_numpy(pixels)}))
    of_files = decode(settings, pa.table({"bytes": pa.array(files, pa.binary())}))

    assert (chunk_arrays(of_pixels[PIXELS].chunk(0)) == chunk_arrays(of_files[PIXELS].chunk(0))).all()
    assert of_pixels["width"].to_pylist() == [41, 41]
    assert of_pixels["status"].to_pylist() == ["ok", "ok"]


def test_pixels_of_another_type_are_rows_too(settings):
    from ray.data.extensions import ArrowTensorArray

    decoded = decode(settings, pa.table({"bytes": ArrowTensorArray.from_numpy(np.zeros((2, 9, 9, 3), np.float64))}))

    assert decoded["status"].to_pylist() == ["unsupported"] * 2
    assert "got float64 of shape (9, 9, 3)" in decoded["error"][0].as_py()


def shards_block(status: list[str], error: list[str | None], **more) -> pa.Table:
    count = len(status)
    return pa.table(
        {
            "shard": pa.array(["a.tar"] * count).dictionary_encode(), "key": [str(i) for i in range(count)],
            "bytes": pa.array([colour_jpeg("red") if one == "ok" else None for one in status], pa.binary()),
            "status": pa.array(status).dictionary_encode(), "error": pa.array(error, pa.string()), **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "my_"])
def test_what_reading_found_is_adopted(settings, prefix):
    table = shards_block(["too_large", "ok"], ["much too large", None])

    decoded = decode(settings, table, LabelColumns("bytes", prefix))

    assert decoded[f"{prefix}status"].to_pylist() == ["too_large", "ok"]
    assert decoded[f"{prefix}error"].to_pylist() == ["much too large", None]
    if prefix:
        assert decoded["status"].to_pylist() == ["too_large", "ok"]


@pytest.mark.parametrize(
    ("table", "image", "message"),
    [
        (
            pa.table({"image": [b"x"], "n": [1]}),
            "bytes",
            r"'bytes': there is no such column; there are image \(binary\)",
        ),
        (pa.table({"bytes": ["x"]}), "bytes", "'bytes' holds string; images are binary"),
        (pa.table({"bytes": [b"x"], "score": [1], "width": [1]}), "bytes", "already has columns score, width,"),
        (pa.table({"bytes": [b"x"], "status": ["ok"], "error": ["x"]}), "bytes", "already has columns status, error,"),
        (shards_block(["ok"], [None], label=["cat"]), "bytes", "already has columns label,"),
    ],
    ids=["no-column", "wrong-type", "clash", "status-of-another", "labelled-already"],
)
def test_columns_that_cannot_be_are_refused(settings, table, image, message):
    with pytest.raises(ConfigError, match=message):
        decode(settings, table, LabelColumns(image))


def test_a_prefix_keeps_names_apart(settings):
    table = pa.table({"bytes": [colour_jpeg("red")], "status": ["mine"], "my_status": ["mine too"]})

    assert decode(settings, table, LabelColumns("bytes", "x_"))["status"].to_pylist() == ["mine"]
    with pytest.raises(ConfigError, match="already has columns my_status,"):
        decode(settings, table, LabelColumns("bytes", "my_"))
