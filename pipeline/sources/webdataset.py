"""Read WebDataset tars from front to back: one row per image, whatever else the tar holds or lacks.

The key of a member is its path up to the first dot of its last name, and consecutive members with one key are one
sample (https://github.com/webdataset/webdataset, README). Members may come in any order within a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from models.decode.decode import ImageLimits
from pipeline.sources.gzip_stream import MAGIC, GzipStream
from pipeline.sources.sample import Sample as Sample
from pipeline.sources.sample import ShardNotes as ShardNotes
from pipeline.sources.sample import UniqueKeys, cut_key, too_large_error
from pipeline.sources.tar import Member, MemberKind, TarReader
from pipeline.storage.streams import FileForward, ForwardStream, ReadsForward

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Members beside an image (.cls, .json) are read only up to this size: labels and captions, not other media.
MAX_SIDE_BYTES = 2**20
# Per sample: images that wait for its end, their bytes, and the members beside them that are considered.
MAX_WAITING_IMAGES = 16
MAX_WAITING_BYTES = 16 * 2**20
MAX_SIDE_MEMBERS = 64
_MAX_EXTENSION = 256


def split_key(name: str) -> tuple[str, str] | None:
    """Split a member's path into key and extension (lower case); None if it has no key.

    >>> split_key("train/0001.seg.png")
    ('train/0001', 'seg.png')
    """
    last = name.rfind("/") + 1
    dot = name.find(".", last)
    # Names that begin with a dot are hidden: macOS puts a `._0001.jpg`, which is not an image, beside each file.
    return (name[:dot], name[dot + 1 :].lower()) if dot > last else None


def is_image_extension(extension: str) -> bool:
    """Tell whether `jpg`, or the last part of `left.jpg`, names an image."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def read_webdataset(
    file: ReadsForward,
    shard: str,
    notes: ShardNotes,
    limits: ImageLimits,
    *,
    beside: bool = False,
    goes_on: bool = False,
) -> Iterator[Sample]:
    """Yield a sample per image member, in the tar's order; a sample without an image is a row too.

    Nothing is lost silently: `notes` says what could not be read. Memory: one image, up to 16 MiB of others with the
    same key, and `sample.UniqueKeys`, however long the tar is.

    Args:
        file: The tar, or a gzip of it: its first bytes decide, not its name.
        shard: Its name in the rows.
        notes: Filled while reading.
        limits: A member over max_image_bytes is not read.
        beside: Whether to read the small members beside the images.
        goes_on: Whether the file is a piece of a tar that others follow.

    Raises:
        StorageError: The file itself cannot be read.
    """
    raw = file if isinstance(file, ForwardStream) else FileForward(file)
    stream = raw
    begin = raw.tell()
    head = raw.read(len(MAGIC))
    if head == MAGIC and not begin:
        stream, head = GzipStream(raw, notes, head), b""
    keys = UniqueKeys()
    group = _Group("", shard, keys)
    tar = TarReader(stream, notes, head, goes_on=goes_on)
    try:
        for member in tar:
            named = split_key(member.name)
            if named is None or member.kind is MemberKind.DIRECTORY:
                notes.skip("directory" if member.kind is MemberKind.DIRECTORY else "no_key")
                continue
            if named[0] != group.name:
                yield from group.end(notes)
                group = _Group(named[0], shard, keys)
            extension = named[1][-_MAX_EXTENSION:]
            if is_image_extension(extension):
                yield from group.add(extension, _read_image(tar, member, limits, group.too_long))
            else:
                group.add_beside(extension, tar, member, read=beside)
        # If the tar is truncated inside a sample, its image may have been still to come: no row says that it has none.
        if group.images or not tar.broken_off:
            yield from group.end(notes)
    finally:
        notes.bytes_read = raw.tell() - begin


_Image = tuple[bytes | None, str | None, str | None]
"""What became of an image member: its bytes, or None and a status and an error."""


def _read_image(tar: TarReader, member: Member, limits: ImageLimits, too_long: str | None) -> _Image | None:
    """Read an image; None if the tar is truncated inside it."""
    if too_long is not None:
        return None, "unsupported", too_long
    if member.kind is MemberKind.LINK:
        return None, "unsupported", "the image is a link, and links are not followed"
    if member.kind is not MemberKind.FILE:
        return None, "unsupported", f"the image is not a regular file ({member.kind.value})"
    if member.size > limits.max_image_bytes:
        return None, "too_large", too_large_error(member.size, limits)
    data = tar.read(member)
    return None if data is None else (data, None, None)


@dataclass(slots=True)
class _Group:
    """Consecutive members with one key. A few images wait: only the end shows whether there is one or more."""

    name: str
    shard: str
    keys: UniqueKeys
    key: str = field(init=False)
    too_long: str | None = field(init=False)  # why the key is cut
    waiting: list[tuple[str, _Image]] = field(default_factory=list)
    waiting_bytes: int = 0
    images: int = 0
    others: set[str] = field(default_factory=set)
    beside: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key, self.too_long = cut_key(self.name)

    def add(self, extension: str, image: _Image | None) -> Iterator[Sample]:
        """Add an image; yield those that need not wait any longer."""
        if image is None:
            return
        self.images += 1
        self.waiting.append((extension, image))
        self.waiting_bytes += len(image[0] or b"")
        full = len(self.waiting) >= MAX_WAITING_IMAGES or self.waiting_bytes >= MAX_WAITING_BYTES
        if full and self.images > 1:
            yield from self._samples()

    def add_beside(self, extension: str, tar: TarReader, member: Member, *, read: bool) -> None:
        """Add another member."""
        if len(self.others) < MAX_SIDE_MEMBERS:
            self.others.add(extension)
            if read and member.kind is MemberKind.FILE and member.size <= MAX_SIDE_BYTES:
                content = tar.read(member)
                if content is not None:
                    self.beside[extension] = content

    def end(self, notes: ShardNotes) -> Iterator[Sample]:
        """Yield the group's remaining rows: one per image, or one that says that there is none."""
        if self.images:
            yield from self._samples()
        elif self.others and self.key in self.keys:
            # The labels of a sample are apart from its image, as in a tar of all images and then all labels.
            notes.skip("apart_from_image")
        elif self.others:
            error = f"the sample has no image, only {', '.join(sorted(self.others))}"
            status, error = ("unsupported", self.too_long) if self.too_long else ("empty", error[:200])
            yield Sample(self.shard, self.keys.unique(self.key), None, status, error, self.beside)

    def _samples(self) -> Iterator[Sample]:
        for extension, image in self.waiting:
            key = self.key if self.images == 1 else f"{self.key}.{extension}"
            yield Sample(self.shard, self.keys.unique(key), *image, self.beside)
        self.waiting.clear()
        self.waiting_bytes = 0
