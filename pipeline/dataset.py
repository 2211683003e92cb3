"""The data path on Ray Data, in its two shapes. Lazy: nothing runs until the results are consumed.

fused      units -> [actor: read, decode, label, publish] -> commit records
two-stage  units -> [task: read, decode] -> pixels -> [actor: label] -> rows -> [driver: publish] -> commit records

The first is for machines without a GPU: nothing but a unit's name and its commit record travels between processes.
In the second CPUs decode and GPUs label, and batches for the GPU fill across units.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from models.classifier import Choice, Classifier, Labeller, Predictions, Provider
from models.errors import ShardlabelError
from models.simulated import SimulatedClassifier
from models.spec import ModelSpec
from pipeline.commits import Commit
from pipeline.plan import Unit
from pipeline.pools import Pools
from pipeline.rows import STATUS_OK, Row, UnitWriter, build_batch
from pipeline.runstate import RunState
from pipeline.stages import (
    DecodedBatch,
    UnitNotes,
    UnitSettings,
    decode_batches,
    label_unit,
    publish_unit,
    read_samples,
)

logger = logging.getLogger(__name__)

# A unit that brought down its process so often is given up, and fails the run.
MAX_ATTEMPTS = 4
# Of a decode task: its libraries, one block of pixels (128 MiB), and an image of 100 megapixels.
DECODE_MEMORY_BYTES = 768 * 2**20


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

    def load(self, num_classes: int, card_share: float) -> Labeller:
        """Build the classifier, of a model with so many classes on such a part of a card; once per process."""
        if self.choice.provider is Provider.SIMULATED:
            assert self.choice.rate is not None
            return SimulatedClassifier(self.choice.rate * card_share, num_classes, self.top_k)
        return Classifier(
            self.spec,
            precision=self.choice.precision,
            provider=self.choice.provider,
            top_k=self.top_k,
            num_threads=1,
            graph=self.state.graph(),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a unit: a commit record, a failure, or neither where the run is stopping."""

    unit: int
    commit: Commit | None = None
    failure: str | None = None


def run_units(units: Sequence[Unit], settings: UnitSettings, model: ModelRef, pools: Pools) -> Iterator[Result]:
    """Label units and yield what became of each, as they finish."""
    blocks = [pa.table({"unit": pa.array([pickle.dumps(unit)], pa.binary())}) for unit in units]
    dataset = ray.data.from_blocks(blocks)  # one block a unit, so that each is a task of its own
    if pools.decoders == 0:
        return _fused(dataset, settings, model, pools)
    return _two_stage(dataset, settings, model, pools)


def _fused(dataset: ray.data.Dataset, settings: UnitSettings, model: ModelRef, pools: Pools) -> Iterator[Result]:
    results = dataset.map_batches(
        LabelUnits,
        fn_constructor_args=(settings, model, pools.card_share),
        batch_size=None,
        batch_format="pyarrow",
        compute=_pool(pools),
        num_cpus=pools.actor_cpus,
        num_gpus=pools.actor_gpus or None,
    )  # -> result
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for value in batch.column("result"):
            yield pickle.loads(value.as_py())


def _two_stage(dataset: ray.data.Dataset, settings: UnitSettings, model: ModelRef, pools: Pools) -> Iterator[Result]:
    labelled = dataset.map_batches(
        DecodeUnits(settings, model.state),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        # Also what keeps the stages apart: Ray Data fuses those whose resources agree, and one actor then does all.
        memory=DECODE_MEMORY_BYTES,
        compute=ray.data.TaskPoolStrategy(size=pools.decoders),
    ).map_batches(  # -> unit, position, row, pixels
        LabelImages,
        fn_constructor_args=(settings, model, pools.card_share),
        batch_size=pools.batch_size,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=_pool(pools),
        num_cpus=pools.actor_cpus,
        num_gpus=pools.actor_gpus or None,
    )  # -> unit, position, row, label_ids, scores[, embedding]
    assembler = UnitAssembler(settings)
    for batch in labelled.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        yield from assembler.add(batch)


