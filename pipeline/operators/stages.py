"""The stages of labelling as plain functions that know nothing of Ray: read, decode, label, publish.

Both shapes of the pipeline use them, so both write the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from models.decode.decode import DecodedImage, DecodeMode, ImageLimits, decode_image
from models.errors import InputError
from models.inference.predictions import Labeller, Predictions
from models.spec import Preprocessing
from pipeline.dest.commits import Commit
from pipeline.dest.lease import check_token
from pipeline.dest.made_by import made_by
from pipeline.dest.merge import Relabelling
from pipeline.dest.writer import STATUS_OK, OutputSpec, Row, UnitWriter, build_batch, file_digest
from pipeline.operators.isolated import IsolatedDecoder, IsolatedLabeller
from pipeline.operators.watchdog import Watchdog
from pipeline.session.stage_clock import Stage, StageClock
from pipeline.sources.manifest import count_rows
from pipeline.sources.reader import ReadSettings, read_unit
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import Storage

UInt8Array = npt.NDArray[np.uint8]

# Rows that become one record batch: 5 MB with embeddings.
BUILD_ROWS = 1_024
# Fewer rows where their carried columns have this many bytes.
BUILD_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettings(ReadSettings):
    """What a worker needs to label units. Picklable.

    Attributes:
        dest: Storage of DEST.
        preprocessing: How images become pixels.
        mode: fast or exact.
        batch_size: Samples per inference; the same on every run, since the order of sums changes the last bit.
        output: Columns and metadata of the output.
        embeddings: Whether to keep the penultimate features.
        image_timeout_s: An image that takes longer to decode, or a batch that takes longer to label, ends its process and
            is then retried isolated.
        token: Token of the lease by which the run holds DEST; see `pipeline.dest.lease`.
        rows_id: Id of the settings that rows depend on; see `pipeline.dest.fingerprint`.
        relabelling: Which rows of an earlier output are labelled again; the others are copied.
    """

    dest: Storage
    preprocessing: Preprocessing
    mode: DecodeMode
    batch_size: int
    output: OutputSpec
    embeddings: bool = False
    image_timeout_s: float = 60.0
    token: str = ""
    rows_id: str = ""
    relabelling: Relabelling | None = None

    @property
    def decoding(self) -> DecodeSettings:
        """What decoding alone needs."""
        return DecodeSettings(self.preprocessing, self.mode, self.limits, self.image_timeout_s)


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What decoding alone needs; see `UnitSettings`. Picklable."""

    preprocessing: Preprocessing
    mode: DecodeMode
    limits: ImageLimits
    image_timeout_s: float = 60.0


@dataclass(slots=True)
class UnitNotes:
    """What reading a unit found, by shard."""

    incomplete: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0

    def add(self, shard: str, notes: ShardNotes) -> None:
        """Add a shard's notes."""
        if notes.missing is not None:
            self.incomplete[shard] = notes.missing
        for kind, count in notes.skipped.items():
            self.skipped[kind] = self.skipped.get(kind, 0) + count
        self.bytes_read += notes.bytes_read


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Samples of one unit, decoded.

    Attributes:
        rows: One per sample, in input order.
        pixels: uint8 of shape (n_ok, crop, crop, 3), HWC RGB: one image per row whose status is ok, in order.
    """

    rows: list[Row]
    pixels: UInt8Array


def read_samples(settings: UnitSettings, unit: Unit, notes: UnitNotes) -> Iterator[Sample]:
    """Yield the unit's samples in input order, reading each shard once from front to back; a relabelling reads only some.

    Raises:
        StorageError: A shard cannot be read, for good or for longer than the retries.
        SourceError: A shard has another number of samples than the earlier output.
    """
    wanted = None if settings.relabelling is None else settings.relabelling.wanted(unit.part)
    yield from read_unit(settings, unit, notes.add, wanted)


def count_samples(settings: UnitSettings, piece: Slice, at_most: int) -> int:
    """Count a slice's samples, up to `at_most`, by reading it. The images of a manifest are not fetched."""
    if settings.columns.uri is not None:
        return min(count_rows(piece), at_most)
    return sum(1 for _ in islice(read_samples(settings, Unit(0, (piece,)), UnitNotes()), at_most))


# Held while computing, where one core works on several units at a time.
Turn = AbstractContextManager[Any]
ALONE: Turn = nullcontext()


