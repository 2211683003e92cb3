"""A backend whose answers others look at: the prediction log, and the watch over the distribution of labels.

One place sees what every protocol answers. What takes a model's own tensor is not seen: there is no image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace

from models.inference.predictions import Float32Array
from serve.model.backend import Backend, Labelled, Outcome

# Of the request that is answered: the header X-Request-Id, or the protocol's own id. "" without one.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
# Longer ones are cut: whoever sends them chooses what the log takes.
MAX_ID = 200

# Called on the event loop with the images of a request and their outcomes: takes microseconds, and does not raise.
Observer = Callable[[Sequence[bytes], Sequence[Outcome]], None]


def set_request_id(text: str) -> None:
    """Note the id of the request that is answered from here on; in each request, before its images are labelled."""
    REQUEST_ID.set(text[:MAX_ID])


class Observed:
    """See `serve.model.backend.Backend`.

    Args:
        backend: What answers.
        observers: Who looks at its answers.
        top_k: Labels that observers see at least, however few are asked for.
        end: Ends the observers; may take seconds.
    """

    def __init__(self, backend: Backend, observers: Sequence[Observer], *, top_k: int, end: Callable[[], None]) -> None:
        self._backend = backend
        self._observers = observers
        self._end = end
        self._top_k = min(top_k, len(backend.labels))
        self.spec, self.precision = backend.spec, backend.precision
        self.labels, self.calibration = backend.labels, backend.calibration

    @property
    def is_ready(self) -> bool:
        """Tell whether the backend is."""
        return self._backend.is_ready

    def admit(self, images: int) -> None:
        """Let a request in before its body is read."""
        self._backend.admit(images)

    async def label(
        self,
        images: Sequence[bytes],
        *,
        top_k: int,
        deadline: float,
        probabilities: bool = False,
        embedding: bool = False,
    ) -> list[Outcome]:
        """Label encoded images, and show the outcomes."""
        outcomes = await self._backend.label(
            images,
            top_k=max(top_k, self._top_k),
            deadline=deadline,
            probabilities=probabilities,
            embedding=embedding,
        )
        for observe in self._observers:
            observe(images, outcomes)
        return outcomes if top_k >= self._top_k else [_cut(outcome, top_k) for outcome in outcomes]

    async def run_tensor(self, batch: Float32Array, *, deadline: float) -> Float32Array:
        """Run the model on its own input tensor."""
        return await self._backend.run_tensor(batch, deadline=deadline)

    def close(self) -> None:
        """End the backend, then the observers."""
        self._backend.close()
        self._end()


def _cut(outcome: Outcome, top_k: int) -> Outcome:
    """Leave the best few labels: of a larger k the first are the best."""
    if not isinstance(outcome, Labelled):
        return outcome
    return replace(outcome, label_ids=outcome.label_ids[:top_k], scores=outcome.scores[:top_k])
