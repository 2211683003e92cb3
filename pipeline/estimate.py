"""From a few labelled images to what a whole job would take: the arithmetic, whose assumptions `dry_run` states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evenness import busy_share
from pipeline.quantities import bytes_text, count_text, duration_text, many_text, rate_text, share_text


@dataclass(frozen=True, slots=True)
class Whole:
    """What the whole job would read.

    Attributes:
        units: That it is divided into.
        shards: How many, or parts of large ones.
        bytes: Of input.
        images: Where that is known without reading, as for loose images.
        sizes: Of the units, in bytes; where there are none, they are taken to be equal.
    """

    units: int
    shards: int
    bytes: int
    images: int | None = None
    sizes: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What labelling some images came to.

    Attributes:
        images: Rows, of which `errors` have no label, by status.
        units: That they were divided into.
        bytes_per_image: Of input.
        unit_seconds: Summed over units.
        wall_seconds: From the end of the start-up on.
        startup_seconds: Until the first unit could begin.
        file_bytes: Of a part file without rows.
        row_bytes: Of a row in a part file as long as those of the whole job.
        overlap: Whether units wait for one another; then unit_seconds hold waiting, and the wall clock counts.
    """

    images: int
    errors: dict[str, int]
    units: int
    bytes_per_image: float
    unit_seconds: float
    wall_seconds: float
    startup_seconds: float
    file_bytes: float
    row_bytes: float
    overlap: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the whole job would take. Numbers; `sentences` makes text of them.

    Attributes:
        images_labelled: By the dry run; `errors` of them have no label, by status.
        images_per_s: Of all workers, in the steady state; of one, `images_per_s_per_worker`.
        workers_busy: Share of the time until the last ends, by the sizes of units.
        seconds_estimated: `startup_seconds` and the steady state.
        cost_estimated: In the currency of `price_per_hour`; None without a price.
    """

    images_labelled: int
    errors: dict[str, int]
    images_estimated: int
    units: int
    input_bytes: int
    output_bytes_estimated: int
    workers: int
    images_per_s_per_worker: float
    images_per_s: float
    workers_busy: float
    startup_seconds: float
    seconds_estimated: float
    price_per_hour: float | None = None
    cost_estimated: float | None = None
    dry_run: bool = True

    def sentences(self) -> str:
        """Return what a person wants to read."""
        errors = sum(self.errors.values())
        kinds = ", ".join(f"{count} {status}" for status, count in sorted(self.errors.items()))
        bad = f", {share_text(errors, self.images_labelled)} of them not labelled ({kinds})" if errors else ""
        each = f"{many_text(self.workers, 'worker')}, {rate_text(self.images_per_s_per_worker)} each"
        lines = [
            f"dry run over {many_text(self.images_labelled, 'image')}{bad}; the output was not touched",
            f"images: about {count_text(self.images_estimated)} in {many_text(self.units, 'unit')}",
            f"input:  {bytes_text(self.input_bytes)} to read",
            f"output: about {bytes_text(self.output_bytes_estimated)}",
            f"time:   about {duration_text(self.seconds_estimated)}: {duration_text(self.startup_seconds)} to start, "
            f"then {rate_text(self.images_per_s)} images/s ({each})",
            f"busy:   workers have something to do for {self.workers_busy:.0%} of the time until the last ends, by the "
            "sizes of units",
        ]
        if self.cost_estimated is not None:
            cost = f"{self.cost_estimated:,.2f}" if self.cost_estimated >= 1 else f"{self.cost_estimated:.2g}"
            lines.append(f"cost:   about {cost}, at {self.price_per_hour:g} an hour")
        return "\n".join(lines)


def extrapolate(
    whole: Whole, measured: Measured, *, workers: int, limit: int | None = None, price: float | None = None
) -> Estimate:
    """Scale what was measured up to the whole job.

    Args:
        whole: What there is to read.
        measured: What labelling some of it came to; at least one image.
        workers: Of the whole job.
        limit: Of images, where the job has one.
        price: Of the machine or cluster, an hour.
    """
    there = max(measured.images, images_in(whole, measured.bytes_per_image))
    images = there if limit is None else min(there, limit)
    share = images / there
    units = math.ceil(whole.units * share)
    # Of one worker, among those that had something to do.
    spent = measured.wall_seconds * min(workers, measured.units) if measured.overlap else measured.unit_seconds
    rate = measured.images / max(spent, 1e-9)
    busy = busy_share(whole.sizes[:units] or [1.0] * units, workers)
    seconds = measured.startup_seconds + images / (rate * workers * busy)
    return Estimate(
        images_labelled=measured.images,
        errors=measured.errors,
        images_estimated=images,
        units=units,
        input_bytes=round(whole.bytes * share),
        output_bytes_estimated=round(units * measured.file_bytes + images * measured.row_bytes),
        workers=workers,
        images_per_s_per_worker=round(rate, 2),
        images_per_s=round(rate * min(workers, units), 2),
        workers_busy=round(busy, 4),
        startup_seconds=round(measured.startup_seconds, 2),
        seconds_estimated=round(seconds, 2),
        price_per_hour=price,
        cost_estimated=None if price is None else round(seconds / 3600 * price, 6),
    )


def images_in(whole: Whole, bytes_per_image: float) -> int:
    """Return how many images there are in all, where each takes so many bytes of input."""
    return whole.images or max(1, round(whole.bytes / max(bytes_per_image, 1e-9)))