def _pool(pools: Pools) -> ray.data.ActorPoolStrategy:
    low, high = pools.actors
    return ray.data.ActorPoolStrategy(min_size=low, max_size=high, max_tasks_in_flight_per_actor=2)


class LabelUnits:
    """Actor of the fused shape: one core, one session, whole units."""

    def __init__(self, settings: UnitSettings, model: ModelRef, card_share: float) -> None:
        self._settings = settings
        self._state = model.state
        self._classifier = model.load(len(settings.output.labels), card_share)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Label each unit of the block; returns one pickled `Result` per unit."""
        results = [self._label(pickle.loads(value.as_py())) for value in batch.column("unit")]
        return pa.table({"result": pa.array([pickle.dumps(result) for result in results], pa.binary())})

    def _label(self, unit: Unit) -> Result:
        if self._state.is_stopping():
            return Result(unit.number)
        attempt = self._state.begin(unit.number)
        if attempt > MAX_ATTEMPTS:
            return Result(unit.number, failure=_given_up(unit))
        try:
            commit = label_unit(self._settings, unit, self._classifier, careful=attempt > 1)
        except ShardlabelError as err:
            return Result(unit.number, failure=str(err))
        except Exception as err:
            logger.exception("unit=%d failed", unit.number)
            return Result(unit.number, failure=_unforeseen(unit, err))
        self._state.end(unit.number)
        return Result(unit.number, commit)


def _unforeseen(unit: Unit, err: Exception) -> str:
    return f"unit {unit.number} ({unit.slices[0].shard}): unforeseen {type(err).__name__}: {err}"


def _given_up(unit: Unit) -> str:
    names = ", ".join(piece.shard for piece in unit.slices[:3])
    return f"unit {unit.number} ({names}) brought down its process {MAX_ATTEMPTS} times, also with decoding isolated"


# Positions of the rows that carry no image.
_END = -1
_SKIPPED = -2
_FAILED = -3


@dataclass(frozen=True, slots=True)
class DecodeUnits:
    """Task of the two-stage shape: read and decode a unit, and pass on blocks of pixels."""

    settings: UnitSettings
    state: RunState

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield blocks of `unit`, `position`, `row` (pickled Row) and `pixels`; a last row ends each unit."""
        for value in batch.column("unit"):
            unit: Unit = pickle.loads(value.as_py())
            yield from self._decode(unit)

    def _decode(self, unit: Unit) -> Iterator[dict[str, Any]]:
        if self.state.is_stopping():
            yield self._block(unit, [_SKIPPED], [None], None)
            return
        attempt = self.state.begin(unit.number)
        if attempt > MAX_ATTEMPTS:
            yield self._block(unit, [_FAILED], [_given_up(unit)], None)
            return
        started = time.perf_counter()
        notes = UnitNotes()
        position = 0
        try:
            samples = read_samples(self.settings, unit, notes)
            for batch in decode_batches(self.settings, samples, careful=attempt > 1):
                positions = range(position, position + len(batch.rows))
                yield self._block(unit, positions, batch.rows, batch)
                position += len(batch.rows)
        except ShardlabelError as err:
            yield self._block(unit, [_FAILED], [str(err)], None)
            return
        except Exception as err:
            logger.exception("unit=%d failed", unit.number)
            yield self._block(unit, [_FAILED], [_unforeseen(unit, err)], None)
            return
        self.state.end(unit.number)
        end = (unit, position, notes, time.perf_counter() - started)
        yield self._block(unit, [_END], [end], None)

    def _block(
        self, unit: Unit, positions: Sequence[int], rows: Sequence[Any], batch: DecodedBatch | None
    ) -> dict[str, Any]:
        side = self.settings.preprocessing.crop
        pixels = np.zeros((len(rows), side, side, 3), np.uint8)
        if batch is not None:
            pixels[[row.status == STATUS_OK for row in batch.rows]] = batch.pixels
        return {
            "unit": np.full(len(rows), unit.number, np.int64),
            "position": np.asarray(positions, np.int64),
            "row": np.asarray([pickle.dumps(row) for row in rows], object),
            "pixels": pixels,
        }


