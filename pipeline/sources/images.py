"""Read loose image files: each file is a sample; several are requested at a time, and they come in order."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice

from models.decode.decode import ImageLimits
from models.errors import StorageError
from pipeline.sources.sample import Sample, ShardNotes, too_large_error
from pipeline.sources.unit import Slice
from pipeline.storage.listing import NO_UTF_8, ahead
from pipeline.storage.storage import Storage
from pipeline.storage.stored_file import StoredFile

# Requests in flight: at 30 ms each they bring an image every ms, and decoding one takes longer.
REMOTE_CALLS = 32
# On a warm disk threads only cost: 90 us of CPU per file of 100 kB, beside 30 us to read and 3000 us to decode it. A cold
# disk or a network disk takes ms per file, and no longer for several at once. So a unit's first files tell which it is.
LOCAL_CALLS = 4
PROBE_FILES = 4
SLOW_READ_S = 0.001
# Maximum bytes, in one unit, of the files in flight or waiting to be used; a larger file comes alone.
AHEAD_BYTES = 16 * 2**20


def read_images(storage: Storage, pieces: Iterable[Slice], notes: ShardNotes, limits: ImageLimits) -> Iterator[Sample]:
    """Yield a sample per file, in order.

    A file whose key cannot be fetched becomes a row, and so does one that was deleted since the run was planned, as one
    among millions may be. A changed file is an error, as for shards. A file over max_image_bytes is not read: its size
    is in the plan.

    Args:
        storage: The folder that names are relative to.
        pieces: One file each.
        notes: Records how many bytes were read.
        limits: Limits on the size of an image.

    Raises:
        StorageError: Storage failed, or a file differs from the planned one.
    """

    def read(piece: Slice) -> Sample:
        return _read(storage, piece, limits)

    for sample in _samples(storage, iter(pieces), read):
        notes.bytes_read += len(sample.data or b"")
        yield sample


def _samples(storage: Storage, pieces: Iterator[Slice], read: Callable[[Slice], Sample]) -> Iterator[Sample]:
    calls = REMOTE_CALLS
    if storage.is_local:
        calls, seconds = LOCAL_CALLS, 0.0
        for piece in islice(pieces, PROBE_FILES):
            began = time.perf_counter()
            sample = read(piece)
            seconds += time.perf_counter() - began
            yield sample
        if seconds < PROBE_FILES * SLOW_READ_S:
            yield from map(read, pieces)
    yield from ahead(pieces, read, calls=calls, weight=lambda piece: piece.size, budget=AHEAD_BYTES)


def _read(storage: Storage, piece: Slice, limits: ImageLimits) -> Sample:
    folder = piece.shard.rpartition("/")[0] or "."
    if piece.etag == NO_UTF_8:
        return Sample(folder, piece.shard, None, "unsupported", "the file's name is not UTF-8; rename the file")
    if why := storage.unreadable(piece.shard):
        return Sample(folder, piece.shard, None, "unsupported", why)
    if piece.size > limits.max_image_bytes:
        return Sample(folder, piece.shard, None, "too_large", too_large_error(piece.size, limits))
    try:
        with closing(StoredFile(storage, piece.shard, expected=piece.planned)) as file:
            return Sample(folder, piece.shard, file.read_at(0, piece.size))
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return Sample(folder, piece.shard, None, "empty", "the file is gone since the run was planned")
        if storage.is_local and isinstance(err.__cause__, OSError) and err.__cause__.errno == errno.ELOOP:
            return Sample(folder, piece.shard, None, "empty", "the file is a link that leads to itself")
        if storage.is_local and isinstance(err.__cause__, PermissionError):
            return Sample(folder, piece.shard, None, "undecodable", "the file cannot be read: permission denied")
        raise
