"""Unpack gzip from front to back, in bounded pieces, as far as possible, and note what was lost."""

from __future__ import annotations

import io
import zlib
from typing import Any

from pipeline.sources.sample import ShardNotes
from pipeline.storage.streams import FileForward, ForwardStream

MAGIC = b"\x1f\x8b"
# Bytes unpacked at a time, even from a zip bomb.
PIECE_BYTES = 256 * 1024
_GZIP = 31  # zlib's value for "with gzip's header and checksum"


class GzipStream(ForwardStream):
    """The contents of a gzip file. Several consecutive gzip members are one content.

    Args:
        packed: The file.
        notes: Records what was lost.
        head: Bytes already read from the file.
    """

    def __init__(self, packed: ForwardStream, notes: ShardNotes, head: bytes = b"") -> None:
        super().__init__()
        self._packed = packed
        self._notes = notes
        self._rest = head
        self._unpacker: Any = zlib.decompressobj(_GZIP)
        self._fresh = True  # whether the unpacker has seen nothing of its gzip member yet
        self._members = 0

    def _more(self) -> bytes:
        while packed := self._rest or self._packed.read(PIECE_BYTES):
            self._rest = b""
            if self._fresh and self._members and not packed.strip(b"\0"):
                continue  # padding
            piece = self._unpack(packed)
            if piece:
                return piece
        if not self._fresh:
            self._stop("truncated: the gzip stream has no end")
        elif not self._members:
            self._stop("empty: not one gzip member")
        return b""

    def _unpack(self, packed: bytes) -> bytes:
        before = self._unpacker.copy()
        try:
            piece = self._unpacker.decompress(packed, PIECE_BYTES)
        except zlib.error as err:
            return self._salvage(before, packed, err)
        self._rest = self._unpacker.unconsumed_tail or self._unpacker.unused_data
        self._fresh = self._unpacker.eof
        if self._unpacker.eof:
            self._members += 1
            self._unpacker = zlib.decompressobj(_GZIP)
        return bytes(piece)

    def _salvage(self, unpacker: Any, packed: bytes, err: zlib.error) -> bytes:  # noqa: ANN401 (zlib has no types)
        """Unpack byte by byte up to the wrong one: an error discards all of a call's output."""
        piece = bytearray()
        try:
            for byte in packed:
                piece += unpacker.decompress(bytes((byte,)))
        except zlib.error:
            pass
        if self._fresh and self._members:
            self._stop(f"{len(packed)} bytes or more behind the gzip stream are no gzip")
        elif self._fresh and not piece:
            self._stop(f"no gzip: {_words(err)}")
        elif "incorrect" in str(err):  # data check, length check: all is unpacked, and may be wrong
            self._stop(f"damaged: the gzip stream's checksum does not fit ({_words(err)})")
        else:
            self._stop(f"damaged gzip stream: {_words(err)}")
        return bytes(piece)

    def _stop(self, loss: str) -> None:
        """Note a loss, and let the next read find the end."""
        self._notes.lose(loss)
        self._packed, self._rest, self._fresh, self._members = FileForward(io.BytesIO()), b"", True, 1


def _words(err: zlib.error) -> str:
    return str(err).partition(": ")[2] or str(err)
