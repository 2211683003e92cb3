"""The process that called a run: its signals reach the run, and it is left as it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.progress import ProgressPrinter

# Variables that a run, or Ray for it, sets.
_OURS = ("RAY_", "AWS_REQUEST_CHECKSUM", "AWS_RESPONSE_CHECKSUM", "PYTHONDONTWRITEBYTECODE")


@contextmanager
def caller_as_before() -> Iterator[None]:
    """Put back the environment variables that a run sets, and the handler of SIGTERM that Ray leaves behind."""
    environment = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        for name in {name for name in (*os.environ, *environment) if name.startswith(_OURS)}:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def stop_on_signal(request_stop: Callable[[], None], printer: ProgressPrinter) -> Iterator[threading.Event]:
    """On the first SIGINT or SIGTERM request a stop, to finish what is in flight; on the second leave at once."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        # Not here: a signal handler must wait neither for a server nor for what it has interrupted.
        threading.Thread(target=ask, daemon=True).start()

    def ask() -> None:
        printer.say("shardlabel: stopping once the shards in progress are finished; press Ctrl-C again to stop at once")
        request_stop()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
