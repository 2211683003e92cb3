"""One run at a time on a DEST: a second one is refused while the first lives, and admitted at once when it is dead."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from models.errors import DestHeldError, SourceError, StorageError
from pipeline.dest.plan import STATE_FOLDER
from pipeline.storage.location import Version
from pipeline.storage.retries import is_missing
from pipeline.storage.storage import Storage

logger = logging.getLogger(__name__)

LEASE_FILE = f"{STATE_FOLDER}/lease.json"
LOCK_FILE = f"{STATE_FOLDER}/lock"
# On object storage a run renews its lease at this interval; without renewals it is presumed dead after DEAD_S.
BEAT_S = 5.0
DEAD_S = 20.0
# How often a run that waits for another looks again.
WAIT_S = 0.5
_REFUSAL = "; wait for it, or stop it"


class Lease:
    """Hold DEST. Use as a context manager.

    On a disk this is a file lock, which the operating system releases with its process. On object storage it is an
    object that is renewed, and only ever written by compare and swap. One left by a dead process of this machine is
    recognised at once, any other after DEAD_S. A run that lost its lease, because it was suspended for so long, finds
    out before it writes anything more. A run that ends with an exception leaves nothing that the lease has made: a DEST
    that was refused is as it was.

    Args:
        dest: DEST.
        waiting: Called with a message about each run that is waited for. Without it another run's DEST is refused.

    Attributes:
        token: Identifies this run; "" on a disk.

    Raises:
        DestHeldError: Another run holds DEST; the message says where it runs.
        SourceError: DEST cannot be written.
    """

    def __init__(self, dest: Storage, waiting: Callable[[str], None] | None = None) -> None:
        self.token = "" if dest.is_local else uuid.uuid4().hex
        self._dest = dest
        self._waiting = waiting
        self._lock: FileLock | None = None
        self._made: list[Path] = []  # the lock and the folders above it that were not there before, innermost first
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._renew_by_time, name="lease", daemon=True)
        self._writing = threading.Lock()  # guards the fields below
        self._version: Version | None = None
        self._is_new = False  # whether there was no lease before
        self._beats = 0
        self._renewed = 0.0
        self._lost_to: str | None = None  # who holds it now, as far as known

    def __enter__(self) -> Lease:
        announced = ""
        while True:
            try:
                self._take_lock() if self._dest.is_local else self._take_lease()
            except DestHeldError as err:
                if self._waiting is None:
                    raise
                if str(err) != announced:
                    self._waiting(f"{str(err).removesuffix(_REFUSAL)}; waiting for it to end")
                announced = str(err)
                time.sleep(WAIT_S)
            else:
                break
        if not self._dest.is_local:
            self._beat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._lock is not None:
            if kind is not None:
                _remove(self._made)  # while it is held: filelock lets nobody have a lock whose file is gone
            self._lock.release()
        elif self._beat.is_alive():
            self._stop.set()
            self._beat.join()
            try:
                if kind is not None and self._is_new:
                    self._delete()
                else:
                    self._write(is_released=True)
            except StorageError as err:
                logger.warning("lease: cannot release it, so the next run will wait %g s: %s", DEAD_S, err)

    def check(self) -> None:
        """Make sure that this run still holds DEST; called before each write that others rely on.

        Raises:
            StorageError: Another run has taken it, or storage does not answer.
        """
        if not self._dest.is_local and time.monotonic() - self._renewed > BEAT_S:
            self._write()
        if self._lost_to is not None:
            raise StorageError(f"{self._lost_to} has taken {self._dest.describe()}")

    def _take_lock(self) -> None:
        path = Path(self._dest.path(LOCK_FILE))
        # No soft lock, even if the disk supports no other: it would outlive its process.
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        made: list[Path] = []
        try:
            made = [missing for missing in (path, *path.parents) if not os.path.lexists(missing)]
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except Timeout as err:
            holder = "another process"
            with suppress(OSError):  # a run that was refused has just removed it
                holder = path.read_text(errors="replace").strip() or holder
            raise DestHeldError(f"another run is writing to {self._dest.describe()} ({holder}){_REFUSAL}") from err
        except OSError as err:
            _remove(made)
            lock.release()
            # The target of a link is not ours to write to.
            why = "it is a link, which is not followed; remove it" if err.errno == errno.ELOOP else err.strerror
            raise SourceError(f"cannot write DEST {self._dest.describe()}: {LOCK_FILE}: {why}") from err
        self._lock, self._made = lock, made

    def _take_lease(self) -> None:
        self._lost_to = None
        other, self._version = _read(self._dest)
        seen = time.monotonic()
        while other is not None and not _is_dead_here(other):
            if time.monotonic() - seen > DEAD_S:
                logger.warning("lease: the run of %s no longer renews its lease; taking over", _who(other))
                break
            time.sleep(BEAT_S / 5)
            now, self._version = _read(self._dest)
            if now is not None and now["beat"] != other["beat"]:
                raise DestHeldError(f"another run is writing to {self._dest.describe()} ({_who(now)}){_REFUSAL}")
            other = now
        self._is_new = self._version is None
        self._write()
        if self._lost_to is not None:
            raise DestHeldError(f"{self._lost_to} has just begun to write to {self._dest.describe()}")

    def _renew_by_time(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self._write()
            except StorageError as err:
                logger.warning("lease: cannot renew: %s", err)

    def _write(self, *, is_released: bool = False) -> None:
        """Write the lease if it is as this run wrote or found it; otherwise it is lost."""
        with self._writing:
            if self._lost_to is not None:
                return
            began = time.monotonic()
            values = {"token": self.token, "beat": f"{self.token}-{self._beats}", "host": socket.gethostname(),
                      "boot": _boot_id(), "pid": os.getpid(), "is_released": is_released}  # fmt: skip
            version = self._dest.put_if(LEASE_FILE, orjson.dumps(values), self._version)
            if version is None:
                self._lost_to = _other_run(_read(self._dest)[0])
                logger.info("lease: %s has taken %s", self._lost_to, self._dest.describe())
                return
            self._version = version
            self._renewed = began
            self._beats += 1

    def _delete(self) -> None:
        """Delete the lease, once it has been renewed: so no other run has taken it, nor can within DEAD_S."""
        self._write()
        if self._lost_to is None:
            self._dest.delete(LEASE_FILE)


def _remove(made: list[Path]) -> None:
    """Remove a lock and the folders above it, except folders that hold something else."""
    for path in made:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def check_token(dest: Storage, token: str) -> None:
    """Make sure that the run with this token still holds DEST; for workers, which have no lease.

    Raises:
        StorageError: It does not, or storage does not answer.
    """
    if token:
        holder, _ = _read(dest)
        if holder is None or holder["token"] != token:
            raise StorageError(f"{_other_run(holder)} has taken {dest.describe()}")


def _read(dest: Storage) -> tuple[dict[str, Any] | None, Version | None]:
    """Return the lease (None if nobody holds it), and the version that a new one has to replace."""
    try:
        content, version = dest.read_version(LEASE_FILE)
    except StorageError as err:
        # Any other error must not look like a DEST that nobody holds.
        if is_missing(err.__cause__):
            return None, None
        raise
    try:
        values = orjson.loads(content)
        held = {key: values[key] for key in ("token", "beat", "host", "boot", "pid")}
    except (ValueError, KeyError, TypeError):
        return None, version
    return (None if values.get("is_released") else held), version


def _other_run(holder: dict[str, Any] | None) -> str:
    return f"another run ({_who(holder)})" if holder else "another run"


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}"


def _is_dead_here(lease: dict[str, Any]) -> bool:
    """Tell whether the lease belongs to a process of this machine that is gone."""
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