def decode_batches(
    settings: UnitSettings, samples: Iterable[Sample], *, isolate: bool = False, turn: Turn = ALONE
) -> Iterator[DecodedBatch]:
    """Decode samples batch by batch; one that cannot be decoded becomes a row with its status and error.

    Args:
        settings: How to decode.
        samples: Samples of one unit.
        isolate: Decode in a child process: for units whose process died.
        turn: Held while an image is decoded, but not while waiting for one.
    """
    iterator = iter(samples)
    side = settings.preprocessing.crop
    with open_decoder(settings.decoding, isolate=isolate, turn=turn) as decode:
        while True:
            pixels = np.empty((settings.batch_size, side, side, 3), np.uint8)
            rows: list[Row] = []
            num_ok = 0
            # One by one: a batch of the largest allowed images would take gigabytes.
            for sample in islice(iterator, settings.batch_size):
                row = decode_sample(sample, decode, pixels[num_ok])
                num_ok += row.status == STATUS_OK
                rows.append(row)
            if not rows:
                return
            yield DecodedBatch(rows, pixels[:num_ok])


Decode = Callable[[bytes, UInt8Array], DecodedImage]


def open_decoder(settings: DecodeSettings, *, isolate: bool, turn: Turn = ALONE) -> AbstractContextManager[Decode]:
    """Return what decodes images: in this process, or (`isolate`) in a child process that may die or hang."""
    return _isolated_decode(settings) if isolate else _watched_decode(settings, turn)


def decode_sample(sample: Sample, decode: Decode, out: UInt8Array) -> Row:
    """Decode one sample into `out`; one that cannot be decoded becomes a row with its status and error."""
    width: int | None = None
    height: int | None = None
    status, error = sample.status or "empty", sample.error
    if sample.data is not None:
        try:
            image = decode(sample.data, out)
        except InputError as err:
            status, error, width, height = err.status, str(err), err.width, err.height
        else:
            status, error, width, height = STATUS_OK, None, image.width, image.height
    return Row(sample.shard, sample.key, status, error, width, height, sample.carried, sample.carried_bytes)


@contextmanager
def _watched_decode(settings: DecodeSettings, turn: Turn) -> Iterator[Decode]:
    """Decode in this process, and end it if an image takes too long. The next attempt is isolated."""
    s, watchdog = settings, Watchdog(settings.image_timeout_s)

    def decode(data: bytes, out: UInt8Array) -> DecodedImage:
        with turn, watchdog:
            return decode_image(data, s.preprocessing, s.mode, s.limits, out=out)

    try:
        yield decode
    finally:
        watchdog.close()


@contextmanager
def _isolated_decode(settings: DecodeSettings) -> Iterator[Decode]:
    s = settings
    with IsolatedDecoder(s.preprocessing, s.mode, s.limits, s.image_timeout_s) as decoder:
        yield decoder.decode


LabelBatches = Callable[[Iterator[DecodedBatch]], Iterator[tuple[DecodedBatch, Predictions]]]
"""Labels decoded batches, in order; may read some batches ahead."""


def label_here(classifier: Labeller, clock: StageClock, *, embeddings: bool, turn: Turn = ALONE) -> LabelBatches:
    """Return what labels each batch in this process, holding `turn` meanwhile."""

    def label(batches: Iterator[DecodedBatch]) -> Iterator[tuple[DecodedBatch, Predictions]]:
        for batch in batches:
            with turn, clock.measured(Stage.LABEL):
                predictions = classifier.predict(batch.pixels, embedding=embeddings)
            yield batch, predictions

    return label


def label_isolated(
    loader: Callable[[], Callable[[], Labeller]], timeout_s: float, clock: StageClock, *, embeddings: bool
) -> LabelBatches:
    """Return what labels each batch in a child process: an image that the model fails on becomes a row without a label.

    Args:
        loader: Returns what loads the model. Called for each unit: the model's bytes are not kept.
        timeout_s: How long a batch may take.
        clock: Counts the seconds.
        embeddings: Whether to keep the penultimate features.
    """

    def label(batches: Iterator[DecodedBatch]) -> Iterator[tuple[DecodedBatch, Predictions]]:
        with IsolatedLabeller(loader(), timeout_s, embedding=embeddings) as labeller:
            for batch in batches:
                with clock.measured(Stage.LABEL):
                    predictions, faults = labeller.predict(batch.pixels)
                yield DecodedBatch(refused(batch.rows, faults), batch.pixels), predictions

    return label


