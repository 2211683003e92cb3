"""What a worker is told of the model, and how it loads it."""

from __future__ import annotations

from dataclasses import dataclass

from models.classifier import Choice, Classifier, Labeller, Provider
from models.device_classifier import CardClassifier
from models.device_session import CardOptions
from models.simulated import SimulatedClassifier
from models.spec import ModelSpec
from pipeline.pools import Pools
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

    def load(self, num_classes: int, pools: Pools) -> Labeller:
        """Build the classifier, of a model with so many classes; once per process.

        Raises:
            ShardlabelError: As `Classifier` does.
        """
        if self.choice.provider is Provider.SIMULATED:
            assert self.choice.rate is not None
            return SimulatedClassifier(self.choice.rate * pools.card_share, num_classes, self.top_k)
        if self.choice.provider is not Provider.CPU:
            return CardClassifier(
                self.spec,
                precision=self.choice.precision,
                provider=self.choice.provider,
                top_k=self.top_k,
                card=CardOptions(pools.batch_size, cuda_graphs=pools.cuda_graphs),
                graph=self.state.graph(),
            )
        return Classifier(
            self.spec,
            precision=self.choice.precision,
            provider=self.choice.provider,
            top_k=self.top_k,
            num_threads=1,
            graph=self.state.graph(),
        )
