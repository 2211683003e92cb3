"""The process that called a run: its signals reach the run, its terminal stays readable, and it is left as it was."""

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

# Variables that a run, or Ray for it, sets.
_OURS = ("RAY_", "AWS_REQUEST_CHECKSUM", "AWS_RESPONSE_CHECKSUM", "PYTHONDONTWRITEBYTECODE")
# Of what native code wrote, shown when the run fails in a way that nobody foresaw.
_TAIL_BYTES = 8192


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


@contextmanager
def native_errors_aside() -> Iterator[None]:
    """Send file descriptor 2 to a temporary file, and leave `sys.stderr` and logging on the terminal.

    Ray's C++ side reports an error for every actor pool of Ray Data 2.60 ("constructor arguments in the object store",
    ray-project/ray#53727) that a user can do nothing about. An unexpected exception shows the end of what was set aside.
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