def refused(rows: list[Row], faults: dict[int, str]) -> list[Row]:
    """Return rows with the status of those that the model refused, which `faults` names by place among the ok rows."""
    if not faults:
        return rows
    places = (place for place, row in enumerate(rows) if row.status == STATUS_OK)
    wrong = {place: faults[number] for number, place in enumerate(places) if number in faults}
    return [
        replace(row, status="unsupported", error=wrong[place]) if place in wrong else row
        for place, row in enumerate(rows)
    ]


def label_unit(
    settings: UnitSettings,
    unit: Unit,
    label: LabelBatches,
    *,
    isolate: bool = False,
    clock: StageClock | None = None,
    turn: Turn = ALONE,
) -> Commit:
    """Read, decode and label a unit, publish its Parquet file, and return its commit record.

    Args:
        settings: How to label.
        unit: Unit to label.
        label: Labels batches, in this process or another.
        isolate: See `decode_batches`.
        clock: Counts the seconds of each stage.
        turn: See `decode_batches`.

    Raises:
        StorageError: Input cannot be read, or output cannot be written.
        InferenceError: ONNX Runtime failed.
    """
    started = time.perf_counter()
    notes = UnitNotes()
    clock = clock or StageClock()
    schema = settings.output.schema()
    samples = clock.timed(Stage.READ, read_samples(settings, unit, notes), within=Stage.DECODE)
    batches = clock.timed(Stage.DECODE, decode_batches(settings, samples, isolate=isolate, turn=turn))
    with open_writer(settings, unit) as writer:
        for rows, predictions in _gathered(label(batches)):
            with clock.measured(Stage.WRITE):
                writer.write(build_batch(rows, predictions, settings.output, schema))
    with clock.measured(Stage.WRITE):
        return publish_unit(settings, unit, writer, notes, started)


def _gathered(labelled: Iterable[tuple[DecodedBatch, Predictions]]) -> Iterator[tuple[list[Row], Predictions]]:
    """Join batches to BUILD_ROWS or more: building a record batch takes 1 ms, however few its rows."""
    rows: list[Row] = []
    pieces: list[Predictions] = []
    carried = 0
    for batch, predictions in labelled:
        rows.extend(batch.rows)
        pieces.append(predictions)
        carried += sum(row.carried_bytes for row in batch.rows)
        if len(rows) >= BUILD_ROWS or carried >= BUILD_BYTES:
            yield rows, Predictions.join(pieces)
            rows, pieces, carried = [], [], 0
    if rows:
        yield rows, Predictions.join(pieces)


def open_writer(settings: UnitSettings, unit: Unit) -> UnitWriter:
    """Return the writer of a unit's file, whose metadata has the id of its settings and shards."""
    return UnitWriter(
        settings.dest.temporary_path(), settings.output.schema({"shardlabel.unit_id": unit.id(settings.rows_id)})
    )


def publish_unit(settings: UnitSettings, unit: Unit, writer: UnitWriter, notes: UnitNotes, started: float) -> Commit:
    """Publish a unit's finished file, and return its commit record, which the caller still has to write."""
    if settings.relabelling is not None:
        target = settings.dest.temporary_path()
        writer = settings.relabelling.merge(unit.part, writer.schema, writer.path, target)
    return publish_file(settings, unit, writer, notes, started)


def publish_file(settings: UnitSettings, unit: Unit, writer: UnitWriter, notes: UnitNotes, started: float) -> Commit:
    """Publish a file as it is; see `publish_unit`."""
    size, digest = file_digest(writer.path)
    settings.dest.publish(writer.path, unit.part, lambda: check_token(settings.dest, settings.token))
    errors = {status: count for status, count in sorted(writer.statuses.items()) if status != STATUS_OK}
    return Commit(
        unit=unit.number,
        part=unit.part,
        rows=writer.rows,
        ok=writer.statuses.get(STATUS_OK, 0),
        errors=errors,
        seconds=round(time.perf_counter() - started, 3),
        bytes_read=notes.bytes_read,
        size=size,
        sha256=digest,
        shards=len(unit.slices),
        incomplete=notes.incomplete,
        skipped=notes.skipped,
        token=settings.token,
        made_by=made_by(),
    )
