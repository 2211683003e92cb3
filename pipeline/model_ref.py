"""What a worker is told of the model, and how it loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from models.classifier import Choice, Classifier, Labeller, Provider
from models.device_classifier import CardClassifier
from models.device_session import CardOptions
from models.simulated import SimulatedClassifier
from models.spec import ModelSpec
from pipeline.pools import Pools

if TYPE_CHECKING:
    from pipeline.runstate import RunState


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
    choice: Choice
    top_k: int
    state: RunState

    def loader(self, num_classes: int, pools: Pools) -> Callable[[], Labeller]:
        """Return what builds the classifier, of a model with so many classes; in a process without Ray too.

        It raises what `Classifier` does.
        """
        real = self.choice.provider is not Provider.SIMULATED
        return partial(
            _load, self.spec, self.choice, self.top_k, num_classes, pools, self.state.graph() if real else b""
        )


def _load(spec: ModelSpec, choice: Choice, top_k: int, num_classes: int, pools: Pools, graph: bytes) -> Labeller:
    if choice.provider is Provider.SIMULATED:
        assert choice.rate is not None
        return SimulatedClassifier(choice.rate * pools.card_share, num_classes, top_k)
    if choice.provider is not Provider.CPU:
        return CardClassifier(
            spec,
            precision=choice.precision,
            provider=choice.provider,
            top_k=top_k,
            card=CardOptions(pools.batch_size, cuda_graphs=pools.cuda_graphs),
            graph=graph,
        )
    return Classifier(
        spec, precision=choice.precision, provider=choice.provider, top_k=top_k, num_threads=1, graph=graph
    )
