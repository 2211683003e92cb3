"""Keep what native code writes to standard error off the user's terminal, without losing it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import ShardlabelError

# Of what was set aside, shown when the run fails in a way that nobody foresaw.
_TAIL_BYTES = 8192


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
