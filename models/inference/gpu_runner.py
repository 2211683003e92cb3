"""A session on a GPU: batches of one fixed shape, copied from pinned memory, with small outputs.

Only uint8 pixels are copied to the GPU, and only the best k labels back. A short batch is padded with black images, so
that every run has the same shape: kernels are chosen once, and an image's scores do not depend on the batch's length.
Several threads may call; each batch in flight has its own slot: pinned memory, and the GPU's input and outputs.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from models.device import Provider
from models.errors import DeviceLostError, DeviceMemoryError, InferenceError, SignatureError
from models.graph.fixed_shape import fix_top_k
from models.inference.pinned_memory import PinnedBuffer
from models.inference.predictions import Predictions, UInt8Array
from models.inference.session_runner import SessionRunner
from models.session import GpuOptions, build_session
from models.spec import ModelSpec, Precision

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Error texts of ONNX Runtime, CUDA, cuDNN and cuBLAS; none of them passes an error code to Python.
_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|OUT_OF_MEMORY|ALLOC_FAILED|bad allocation|BFCArena", re.IGNORECASE
)
_LOST = re.compile(
    r"(CUDA|CUDNN|CUBLAS|CUFFT|TensorRT)\w* (failure|error)|CUDA_ERROR|cudaError|CUDNN_STATUS", re.IGNORECASE
)


@dataclass(slots=True)
class _Slot:
    """The buffers of one batch in flight."""

    pixels: PinnedBuffer
    on_gpu: Any
    ids: Any
    scores: Any
    binding: Any


class GpuRunner(SessionRunner):
    """Runs a joined graph on a GPU. `predict` may be called from any number of threads; each needs a free slot.

    Args:
        spec: The model's entry.
        graph: The joined graph's bytes.
        provider: CUDA or TensorRT; or the CPU, for tests of this path without a GPU.
        top_k: Labels per image.
        precision: Precision of the artifact.
        gpu: Batch size, and how the GPU is used.

    Attributes:
        batch_size: Images of every run; half of what was asked for if the GPU had too little memory.
        notes: Messages for the user.
    """

    def __init__(
        self, spec: ModelSpec, graph: bytes, provider: Provider, top_k: int, precision: Precision, gpu: GpuOptions
    ) -> None:
        self._provider = provider
        self._gpu = replace(gpu, precision=precision)
        self._num_slots = 1 if gpu.cuda_graphs else gpu.slots
        self.batch_size = spec.input.batch or gpu.batch_size
        self.notes: list[str] = []
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._lock = threading.Lock()
        super().__init__(spec, graph, provider, top_k)
        self._halving(self._fill_slots)

    def predict(
        self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False, top_k: int | None = None
    ) -> Predictions:
        """Label a batch, or several; see `Classifier.predict`."""
        if top_k is not None and top_k != self.top_k:
            return self._other_top_k(images, top_k, probabilities=probabilities, embedding=embedding)
        if probabilities or embedding:
            return self._halving(lambda: self._predict_whole(images, probabilities=probabilities, embedding=embedding))
        self._check_images(images)
        ids = np.empty((len(images), self.top_k), np.int32)
        scores = np.empty((len(images), self.top_k), np.float32)
        first = 0
        while first < len(images):
            start = first
            first += self._halving(partial(self._label, images[start:], ids[start:], scores[start:]))
        return Predictions(ids, scores)

    def _label(self, images: UInt8Array, ids: Any, scores: Any) -> int:  # noqa: ANN401 (views of arrays)
        """Label as many of the images as fit into a slot; return how many."""
        slot = self._slots.get()
        while len(slot.pixels.array) != self.batch_size:  # from before the batch was halved
            slot.pixels.close()
            slot = self._slots.get()
        try:
            pixels = slot.pixels.array
            count = min(len(images), len(pixels))
            pixels[:count] = images[:count]
            pixels[count:] = 0
            try:
                slot.on_gpu.update_inplace(pixels)
                self._session.run_with_iobinding(slot.binding)
                ids[:count] = slot.ids.numpy()[:count]
                scores[:count] = slot.scores.numpy()[:count]
            except Exception as err:  # ONNX Runtime's errors share no base but Exception
                raise _device_error(err, self.spec.name, len(pixels)) from err
            return count
        finally:
            if len(slot.pixels.array) == self.batch_size:
                self._slots.put(slot)
            else:  # the batch was halved meanwhile, and new slots replaced this one
                slot.pixels.close()

    def _predict_whole(self, images: UInt8Array, *, probabilities: bool, embedding: bool) -> Predictions:
        """Label with plain runs, without slots, in pieces of the fixed shape."""
        size, pieces = self.batch_size, []
        for first in range(0, max(1, len(images)), size):
            count = len(images[first : first + size])
            piece = np.zeros((size, *images.shape[1:]), images.dtype)
            piece[:count] = images[first : first + size]
            found = super().predict(piece, probabilities=probabilities, embedding=embedding)
            pieces.append(found.rows(0, count))
        return Predictions.join(pieces)

    def _other_top_k(self, images: UInt8Array, top_k: int, *, probabilities: bool, embedding: bool) -> Predictions:
        """Pick another number of labels than the graph's fixed one, from the probabilities."""
        if not 1 <= top_k <= self.num_classes:
            raise SignatureError(f"top_k must be between 1 and {self.num_classes}, got {top_k}")
        found = self.predict(images, probabilities=True, embedding=embedding)
        every = found.probabilities
        assert every is not None
        ids = np.argsort(-every, axis=1, kind="stable")[:, :top_k]  # (n_images, k); ties keep the lower id first
        scores = np.take_along_axis(every, ids, axis=1)
        return Predictions(ids.astype(np.int32), scores, every if probabilities else None, found.embedding)

    def _warm_up(self) -> int:
        """Run a whole batch and return the number of classes."""
        return self._halving(self._run_black)

    def _run_black(self) -> int:
        images = np.zeros((self.batch_size, self._side, self._side, 3), np.uint8)
        (probabilities,) = self._run(["probabilities"], {"images": images, "k": np.ones(1, np.int64)})
        return int(probabilities.shape[1])

    def _build_session(self, graph: bytes, provider: Provider, num_threads: int) -> Any:  # noqa: ANN401 (untyped library)
        return build_session(fix_top_k(graph, self.top_k), provider, num_threads, self._gpu)

    def _run_once(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        import onnxruntime as ort

        options = ort.RunOptions()
        # Not recorded as a CUDA graph: that belongs to the one binding that replays it.
        options.add_run_config_entry("gpu_graph_id", "-1")
        try:
            return list(self._session.run(names, {"images": feed["images"]}, options))
        except Exception as err:  # ONNX Runtime's errors share no base but Exception
            raise _device_error(err, self.spec.name, len(feed["images"])) from err

    def _fill_slots(self) -> None:
        from onnxruntime import OrtValue

        self._drop_slots()
        on_gpu = self._provider is not Provider.CPU
        device = "cuda" if on_gpu else "cpu"
        for _ in range(self._num_slots):
            shape = (self.batch_size, self._side, self._side, 3)
            pixels = PinnedBuffer(shape, pin=on_gpu)
            try:
                slot = _Slot(
                    pixels=pixels,
                    on_gpu=OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, device, 0),
                    ids=OrtValue.ortvalue_from_shape_and_type((self.batch_size, self.top_k), np.int64, device, 0),
                    scores=OrtValue.ortvalue_from_shape_and_type((self.batch_size, self.top_k), np.float32, device, 0),
                    binding=self._session.io_binding(),
                )
                slot.binding.bind_ortvalue_input("images", slot.on_gpu)
                slot.binding.bind_ortvalue_output("top_ids", slot.ids)
                slot.binding.bind_ortvalue_output("top_scores", slot.scores)
                self._session.run_with_iobinding(slot.binding)
            except Exception as err:  # ONNX Runtime's errors share no base but Exception
                pixels.close()
                raise _device_error(err, self.spec.name, self.batch_size) from err
            self._slots.put(slot)

    def _halving(self, work: Callable[[], T]) -> T:
        """Do the work; if the GPU's memory is too small, halve the batch and retry. The batch is halved only once."""
        while True:
            size = self.batch_size
            try:
                return work()
            except DeviceMemoryError:
                with self._lock:
                    # If several threads ran out of memory, the first halves the batch, and the others only retry.
                    if size == self.batch_size:
                        self._halve()

    def _halve(self) -> None:
        if self.notes or self.batch_size == 1:
            raise DeviceMemoryError(
                f"the GPU has too little memory for {self.spec.name} with batches of {self.batch_size}, even after "
                "halving them; use a smaller --batch-size"
            )
        self.batch_size //= 2
        note = (
            f"the GPU has too little memory for batches of {self.batch_size * 2}, so they were halved; "
            f"use --batch-size {self.batch_size} next time"
        )
        logger.warning(note)
        self.notes.append(note)
        if hasattr(self, "num_classes"):
            self._fill_slots()

    def _drop_slots(self) -> None:
        """Close the idle slots of the former size; `_label` closes those in use when it is done with them."""
        while not self._slots.empty():
            self._slots.get_nowait().pixels.close()


def _device_error(err: Exception, model: str, images: int) -> InferenceError:
    """Return the project's error for an error of ONNX Runtime."""
    text = str(err)
    if _MEMORY.search(text):
        return DeviceMemoryError(f"{model}: the GPU has too little memory for {images} images: {text}")
    if _LOST.search(text):
        return DeviceLostError(f"{model}: the GPU failed on {images} images: {text}")
    return InferenceError(f"{model} failed on {images} images: {text}")
