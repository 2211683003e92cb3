"""How even plans of each kind of input are, by their units' sizes alone."""

from __future__ import annotations

import pytest

from pipeline.dest.plan import cut_units
from pipeline.evenness import busy_share, longest, unit_bytes
from pipeline.sources.unit import Slice

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
    assert longest([5, 1, 1, 1, 1, 4], 2) == 8
    assert longest([2], 9) == 2


def test_parts_of_a_parquet_file_have_its_bytes_together_and_those_of_a_tar_their_own():
    slices = [Slice("a.parquet", 90, "", 0, 1), Slice("a.parquet", 90, "", 1, 9), Slice("b.tar", 90, "", 0, 80),
              Slice("b.tar", 90, "", 80, 90), Slice("c.parquet", 7, "")]  # fmt: skip

    assert list(unit_bytes(cut_units(slices))) == [45, 45, 80, 10, 7]
