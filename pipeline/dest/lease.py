"""One run at a time on a DEST: the second is refused while the first lives, and let in at once when it is dead."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from models.errors import SourceError, StorageError
from pipeline.dest.plan import STATE_FOLDER
from pipeline.storage.storage import Storage

logger = logging.getLogger(__name__)

LEASE_FILE = f"{STATE_FOLDER}/lease.json"
LOCK_FILE = f"{STATE_FOLDER}/lock"
# On object storage a run shows that it lives by writing its lease anew so often, and is taken for dead after DEAD_S.
BEAT_S = 5.0
DEAD_S = 20.0
_SETTLE_S = 1.0


class Lease:
    """Hold DEST. Use as a context manager.

    On a disk this is a file lock, which the operating system drops with its process. On object storage it is a lease
    that is renewed; one left behind by a dead process of this machine is recognised at once, any other after DEAD_S.

    Raises:
        SourceError: Another run holds DEST; the message says where it runs.
    """

    def __init__(self, dest: Storage) -> None:
        self._dest = dest
        self._token = uuid.uuid4().hex
        self._lock: int | None = None
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        if self._dest.is_local:
            self._take_lock()
        else:
            self._take_lease()
            self._beat.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
        elif self._beat.is_alive():
            self._stop.set()
            self._beat.join()
            self._dest.delete(LEASE_FILE)

    def _take_lock(self) -> None:
        path = Path(self._dest.path(LOCK_FILE))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not inherited: a worker that outlives its driver must not hold DEST. And a link is not followed: what it
            # leads to is not ours to write to.
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as err:
            why = "it is a link, which is not followed; remove it" if err.errno == errno.ELOOP else err.strerror
            raise SourceError(f"cannot write DEST {self._dest.describe()}: {LOCK_FILE}: {why}") from err
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as err:
            holder = os.pread(self._lock, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._lock)
            self._lock = None
            if not isinstance(err, BlockingIOError):
                raise SourceError(f"cannot write DEST {self._dest.describe()}: {LOCK_FILE}: {err.strerror}") from err
            raise SourceError(
                f"another run is writing to {self._dest.describe()} ({holder}); wait for it, or stop it"
            ) from err

    def _take_lease(self) -> None:
        other = self._read()
        seen = time.monotonic()
        while other is not None and not _is_dead_here(other):
            if time.monotonic() - seen > DEAD_S:
                logger.warning("lease: the run of %s shows no sign of life; its place is taken", _who(other))
                break
            time.sleep(BEAT_S / 5)
            now = self._read()
            if now is not None and now["beat"] != other["beat"]:
                raise SourceError(
                    f"another run is writing to {self._dest.describe()} ({_who(now)}); wait for it, or stop it"
                )
            other = now
        self._write(0)
        # Two that start within a moment both get here: the one that wrote last has it.
        time.sleep(_SETTLE_S)
        holder = self._read()
        if holder is not None and holder["token"] != self._token:
            raise SourceError(f"another run has just begun to write to {self._dest.describe()} ({_who(holder)})")

    def _renew(self) -> None:
        beat = 1
        while not self._stop.wait(BEAT_S):
            try:
                self._write(beat)
            except StorageError as err:
                logger.warning("lease: cannot renew: %s", err)
            beat += 1

    def _write(self, beat: int) -> None:
        values = {"token": self._token, "beat": f"{self._token}-{beat}", "host": socket.gethostname(),
                  "boot": _boot_id(), "pid": os.getpid()}  # fmt: skip
        self._dest.write_bytes(LEASE_FILE, json.dumps(values).encode())

    def _read(self) -> dict[str, Any] | None:
        if self._dest.stat(LEASE_FILE) is None:
            return None
        try:
            values = json.loads(self._dest.read_bytes(LEASE_FILE))
            return {key: values[key] for key in ("token", "beat", "host", "boot", "pid")}
        except (ValueError, KeyError, TypeError):
            return None
        except StorageError as err:
            # Released since the look-up. Any other fault must not pass for a DEST that nobody holds.
            if isinstance(err.__cause__, FileNotFoundError):
                return None
            raise


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}"


def _is_dead_here(lease: dict[str, Any]) -> bool:
    """Tell whether the lease is of a process of this very machine that is gone."""
    if lease["host"] != socket.gethostname() or lease["boot"] != _boot_id():
        return False
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
