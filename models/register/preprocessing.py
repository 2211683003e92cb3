"""Preprocessing of a user's model: by name, or from the configuration file of timm or Hugging Face.

An unsupported setting that would change the pixels is an error: a wrong preprocessing silently costs accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from models.errors import ConfigError
from models.spec import Channels, Fit, Interpolation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Keras's "caffe" mode, as R G B; Keras has them as B G R: 103.939, 116.779, 123.68.
CAFFE_MEAN = (123.68, 116.779, 103.939)
ONES, ZEROS = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
# Pillow's numbers for its filters, which Hugging Face's files use.
PILLOW_FILTERS = {1: Interpolation.LANCZOS, 2: Interpolation.BILINEAR, 3: Interpolation.BICUBIC}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A preprocessing, as far as it is known before the model's file is read.

    Attributes:
        scale: Factor for the 0..255 value.
        mean: Subtracted after the scale; R G B.
        std: Divides what is left; R G B.
        crop: Side of the crop, pixels; None for the side of the model's input.
        resize_shorter: Shorter side after the resize, pixels; None for crop / crop_share.
        crop_share: Share of the resized image's shorter side that the crop keeps.
        interpolation: Filter of the resize.
        fit: Whether to keep the image's shape or stretch it.
        channels: Channel order of the model's input.
    """

    scale: float = 1 / 255
    mean: tuple[float, float, float] = ZEROS
    std: tuple[float, float, float] = ONES
    crop: int | None = None
    resize_shorter: int | None = None
    crop_share: float = 0.875
    interpolation: Interpolation = Interpolation.BILINEAR
    fit: Fit = Fit.SHORTER
    channels: Channels = Channels.RGB


