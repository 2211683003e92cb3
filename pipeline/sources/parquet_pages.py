"""Check the page headers of a Parquet file as its bytes are read, so that no page that claims too much is unpacked.

pyarrow unpacks a page whole, and a batch of rows may take the same value of a dictionary a thousand times: a file of
some kB can ask for GB. A page's header says beforehand what it will take, in Thrift's compact protocol
(https://github.com/apache/parquet-format, PageHeader); the sizes of columns in a footer may be false.
"""

from __future__ import annotations

from dataclasses import dataclass

# Maximum bytes of one column in a batch of rows.
BATCH_LIMIT = 64 * 2**20
# A page may always unpack to so many times its bytes in the file, so that a large claim needs a large file. Images are
# compressed already, so their pages hardly shrink.
MAX_EXPANSION = 4
# pyarrow allows 16 MiB. Real headers have tens of bytes, and some kB with statistics.
_MAX_HEADER = 2**20
# Maximum depth of nested structs; a page's header has 3.
_MAX_DEPTH = 8

_DICTIONARY_PAGE = 2
_OF_DICTIONARY = (2, 8)  # encodings
_DELTA_BYTE_ARRAY = 7
# Fields of a PageHeader. By kind of page: the field that holds the header of its data, and the encoding's field in it.
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
_DATA_HEADERS = {0: (5, 2), 3: (8, 4)}
_NUM_VALUES = 1
# Memory per value of a list beside its bytes: levels, a validity bit, an offset, padding.
_LIST_VALUE_BYTES = 16

Fields = dict[int, "int | Fields"]


class PageError(ValueError):
    """A page claims more than it may, or has no readable header."""


@dataclass(slots=True)
class _Chunk:
    """A column chunk as far as it was read: its pages follow one another."""

    end: int  # position up to which it was read
    header: int  # where the next page's header begins
    held: bytes = b""  # the beginning of a header that goes on in the next piece
    dictionary: int = 0  # bytes of its dictionary, unpacked
    dictionary_claim: int = 0  # the same, if more than MAX_EXPANSION times its bytes in the file
    page_claim: int = 0  # the largest such size of its other pages


