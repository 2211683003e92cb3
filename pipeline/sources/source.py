"""Find the shards that SOURCE names, in an order that is the same on every run."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain

import numpy as np

from models.errors import SourceError, StorageError
from pipeline.config import SourceFormat
from pipeline.sources import patterns
from pipeline.sources.overlap import Overlap
from pipeline.sources.unit import Slice
from pipeline.sources.webdataset import IMAGE_EXTENSIONS, TAR_SUFFIXES
from pipeline.storage.listing import NO_UTF_8, Lookup, visible_name, walk
from pipeline.storage.location import FileStat
from pipeline.storage.odd_keys import NO_FOLDER, is_path, visible
from pipeline.storage.storage import Storage, iter_lines
from pipeline.storage.stores import split_location
from pipeline.storage.uris import display_uri, without_secrets


@dataclass(frozen=True, slots=True)
class Source:
    """All of SOURCE: the folder that shard names are relative to, the format, and the shards.

    `files()` lists again at each call, lazily and always in the same order.
    """

    base: Storage
    format: SourceFormat
    files: Callable[[], Iterator[Slice]]

    def fetchable(self) -> Iterator[Slice]:
        """Yield the files without those whose keys cannot be fetched; see `Location.unreadable`."""
        return (file for file in self.files() if not self.base.unreadable(file.shard))


@dataclass(frozen=True, slots=True)
class _Spec:
    """One entry of SOURCE in parts: the text that a user knows it by, its storage, and the path there."""

    text: str
    root_uri: str
    path: str


def open_source(specs: Iterable[str], wanted: SourceFormat, *, exclude: Storage | None = None) -> Source:
    """Look up SOURCE, and determine its base folder and format.

    Args:
        specs: Each a file, a folder, a glob, a brace range, or @list.txt with one of the former per line. A path that
            exists as it is written is that file or folder, whatever characters are in it.
        wanted: The format, or AUTO to infer it from the names.
        exclude: DEST. Its part files are skipped if they are in a folder of SOURCE.

    Raises:
        SourceError: There are no files, formats are mixed, or a file is in DEST; the message says which and where.
        StorageError: The storage cannot be listed.
    """
    texts = tuple(specs)
    if not all(texts):
        raise SourceError("SOURCE is an empty name")
    finder = _Finder(_base(texts), wanted, exclude)

    def listing() -> Iterator[Slice]:
        return (Slice(file.path, file.size, file.etag) for text in texts for file in finder.find(text))

    def files() -> Iterator[Slice]:
        # A single path, glob or range of numbers names nothing twice.
        alone = len(texts) == 1 and not texts[0].startswith("@") and "," not in texts[0]
        return listing() if alone else _each_once(listing)

    begun = files()
    first = next(begun, None)
    if first is None:
        raise SourceError(f"SOURCE {without_secrets(' '.join(texts))} names no files{_hint(wanted)}")
    kind = format_of(first.shard) if wanted is SourceFormat.AUTO else wanted
    if kind is None:
        raise SourceError(f"cannot tell the format of {first.shard}; give --format webdataset, parquet or images")
    # The first call continues the listing that has begun.
    waiting = [chain([first], begun)]
    return Source(finder.base, kind, lambda: _checked(waiting.pop() if waiting else files(), kind, wanted))


def in_part(source: Source, number: int, parts: int) -> Source:
    """Return SOURCE with one part of its files. A file's part depends on its name alone, not on the other files.

    Args:
        source: All of it.
        number: Which part, from 1 on.
        parts: How many there are.
    """

    def files() -> Iterator[Slice]:
        return (file for file in source.files() if _hash(file.shard) % parts == number - 1)

    return replace(source, files=files)


def format_of(name: str) -> SourceFormat | None:
    """Tell a file's format from its name; None if it is unknown."""
    lower = name.lower()
    if lower.endswith(TAR_SUFFIXES):
        return SourceFormat.WEBDATASET
    if lower.endswith((".parquet", ".pq")):
        return SourceFormat.PARQUET
    return SourceFormat.IMAGES if lower.rpartition(".")[2] in IMAGE_EXTENSIONS else None


