"""An incomplete download: resumed at its end, and checked when it has its full size."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

from models.spec import Artifact
from models.store.files import Progress, file_sha256
from models.store.http import CHUNK_BYTES, Answer, RangeError, SourceError, open_source, public_url

# Consecutive tries without progress; as long as a source sends more each time, it is retried.
TRIES_PER_SOURCE = 3
BACKOFF_S = 0.5
# If a source asks for a longer wait than this, the next source is tried instead.
MAX_WAIT_S = 10.0
_SNIFFED_BYTES = 512


class Partial:
    """The bytes so far, on disk beside the final path, with the ETag of the URL that sent the first byte.

    They belong to the process that holds the lock of the final path. It may continue what another source or process
    left: the SHA-256 of the whole file decides.
    """

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(f"{final.name}.part")
        self._etag_path = final.with_name(f"{final.name}.part.etag")

    def size(self) -> int:
        """Return the number of bytes so far."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def etag(self, url: str) -> str | None:
        """Return the ETag that came with the first byte; None if another URL sent it, or there was no ETag."""
        try:
            known_url, _, etag = self._etag_path.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return None
        return (etag.strip() or None) if known_url == public_url(url) else None

    def begin(self, url: str, etag: str | None) -> None:
        """Record the URL and ETag of the first byte."""
        self._etag_path.write_text(f"{public_url(url)}\n{etag or ''}", encoding="utf-8")

    def discard(self) -> None:
        """Remove the bytes and the record."""
        for path in (self.path, self._etag_path):
            with contextlib.suppress(OSError):
                path.unlink()


def complete(url: str, partial: Partial, artifact: Artifact, report: Progress) -> None:
    """Complete a partial file from one source, and check it; retries failures that may be temporary.

    Raises:
        SourceError: This source does not have the file, or cannot deliver it now. Its bytes are kept unless wrong.
        OSError: The disk is full, or cannot be written.
    """
    tries, farthest, from_scratch = 0, partial.size(), False
    while True:
        try:
            start = _add_answer(url, partial, artifact, report)
        except SourceError as err:
            if isinstance(err, RangeError):
                partial.discard()
            tries = 1 if partial.size() >= farthest + CHUNK_BYTES else tries + 1
            farthest = max(farthest, partial.size())
            wait_s = err.wait_s or BACKOFF_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
            if not err.again or tries >= TRIES_PER_SOURCE or wait_s > MAX_WAIT_S:
                raise
            time.sleep(wait_s)
            continue
        digest = file_sha256(partial.path)
        if digest == artifact.sha256:
            return
        partial.discard()
        if start == 0 or from_scratch:
            raise SourceError(f"SHA-256 is {digest}, expected {artifact.sha256}")
        from_scratch = True  # the bytes from before may be the wrong ones: retry once without them


def _add_answer(url: str, partial: Partial, artifact: Artifact, report: Progress) -> int:
    """Append a source's response to the partial file, up to its full size; return the offset of the response."""
    size, offset = artifact.size_bytes, partial.size()
    if offset == size:
        return offset
    if offset > size:
        partial.discard()
        offset = 0
    with open_source(url, offset=offset, etag=partial.etag(url)) as answer:
        chunk = answer.read()
        _refuse_other(answer, chunk, artifact)
        done = answer.start
        if done == 0:
            partial.begin(url, answer.etag)
        with partial.path.open("ab" if done else "wb") as file:
            while chunk:
                done += len(chunk)
                if done > size:
                    break
                file.write(chunk)
                report(done, size)
                chunk = answer.read()
    if done > size:
        partial.discard()
        raise SourceError(f"sent more than the {size} bytes expected")
    if done < size:
        raise SourceError(f"connection cut after {done} of {size} bytes", again=True)
    return answer.start


def _refuse_other(answer: Answer, chunk: bytes, artifact: Artifact) -> None:
    """Refuse a response that is clearly not the file, before it overwrites bytes that may be right."""
    head = chunk[:_SNIFFED_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if answer.media_type == "text/html" or head.startswith((b"<!doctype", b"<html")):
        raise SourceError("sent an HTML page, not the file")
    if head.startswith(b"version https://git-lfs"):
        raise SourceError("has only a Git LFS pointer, not the file itself")
    if answer.whole_bytes is not None and answer.whole_bytes != artifact.size_bytes:
        raise SourceError(f"has {answer.whole_bytes} bytes, expected {artifact.size_bytes}")