class PageWatch:
    """Follows the pages of one row group: call it with each piece that is read.

    A column chunk is read front to back. A piece that starts where another one ended belongs to the same chunk; any
    other piece begins a new chunk.

    Args:
        max_page: Maximum bytes that a page may unpack to.
        repeats: Whether a column may hold several values per row, so that the number of values says nothing of rows.

    Attributes:
        fitting_rows: How many rows can be read at a time; less than `rows` once a page was refused for that only.
        rows: How many rows are read at a time.
        refused: Why a page must not be unpacked at all; None as long as there is no such page.
    """

    def __init__(self, max_page: int, *, repeats: bool) -> None:
        self._max_page = max_page
        self._repeats = repeats
        self._chunks: list[_Chunk] = []
        self.rows = self.fitting_rows = 1
        self.refused: str | None = None

    def begin(self, rows: int) -> None:
        """Reset: a row group is read from its beginning, in batches of `rows`."""
        self._chunks = []
        self.rows = self.fitting_rows = rows
        self.refused = None

    def __call__(self, position: int, content: bytes) -> None:
        """Check the headers in a piece.

        Raises:
            PageError: A page must not be unpacked, or not by so many rows at a time.
        """
        if not content:
            return
        going_on = [chunk for chunk in self._chunks if chunk.end == position]
        # If a chunk seems to begin inside another's page, which should not happen, both are checked.
        if not any(chunk.header == position for chunk in going_on) and (not going_on or _begins_page(content)):
            going_on.append(_Chunk(position, position))
            self._chunks.append(going_on[-1])
        for chunk in going_on:
            self._follow(chunk, position, content)

    def _follow(self, chunk: _Chunk, position: int, content: bytes) -> None:
        """Check the headers of a chunk that begin in its next piece."""
        begin = position - len(chunk.held)
        content = chunk.held + content
        chunk.held = b""
        chunk.end = begin + len(content)
        while chunk.header < chunk.end:
            at = chunk.header - begin
            try:
                header, size = _Thrift(content, at).header()
            except IndexError:
                chunk.held = content[at:]
                if len(chunk.held) > _MAX_HEADER:
                    raise PageError(f"a page header of more than {_MAX_HEADER} bytes") from None
                return
            chunk.header += size + self._check(chunk, header)

    def _check(self, chunk: _Chunk, header: Fields) -> int:
        """Refuse a page that claims too much; return its bytes in the file."""
        unpacked, packed = _number(header, _UNPACKED), _number(header, _PACKED)
        kind = _number(header, _TYPE)
        if unpacked > MAX_EXPANSION * packed:
            self._claim(chunk, unpacked, packed, kind)
        if kind == _DICTIONARY_PAGE:
            chunk.dictionary = unpacked
        elif kind in _DATA_HEADERS:
            key, encoding = _DATA_HEADERS[kind]
            data = header.get(key)
            if not isinstance(data, dict):
                raise PageError("a page header that does not say what it holds")
            weight = self._weight(chunk, unpacked, _number(data, _NUM_VALUES), _number(data, encoding))
            if self.rows > 1 and weight * self.rows > BATCH_LIMIT:
                # At most half, so that a file cannot force a restart at each of its pages.
                self.fitting_rows = max(1, min(BATCH_LIMIT // weight, self.rows // 2))
                raise PageError(f"{self.rows} rows of up to {weight} bytes are too many at a time")
        return packed

    def _claim(self, chunk: _Chunk, unpacked: int, packed: int, kind: int) -> None:
        """Add up the pages whose claims exceed MAX_EXPANSION, and refuse them if they are too large together."""
        if kind == _DICTIONARY_PAGE:
            chunk.dictionary_claim = unpacked
        else:
            chunk.page_claim = max(chunk.page_claim, unpacked)
        together = sum(each.page_claim + each.dictionary_claim for each in self._chunks)
        if max(unpacked, together // 2) > self._max_page:
            self.refused = f"a page claims to unpack from {packed} to {unpacked} bytes; {self._max_page} are allowed"
            raise PageError(self.refused)

    def _weight(self, chunk: _Chunk, unpacked: int, values: int, encoding: int) -> int:
        """Return how many bytes a row of a data page can take."""
        longest = {**dict.fromkeys(_OF_DICTIONARY, chunk.dictionary), _DELTA_BYTE_ARRAY: unpacked}.get(encoding, 0)
        if not self._repeats:
            return longest or unpacked // max(1, values)
        # All the page's values may belong to one row, which is known only after unpacking.
        if values * _LIST_VALUE_BYTES > MAX_EXPANSION * max(self._max_page, unpacked):
            raise PageError(f"a page of {unpacked} bytes claims to hold {values} values of lists")
        return longest + unpacked + values * _LIST_VALUE_BYTES


def _begins_page(content: bytes) -> bool:
    try:
        header, _ = _Thrift(content, 0).header()
    except (PageError, IndexError):
        return False
    return {_TYPE, _UNPACKED, _PACKED} < header.keys()


def _number(fields: Fields, key: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or value < 0:
        raise PageError("a page header without its sizes")
    return value


class _Thrift:
    """Read one struct of Thrift's compact protocol; IndexError if the bytes end first."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self._at = at

    def header(self) -> tuple[Fields, int]:
        """Return a page header's fields, and how many bytes it has."""
        begin = self._at
        return self._struct(_MAX_DEPTH), self._at - begin

    def _struct(self, depth: int) -> Fields:
        fields: Fields = {}
        key = 0
        if not depth:
            raise PageError("a page header that is nested too deep")
        while byte := self._byte():
            key = key + (byte >> 4) if byte >> 4 else self._signed()
            if key in fields:
                raise PageError("a page header that says a thing twice")
            fields[key] = self._value(byte & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> int | Fields:
        match kind:
            case 1 | 2:  # the kind is the boolean's value
                return kind
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                return self._skip(8)
            case 8:
                return self._skip(self._unsigned())
            case 12:
                return self._struct(depth - 1)
        # No page header holds a list, a set or a map.
        raise PageError("no page header where one must be")

    def _byte(self) -> int:
        byte = self._content[self._at]
        self._at += 1
        return byte

    def _skip(self, size: int) -> int:
        if size > _MAX_HEADER:
            raise PageError(f"a page header of more than {_MAX_HEADER} bytes")
        self._at += size
        if self._at > len(self._content):
            raise IndexError
        return 0

    def _unsigned(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise PageError("a page header whose number has no end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
