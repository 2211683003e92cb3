"""How even plans of each kind of input are, by their units' sizes alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.dest.plan import cut_units, write_plan
from pipeline.evenness import busy_share, unit_bytes
from pipeline.job import _tell_evenness
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage

MB = 10**6


def images(count: int) -> list[Slice]:
    return [Slice(f"{number}.jpg", 110_000, "") for number in range(count)]


def tar_in_pieces(pieces: int) -> list[Slice]:
    edge = 330 * MB // pieces
    return [Slice("a.tar", pieces * edge, "", number * edge, (number + 1) * edge) for number in range(pieces)]


@pytest.mark.parametrize(
    ("slices", "workers", "share"),
    [
        pytest.param([Slice("a.tar", 330 * MB, "")], 2, 0.5, id="one tar that is not cut"),
        pytest.param(tar_in_pieces(64), 16, 1.0, id="one in 64 pieces"),
        pytest.param([Slice(f"{i}.tar", MB, "") for i in range(10)], 16, 10 / 16, id="ten shards for 16"),
        pytest.param([Slice("a.parquet", 900 * MB, "", i, i + 1) for i in range(3)], 2, 0.75, id="three parts for two"),
        pytest.param([], 2, 1.0, id="nothing"),
    ],
)
def test_workers_that_have_nothing_left_to_do_are_told(slices, workers, share):
    assert busy_share(list(unit_bytes(cut_units(slices))), workers) == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(("count", "workers", "share"), [(200, 2, 0.9), (3_000, 2, 0.95), (100_000, 16, 0.98)])
def test_loose_images_keep_all_workers_busy(count, workers, share):
    sizes = list(unit_bytes(cut_units(images(count), images=True)))

    assert share <= busy_share(sizes, workers) <= 1


def test_each_worker_takes_the_next_unit_when_it_is_through_with_its_last():
    assert busy_share([5, 1, 1, 1, 1, 4], 2) == 13 / 16
    assert busy_share([2], 9) == 1 / 9


def test_parts_of_a_parquet_file_have_its_bytes_together_and_those_of_a_tar_their_own():
    slices = [Slice("a.parquet", 90, "", 0, 1), Slice("a.parquet", 90, "", 1, 9), Slice("b.tar", 90, "", 0, 80),
              Slice("b.tar", 90, "", 80, 90), Slice("c.parquet", 7, "")]  # fmt: skip

    assert list(unit_bytes(cut_units(slices))) == [45, 45, 80, 10, 7]


def test_a_part_that_is_left_of_a_parquet_file_is_not_all_of_it(tmp_path):
    """One part of ten is left of the first file, and all ten of the second: two workers have 11 equal parts to do."""
    slices = [Slice(f"{name}.parquet", 100 * MB, "", i, i + 1) for name in "ab" for i in range(10)]
    dest = open_storage(str(tmp_path))
    work = SimpleNamespace(plan=write_plan(dest, cut_units(slices), {}), done=np.array([True] * 9 + [False] * 11))
    said: list[str] = []

    _tell_evenness(dest, work, 2, SimpleNamespace(printer=SimpleNamespace(say=said.append)))

    assert said == ["shardlabel: 11 units to label; judging by their sizes, the actors will be busy 92% of the time"]


def test_of_one_unit_that_is_left_nothing_is_said(tmp_path):
    dest = open_storage(str(tmp_path))
    work = SimpleNamespace(plan=write_plan(dest, cut_units([Slice("a.tar", 9, ""), Slice("b.tar", 9, "")]), {}))
    work.done = np.array([True, False])
    said: list[str] = []

    _tell_evenness(dest, work, 1, SimpleNamespace(printer=SimpleNamespace(say=said.append)))

    assert said == []


def test_a_piece_of_a_tar_has_its_own_bytes():
    assert Unit(0, (Slice("a.tar", 90, "", 80, 90), Slice("b.tar", 7, ""))).size == 17
    assert Unit(0, (Slice("a.parquet", 90, "", 1, 9),)).size == 90
