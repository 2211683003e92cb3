"""The process that calls a run: pass its signals on, keep its terminal readable, and restore its state."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from models.errors import ShardlabelError

if TYPE_CHECKING:
    from pipeline.progress import ProgressPrinter

# Prefixes of the environment variables that a run, or its Ray, sets.
_OURS = ("RAY_", "AWS_REQUEST_CHECKSUM", "AWS_RESPONSE_CHECKSUM", "PYTHONDONTWRITEBYTECODE")
# How much of native code's output an unexpected exception shows.
_TAIL_BYTES = 8192


@contextmanager
def caller_as_before() -> Iterator[None]:
    """Restore the environment variables that a run sets, and the SIGTERM handler that Ray replaces."""
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
    """Request a stop on the first SIGINT or SIGTERM, to finish what is in flight; exit at once on the second."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        # In a thread: a signal handler must not wait for a server, or for the code that it interrupted.
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


@contextmanager
def native_errors_aside() -> Iterator[None]:
    """Redirect file descriptor 2 to a temporary file; `sys.stderr` and logging stay on the terminal.

    Ray's C++ side reports an error for every actor pool of Ray Data 2.60 ("constructor arguments in the object store",
    ray-project/ray#53727), which a user cannot act on. An unexpected exception prints the end of that file.
    """
    sys.stderr.flush()
    before = sys.stderr
    with tempfile.TemporaryFile() as aside, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        os.dup2(aside.fileno(), 2)
        _redirect_logging(before, terminal)
        sys.stderr = terminal
        try:
            yield
        except (ShardlabelError, KeyboardInterrupt):
            raise
        except Exception:
            aside.seek(max(0, aside.seek(0, os.SEEK_END) - _TAIL_BYTES))
            terminal.write(aside.read().decode(errors="replace"))
            raise
        finally:
            terminal.flush()
            os.dup2(terminal.fileno(), 2)
            _redirect_logging(terminal, before)
            sys.stderr = before


def _redirect_logging(old: object, new: object) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)
