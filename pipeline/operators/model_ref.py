"""Which model a run uses, how the driver gets it, and how a worker loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.calibration import Calibration, parse_calibration
from models.catalog import load_spec
from models.decode.mode import DecodeMode
from models.errors import ConfigError
from models.graph.fp16 import load_graph
from models.inference.classifier import Classifier, DeviceChoice, Provider
from models.inference.predictions import Labeller
from models.inference.simulated_gpu import SimulatedClassifier
from models.labels import check_classes, label_texts, load_classes
from models.session import GpuOptions
from models.spec import ModelSpec
from models.store.locate import locate
from pipeline.config import LabelConfig
from pipeline.storage.storage import open_storage
from pipeline.storage.uris import without_secrets

# A hundred thousand classes with a threshold each make 17 MB.
MAX_CALIBRATION_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model of an actor, and how the actor gets it. Picklable.

    Attributes:
        spec: The model's entry.
        choice: Which artifact runs, and on which device.
        labels: Name of each class, by class index.
        top_k: Labels per image.
        batch_size: Images per inference.
        gpu_share: Part of a GPU that each actor has; 0 on a CPU.
        graph: Reference to the joined graph's bytes in Ray's object store: one copy travels to each node.
        cuda_graphs: Whether a GPU replays a recorded batch.
        image_timeout_s: A batch that takes longer ends its process; see `WatchedLabeller`.
        calibration: Decides `accepted`; its temperature is in the graph.
    """

    spec: ModelSpec
    choice: DeviceChoice
    labels: tuple[str, ...]
    top_k: int
    batch_size: int
    gpu_share: float
    graph: Any
    cuda_graphs: bool = False
    image_timeout_s: float = 60.0
    calibration: Calibration | None = None

    def loader(self) -> Callable[[], Labeller]:
        """Return what builds the labeller once per process; it also works in a process without Ray."""
        import ray

        return partial(build_labeller, replace(self, graph=None), bytes(ray.get(self.graph)))


def build_labeller(model: ModelRef, graph: bytes) -> Labeller:
    """Build the labeller for the chosen device.

    Raises:
        ShardlabelError: See `Classifier`.
    """
    m, provider = model, model.choice.provider
    if provider is Provider.SIMULATED:
        assert m.choice.rate is not None
        return SimulatedClassifier(m.choice.rate * m.gpu_share, len(m.labels), m.top_k)
    on_gpu = None if provider is Provider.CPU else GpuOptions(m.batch_size, cuda_graphs=m.cuda_graphs)
    return Classifier(
        m.spec, precision=m.choice.precision, provider=provider, top_k=m.top_k, num_threads=1, graph=graph, gpu=on_gpu
    )


def settle_model(config: LabelConfig) -> tuple[LabelConfig, ModelSpec, tuple[str, ...]]:
    """Return the settings, the model's entry and the names of its classes, checked against each other.

    A model with fewer classes than the default top_k gives labels for all of them. A given top_k is not reduced.

    Raises:
        ConfigError: The model is unknown, or cannot give what the settings ask for.
        ArtifactError: Its labels cannot be read.
    """
    spec = load_spec(config.model)
    labels = label_texts(spec, config.labels)
    if "top_k" not in config.model_fields_set:
        config = config.model_copy(update={"top_k": min(config.top_k, len(labels))})
    if config.top_k > len(labels):
        raise ConfigError(f"--top-k must be between 1 and {len(labels)} (classes of {spec.name}), got {config.top_k}")
    if config.embeddings and spec.embedding is None:
        raise ConfigError(f"--embeddings: the entry of {spec.name} names no tensor of penultimate features")
    return config, spec, labels


def settle_calibration(
    place: str | None, spec: ModelSpec, choice: DeviceChoice, decode: DecodeMode
) -> Calibration | None:
    """Return the requested calibration, checked against the model that will run; None where none is requested.

    Args:
        place: Path or URI of the calibration, or None.
        spec: The model's entry.
        choice: What runs the model.
        decode: How images are decoded.

    Raises:
        ConfigError: It cannot be read, or was made for something else.
        StorageError: Its storage failed.
    """
    if place is None:
        return None
    if choice.provider is Provider.SIMULATED:
        raise ConfigError("--calibration: a simulated device makes up its scores, so there is nothing to calibrate")
    calibration = read_calibration(place)
    calibration.check(without_secrets(place), spec, choice.precision, decode)
    classes = len(load_classes(spec))
    if calibration.num_classes != classes:
        raise ConfigError(
            f"--calibration {without_secrets(place)} is for {calibration.num_classes} classes, but {spec.name} has "
            f"{classes}; make another with `shardlabel evaluate SOURCE --fit FILE`"
        )
    return calibration


def read_calibration(place: str) -> Calibration:
    """Read a calibration from a path or URI.

    Raises:
        ConfigError: The file does not exist, or is no calibration.
        StorageError: Its storage failed.
    """
    name, file = without_secrets(place), open_storage(place)
    found = file.stat()
    if found is None:
        raise ConfigError(f"--calibration {name}: there is no such file; `shardlabel evaluate SOURCE --fit` writes one")
    if found.size > MAX_CALIBRATION_BYTES:
        raise ConfigError(
            f"--calibration {name} has {found.size} bytes, and a calibration has at most {MAX_CALIBRATION_BYTES}; give the "
            "file that `shardlabel evaluate --fit` wrote"
        )
    return parse_calibration(file.read_bytes(""), name)


def model_file(spec: ModelSpec, choice: DeviceChoice) -> Path | None:
    """Return the path of the model's verified file, downloaded if necessary; None for a simulated device."""
    if choice.provider is Provider.SIMULATED:
        return None
    # Not at the top: it loads an HTTP client, which no actor needs.
    from models.store.download import progress_printer

    with progress_printer(spec.name) as progress:
        return locate(spec, choice.precision, progress=progress)


def load_model(
    spec: ModelSpec, choice: DeviceChoice, path: Path | None, top_k: int, calibration: Calibration | None = None
) -> bytes:
    """Return the joined graph; on a CPU also load it once, so that a model that cannot run fails before a pool starts."""
    if path is None:
        return b""
    graph = load_graph(spec, choice.precision, path, 1.0 if calibration is None else calibration.temperature)
    if choice.provider is Provider.CPU:
        classifier = Classifier(spec, precision=choice.precision, graph=graph, top_k=top_k)
        check_classes(spec, classifier.num_classes)
    return graph
