"""Read the members of a tar from front to back, whatever is wrong with it, and note what was lost.

`tarfile` ends silently at a broken header, and reads a PAX header of any size into memory. Here every end without an
end mark is noted, and reading continues at the next valid header. Except for what a caller asks for, nothing larger
than MAX_HEADER_BYTES is ever in memory. Formats: v7, ustar, GNU (long names, sparse), PAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pipeline.sources.sample import ShardNotes
from pipeline.storage.streams import ForwardStream

BLOCK = 512
# Maximum size of a long name or a PAX header. Real ones have some hundred bytes.
MAX_HEADER_BYTES = 2**20
# A file without a header in its first so many bytes is not a tar. Enough to pass a first member with a damaged header.
GIVE_UP_BYTES = 64 * 2**20

_ZEROS = bytes(BLOCK)
_CHECKSUM = slice(148, 156)
_SPACES = sum(b" " * 8)
# Types of members that have no data, whatever their size says.
_NO_DATA = frozenset(b"123456")
_SPARSE = b"GNU.sparse."
_RECORDS = frozenset((b"path", b"size", b"GNU.sparse.name"))


class MemberKind(Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPARSE = "sparse"
    OTHER = "other"  # devices, pipes, and what later formats may add


_KINDS = {
    b"0"[0]: MemberKind.FILE,
    0: MemberKind.FILE,
    b"7"[0]: MemberKind.FILE,
    b"1"[0]: MemberKind.LINK,
    b"2"[0]: MemberKind.LINK,
    b"5"[0]: MemberKind.DIRECTORY,
    b"D"[0]: MemberKind.DIRECTORY,
    b"S"[0]: MemberKind.SPARSE,
}


@dataclass(slots=True)
class Member:
    """One member: its name as written in the tar, its kind, and the bytes that it has in the tar."""

    name: str
    kind: MemberKind
    size: int


_MAX_DIGITS, _NO_SIZE = 18, 2**62  # a PAX header may give a size with more digits, which no tar has
_SHOWN = 200  # of a name, in notes


@dataclass(slots=True)
class _Header:
    """One valid header block: its checksum and numbers are right."""

    type: int
    size: int
    name: bytes
    block: bytes


class TarReader:
    """Iterate over a tar's members; `read` returns the bytes of the latest member.

    Args:
        stream: The tar's bytes, unread except for `head`.
        notes: Records what was lost.
        head: Bytes already read from the stream.
        goes_on: Whether the stream is a piece of a tar that ends between two members, without an end mark.
    """

    def __init__(self, stream: ForwardStream, notes: ShardNotes, head: bytes = b"", *, goes_on: bool = False) -> None:
        self._stream = stream
        self._notes = notes
        self._head = head
        self._next = 0  # position of the next header
        self._content_end = 0  # position after the last member's bytes, before their padding
        self._name = ""  # of the last member
        self._held = False  # whether any header was valid
        self.broken_off = False  # whether the tar ends inside a member, or without an end mark
        self._ended = False  # whether the last undamaged block was an end mark
        self._damaged = 0  # bytes since then that are neither members nor end marks
        self._interrupted = False  # whether anything was between the last two headers
        self._goes_on = goes_on
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> TarReader:
        return self

    def __next__(self) -> Member:
        long_name: bytes | None = None
        records: dict[bytes, bytes] = {}
        while True:
            header = self._header()
            if header is None:
                raise StopIteration
            if self._interrupted:
                long_name, records = None, {}  # they belonged to a lost member
            kind = header.type
            if kind in b"xXgLK":
                content = self._small(header)
                if content is None:
                    continue
                if kind == b"L"[0]:
                    long_name = content.partition(b"\0")[0]
                elif kind in b"xX":
                    records |= _pax_records(content)
                elif kind == b"g"[0]:
                    self._globals |= _pax_records(content)
                continue
            if kind == b"V"[0]:  # a label of the volume
                continue
            return self._member(header, {**self._globals, **records} if records or self._globals else {}, long_name)

    @property
    def position(self) -> int:
        """The position after the last member, where the headers of the next one begin unless there is damage."""
        return self._next

    @property
    def has_globals(self) -> bool:
        """Whether there was a PAX header that applies to all members after it."""
        return bool(self._globals)

    def read(self, member: Member) -> bytes | None:
        """Return the member's bytes; None if the tar is truncated inside it, which is noted."""
        content = self._stream.read(member.size)
        if len(content) == member.size:
            return content
        self._broken_inside(len(content), member.size)
        return None

    def _member(self, header: _Header, records: dict[bytes, bytes], long_name: bytes | None) -> Member:
        kind = _KINDS.get(header.type, MemberKind.OTHER)
        raw = header.name if long_name is None else long_name
        size = header.size
        if records:
            raw = records.get(b"GNU.sparse.name", records.get(b"path", raw))
            if (text := records.get(b"size")) is not None and text.isdigit():
                digits = text.lstrip(b"0")
                size = int(digits or b"0") if len(digits) <= _MAX_DIGITS else _NO_SIZE
            if _SPARSE in records:
                kind = MemberKind.SPARSE
        if kind is MemberKind.FILE and raw.endswith(b"/"):
            kind = MemberKind.DIRECTORY  # as v7 writes them
        if header.type in _NO_DATA:
            size = 0
        if header.type == b"S"[0]:
            self._skip_sparse_map(header.block)
        # Invalid UTF-8, which no Parquet string can hold, stays visible, and two such names stay different.
        self._name = raw.decode("utf-8", "backslashreplace")
        position = self._stream.tell()
        self._content_end = position + size
        self._next = position + _whole_blocks(size)
        return Member(self._name, kind, size)

    def _header(self) -> _Header | None:
        """Return the next valid header; None at the end."""
        self._interrupted = False
        if self._next and (reached := self._stream.seek(self._next)) < self._next:
            if reached < self._content_end:
                self._broken_inside()
            else:
                self._end(b"")
            return None
        while True:
            block = self._head + self._stream.read(BLOCK - len(self._head))
            self._head = b""
            if len(block) < BLOCK:
                self._end(block)
                return None
            if block == _ZEROS:
                self._note_damage()
                self._ended = self._interrupted = True
                self._stream.skip_zeros(BLOCK)
                continue
            # After damage a header must also say `ustar`: 8 checksum bytes alone may fit by chance.
            header = _parse(block) if not self._damaged or block[257:262] == b"ustar" else None
            if header is not None:
                self._note_damage()
                self._ended, self._held = False, True
                self._next = self._stream.tell() + _whole_blocks(header.size)
                return header
            self._damaged += BLOCK
            self._interrupted = True
            if not self._held and self._damaged >= GIVE_UP_BYTES:
                self._notes.lose(f"no tar: not one header in its first {self._damaged} bytes")
                return None

    def _small(self, header: _Header) -> bytes | None:
        """Return the content of a long name or PAX header; None if it is too long or truncated."""
        position = self._stream.tell()
        self._content_end = self._next = position + _whole_blocks(header.size)
        if header.size > MAX_HEADER_BYTES:
            self._notes.lose(f"a name or PAX header of {header.size} bytes behind {self._where()} was passed over")
            return None
        content = self._stream.read(header.size)
        return content if len(content) == header.size else None  # the next `_header` notes the end

    def _skip_sparse_map(self, block: bytes) -> None:
        more = block[482]
        while more:
            extension = self._stream.read(BLOCK)
            more = extension[504] if len(extension) == BLOCK else 0

    def _note_damage(self) -> None:
        if self._damaged:
            mark = "the end mark" if self._ended else self._where()
            self._notes.lose(f"damaged: {self._damaged} bytes behind {mark} hold no member that can be read")
            self._damaged = 0

    def _broken_inside(self, got: int | None = None, size: int = 0) -> None:
        if not self._ended:
            detail = "" if got is None else f": {got} of {size} bytes"
            self._notes.lose(f"truncated inside {self._where()}{detail}")
            self.broken_off = True
        self._ended = True

    def _end(self, block: bytes) -> None:
        """End the tar where its bytes end, and note what is missing; `block` is what is left of them."""
        self._ended |= self._goes_on and not block
        self.broken_off = not self._ended
        if block.strip(b"\0") and not self._ended and not self._damaged and self._held:
            self._notes.lose(f"truncated inside the header behind {self._where()}")
        elif self._damaged or block.strip(b"\0"):
            self._damaged += len(block)
            if self._held or self._ended:
                self._note_damage()
            else:
                self._notes.lose(f"no tar: {self._damaged} bytes without one header")
        elif not self._ended and self._held and not block:
            self._notes.lose(f"truncated behind {self._where()}: no end mark, so there may have been more")
        elif not self._ended and not block:
            self._notes.lose("empty: 0 bytes, not even an end mark")
        self._ended = True

    def _where(self) -> str:
        return self._name[:_SHOWN] or "the beginning"


