"""Turn pixels into a model's own input tensor, outside the joined graph: for quantising, and for tensor clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.spec import Channels, InputType, Layout, ModelSpec

DTYPES: dict[InputType, Any] = {
    InputType.FLOAT32: np.float32,
    InputType.FLOAT16: np.float16,
    InputType.UINT8: np.uint8,
}


def to_model_input(pixels: npt.NDArray[np.uint8], spec: ModelSpec) -> npt.NDArray[Any]:
    """Normalise a batch as the joined graph does.

    Args:
        pixels: uint8 of shape (n_images, crop, crop, 3), HWC RGB.
        spec: The model's entry.

    Returns:
        The batch in the model's type and layout, of shape (n_images, 3, crop, crop) or (n_images, crop, crop, 3).
    """
    p, wanted = spec.preprocessing, spec.input
    values: npt.NDArray[Any] = pixels
    if wanted.dtype is not InputType.UINT8:
        std, mean = np.asarray(p.std, np.float64), np.asarray(p.mean, np.float64)
        factor, offset = (p.scale / std).astype(np.float32), (-mean / std).astype(np.float32)
        values = (pixels.astype(np.float32) * factor + offset).astype(DTYPES[wanted.dtype])
    if wanted.channels is Channels.BGR:
        values = values[..., ::-1]
    if wanted.layout is Layout.NCHW:
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values)
