"""Which model a run is of, how the driver gets it, and how a worker loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models.catalog import load_spec
from models.errors import ConfigError
from models.graph.fp16 import load_graph
from models.inference.classifier import Classifier, DeviceChoice, Labeller, Provider
from models.inference.gpu_classifier import GpuClassifier
from models.inference.simulated_gpu import SimulatedClassifier
from models.labels import check_classes, label_texts
from models.session import GpuOptions
from models.spec import ModelSpec
from models.store.download import progress_printer
from models.store.locate import locate
from pipeline.config import LabelConfig
from pipeline.session.pools import Pools

if TYPE_CHECKING:
    from pipeline.session.attempts import RunState


@dataclass(frozen=True, slots=True)
class ModelRef:
    """How an actor comes to its Classifier: the joined graph travels through the object store, once per node.

    Attributes:
        spec: The model's entry.
        choice: Which artifact, on what.
        top_k: Labels per image.
        state: Where the joined graph is to be had.
    """

    spec: ModelSpec
    choice: DeviceChoice
    top_k: int
    state: RunState

    def loader(self, num_classes: int, pools: Pools) -> Callable[[], Labeller]:
        """Return what builds the classifier, of a model with so many classes; in a process without Ray too.

        It raises what `Classifier` does.
        """
        graph = b"" if self.choice.provider is Provider.SIMULATED else self.state.graph()
        return partial(build_labeller, self.spec, self.choice, self.top_k, num_classes, pools, graph)


def build_labeller(
    spec: ModelSpec, choice: DeviceChoice, top_k: int, num_classes: int, pools: Pools, graph: bytes
) -> Labeller:
    """Build what labels batches on the device that was chosen; once per process.

    Args:
        spec: The model's entry.
        choice: Which artifact, on what.
        top_k: Labels per image.
        num_classes: Of the model, for a simulated GPU.
        pools: Batch size, and which part of a GPU it has.
        graph: The joined graph; of a simulated GPU b"".

    Raises:
        ShardlabelError: As `Classifier` does.
    """
    if choice.provider is Provider.SIMULATED:
        assert choice.rate is not None
        return SimulatedClassifier(choice.rate * pools.gpu_share, num_classes, top_k)
    if choice.provider is not Provider.CPU:
        gpu = GpuOptions(pools.batch_size, cuda_graphs=pools.cuda_graphs)
        return GpuClassifier(
            spec, precision=choice.precision, provider=choice.provider, top_k=top_k, gpu=gpu, graph=graph
        )
    return Classifier(
        spec, precision=choice.precision, provider=choice.provider, top_k=top_k, num_threads=1, graph=graph
    )


def settle_model(config: LabelConfig) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the model's entry and what its classes are called, checked against what is asked of it.

    Raises:
        ConfigError: The model is not known, or cannot give what is asked for.
        ArtifactError: Its labels cannot be read.
    """
    spec = load_spec(config.model)
    labels = label_texts(spec, config.labels)
    if config.top_k > len(labels):
        raise ConfigError(f"--top-k must be between 1 and {len(labels)} (classes of {spec.name}), got {config.top_k}")
    if config.embeddings and spec.embedding is None:
        raise ConfigError(f"--embeddings: the entry of {spec.name} names no tensor of penultimate features")
    return spec, labels


def model_file(spec: ModelSpec, choice: DeviceChoice) -> Path | None:
    """Return the model's verified file, downloaded if need be; a simulated device needs none."""
    if choice.provider is Provider.SIMULATED:
        return None
    with progress_printer(spec.name) as progress:
        return locate(spec, choice.precision, progress=progress)


def load_model(spec: ModelSpec, choice: DeviceChoice, path: Path | None, top_k: int) -> bytes:
    """Return the joined graph; on a CPU also load it once, so that a model that cannot run is told before a pool is."""
    if path is None:
        return b""
    graph = load_graph(spec, choice.precision, path)
    if choice.provider is Provider.CPU:
        classifier = Classifier(spec, precision=choice.precision, graph=graph, top_k=top_k)
        check_classes(spec, classifier.num_classes)
    return graph
