from __future__ import annotations

import json

import pytest

from models.errors import ConfigError
from models.register.preprocessing import load_recipe
from models.spec import Channels, Fit, Interpolation

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESNET_HF = {
    "do_normalize": True, "do_resize": True, "do_rescale": True, "do_center_crop": True, "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3,
    "image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1]),
}  # fmt: skip


def of(tmp_path, values, **more):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    return load_recipe(str(path), **more)


def value_of(recipe, pixel: float, channel: int = 0) -> float:
    """What a model gets for a pixel value."""
    return (pixel * recipe.scale - recipe.mean[channel]) / recipe.std[channel]


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [("none", 0, 255), ("unit", 0, 1), ("inception", -1, 1), ("keras-tf", -1, 1), ("keras-none", 0, 255),
     ("imagenet", -0.485 / 0.229, 0.515 / 0.229), ("keras-caffe", -123.68, 255 - 123.68)],
)  # fmt: skip
def test_named_preprocessings_map_black_and_white_as_their_libraries_do(name, black, white):
    recipe = load_recipe(name)

    assert (value_of(recipe, 0), value_of(recipe, 255)) == (pytest.approx(black), pytest.approx(white))
    assert recipe.channels is (Channels.BGR if name == "keras-caffe" else Channels.RGB)


def test_timms_data_config_is_read(tmp_path):
    recipe = of(tmp_path, {"pretrained_cfg": {
        "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3,
    }})  # fmt: skip

    # timm takes the whole part: 224 / 0.9 is 248.9.
    assert (recipe.crop, recipe.resize_shorter, recipe.fit) == (224, 248, Fit.SHORTER)
    assert (recipe.interpolation, value_of(recipe, 255)) == (Interpolation.BICUBIC, pytest.approx(1))


def test_timms_squash_stretches(tmp_path):
    recipe = of(tmp_path, {"input_size": [3, 384, 384], "crop_pct": 1.0, "crop_mode": "squash", "mean": [0, 0, 0]})

    assert (recipe.resize_shorter, recipe.fit) == (384, Fit.STRETCH)


def test_hugging_faces_resnet_is_read(tmp_path):
    recipe = of(tmp_path, RESNET_HF)

    assert (recipe.crop, recipe.resize_shorter, recipe.fit) == (224, 256, Fit.SHORTER)
    assert (recipe.mean, recipe.std, recipe.interpolation) == (*IMAGENET, Interpolation.BICUBIC)


@pytest.mark.parametrize(
    ("change", "geometry"),
    [
        pytest.param({"size": {"height": 224, "width": 224}, "do_center_crop": False}, (224, 224, Fit.STRETCH), id="vit"),
        pytest.param({"size": 224, "do_center_crop": False}, (224, 224, Fit.STRETCH), id="old-vit"),
        pytest.param({"size": 256, "crop_size": 224}, (224, 256, Fit.SHORTER), id="old-crop"),
        pytest.param({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "do_center_crop": False},
                     (224, 256, Fit.SHORTER), id="convnext"),
        pytest.param({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "do_center_crop": False},
                     (384, 384, Fit.STRETCH), id="convnext-384"),
    ],
)  # fmt: skip
def test_hugging_faces_geometries_are_told_apart(tmp_path, change, geometry):
    recipe = of(tmp_path, {**RESNET_HF, **change})

    assert (recipe.crop, recipe.resize_shorter, recipe.fit) == geometry


def test_hugging_faces_efficientnet_normalises_twice(tmp_path):
    recipe = of(tmp_path, {
        **RESNET_HF, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": True, "image_mean": [0, 0, 0],
    })  # fmt: skip

    assert value_of(recipe, 255) == pytest.approx(1 / 0.229 / 0.229)
    assert value_of(recipe, 0) == pytest.approx(-1 / 0.229 / 0.229)


def test_mobilevit_takes_blue_first(tmp_path):
    assert of(tmp_path, {**RESNET_HF, "do_flip_channel_order": True, "do_normalize": False}).channels is Channels.BGR


def test_a_filter_that_is_not_done_here_can_be_replaced(tmp_path):
    assert of(tmp_path, {**RESNET_HF, "resample": 0}, interpolation="bilinear").interpolation is Interpolation.BILINEAR


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**RESNET_HF, "resample": 0}, r"resample must be one of \[1, 2, 3\], got 0; .*--interpolation"),
        ({**RESNET_HF, "do_pad": True}, "do_pad is not supported"),
        ({**RESNET_HF, "crop_size": {"height": 224, "width": 192}}, "only square crops"),
        ({**RESNET_HF, "image_mean": [1, 2]}, "has a value of an unexpected form"),
        ({**RESNET_HF, "rescale_offset": True}, "rescale_offset with a rescale_factor"),
        ({"input_size": [1, 28, 28]}, "must be 3 x N x N, got 1 x 28 x 28"),
        ({"input_size": [3, 224, 224], "crop_mode": "border"}, "crop_mode must be center or squash, got 'border'"),
        ({"input_size": [3, 224, 224], "interpolation": "random"}, "interpolation must be one of"),
        ({"model_type": "resnet"}, "is neither timm's JSON"),
        ([1, 2], "must be a JSON object, got list"),
    ],
)
def test_what_would_change_the_pixels_and_is_not_understood_is_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        of(tmp_path, values)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"must be one of imagenet, inception, .*got 'imagnet'"):
        load_recipe("imagnet")
