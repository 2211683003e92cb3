"""A download that is not complete yet: goes on from where it ends, and is checked when it has its size."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

from models.spec import Artifact
from models.store.files import Progress, file_sha256
from models.store.http import CHUNK_BYTES, Answer, RangeError, SourceError, open_source, public_url

# In a row, without headway; a source that gives another piece each time is asked on.
TRIES_PER_SOURCE = 3
BACKOFF_S = 0.5
# Longer than this we do not wait for a source that says when to come back: the next one is there now.
MAX_WAIT_S = 10.0
_SNIFFED_BYTES = 512


class Partial:
    """The bytes so far, on disk beside the final path, with the ETag of the URL that they began with.

    Whoever holds the lock of the final path owns them. What another source or process left is good to go on
    from: the SHA-256 of the whole decides.
    """

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(f"{final.name}.part")
        self._etag_path = final.with_name(f"{final.name}.part.etag")

    def size(self) -> int:
        """Return how many bytes there are."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def etag(self, url: str) -> str | None:
        """Return the ETag that this URL gave when it sent the first byte, if it was this one and gave any."""
        try:
            known_url, _, etag = self._etag_path.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return None
        return (etag.strip() or None) if known_url == public_url(url) else None

    def begin(self, url: str, etag: str | None) -> None:
        """Note where the first byte comes from."""
        self._etag_path.write_text(f"{public_url(url)}\n{etag or ''}", encoding="utf-8")

    def discard(self) -> None:
        """Remove the bytes and the note."""
        for path in (self.path, self._etag_path):
            with contextlib.suppress(OSError):
                path.unlink()


def complete(url: str, partial: Partial, artifact: Artifact, report: Progress) -> None:
    """Complete a partial file from one source, check it, and retry what may work in a moment.

    Raises:
        SourceError: This source does not have the file, or not now. Its bytes, if not wrong, are kept.
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
        from_scratch = True  # the bytes of before may have been the wrong ones: once more without them


def _add_answer(url: str, partial: Partial, artifact: Artifact, report: Progress) -> int:
    """Add a source's answer to the partial file until it has its size; return where the answer began."""
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
        raise SourceError(f"sends more than the {size} bytes expected")
    if done < size:
        raise SourceError(f"connection cut after {done} of {size} bytes", again=True)
    return answer.start


def _refuse_other(answer: Answer, chunk: bytes, artifact: Artifact) -> None:
    """Refuse what is plainly not the file, before it replaces bytes that may be right."""
    head = chunk[:_SNIFFED_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if answer.media_type == "text/html" or head.startswith((b"<!doctype", b"<html")):
        raise SourceError("answers with an HTML page, not the file")
    if head.startswith(b"version https://git-lfs"):
        raise SourceError("has a Git LFS pointer, not the file it stands for")
    if answer.whole_bytes is not None and answer.whole_bytes != artifact.size_bytes:
        raise SourceError(f"has {answer.whole_bytes} bytes, expected {artifact.size_bytes}")
