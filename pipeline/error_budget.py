"""When a run gives up: its share of failures is above what is allowed, and by more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Looked at after so many images, and then whenever they have doubled: at each look one run in a hundred whose true share
# is just what is allowed would be stopped, so looks are few.
FIRST_LOOK = 1_000
CHANCE = 0.01


@dataclass(slots=True)
class ErrorBudget:
    """Tells when a share of failures cannot be had by chance any more.

    Attributes:
        rate: The share that is allowed, 0 to 1.
        looked_at: Images when the share was looked at last, or when the run began.
    """

    rate: float
    looked_at: int = 0

    def is_spent(self, images: int, failed: int) -> bool:
        """Tell whether to stop, after so many images of which so many failed; False between two looks."""
        if images < _next_look(self.looked_at):
            return False
        self.looked_at = images
        return failed > self.rate * images and chance_of(failed, images, self.rate) < CHANCE


def _next_look(images: int) -> int:
    """Return the first of FIRST_LOOK, twice that, ... that is more."""
    look = FIRST_LOOK
    while look <= images:
        look *= 2
    return look


def chance_of(failed: int, images: int, rate: float) -> float:
    """Return the chance that at least so many of the images fail where each does with probability `rate`; exact.

    Args:
        failed: More than rate * images, where the sum's terms fall from the first on.
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
