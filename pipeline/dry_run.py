"""`label --dry-run`: label a few images for real, and extrapolate what the whole job would take.

What the estimate assumes:

* The images of the shards that are drawn are like the others: in size, in format, in what is wrong with them. Shards
  are drawn at random (always the same ones), and of each the first images are labelled.
* Images are counted by bytes: input bytes over the bytes that a labelled image took as it lies in its shard. In gzipped
  shards up to 256 KiB too much are counted for each. Parquet files that are drawn tell their rows, and loose images are
  one a file.
* Each worker (an actor, or a decode task where those decode for actors) is as fast when all work as it was among those
  that had something to do here; a unit takes as long as its bytes say, and workers take units one by one.
* Start-up takes as long again. Where a model was downloaded just now, the real run starts faster.

A GPU shows its speed only when its batches are full: give a few thousand images there. On object storage small units
cost more per image than whole shards, so that the estimate is rather high; more images bring it closer.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import tempfile
import time
import uuid
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.catalog import load_spec
from models.errors import ConfigError, ShardlabelError, SourceError
from models.inference.classifier import choose
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.growth import PlannedSlices
from pipeline.dest.plan import cut_units, read_plan
from pipeline.dest.writer import UnitWriter
from pipeline.estimate import Estimate, Measured, Whole, extrapolate, images_in
from pipeline.evenness import unit_bytes
from pipeline.job import has_local_gpu, run
from pipeline.session.connect import Cluster, connect
from pipeline.session.pools import Pools, plan_pools
from pipeline.sources.parquet import open_parquet
from pipeline.sources.pieces import Cut, cutter
from pipeline.sources.source import Source, format_of, open_source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import Storage, open_storage
from pipeline.summary import RunReport

# Of one shard: enough that opening it and writing its part file do not make up most of its time.
IMAGES_PER_SHARD = 50
# Shards that are kept as candidates; one without images costs one of them.
MAX_CANDIDATES = 10_000


def dry_run(config: LabelConfig, images: int, *, price: float | None = None, started: float | None = None) -> Estimate:
    """Label so many images into a temporary folder that is removed, and say what all would take.

    Nothing at `config.output` is written, and what may be finished there is not deducted; with --append all that is
    planned there is. The temporary folder is on this machine; where a cluster is joined, whose nodes all write, it lies
    beside `config.output`.

    Args:
        config: Of the whole job.
        images: How many to label.
        price: Of the machine or cluster that will run it, an hour.
        started: `time.perf_counter()` when the command began.

    Raises:
        ShardlabelError: As `run`; also where the images cannot be labelled.
        KeyboardInterrupt: The run was interrupted.
    """
    if images < 1 or (price is not None and price < 0):
        raise ConfigError(f"--dry-run must be at least 1 and --price at least 0, got {images} and {price}")
    started = time.perf_counter() if started is None else started
    picker = ShardPicker(images, config, lambda slices: cutter(config, _open(config))(slices))
    try:
        with scratch_folder(config) as folder:
            whole = {"limit": None, "overwrite": False, "append": False, "missing_ok": False, "max_error_rate": 1.0}
            trial = config.model_copy(update={"output": folder, **whole})
            report = run(trial, started=started, pick=picker.pick)
            if report.status == "interrupted":
                raise KeyboardInterrupt
            if report.status != "done":
                raise ShardlabelError(f"the dry run failed: {report.failure}")
            assert picker.cluster is not None
            assert picker.whole is not None
            pools = _pools(config, picker.cluster, picker.whole.units)
            each = bytes_per_image(config, picker.picked) or report.bytes_read / report.images
            dest, source = open_storage(folder), _open(config)
            unit_rows = images_in(picker.whole, each) // picker.whole.units
            overlap = units_overlap(pools, source, dest)
            measured = measure(dest, report, each, counting=picker.seconds, overlap=overlap, unit_rows=unit_rows)
    finally:
        if picker.cluster is not None:
            picker.cluster.close()
    workers = pools.decoders or pools.actors[1]
    return extrapolate(picker.whole, measured, workers=workers, limit=config.limit, price=price)


@dataclass(slots=True)
class ShardPicker:
    """Draws shards for a dry run while it lists them all, and measures the whole on the way.

    Attributes:
        images: How many are wanted in all.
        config: Of the job.
        cut: Puts pieces in the place of large shards.
        whole: Set once all shards are listed.
        cluster: Ray; set once all is known to be right that can be known without it.
        seconds: That counting samples took: the real job does not do that.
        picked: What was chosen.
    """

    images: int
    config: LabelConfig
    cut: Cut = iter
    whole: Whole | None = None
    cluster: Cluster | None = None
    seconds: float = 0.0
    picked: list[Slice] = field(default_factory=list)

    def pick(self, slices: Iterator[Slice], count: Callable[[Slice, int], int]) -> Iterator[Slice]:
        """Yield some of the job's slices, each cut to its first images.

        Args:
            slices: All of them.
            count: Counts a slice's samples, up to a number, by reading it.
        """
        if self.config.append:
            slices = _only_new(self.config, slices)
        drawn, self.whole = draw(slices, min(self.images, MAX_CANDIDATES), self.config.format, self.cut)
        self.cluster = connect(self.config.address or os.environ.get("RAY_ADDRESS"))
        # A few images of many shards tell more than many of a few; loose images come one by one.
        shards = len(drawn) if self.whole.images else min(len(drawn), self.images // IMAGES_PER_SHARD)
        each = math.ceil(self.images / max(1, shards))
        left = self.images
        for piece in drawn:
            began = time.perf_counter()
            wanted = min(each, left)
            found = count(piece, wanted)
            self.seconds += time.perf_counter() - began
            if found:
                self.picked.append(replace(piece, limit=found if found == wanted else -1))
                yield self.picked[-1]
            left -= found
            if not left:
                return
        if left == self.images:
            raise SourceError(f"no images in {len(drawn)} shards of SOURCE: there is nothing to go by")


def _only_new(config: LabelConfig, slices: Iterator[Slice]) -> Iterator[Slice]:
    """Yield the slices that DEST's plan has not.

    Raises:
        SourceError: There are none.
    """
    dest = open_storage(config.output)
    if (plan := read_plan(dest)) is not None:
        slices = PlannedSlices(dest, plan).new(slices, missing_ok=config.missing_ok)
    if (first := next(slices, None)) is None:
        raise SourceError(f"nothing new in SOURCE: all of it is in {dest.describe()} already")
    return chain([first], slices)


def _open(config: LabelConfig) -> Source:
    return open_source(config.source, config.format)


def draw(slices: Iterator[Slice], size: int, wanted: SourceFormat, cut: Cut = iter) -> tuple[list[Slice], Whole]:
    """Draw slices in random order, each with the same chance, and sum all up; one pass.

    The same slices give the same draw. Memory: `size` slices, and 8 bytes a unit.

    Args:
        slices: Of all of SOURCE.
        size: How many are drawn.
        wanted: Their format.
        cut: Puts pieces in the place of large shards.

    Raises:
        SourceError: There are none.
    """
    chance = random.Random(0)
    drawn: list[Slice] = []
    sums = {"shards": 0, "bytes": 0}

    def passing(pieces: Iterator[Slice]) -> Iterator[Slice]:
        for number, piece in enumerate(pieces):
            sums["shards"] += 1
            sums["bytes"] += piece.size if piece.start == 0 else 0  # the parts of a large file each have all its size
            if number < size:
                drawn.append(piece)
            elif (place := chance.randrange(number + 1)) < size:
                drawn[place] = piece
            yield piece

    first = next(slices, None)
    if first is None:
        raise SourceError("no shard of SOURCE is in this part of it: there is nothing to go by")
    images = (format_of(first.shard) if wanted is SourceFormat.AUTO else wanted) is SourceFormat.IMAGES
    sizes = array("d", unit_bytes(cut_units(cut(passing(chain([first], slices))), images=images)))
    chance.shuffle(drawn)
    return drawn, Whole(units=len(sizes), images=sums["shards"] if images else None, sizes=sizes, **sums)


def bytes_per_image(config: LabelConfig, picked: list[Slice]) -> float | None:
    """Return what the footers of Parquet files say, or None: other formats do not tell before they are read."""
    source = _open(config)
    if source.format is not SourceFormat.PARQUET:
        return None
    rows = size = 0
    for piece in {piece.shard: piece for piece in picked}.values():
        with suppress(OSError, ValueError), closing(source.base.open_random(piece.shard)) as file:
            rows += open_parquet(file).metadata.num_rows
            size += piece.size
    return size / rows if rows else None


def units_overlap(pools: Pools, source: Source, dest: Storage) -> bool:
    """Tell whether a unit's seconds hold those of others: decoders work for actors, or an actor has several at a time."""
    from pipeline.operators.dataset import units_at_a_time

    return pools.decoders > 0 or units_at_a_time(source.base, dest, source.format) > 1