_HALF = (0.5, 0.5, 0.5)
NAMED = {
    "imagenet": Recipe(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "inception": Recipe(mean=_HALF, std=_HALF),
    "none": Recipe(scale=1.0),
    "unit": Recipe(),
    # The modes of keras.applications.imagenet_utils.preprocess_input; `none` is for models that normalise inside.
    "keras-tf": Recipe(scale=1 / 127.5, mean=ONES),
    "keras-torch": Recipe(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "keras-caffe": Recipe(scale=1.0, mean=CAFFE_MEAN, channels=Channels.BGR),
    "keras-none": Recipe(scale=1.0),
}


def load_recipe(text: str, interpolation: str | None = None) -> Recipe:
    """Return a preprocessing by name, or from a JSON file of timm or Hugging Face.

    Args:
        text: The name, or the file's path.
        interpolation: Overrides the filter.

    Raises:
        ConfigError: There is no such name or file, or the file has an unsupported setting.
    """
    chosen = None if interpolation is None else _filter(interpolation)
    if text in NAMED:
        return NAMED[text] if chosen is None else replace(NAMED[text], interpolation=chosen)
    path = Path(text)
    if not path.is_file():
        raise ConfigError(
            f"--preprocess must be one of {', '.join(NAMED)}, or a JSON file of timm (config.json) or Hugging Face "
            f"(preprocessor_config.json), got {text!r}"
        )
    try:
        values = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise ConfigError(f"--preprocess {text} is not valid JSON: {err}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"--preprocess {text} must be a JSON object, got {type(values).__name__}")
    try:
        config = values.get("pretrained_cfg", values)
        if any(key in values for key in ("image_mean", "do_resize", "do_normalize", "do_rescale", "size")):
            return _hugging_face(values, chosen)
        if "input_size" in config or "crop_pct" in config:
            return _timm(config, chosen)
    except (TypeError, ValueError, KeyError, AttributeError) as err:
        raise ConfigError(f"--preprocess {text} has a value of an unexpected form: {err}") from err
    raise ConfigError(f"--preprocess {text} is neither timm's JSON (input_size, mean) nor a preprocessor_config.json")


def _timm(config: dict[str, Any], chosen: Interpolation | None) -> Recipe:
    """Read a `pretrained_cfg`, or the result of `timm.data.resolve_data_config`."""
    channels, height, width = config.get("input_size", (3, 224, 224))
    if channels != 3 or height != width:
        raise ConfigError(f"timm's input_size must be 3 x N x N, got {channels} x {height} x {width}")
    share = float(config.get("crop_pct") or 0.875)
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ConfigError(f"timm's crop_mode must be center or squash, got {mode!r}; others are not supported")
    return Recipe(
        mean=_three(config.get("mean", IMAGENET_MEAN)),
        std=_three(config.get("std", IMAGENET_STD)),
        crop=int(height),
        resize_shorter=math.floor(height / share),
        interpolation=chosen or _filter(config.get("interpolation", "bilinear")),
        fit=Fit.STRETCH if mode == "squash" else Fit.SHORTER,
    )


def _hugging_face(values: dict[str, Any], chosen: Interpolation | None) -> Recipe:
    """Read a preprocessor_config.json of an image classifier."""
    for key in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_reduce_labels", "do_split_image"):
        if values.get(key):
            raise ConfigError(f"preprocessor_config.json: {key} is not supported")
    scale, mean, std = _numbers(values)
    crop, resize, fit = _geometry(values)
    resample = values.get("resample", 2)
    if chosen is None and resample not in PILLOW_FILTERS:
        raise ConfigError(
            f"preprocessor_config.json: resample must be one of {list(PILLOW_FILTERS)}, got {resample}; choose a "
            "filter with --interpolation bilinear, bicubic or lanczos"
        )
    return Recipe(
        scale=scale,
        mean=mean,
        std=std,
        crop=crop,
        resize_shorter=resize,
        interpolation=chosen or PILLOW_FILTERS[resample],
        fit=fit,
        channels=Channels.BGR if values.get("do_flip_channel_order") else Channels.RGB,
    )


def _numbers(values: dict[str, Any]) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    scale = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    mean, std = ZEROS, ONES
    if values.get("do_normalize", True):
        mean, std = _three(values.get("image_mean", _HALF)), _three(values.get("image_std", _HALF))
    if values.get("rescale_offset"):
        # EfficientNet's: 1 is subtracted from the scaled value before mean and std.
        mean = _three([one + 1.0 for one in mean])
        if not math.isclose(scale, 1 / 127.5):
            raise ConfigError(
                f"preprocessor_config.json: rescale_offset with a rescale_factor of {scale} is not supported"
            )
    if values.get("include_top"):  # EfficientNet's too: divides by std twice
        std = _three([one * one for one in std])
    return scale, mean, std


def _geometry(values: dict[str, Any]) -> tuple[int | None, int | None, Fit]:
    """Return (crop, resize, fit)."""
    cropped = bool(values.get("do_center_crop"))
    crop = _one_side(values["crop_size"]) if cropped and "crop_size" in values else None
    size = values.get("size")
    if not values.get("do_resize", True) or size is None:
        return crop, crop, Fit.SHORTER
    if isinstance(size, dict) and "shortest_edge" in size:
        side = int(size["shortest_edge"])
        return _shortest_edge(values, side, crop)
    side = _one_side(size)
    if cropped and isinstance(size, int):
        return crop or side, side, Fit.SHORTER
    return crop or side, side, Fit.STRETCH


def _shortest_edge(values: dict[str, Any], side: int, crop: int | None) -> tuple[int, int, Fit]:
    share = values.get("crop_pct")
    if share:  # ConvNeXT's: below 384 a crop of the enlarged image, from 384 on the whole image, stretched
        return (side, int(side / float(share)), Fit.SHORTER) if side < 384 else (side, side, Fit.STRETCH)
    return crop or side, side, Fit.SHORTER


def _one_side(size: Any) -> int:  # noqa: ANN401 (JSON)
    if isinstance(size, dict):
        if size["height"] != size["width"]:
            raise ConfigError(f"only square crops are supported, got {size['height']} x {size['width']}")
        return int(size["height"])
    return int(size)


def _three(values: Any) -> tuple[float, float, float]:  # noqa: ANN401 (JSON)
    if isinstance(values, int | float):
        values = [values] * 3
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _filter(name: str) -> Interpolation:
    if name not in list(Interpolation):
        raise ConfigError(f"interpolation must be one of {', '.join(Interpolation)}, got {name!r}")
    return Interpolation(name)