def _parse(block: bytes) -> _Header | None:
    """Return a block as a header; None if its checksum or its size is wrong."""
    try:
        checksum = int(block[_CHECKSUM].strip(b" \0") or b"x", 8)
    except ValueError:
        return None
    own = block[_CHECKSUM]
    if sum(block) - sum(own) + _SPACES != checksum and not _signed_sum_is(checksum, block):
        return None
    size = _number(block[124:136])
    if size is None or size < 0:
        return None
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return _Header(block[156], size, name, block)


def _signed_sum_is(checksum: int, block: bytes) -> bool:
    """Tell whether a checksum is the sum of signed bytes, as in old tars."""
    total = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])
    return total + _SPACES == checksum


def _number(text: bytes) -> int | None:
    """Return a number in octal (11 digits hold 8^11 - 1), or in base 256 if its first bit is set; None if neither."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=False) - (0x80 << 8 * (len(text) - 1))
        return value if text[0] == 0x80 and value < 2**62 else None
    try:
        return int(text.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Return the records that matter here, at most four; stops at a malformed one.

    They are `path`, `size`, `GNU.sparse.name`, and _SPARSE for all other records of sparse files.
    """
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        digits, _, _ = content[position : position + 20].partition(b" ")
        if not digits.isdigit() or not (length := int(digits)):
            break
        name, separator, value = content[position + len(digits) + 1 : position + length - 1].partition(b"=")
        if not separator:
            break
        if name.startswith(_SPARSE):
            records[_SPARSE] = b""
        if name in _RECORDS:
            records[name] = value
        position += length
    return records