class LabelImages:
    """Actor of the two-stage shape: label batches of pixels, whatever units they come from."""

    def __init__(self, settings: UnitSettings, model: ModelRef, card_share: float) -> None:
        self._embeddings = settings.embeddings
        self._classifier = model.load(len(settings.output.labels), card_share)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with `label_ids`, `scores` (and `embedding`) in place of `pixels`."""
        predictions = self._classifier.predict(batch.pop("pixels"), embedding=self._embeddings)
        labelled = {**batch, "label_ids": predictions.label_ids, "scores": predictions.scores}
        if predictions.embedding is not None:
            labelled["embedding"] = predictions.embedding
        return labelled


@dataclass(slots=True)
class _Assembling:
    """The rows of one unit that have arrived."""

    rows: dict[int, tuple[Row, Any, Any, Any]] = field(default_factory=dict)
    end: tuple[Unit, int, UnitNotes, float] | None = None


@dataclass(slots=True)
class UnitAssembler:
    """Gather labelled rows by unit, and publish each unit when its last row is in. Small: no pixels come here."""

    settings: UnitSettings
    _units: dict[int, _Assembling] = field(default_factory=dict)

    def add(self, batch: dict[str, Any]) -> Iterator[Result]:
        """Take a batch in; yield what became of the units that are now whole."""
        embeddings = batch.get("embedding")
        touched = set()
        for index, (unit, position) in enumerate(zip(batch["unit"].tolist(), batch["position"].tolist(), strict=True)):
            row = pickle.loads(batch["row"][index])
            if position == _SKIPPED:
                yield Result(unit)
            elif position == _FAILED:
                self._units.pop(unit, None)
                yield Result(unit, failure=row)
            else:
                gathered = self._units.setdefault(unit, _Assembling())
                touched.add(unit)
                if position == _END:
                    gathered.end = row
                else:
                    embedding = None if embeddings is None else embeddings[index]
                    gathered.rows[position] = (row, batch["label_ids"][index], batch["scores"][index], embedding)
        for unit in sorted(touched):
            gathered = self._units[unit]
            if gathered.end is not None and len(gathered.rows) == gathered.end[1]:
                del self._units[unit]
                yield self._publish(gathered)

    def _publish(self, gathered: _Assembling) -> Result:
        assert gathered.end is not None
        unit, count, notes, seconds = gathered.end
        started = time.perf_counter() - seconds
        schema = self.settings.output.schema()
        try:
            with UnitWriter(self.settings.dest.temporary_path(), schema) as writer:
                for first in range(0, count, self.settings.batch_size):
                    last = min(first + self.settings.batch_size, count)
                    rows = [gathered.rows[position] for position in range(first, last)]
                    writer.write(build_batch([row[0] for row in rows], _join(rows), self.settings.output, schema))
            return Result(unit.number, publish_unit(self.settings, unit, writer, notes, started))
        except ShardlabelError as err:
            return Result(unit.number, failure=str(err))


def _join(rows: Sequence[tuple[Row, Any, Any, Any]]) -> Predictions:
    """Put the predictions of the rows that are ok back into arrays."""
    ok = [row for row in rows if row[0].status == STATUS_OK]
    width = len(rows[0][1])
    return Predictions(
        label_ids=np.asarray([row[1] for row in ok], np.int32).reshape(len(ok), width),
        scores=np.asarray([row[2] for row in ok], np.float32).reshape(len(ok), width),
        embedding=None if rows[0][3] is None else np.asarray([row[3] for row in ok], np.float32),
    )
