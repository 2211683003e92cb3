from __future__ import annotations

import os
import signal
import threading

import pytest

from pipeline.caller import stop_on_signal


class Printer:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def number(request):
    # What a shell starts in the background may have SIGINT ignored.
    before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGTERM)}
    yield request.param
    for one, handler in before.items():
        signal.signal(one, handler)


def test_the_first_signal_asks_for_a_stop_and_the_second_ends_at_once(number):
    asked, printer = threading.Event(), Printer()

    with stop_on_signal(asked.set, printer) as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        assert asked.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)

    assert stopped.is_set()
    assert len(printer.said) == 1
    assert "stopping once the shards in progress are finished" in printer.said[0]
    assert signal.getsignal(number) == signal.SIG_DFL
