"""The one inference class of the project: bulk actors and online replicas hold a `Classifier`, on CPUs and on GPUs."""

from __future__ import annotations

from models.device import Device, DeviceChoice, Provider, choose
from models.graph.fp16 import load_graph
from models.inference.gpu_runner import GpuRunner
from models.inference.predictions import Predictions, UInt8Array
from models.inference.session_runner import SessionRunner
from models.session import GpuOptions
from models.spec import ModelSpec, Precision
from models.store.locate import locate

__all__ = ["Classifier", "Device", "DeviceChoice", "Provider", "choose"]


class Classifier:
    """Label batches of images with one ONNX Runtime session.

    Construction loads the joined graph (see `models.graph.join`) and runs a first batch; this may take seconds. Build
    one per process, in the actor or the replica, never in the driver: a session cannot be pickled, but a spec can.
    `predict` may be called from several threads.

    Args:
        spec: What to load; see `models.catalog.load_spec`.
        precision: Which artifact of it.
        provider: Execution provider to use. There is no fallback: if ONNX Runtime cannot use it, construction fails.
        top_k: Number of labels that `predict` returns, 1 <= top_k <= number of classes.
        num_threads: Threads of one `predict` on a CPU; 1 if each core has its own actor.
        graph: The joined graph's bytes, if the caller has them already; by default it is loaded for the spec.
        gpu: Options for batches of a fixed shape from pinned memory (see `models.inference.gpu_runner`); None for
            batches of any size. Together with the CPU provider, for tests of that path.

    Raises:
        DeviceMemoryError: The GPU has too little memory, even for half the batch.
        ArtifactError: The model's file is missing or its SHA-256 differs.
        DownloadError: The model has to be downloaded, and no source had it.
        ProviderUnavailableError: The provider cannot be used here; the message lists those that can.
        SignatureError: The file's tensors are not what the entry says, or top_k exceeds the number of classes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        precision: Precision,
        provider: Provider = Provider.CPU,
        top_k: int = 5,
        num_threads: int = 1,
        graph: bytes | None = None,
        gpu: GpuOptions | None = None,
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.top_k = top_k
        if graph is None:
            graph = load_graph(spec, precision, locate(spec, precision))
        self.runner = (
            SessionRunner(spec, graph, provider, top_k, num_threads)
            if gpu is None
            else GpuRunner(spec, graph, provider, top_k, precision, gpu)
        )
        self.num_classes = self.runner.num_classes

    def predict(
        self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False, top_k: int | None = None
    ) -> Predictions:
        """Label a batch.

        Args:
            images: uint8 of shape (n_images, crop, crop, 3), HWC RGB; n_images may be 0.
            top_k: Labels per image for this batch, 1 <= top_k <= num_classes; by default that of the classifier.
            probabilities: Whether to return every class's probability.
            embedding: Whether to return the penultimate features; the entry must name them.

        Returns:
            Predictions with n_images rows, in input order.

        Raises:
            SignatureError: images has another shape or dtype, or the model has no embedding.
            InferenceError: ONNX Runtime failed; its exception is the cause.
            DeviceMemoryError: The GPU has too little memory, even for half of this batch.
            DeviceLostError: The GPU failed; this process cannot use it any more.
        """
        return self.runner.predict(images, probabilities=probabilities, embedding=embedding, top_k=top_k)
