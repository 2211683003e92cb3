from __future__ import annotations

import io
import json
import re
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.text import Text

from pipeline import progress
from pipeline.config import Progress
from pipeline.dest.commits import Commit, Totals
from pipeline.progress import ProgressPrinter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def printer_to(stream, kind=Progress.AUTO):
    return ProgressPrinter(kind, 3, 100, Totals(), stream=stream)


def commit(unit):
    return Commit(unit, f"part-{unit}", 10, 8, {"empty": 2}, 1.0, 30, 5, "")


def wait_until(is_true):
    deadline = time.monotonic() + 20
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_true()


def test_what_is_shown_of_a_run_is_shown_again_though_nothing_finishes_and_once_at_its_end():
    shown: list[float] = []

    with printer_to(io.StringIO(), Progress.NONE).ticking(lambda: shown.append(time.monotonic())):
        wait_until(lambda: len(shown) >= 2)
        while_it_ran = len(shown)

    assert len(shown) > while_it_ran


@pytest.mark.parametrize(
    ("stream", "kind"), [(io.StringIO, Progress.AUTO), (io.StringIO, Progress.PLAIN), (Terminal, Progress.PLAIN)]
)
def test_a_log_has_a_plain_line_now_and_then_though_nothing_finishes(stream, kind, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = stream()

    with printer_to(log, kind).ticking(lambda: None):
        wait_until(log.getvalue)

    assert {line.partition(" after ")[0] for line in log.getvalue().splitlines()} == {"0/3 units, none finished yet"}


def test_a_log_has_a_line_each_ten_seconds_and_no_more(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    log = io.StringIO()
    printer = printer_to(log)

    for clock.now in (105.0, 109.9, 110.0, 110.1, 119.9):
        printer.tick()
    printer.add(commit(0))
    clock.now = 120.0
    printer.add(commit(1))

    assert log.getvalue().splitlines() == [
        "0/3 units, none finished yet after 10 s",
        "2/3 units, 20 images, 18 images/s, 4 not labelled, 0.7 s left",
    ]


@pytest.mark.parametrize("kind", [Progress.AUTO, Progress.PLAIN])
def test_what_is_said_is_printed_as_it_is(kind):
    log = io.StringIO()
    said = "unit 7 ([bold]a.tar[/bold], :car: 'x' 12 http://a) failed: " + "long " * 100

    printer_to(log, kind).say(said)

    assert log.getvalue() == f"{said}\n"


def test_a_terminal_has_one_live_line_below_what_is_said():
    terminal = Terminal()
    printer = printer_to(terminal)

    with printer.ticking(lambda: None):
        printer.add(commit(0))
        printer.say("unit 7 failed: [red] :car:")
        printer.add(commit(1))
        sys.stdout.write(json.dumps({"to": "stdout"}))

    lines = [Text.from_ansi(line).plain for line in terminal.getvalue().splitlines()]
    assert "unit 7 failed: [red] :car:" in lines
    assert re.search(r" 2/3 units, 20 images, \d+ images/s, 4 not labelled", lines[-1] or lines[-2])
    assert "stdout" not in terminal.getvalue()


def test_nothing_is_printed_where_nothing_is_asked_for():
    terminal = Terminal()
    printer = printer_to(terminal, Progress.NONE)

    with printer.ticking(lambda: None):
        printer.add(commit(0))
        printer.say("anything")

    assert terminal.getvalue() == ""


def test_where_the_bytes_of_all_input_are_not_known_the_time_left_is_told_by_units(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    printer = ProgressPrinter(Progress.NONE, 3, None, Totals(), stream=io.StringIO())
    clock.now = 120.0

    printer.add(commit(0))
    printer.add(commit(1))

    assert printer.line() == "2/3 units, 20 images, 20 images/s, 4 not labelled, 0.5 s left"


def test_the_rate_and_the_time_left_do_not_count_the_start_but_from_when_the_first_unit_was_begun(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    printer = ProgressPrinter(Progress.NONE, 3, None, Totals(units=1, rows=50), stream=io.StringIO())

    clock.now = 120.0
    printer.add(replace(commit(0), rows=0, seconds=0.0))
    clock.now = 122.0
    printer.add(replace(commit(1), rows=40, seconds=4.0))

    assert printer.line().startswith("3/3 units, 90 images, 10 images/s")
