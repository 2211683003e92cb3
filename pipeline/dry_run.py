"""`label --dry-run`: label a few images for real, and extrapolate what the whole job would take.

What the estimate assumes:

* The images of the drawn shards are like the others: in size, format and faults. Shards are drawn at random (always the
  same ones), and the first images of each are labelled.
* Images are counted by bytes: input bytes divided by the bytes in the shard per labelled image. For each gzipped shard
  up to 256 KiB too much are counted. Drawn Parquet files give their rows, and each loose image is a file.
* When all workers work, each (an actor, or a decode task where those decode for actors) is as fast as those that had
  work here. A unit takes time in proportion to its bytes, and workers take units one by one.
* Startup takes as long again. If a model has just been downloaded, the real run starts faster.

A GPU reaches its speed only with full batches: give a few thousand images there. On object storage small units cost
more per image than whole shards, so the estimate is rather high; more images bring it closer.
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

# Enough that opening a shard and writing its part file do not take most of its time.
IMAGES_PER_SHARD = 50
# Maximum number of candidate shards; a shard without images uses one up.
MAX_CANDIDATES = 10_000


def dry_run(config: LabelConfig, images: int, *, price: float | None = None, started: float | None = None) -> Estimate:
    """Label some images into a temporary folder, remove it, and estimate the whole job.

    Nothing is written to `config.output`. The estimate deducts nothing that is finished there; with --append it deducts
    all that is planned there. The temporary folder is on this machine, or beside `config.output` on a joined cluster,
    whose nodes all write.

    Args:
        config: Settings of the whole job.
        images: How many to label.
        price: Price per hour of the machine or cluster that will run the job.
        started: `time.perf_counter()` when the command began.

    Raises:
        ShardlabelError: As `run`; also if the images cannot be labelled.
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
    """Draws shards for a dry run while listing all of them, and sums up the whole job.

    Attributes:
        images: Total number to label.
        config: Settings of the job.
        cut: Replaces large shards by their pieces.
        whole: Set once all shards are listed.
        cluster: Ray; set only after every check that needs no Ray.
        seconds: Time spent on counting samples, which the real job does not do.
        picked: The chosen slices.
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
            slices: All slices of the job.
            count: Counts a slice's samples, up to a number, by reading it.
        """
        if self.config.append:
            slices = _only_new(self.config, slices)
        drawn, self.whole = draw(slices, min(self.images, MAX_CANDIDATES), self.config.format, self.cut)
        self.cluster = connect(self.config.address or os.environ.get("RAY_ADDRESS"))
        # A few images from many shards tell more than many images from a few; a loose image is a slice of its own.
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
            raise SourceError(f"no images in {len(drawn)} shards of SOURCE, so nothing can be estimated")


def _only_new(config: LabelConfig, slices: Iterator[Slice]) -> Iterator[Slice]:
    """Yield the slices that are not in DEST's plan.

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
    """Draw slices at random, all with the same probability, and sum up all of them; one pass.

    The same slices give the same draw. Memory: `size` slices, and 8 bytes per unit.

    Args:
        slices: All slices of SOURCE.
        size: How many to draw.
        wanted: Their format.
        cut: Replaces large shards by their pieces.

    Raises:
        SourceError: There are none.
    """
    chance = random.Random(0)
    drawn: list[Slice] = []
    sums = {"shards": 0, "bytes": 0}

    def passing(pieces: Iterator[Slice]) -> Iterator[Slice]:
        for number, piece in enumerate(pieces):
            sums["shards"] += 1
            sums["bytes"] += piece.size if piece.start == 0 else 0  # each part of a large file has the file's size
            if number < size:
                drawn.append(piece)
            elif (place := chance.randrange(number + 1)) < size:
                drawn[place] = piece
            yield piece

    first = next(slices, None)
    if first is None:
        raise SourceError("no shard of SOURCE is in this part, so nothing can be estimated")
    images = (format_of(first.shard) if wanted is SourceFormat.AUTO else wanted) is SourceFormat.IMAGES
    sizes = array("d", unit_bytes(cut_units(cut(passing(chain([first], slices))), images=images)))
    chance.shuffle(drawn)
    return drawn, Whole(units=len(sizes), images=sums["shards"] if images else None, sizes=sizes, **sums)


def bytes_per_image(config: LabelConfig, picked: list[Slice]) -> float | None:
    """Return the bytes per image by the footers of Parquet files; None for formats that have to be read first."""
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
    """Tell whether units overlap in time: decoders work for actors, or an actor has several units at a time."""
    from pipeline.operators.dataset import units_at_a_time

    return pools.decoders > 0 or units_at_a_time(source.base, dest, source.format) > 1


def measure(
    dest: Storage, report: RunReport, each: float, *, counting: float, overlap: bool, unit_rows: int
) -> Measured:
    """Sum up the results of labelling some images.

    Args:
        dest: Where the labels were written.
        report: The report of that run.
        each: Bytes of input per image.
        counting: Seconds spent on counting, which a real run does not need.
        overlap: See `units_overlap`.
        unit_rows: Images in a unit of the whole job.
    """
    plan = read_plan(dest)
    assert plan is not None
    commits = list(CommitLog(dest, plan.units, plan.id).records())
    # The first finished unit began when startup was complete, and was the fastest or close to it.
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
    """Return the bytes of a part file without rows, and of each row in one with up to `unit_rows` rows.

    The parts themselves show neither: with few rows in each, they are mostly schema and dictionaries.
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
    """Provide a place for the dry run's output, and remove it afterwards."""
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