def measure(
    dest: Storage, report: RunReport, each: float, *, counting: float, overlap: bool, unit_rows: int
) -> Measured:
    """Sum up what labelling some images came to.

    Args:
        dest: Where they were labelled to.
        report: Of that run.
        each: Bytes of input per image.
        counting: Seconds of the run that a real one does not need.
        overlap: See `units_overlap`.
        unit_rows: Images in a unit of the whole job.
    """
    plan = read_plan(dest)
    assert plan is not None
    commits = list(CommitLog(dest, plan.units, plan.id).records())
    # The first unit to be finished began when all was up, and was the fastest or near to it.
    first = min(commit.seconds for commit in commits)
    startup = max(0.0, (report.first_commit_s or report.seconds) - first - counting)
    file_bytes, row_bytes = _output_sizes(dest, commits, unit_rows)
    return Measured(
        images=report.images,
        errors=dict(report.errors),
        units=len(commits),
        bytes_per_image=each,
        unit_seconds=sum(commit.seconds for commit in commits),
        wall_seconds=report.seconds - counting - startup,
        startup_seconds=startup,
        file_bytes=file_bytes,
        row_bytes=row_bytes,
        overlap=overlap,
    )


def _output_sizes(dest: Storage, commits: list[Commit], unit_rows: int) -> tuple[float, float]:
    """Return the bytes of a part file without rows, and of each row in one with, at best, so many rows.

    The parts themselves tell neither: with few rows in each, they are mostly schema and dictionaries.
    """
    tables = [pq.read_table(pa.BufferReader(dest.read_bytes(commit.part))) for commit in commits]
    rows = pa.concat_tables(tables).slice(0, max(1, unit_rows))
    with tempfile.TemporaryDirectory() as folder:
        sizes: list[int] = []
        for some in (rows.slice(0, 0), rows):
            path = Path(folder) / f"{len(sizes)}.parquet"
            with UnitWriter(path, some.schema) as writer:
                for batch in some.to_batches():
                    writer.write(batch)
            sizes.append(path.stat().st_size)
    return float(sizes[0]), (sizes[1] - sizes[0]) / rows.num_rows


def _pools(config: LabelConfig, cluster: Cluster, units: int) -> Pools:
    joined = bool(config.address or os.environ.get("RAY_ADDRESS"))
    has_gpu = cluster.gpus > 0 if joined else has_local_gpu()
    choice = choose(load_spec(config.model), config.device, config.precision, has_gpu=has_gpu)
    return plan_pools(config, choice, cluster, pending=units)


@contextmanager
def scratch_folder(config: LabelConfig) -> Iterator[str]:
    """Make room for the dry run's output, and clear it away."""
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        with tempfile.TemporaryDirectory(prefix="shardlabel-dry-run-", ignore_cleanup_errors=True) as folder:
            yield folder
        return
    path, mark, query = config.output.partition("?")
    uri = f"{path.rstrip('/')}.dry-run-{uuid.uuid4().hex[:12]}{mark}{query}"
    try:
        yield uri
    finally:
        scratch = open_storage(uri)
        for file in scratch.list(recursive=True):
            scratch.delete(file.path)
        if scratch.is_local:
            shutil.rmtree(scratch.root, ignore_errors=True)