def _checked(files: Iterator[Slice], kind: SourceFormat, wanted: SourceFormat) -> Iterator[Slice]:
    for file in files:
        if wanted is SourceFormat.AUTO and format_of(file.shard) is not kind:
            raise SourceError(
                f"SOURCE mixes formats: {file.shard} is not {kind.value} as the files before it; "
                "label them in two runs, or give --format"
            )
        visible = visible_name(file.shard)
        if visible != file.shard and kind is not SourceFormat.IMAGES:
            raise SourceError(f"the name of {file.shard!a} is not UTF-8, and so cannot be kept")
        if visible == file.shard and file.size >= 0:
            yield file
        elif kind is SourceFormat.IMAGES:  # a row will say so
            yield Slice(visible, 0, "" if visible == file.shard else NO_UTF_8)
        else:
            raise SourceError(f"{file.shard} is a link to a file that does not exist")


def _each_once(listing: Callable[[], Iterator[Slice]]) -> Iterator[Slice]:
    """Yield the files, and raise at their end if one came twice. Memory: 8 bytes a file, 80 MB for 10 million."""
    hashes = array("Q")
    for file in listing():
        hashes.append(_hash(file.shard))
        yield file
    ordered = np.frombuffer(hashes or bytes(8), np.uint64)
    ordered = np.sort(ordered)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    seen = set()
    for file in listing():
        if _hash(file.shard) in repeated:
            if file.shard in seen:
                raise SourceError(f"SOURCE names {file.shard} twice; each shard is labelled once")
            seen.add(file.shard)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _hint(wanted: SourceFormat) -> str:
    if wanted is SourceFormat.AUTO:
        return "; looked for .tar, .tar.gz, .parquet and images"
    return f" of format {wanted.value}"


def _specs(text: str) -> Iterator[_Spec]:
    """Yield what an entry of SOURCE stands for: itself, or the lines of a list."""
    for entry in _lines(text) if text.startswith("@") else (text,):
        yield _Spec(display_uri(entry), *split_location(entry))


def _base(texts: tuple[str, ...]) -> Storage:
    """Return the deepest folder that holds everything named; lines of a list count by their folders."""
    common: list[str] | None = None
    root_uri = ""
    for spec, listed in ((spec, text[0] == "@") for text in texts for spec in _specs(text)):
        if common is not None and root_uri != spec.root_uri:
            place = display_uri(root_uri) or "local disk"
            raise SourceError(f"all of SOURCE must be in one storage and bucket, got {place} and {spec.text}")
        parts = _folder(spec, listed=listed).split("/")
        if common is None:
            common, root_uri = parts, spec.root_uri
        elif parts != common:
            same = next((i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), None)
            common = common[: min(len(common), len(parts)) if same is None else same]
    if common is None:
        raise SourceError("SOURCE names no files: its list is empty")
    root = "/".join(common)
    return Storage(root or "/", _shown(root_uri, root), root_uri)


def _shown(root_uri: str, path: str) -> str:
    scheme, separator, _ = root_uri.partition("://")
    return f"{scheme}{separator}{path}" if separator else path or "/"


def _folder(spec: _Spec, *, listed: bool) -> str:
    """Return the folder that a spec's names are relative to; for a list's millions of lines, by their text alone."""
    if listed:
        return patterns.fixed_folder(spec.path)
    place = Storage(spec.path, spec.text, spec.root_uri)
    is_file = patterns.has_pattern(spec.path) and place.stat() is not None
    if not is_file and place.is_folder():
        return spec.path
    folder = spec.path.rpartition("/")[0] if is_file else patterns.fixed_folder(spec.path)
    return folder or (spec.path.partition("/")[0] if spec.root_uri else "")


def _lines(text: str) -> Iterator[str]:
    """Yield the entries of @list.txt; empty lines and # comments are skipped."""
    root_uri, path = split_location(text[1:])
    folder, _, name = path.rpartition("/")
    storage = Storage(folder or "/", _shown(root_uri, folder), root_uri)
    if storage.stat(name) is None:
        raise SourceError(f"SOURCE {without_secrets(text)}: there is no list file {display_uri(text[1:])}")
    for line in iter_lines(storage, name):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield entry


