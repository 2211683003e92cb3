from __future__ import annotations

import io
import time

from pipeline.config import Progress
from pipeline.dest.commits import Totals
from pipeline.progress import ProgressPrinter


def test_what_is_shown_of_a_run_is_shown_again_though_nothing_finishes_and_once_at_its_end():
    shown: list[float] = []
    printer = ProgressPrinter(Progress.NONE, 3, 100, Totals(), stream=io.StringIO())

    with printer.ticking(lambda: shown.append(time.monotonic())):
        deadline = time.monotonic() + 20
        while len(shown) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        while_it_ran = len(shown)

    assert while_it_ran >= 2
    assert len(shown) > while_it_ran
