"""Run a model file as it is: its own input and output tensors, without our preprocessing, softmax or top-k."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import InferenceError, SignatureError
from models.inference.classifier import Provider
from models.inference.model_input import DTYPES
from models.inference.predictions import Float32Array
from models.session import build_session
from models.spec import InputType, Layout, ModelSpec, Precision
from models.store.locate import locate


class TensorModel:
    """Run batches of a model's own input. `run` may be called from several threads.

    Args:
        spec: The model's entry.
        precision: Which artifact of it.
        provider: Execution provider to use; as for `Classifier`, there is no fallback.
        num_threads: Threads of one `run` on a CPU.

    Raises:
        ArtifactError: The file is missing or broken.
        ProviderUnavailableError: The provider cannot be used here.
        SignatureError: ONNX Runtime cannot load the file.
    """

    def __init__(
        self, spec: ModelSpec, *, precision: Precision, provider: Provider = Provider.CPU, num_threads: int = 1
    ) -> None:
        self._spec = spec
        self._session = build_session(locate(spec, precision).read_bytes(), provider, num_threads)
        side = spec.preprocessing.crop
        self.shape = (3, side, side) if spec.input.layout is Layout.NCHW else (side, side, 3)

    def check(self, batch: Float32Array) -> None:
        """Raise SignatureError for a batch of another dtype or shape than `run` takes."""
        if batch.dtype != np.float32 or batch.shape[1:] != self.shape or len(batch) == 0:
            raise SignatureError(
                f"{self._spec.input.name} must be float32 of shape (n_images, {', '.join(map(str, self.shape))}) "
                f"with at least one image, got {batch.dtype} of shape {batch.shape}"
            )

    def run(self, batch: Float32Array) -> Float32Array:
        """Run one batch.

        Args:
            batch: float32 of the model's own input shape, batch axis first; at least one row.

        Returns:
            float32 of shape (n_images, n_classes), the model's own output.

        Raises:
            SignatureError: See `check`.
            InferenceError: ONNX Runtime failed; its exception is the cause.
        """
        self.check(batch)
        # Callers pass float32. It is cast for a float16 or uint8 model, and split for a model with a fixed batch.
        values = np.rint(batch).clip(0, 255) if self._spec.input.dtype is InputType.UINT8 else batch
        values = values.astype(DTYPES[self._spec.input.dtype], copy=False)
        size = self._spec.input.batch or len(batch)
        pieces = []
        for start in range(0, len(batch), size):
            piece = values[start : start + size]
            count = len(piece)
            if count < size:
                piece = np.concatenate([piece, np.zeros((size - count, *self.shape), piece.dtype)])
            pieces.append(np.asarray(self._run_once(piece), np.float32).reshape(size, -1)[:count])
        return np.concatenate(pieces)

    def _run_once(self, values: npt.NDArray[Any]) -> Any:  # noqa: ANN401 (untyped library)
        try:
            (output,) = self._session.run([self._spec.output.name], {self._spec.input.name: values})
        except Exception as err:  # ONNX Runtime's errors share no base but Exception
            raise InferenceError(f"{self._spec.name} failed on {len(values)} tensors: {err}") from err
        return output