class _Finder:
    """Find the files that a text names, below one base."""

    def __init__(self, base: Storage, wanted: SourceFormat, exclude: Storage | None) -> None:
        self.base = base
        self._wanted = wanted
        self._prefix = base.root.rstrip("/") + "/"
        self._dest = None if exclude is None else Overlap(base, exclude)

    def find(self, text: str) -> Iterator[FileStat]:
        """Yield the files that an entry of SOURCE names: those of a list in its order, others in path order."""
        yield from self._find_specs(_specs(text))

    def _find_specs(self, specs: Iterator[_Spec]) -> Iterator[FileStat]:
        pending: deque[_Spec] = deque()  # the look-up takes names in batches, and answers in order

        def paths() -> Iterator[str]:
            for spec in specs:
                pending.append(spec)
                yield self._relative(spec.path)

        for path, file in Lookup(self.base).find(paths()):
            spec = pending.popleft()
            if file is not None:
                if self._dest is not None:
                    self._dest.refuse(path)
                yield file
            else:
                yield from self._find_other(spec, path)

    def _find_other(self, spec: _Spec, path: str) -> Iterator[FileStat]:
        if self.base.is_folder(path):
            found, nothing = self._below(path), "is a folder without files"
        elif patterns.has_braces(spec.path):
            yield from self._find_specs(
                _Spec(f"{spec.text}: {_shown(spec.root_uri, name)}", spec.root_uri, name)
                for name in patterns.expand_braces(spec.path)
            )
            return
        elif not self.base.can_list:
            raise SourceError(
                f"SOURCE {spec.text} does not exist, or is a folder or pattern: a web server's files cannot be listed; "
                "name them, by a range {00..99} or in a list"
            )
        elif patterns.has_glob(path):
            found, nothing = self._glob(path), "matches no files"
        else:
            raise SourceError(f"SOURCE {visible(spec.text)} {self._absent(path)}{self._no_bucket()}")
        first = next(found, None)
        if first is None:
            passed_over = self._dest.passed_over if self._dest is not None else ""
            raise SourceError(f"SOURCE {spec.text} {nothing}{_hint(self._wanted)}{passed_over}{self._no_bucket()}")
        yield first
        yield from found

    def _absent(self, path: str) -> str:
        if why := self.base.unreadable(path):
            return f"cannot be used: {why}"
        is_odd = not self.base.is_local and not is_path(self.base.key(path))
        return f"is no file, and {NO_FOLDER}" if is_odd else "does not exist"

    def _no_bucket(self) -> str:
        """Return a clause for the error if it is the bucket that is missing."""
        bucket = self.base.root.partition("/")[0]
        with suppress(StorageError):
            if not self.base.is_local and not Storage(bucket, bucket, self.base.root_uri).is_folder():
                return f"; there is no bucket {bucket}"
        return ""

    def _relative(self, path: str) -> str:
        if path == self.base.root:
            return ""
        assert path.startswith(self._prefix), (path, self._prefix)
        return path.removeprefix(self._prefix)

    def _below(self, folder: str) -> Iterator[FileStat]:
        skip = len(folder) + 1 if folder else 0
        for file in walk(self.base, folder, enter=lambda path: not patterns.is_hidden(path[skip:])):
            wanted = not patterns.is_hidden(file.path[skip:]) and self._is_wanted(file.path, format_of(file.path))
            if wanted and not self._is_output(file.path):
                yield file

    def _is_output(self, path: str) -> bool:
        return self._dest is not None and self._dest.is_output(path)

    def _is_wanted(self, path: str, kind: SourceFormat | None) -> bool:
        return kind is not None if self._wanted is SourceFormat.AUTO else kind is self._wanted

    def _glob(self, pattern: str) -> Iterator[FileStat]:
        """List the last folder without a wildcard, and yield what matches below it; ** crosses folders."""
        folder = patterns.fixed_folder(pattern)
        parts = pattern[len(folder) :].lstrip("/").split("/")
        skip = len(folder) + 1 if folder else 0
        # `shard-*` with --format names files without a known ending; `*` takes those with one.
        named = self._wanted is not SourceFormat.AUTO and parts[-1].strip("*?.") != ""

        def enter(path: str) -> bool:
            return patterns.may_match_below(path[skip:].split("/"), parts)

        for file in walk(self.base, folder, enter=enter):
            kind = format_of(file.path)
            if not (self._is_wanted(file.path, kind) or (named and kind is None)):
                continue
            if patterns.matches(file.path[skip:].split("/"), parts) and not self._is_output(file.path):
                yield file
