"""Freed memory is kept or given back, as page faults and the resident size show: in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from models.malloc import tune_malloc

if sys.argv[1] == "keep":
    assert tune_malloc()
for round in range(60):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pixels = [np.zeros(2_400_000, np.uint8) for _ in range(3)]
    for piece in pixels:
        piece[:] = 1
    del pixels, piece
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is a setting of glibc's malloc")
def test_pixels_of_the_next_batch_cause_no_page_faults():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "as ever")
    )

    assert given_back > 1_000
    assert kept < given_back / 20


GIVE_BACK = """
from models.malloc import give_back_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

pieces = [bytearray(b"x" * 60_000) for _ in range(1_000)]
last = bytearray(b"x" * 60_000)
del pieces
before = resident()
assert give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is a function of glibc's malloc")
def test_what_is_free_goes_back_to_the_system():
    given = subprocess.run([sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, check=True).stdout

    assert int(given) > 40_000_000
