"""When a run stops early: its share of failures exceeds the limit by more than chance explains."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The share is checked after so many images, and then whenever they have doubled. Checks are few, because each stops one
# in a hundred of the runs whose true share is exactly the limit.
FIRST_LOOK = 1_000
CHANCE = 0.01


@dataclass(slots=True)
class ErrorBudget:
    """Tells when chance no longer explains a share of failures.

    Attributes:
        rate: The allowed share, 0 to 1.
        looked_at: Number of images at the last check, or when the run began.
    """

    rate: float
    looked_at: int = 0

    def is_spent(self, images: int, failed: int) -> bool:
        """Tell whether to stop after `failed` of `images` images have failed; False between two checks."""
        if images < _next_look(self.looked_at):
            return False
        self.looked_at = images
        return failed > self.rate * images and chance_of(failed, images, self.rate) < CHANCE


def _next_look(images: int) -> int:
    """Return the first of FIRST_LOOK, 2 * FIRST_LOOK, 4 * FIRST_LOOK, ... above `images`."""
    look = FIRST_LOOK
    while look <= images:
        look *= 2
    return look


def chance_of(failed: int, images: int, rate: float) -> float:
    """Return the exact probability that at least `failed` images fail, if each fails with probability `rate`.

    Args:
        failed: More than rate * images, so that the sum's terms decrease from the first on.
        images: At least `failed`.
        rate: 0 <= rate < 1.
    """
    if rate == 0:
        return 0.0
    logs = math.lgamma(images + 1) - math.lgamma(failed + 1) - math.lgamma(images - failed + 1)
    term = math.exp(logs + failed * math.log(rate) + (images - failed) * math.log1p(-rate))
    total = 0.0
    while term > total * 1e-12:
        total += term
        term *= (images - failed) / (failed + 1) * rate / (1 - rate)
        failed += 1
    return total
