"""Daft that is given what a plain script decodes with, and nothing of this project but the joined graph.

    python -m benchmarks.peers.daft_pillow --inputs DIR --output DIR --model M --precision P

The batch method is `daft_given`'s; decoding is Pillow's draft mode (a JPEG reduced by 2, 4 or 8 as it is decoded) and one
resize of what the crop keeps, which is what a user gets without a decoder of ours.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmarks.peers.common import crop_of_image, parse_job
from benchmarks.peers.daft_given import run
from models.spec import Preprocessing


def decode(data: bytes, p: Preprocessing, out: np.ndarray) -> None:
    """Decode no more of a JPEG than the crop needs."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (p.resize_shorter, p.resize_shorter))
    out[:] = crop_of_image(image.convert("RGB"), p)


if __name__ == "__main__":
    run(parse_job(__doc__), decode)
