"""How often a threshold keeps its promise: rules that choose one, on made-up images whose true precision is known.

    python -m benchmarks.thresholds --runs 400

Each image has a calibrated score, and is right with that probability. A rule chooses a threshold for a precision of 95 % on
so many of them; whether it holds is told by 400,000 others. The rules: the rate itself; Wilson's one-sided lower bound for
95 %, which `evaluate --fit` takes; that of the two-sided interval; and selection with guaranteed risk (Geifman and El-Yaniv,
2017), a search by halves with a binomial bound whose error is divided among its steps. The last line of output is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.error_budget import chance_of
from pipeline.evaluate.statistics import Z95, wilson_bounds
from pipeline.evaluate.thresholds import lowest_score

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Rule = Callable[[Float64Array, BoolArray], float | None]

TARGET, CONFIDENCE = 0.95, 0.95
OTHERS = 400_000
# Shapes of the scores' beta distribution: models that are right 75 % and 89 % of the time.
MODELS = {75: (2.2, 0.75), 89: (3.5, 0.45)}


def by_rate(scores: Float64Array, right: BoolArray) -> float | None:
    """Take the lowest score from which on the rate is the target."""
    return _last(scores, np.cumsum(right) / np.arange(1, len(scores) + 1) >= TARGET)


def by_two_sided_bound(scores: Float64Array, right: BoolArray) -> float | None:
    """Take the lowest score from which on Wilson's interval lies above the target."""
    lower, _ = wilson_bounds(np.cumsum(right, dtype=np.int64), np.arange(1, len(scores) + 1), Z95)
    return _last(scores, lower >= TARGET)


def by_one_sided_bound(scores: Float64Array, right: BoolArray) -> float | None:
    """Do as `evaluate --fit` does."""
    return lowest_score(scores, right, TARGET).threshold


def by_guaranteed_risk(scores: Float64Array, right: BoolArray) -> float | None:
    """Search by halves; at each step the binomial test has its part of the error that is allowed."""
    wrong = np.cumsum(~right)
    low, high, found = 0, len(scores) - 1, None
    steps = math.ceil(math.log2(len(scores)))
    while low <= high:
        middle = (low + high) // 2
        # So few wrong ones must be improbable where the rate of wrong ones is just what is not allowed.
        chance = 1 - _chance_of_more(int(wrong[middle]), middle + 1)
        if chance <= (1 - CONFIDENCE) / steps:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return None if found is None else float(scores[found])


def _chance_of_more(wrong: int, images: int) -> float:
    """Return the chance of more wrong ones than that, where the rate of wrong ones is 1 - TARGET."""
    if wrong + 1 > images:
        return 0.0
    if wrong + 1 > (1 - TARGET) * images:
        return chance_of(wrong + 1, images, 1 - TARGET)
    return 1 - chance_of(images - wrong, images, TARGET)


def _last(scores: Float64Array, good: BoolArray) -> float | None:
    places = np.flatnonzero(good)
    return float(scores[places[-1]]) if len(places) else None


RULES: dict[str, Rule] = {
    "rate": by_rate,
    "one-sided": by_one_sided_bound,
    "two-sided": by_two_sided_bound,
    "guaranteed risk": by_guaranteed_risk,
}


def main() -> None:
    """Print a line for each model, number of images and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 250, 1000, 5000])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for model, shape in MODELS.items():
        others = np.sort(rng.beta(*shape, OTHERS))[::-1]
        true_precision = np.cumsum(others) / np.arange(1, OTHERS + 1)
        best = float((true_precision >= TARGET).mean())
        for images in args.images:
            kept: dict[str, list[int]] = {name: [] for name in RULES}
            for _ in range(args.runs):
                scores = np.sort(rng.beta(*shape, images))[::-1]
                right = rng.random(images) < scores
                for name, rule in RULES.items():
                    found = rule(scores, right)
                    kept[name].append(0 if found is None else int((others >= found).sum()))
            for name, counts in kept.items():
                below = sum(count > 0 and true_precision[count - 1] < TARGET for count in counts) / args.runs
                none, coverage = counts.count(0) / args.runs, sum(counts) / OTHERS / args.runs
                rows.append(
                    {"right": model, "images": images, "rule": name, "below": below, "none": none, "coverage": coverage}
                )
                print(
                    f"{model} % right, {images} images, {name}: below 95 % in {below:.1%} of runs, no threshold in "
                    f"{none:.1%}, coverage {coverage:.1%} (of {best:.1%})"
                )
    print(json.dumps({"runs": args.runs, "rows": rows}))


if __name__ == "__main__":
    main()
