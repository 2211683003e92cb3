"""Watch the page headers of a Parquet file as its bytes pass by, so that no page is unpacked that claims too much.

pyarrow unpacks a page whole, and a batch of rows may take the same value of a dictionary a thousand times: a file of
some kB can ask for GB. A page's header says beforehand what it will take, in Thrift's compact protocol
(https://github.com/apache/parquet-format, PageHeader); what a footer says of its columns' sizes may be a lie.
"""

from __future__ import annotations

from dataclasses import dataclass

# What the rows of a batch may take of one column.
BATCH_LIMIT = 64 * 2**20
# A page may always unpack to so many times the bytes it has in the file: those are a size that somebody paid for.
# Images are compressed already, so that their pages hardly shrink.
MAX_EXPANSION = 4
# pyarrow takes 16 MiB. Real ones are some ten bytes, and some kB with statistics.
_MAX_HEADER = 2**20
# Of nested structs; Thrift's own for a page's header is 3.
_MAX_DEPTH = 8

_DICTIONARY_PAGE = 2
_OF_DICTIONARY = (2, 8)  # encodings
_DELTA_BYTE_ARRAY = 7
# Fields of a PageHeader; by kind of page, the field that holds the header of data, and the encoding's field in that.
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
_DATA_HEADERS = {0: (5, 2), 3: (8, 4)}
_NUM_VALUES = 1
# Memory of a value of a list beside its bytes: levels, a validity bit, an offset, padding.
_LIST_VALUE_BYTES = 16

Fields = dict[int, "int | Fields"]


class PageError(ValueError):
    """A page claims more than it may, or has no header that can be read."""


@dataclass(slots=True)
class _Chunk:
    """A column chunk as far as it passed by: its pages lie behind one another."""

    end: int  # of what passed by
    header: int  # where the next page's header begins
    held: bytes = b""  # the beginning of a header that goes on in the next piece
    dictionary: int = 0  # bytes of its dictionary, unpacked
    dictionary_claim: int = 0  # the same where it is MAX_EXPANSION times more than in the file
    page_claim: int = 0  # the most that one of its other pages has


class PageWatch:
    """Knows the pages of one row group from what is read of it: call it with each piece that is read.

    A column chunk is read front to back. A piece that goes on where another one ended is of the same chunk; any other
    piece begins one.

    Args:
        max_page: Bytes that any page may unpack to.
        repeats: Whether one of the columns may hold several values in a row, so that values say nothing of rows.

    Attributes:
        fitting_rows: So many rows can be read at a time; less than `rows` once a page was refused for that only.
        rows: That are read at a time.
        refused: Why a page must not be unpacked at all; None as long as there is none.
    """

    def __init__(self, max_page: int, *, repeats: bool) -> None:
        self._max_page = max_page
        self._repeats = repeats
        self._chunks: list[_Chunk] = []
        self.rows = self.fitting_rows = 1
        self.refused: str | None = None

    def begin(self, rows: int) -> None:
        """Start anew: a row group is read from its beginning, in batches of `rows`."""
        self._chunks = []
        self.rows = self.fitting_rows = rows
        self.refused = None

    def __call__(self, position: int, content: bytes) -> None:
        """Look at the headers in a piece.

        Raises:
            PageError: A page must not be unpacked, or not by so many rows at a time.
        """
        if not content:
            return
        going_on = [chunk for chunk in self._chunks if chunk.end == position]
        # Where a chunk seems to begin inside another's page, against all order, both are looked at.
        if not any(chunk.header == position for chunk in going_on) and (not going_on or _begins_page(content)):
            going_on.append(_Chunk(position, position))
            self._chunks.append(going_on[-1])
        for chunk in going_on:
            self._follow(chunk, position, content)

    def _follow(self, chunk: _Chunk, position: int, content: bytes) -> None:
        """Look at the headers of a chunk that begin in its next piece."""
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
                # At least by half, so that a file cannot ask for a start anew at each of its pages.
                self.fitting_rows = max(1, min(BATCH_LIMIT // weight, self.rows // 2))
                raise PageError(f"{self.rows} rows of up to {weight} bytes are too many at a time")
        return packed

    def _claim(self, chunk: _Chunk, unpacked: int, packed: int, kind: int) -> None:
        """Add up what the open pages claim beyond what they are in the file."""
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
        # All the page's values may be of one row, which is known only once they are unpacked.
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
    """Read one struct of Thrift's compact protocol; IndexError where the bytes end first."""

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
