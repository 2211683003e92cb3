"""Download a model's file: resumed after an interruption, verified before it is renamed, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from models.errors import ArtifactError, ConfigError, DownloadError
from models.spec import Artifact, ModelSpec, Precision
from models.store.files import Progress, artifact_path, disk_errors, publishing, rename_synced, verify_file
from models.store.http import CHUNK_BYTES, SourceError, local_path, public_url
from models.store.resume import Partial, complete

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "SHARDLABEL_MODEL_MIRROR"
BUNDLED_MODEL = "efficientnet-lite0"
LOCK_POLL_S = 1.0
# Longer than trying all sources with all timeouts takes: a holder without progress for this long hangs or was stopped.
LOCK_STALL_S = 900.0
LOG_EVERY_S = 5.0


def sources_of(artifact: Artifact) -> list[str]:
    """List an artifact's sources in the order in which they are tried: the environment's mirrors, then its own.

    Raises:
        ConfigError: `SHARDLABEL_MODEL_MIRROR` has something other than http, https or file URLs and folders, or a
            source in the model's entry is not a URL.
    """
    bases = [base for base in re.split(r"[\s,]+", os.environ.get(MIRROR_VARIABLE, "")) if base]
    for url in (*bases, *artifact.sources):
        try:
            urlsplit(url)
        except ValueError as err:
            raise ConfigError(f"source of {artifact.file} must be a URL, got {public_url(url)}: {err}") from err
    return [*(_below(base, artifact.file) for base in bases), *artifact.sources]


def _below(base: str, file: str) -> str:
    folder = local_path(base)
    if folder is not None:
        return str(folder / file)
    parts = urlsplit(base)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigError(f"{MIRROR_VARIABLE} must be http, https or file URLs, or folders, got {public_url(base)}")
    # Inserted before the query, in which some stores expect a signature.
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file}"))


def fetch(spec_name: str, artifact: Artifact, *, progress: Progress | None = None) -> Path:
    """Download an artifact into the cache, unless it is there; resumes an interrupted download.

    Args:
        spec_name: The model's name, for messages.
        artifact: What to download; its size and SHA-256 decide whether a source has it.
        progress: Called as bytes arrive, also while another process downloads the same file.

    Returns:
        Its path in the cache, verified.

    Raises:
        DownloadError: No source had it; the message names each source with the reason, and the ways out.
        ArtifactError: The cache cannot be written, or another process holds the lock without progress.
    """
    path = artifact_path(artifact)
    report = progress or (lambda _done, _total: None)
    with disk_errors(path):
        # Before the lock, since a complete cache may be read-only.
        if _is_valid(path, artifact):
            return path
        with _locked(path, artifact, report):
            # Checked again: another process may have downloaded it while this one waited.
            if not _is_valid(path, artifact):
                _download(spec_name, path, artifact, report)
    return path


def import_file(spec: ModelSpec, precision: Precision, source: Path | str) -> Path:
    """Copy a user's file into the cache, if it is the one that the model's entry names.

    Args:
        spec: The model's entry.
        precision: Which of its artifacts.
        source: A path, or a `file:` URL.

    Returns:
        Its path in the cache.

    Raises:
        ConfigError: `source` is another kind of URL.
        ArtifactError: It cannot be read, or is another file; or the cache cannot be written.
    """
    artifact = spec.artifact(precision)
    # A Path of `file:///...` has lost one slash.
    found = local_path(str(source)) if re.match(r"(?i)file:|[\w+.-]+://", str(source)) else Path(source)
    if found is None:
        raise ConfigError(f"--from must be a file, got {public_url(str(source))}; for a server set {MIRROR_VARIABLE}")
    wanted = f"for {spec.name} ({precision}) give the {artifact.file} that its entry names"
    verify_file(found, artifact, remedy=wanted)
    path = artifact_path(artifact)
    digest = hashlib.sha256()
    with publishing(path) as copy, found.open("rb") as original:
        while chunk := original.read(CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
        if digest.hexdigest() != artifact.sha256:
            raise ArtifactError(f"{found} changed while it was copied; {wanted}")
    verify_file(path, artifact)
    with contextlib.suppress(OSError, Timeout), FileLock(f"{path}.lock", timeout=0):
        Partial(path).discard()  # an interrupted download is obsolete now; one in progress holds the lock
    return path


def _is_valid(path: Path, artifact: Artifact) -> bool:
    """Tell whether the file exists and is the entry's; a broken file will be downloaded again."""
    if not path.exists():
        return False
    try:
        verify_file(path, artifact)
    except ArtifactError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path, artifact: Artifact, report: Progress) -> Iterator[None]:
    """Hold the lock of a cached file. While another process holds it, report that process's progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    partial = Partial(path)
    seen, since = -1, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_S)
            break
        except Timeout:
            size = partial.size()
        if size != seen:
            seen, since = size, time.monotonic()
            report(size, artifact.size_bytes)
        elif time.monotonic() - since > LOCK_STALL_S:
            raise ArtifactError(
                f"another process has held {lock.lock_file} for {LOCK_STALL_S:.0f} s without progress; end that process"
            )
    try:
        yield
    finally:
        lock.release()


def _download(name: str, path: Path, artifact: Artifact, report: Progress) -> None:
    """Download an artifact into the cache. The caller holds the lock."""
    if path.exists():
        logger.warning("models: %s is broken, downloading it again", path)
    partial = Partial(path)
    try:
        _complete_from_any(name, partial, artifact, report)
        rename_synced(partial.path, path)
    except OSError:
        partial.discard()  # frees its space, for instance on a full disk
        raise
    partial.discard()
    verify_file(path, artifact)


def _complete_from_any(name: str, partial: Partial, artifact: Artifact, report: Progress) -> None:
    """Complete the partial file from the first source that has the file."""
    failures: list[tuple[str, str]] = []
    unreachable: dict[str, str] = {}
    for url in sources_of(artifact):
        host = urlsplit(url).netloc
        if host in unreachable:
            failures.append((url, unreachable[host]))
            continue
        try:
            complete(url, partial, artifact, report)
        except SourceError as err:
            logger.info("models: cannot download %s from %s: %s", artifact.file, public_url(url), err)
            failures.append((url, str(err)))
            if err.unreachable:
                unreachable[host] = str(err)
        else:
            return
    raise DownloadError(_ways_out(name, artifact, failures))


def _ways_out(name: str, artifact: Artifact, failures: list[tuple[str, str]]) -> str:
    offline = "" if name == BUNDLED_MODEL else f"; --model {BUNDLED_MODEL} is bundled and needs no network"
    lines = [f"cannot download {artifact.file} ({artifact.size_bytes / 1e6:.1f} MB) of {name}{offline}:"]
    lines += [f"  {public_url(url)}: {reason}" for url, reason in failures] or ["  it has no source"]
    lines += [
        "Ways out:",
        f"  a mirror:         {MIRROR_VARIABLE}=URL, where URL/{artifact.file} is",
        f"  a file you have:  shardlabel models pull {name} --from FILE",
        f"  a bundled model:  --model {BUNDLED_MODEL}",
    ]
    if artifact.built_by:
        lines.append(f"  building it:      {artifact.build_step}")
    return "\n".join(lines)


@contextlib.contextmanager
def progress_printer(label: str, console: Console | None = None) -> Iterator[Progress]:
    """Show a download on stderr: a bar on a terminal, else a line every few seconds; nothing without a download.

    Args:
        label: Name of the file.
        console: Where to show the progress.

    Yields:
        The `progress` argument for `fetch` or `locate`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(label, console)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(TextColumn("{task.description}", markup=False), *columns, console=console) as bars:
        task = bars.add_task(label, visible=False)
        yield lambda done, total: bars.update(task, completed=done, total=total, visible=True)


def _line_printer(label: str, console: Console) -> Progress:
    last = float("-inf")

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_EVERY_S or done == total:
            last = now
            text = f"{label}: {done / 1e6:.1f} of {total / 1e6:.1f} MB ({100 * done // total} %)"
            console.print(text, soft_wrap=True, markup=False, highlight=False)

    return report
