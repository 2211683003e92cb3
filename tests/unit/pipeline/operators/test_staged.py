"""The reading half of the two-stage path: what goes on together."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits
from pipeline.config import SourceFormat, build_config
from pipeline.dest.plan import units_table
from pipeline.dest.writer import OutputSpec
from pipeline.operators import staged
from pipeline.operators.read import BLOCK_BYTES
from pipeline.operators.stages import UnitSettings
from pipeline.sources.reader import columns_of, slices
from pipeline.sources.source import open_source
from pipeline.sources.unit import Unit
from pipeline.storage.storage import open_storage
from tests.support.tiny_model import colour_jpeg

MIB = 2**20


class NeverStops:
    def __init__(self, state: object) -> None:
        pass

    def is_set(self) -> bool:
        return False


def test_large_carried_values_end_a_piece_as_they_end_a_block(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 40
    table = pa.table({"image": [colour_jpeg("red")] * rows, "text": [f"{i:02d}" + "x" * MIB for i in range(rows)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    source = open_source([str(tmp_path)], SourceFormat.PARQUET)
    config = build_config({"source": [str(tmp_path)], "output": str(tmp_path / "out"), "carry": "text"})
    columns = columns_of(source, config, taken=())
    spec = load_spec(str(tiny_model))
    settings = UnitSettings(
        source.base, SourceFormat.PARQUET, ImageLimits(), columns, dest=open_storage(str(tmp_path / "out")), batch_size=16,
        preprocessing=spec.preprocessing, mode=DecodeMode.FAST, output=OutputSpec(("a",), {}, carried=columns.carried),
    )  # fmt: skip
    monkeypatch.setattr(staged, "StopFlag", NeverStops)

    pieces = list(staged.ReadDecode(settings, None, False)(units_table([Unit(0, tuple(slices(source)))])))

    assert pa.concat_tables(piece.select(["text"]) for piece in pieces)["text"].to_pylist() == table["text"].to_pylist()
    assert max(piece["text"].nbytes for piece in pieces) <= BLOCK_BYTES + 2 * MIB
