"""Cut shards into pieces that several workers read at a time, if one may outlast the others: tars and Parquet files.

A tar is cut between two samples. Only the member before it shows where a member begins: an image may itself hold a tar,
whose headers look like any others. So all headers are read, in order, and nothing else: some us per member on a disk.
In an object store that would take a request per member, or the whole tar, so tars there stay whole. A gzip can only be
read from its beginning.

A Parquet file is cut between two row groups, which are in its footer; one with few row groups stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice, pairwise

from models.errors import StorageError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.sources.gzip_stream import MAGIC
from pipeline.sources.parquet import open_parquet, row_group_pieces
from pipeline.sources.sample import ShardNotes, UniqueKeys, cut_key
from pipeline.sources.source import Source
from pipeline.sources.tar import MemberKind, TarReader
from pipeline.sources.unit import Slice
from pipeline.sources.webdataset import split_key
from pipeline.storage.storage import Storage
from pipeline.storage.stored_file import StoredFile
from pipeline.storage.streams import ForwardStream

# More shards than this keep all workers busy without cuts, but for one that is larger than OUTLIER times the mean.
MOST_SHARDS = 32
OUTLIER = 4
# A shard of up to so many bytes is not cut: a tar of 600 photographs, which take 3 s on one core.
WHOLE_BYTES = 64 * 2**20
# Larger ones are cut into so many pieces, so that 16 workers end within 5 % of one another. No piece has fewer than
# some 40 photographs, beside which the cost of a unit itself is nothing.
PIECES = 64
PIECE_BYTES = 4 * 2**20
# Shards that are compared at a time.
_GROUP = 1024
_HEADER_BYTES = 4096


Cut = Callable[[Iterator[Slice]], Iterator[Slice]]


def cutter(config: LabelConfig, source: Source) -> Cut:
    """Return the function that replaces SOURCE's large shards by pieces.

    It leaves alone manifests, which are in runs of rows already; shards with --limit, which is counted shard by shard;
    and Parquet with a key column in an object store, as each piece would read the keys of every row group before it.
    """
    asks_for_keys = config.key_column is not None and not source.base.is_local
    if config.uri_column is not None or config.limit is not None or asks_for_keys:
        return iter
    return partial(cut_large, source.base, kind=source.format)


def cut_large(storage: Storage, slices: Iterable[Slice], kind: SourceFormat) -> Iterator[Slice]:
    """Yield slices, with pieces instead of large ones. They depend on the shards alone, so every run has the same.

    Args:
        storage: Holds the shards.
        slices: All slices of SOURCE.
        kind: Their format; only tars and Parquet files of images are cut.
    """
    find_edges = _EDGES.get(kind)
    if find_edges is None:
        yield from slices
        return
    rest, count, total = iter(slices), 0, 0
    # A listing may be too long to hold, so the mean is of the shards so far and of their group.
    while group := list(islice(rest, _GROUP)):
        count, total = count + len(group), total + sum(piece.size for piece in group)
        least = WHOLE_BYTES if count <= MOST_SHARDS else max(WHOLE_BYTES, OUTLIER * total / count)
        for piece in group:
            if piece.size <= least or piece.limit >= 0:
                yield piece
                continue
            edges = find_edges(storage, piece)
            cut = [Slice(piece.shard, piece.size, piece.etag, *edge) for edge in pairwise(edges)]
            yield from cut if len(cut) > 1 else [piece]


def _row_group_edges(storage: Storage, piece: Slice) -> list[int]:
    """Return the row groups at which a slice's pieces begin, and one past its last."""
    if storage.unreadable(piece.shard):
        return []  # the worker notes why
    try:
        with closing(storage.open_random(piece.shard, expected=piece.planned)) as file:
            metadata = open_parquet(file).metadata
            stop = metadata.num_row_groups if piece.stop < 0 else piece.stop
            runs = list(row_group_pieces(metadata, max(PIECE_BYTES, piece.size // PIECES), range(piece.start, stop)))
    except (OSError, ValueError, StorageError):
        return []  # the worker that reads it notes why
    return [piece.start, *(end for _, end in runs)]


def _tar_edges(storage: Storage, piece: Slice) -> list[int]:
    """Return where a tar's pieces begin, and its end; [] if its rows can only be read from front to back.

    That is so if it is damaged, if a key comes twice, and if a header applies to all members that follow.
    """
    if not (storage.is_local and piece.is_tar and piece.stop < 0):
        return []
    try:
        with closing(StoredFile(storage, piece.shard, expected=piece.planned)) as file:
            return _edges_of(_HeaderStream(file), piece.size)
    except StorageError:
        return []  # the worker that reads it says why


def _edges_of(stream: ForwardStream, size: int) -> list[int]:
    head = stream.read(len(MAGIC))
    if head == MAGIC:
        return []
    least = max(PIECE_BYTES, size // PIECES)
    edges, keys, name, notes = [0], UniqueKeys(), None, ShardNotes()
    tar = TarReader(stream, notes, head)
    while True:
        begin = tar.position
        member = next(tar, None)
        if member is None:
            break
        named = split_key(member.name)
        if named is None or member.kind is MemberKind.DIRECTORY or named[0] == name:
            continue
        name = named[0]
        key, _ = cut_key(name)
        if key in keys:
            return []
        keys.unique(key)
        if begin - edges[-1] >= least:
            edges.append(begin)
    return [] if notes.missing or tar.broken_off or tar.has_globals else [*edges, size]


_EDGES: dict[SourceFormat, Callable[[Storage, Slice], list[int]]] = {
    SourceFormat.WEBDATASET: _tar_edges,
    SourceFormat.PARQUET: _row_group_edges,
}


class _HeaderStream(ForwardStream):
    """A file of which little more is read than requested."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file = file
        self._next = 0

    def _more(self) -> bytes:
        piece = self._file.read_at(self._next, _HEADER_BYTES)
        self._next += len(piece)
        return piece

    def _skip(self, size: int) -> int:
        size = min(size, self._file.size - self._next)
        self._next += size
        return size
