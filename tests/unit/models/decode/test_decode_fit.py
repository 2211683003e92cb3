"""Preprocessings other than the catalog's own: a stretch to a square, and Lanczos's filter."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.spec import Fit, Interpolation, Preprocessing


def picture(width: int, height: int, orientation: int = 1) -> tuple[Image.Image, bytes]:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 200 / height + 20, columns * 200 / width + 20, (rows + columns) % 97 + 60], axis=2)
    image = Image.fromarray(pixels.astype(np.uint8))
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, "PNG", exif=exif)
    return image, buffer.getvalue()


def preprocessing(fit: Fit, interpolation: Interpolation, resize: int, crop: int) -> Preprocessing:
    return Preprocessing(
        resize_shorter=resize, crop=crop, interpolation=interpolation, fit=fit, scale=1, mean=(0, 0, 0), std=(1, 1, 1)
    )


@pytest.mark.parametrize("mode", list(DecodeMode))
@pytest.mark.parametrize(("width", "height"), [(120, 40), (33, 90), (64, 64), (20, 15)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (40, 32)])
def test_a_stretch_resizes_both_sides_alike(mode, width, height, resize, crop):
    image, data = picture(width, height)
    expected = np.asarray(image.resize((resize, resize), Image.Resampling.BILINEAR))
    start = resize // 2 - crop // 2

    got = decode_image(
        data, preprocessing(Fit.STRETCH, Interpolation.BILINEAR, resize, crop), mode, ImageLimits()
    ).pixels

    difference = np.abs(got.astype(int) - expected[start : start + crop, start : start + crop])
    # `fast` rounds between its two passes elsewhere.
    assert difference.max() <= (0 if mode is DecodeMode.EXACT else 2)


@pytest.mark.parametrize("mode", list(DecodeMode))
def test_a_stretch_is_of_the_upright_image(mode):
    image, data = picture(100, 30, orientation=6)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270).resize((24, 24), Image.Resampling.BILINEAR))

    got = decode_image(data, preprocessing(Fit.STRETCH, Interpolation.BILINEAR, 24, 24), mode, ImageLimits()).pixels

    assert np.abs(got.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("mode", list(DecodeMode))
def test_lanczos_is_pillows(mode):
    image, data = picture(90, 60)
    expected = np.asarray(image.resize((48, 32), Image.Resampling.LANCZOS))[:, 8:40]

    got = decode_image(data, preprocessing(Fit.SHORTER, Interpolation.LANCZOS, 32, 32), mode, ImageLimits()).pixels

    assert np.abs(got.astype(int) - expected).max() <= (0 if mode is DecodeMode.EXACT else 1)


def test_the_preprocessing_ids_of_before_stay_what_they_were():
    from models.catalog import load_spec

    # Part of the fingerprint of every run: another id would refuse to resume.
    assert load_spec("efficientnet-lite0").preprocessing_id == "1952fb5b08382316"
