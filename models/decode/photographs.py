"""The bundled photographs, on which a model that was converted or registered is tried."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.decode.resize import UInt8Array
from models.spec import Preprocessing

_TAR = Path(__file__).parents[1] / "samples" / "photos.tar"


def bundled_photographs(preprocessing: Preprocessing, mode: DecodeMode) -> UInt8Array:
    """Decode the bundled photographs for a model; uint8 of shape (8, crop, crop, 3)."""
    with tarfile.open(_TAR) as tar:
        files = [tar.extractfile(member) for member in tar if not member.name.endswith(".cls")]
        images = [file.read() for file in files if file is not None]
    return np.stack([decode_image(image, preprocessing, mode, ImageLimits()).pixels for image in images])
