"""Extrapolate from a few labelled images to a whole job; `dry_run` states the assumptions."""

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
        units: Number of units.
        shards: Number of shards, or of parts of large ones.
        bytes: Bytes of input.
        images: Number of images if known without reading, as for loose images.
        sizes: Bytes of each unit; if empty, all units count as equal.
    """

    units: int
    shards: int
    bytes: int
    images: int | None = None
    sizes: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of labelling some images.

    Attributes:
        images: Number of rows; `errors` counts those without a label, by status.
        units: Number of units that they were divided into.
        bytes_per_image: Bytes of input per image.
        unit_seconds: Duration of the units, summed.
        wall_seconds: Duration of the run after startup.
        startup_seconds: Time until the first unit could begin.
        file_bytes: Bytes of a part file without rows.
        row_bytes: Bytes of a row in a part file as long as those of the whole job.
        overlap: Whether units wait for one another; if so, unit_seconds include waiting, and wall_seconds count.
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
    """What the whole job would take, in numbers; `sentences` returns them as text.

    Attributes:
        images_labelled: Images of the dry run; `errors` counts those without a label, by status.
        images_per_s: Throughput of all workers in the steady state; `images_per_s_per_worker` is that of one.
        workers_busy: Share of the workers' time with work until the last one ends, by unit sizes.
        seconds_estimated: `startup_seconds` plus the steady state.
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
        """Return the estimate as text for people."""
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
            f"busy:   workers have work for {self.workers_busy:.0%} of the time until the last one ends, "
            "judging by the sizes of units",
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
        whole: The whole job.
        measured: The results of labelling at least one image of it.
        workers: Number of workers of the whole job.
        limit: Maximum number of images, if the job has one.
        price: Price per hour of the machine or cluster.
    """
    total = max(measured.images, images_in(whole, measured.bytes_per_image))
    images = total if limit is None else min(total, limit)
    share = images / total
    units = math.ceil(whole.units * share)
    # Seconds of all workers that had work, summed.
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
    """Return the number of images of the whole job at so many input bytes per image."""
    return whole.images or max(1, round(whole.bytes / max(bytes_per_image, 1e-9)))
