"""Where pages and pictures go: a page is written whole or not at all, and a folder must be empty at first."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.errors import ConfigError, StorageError
from pipeline.quantities import bytes_text
from pipeline.storage.retries import reason
from pipeline.storage.storage import open_storage


def write_page(output: str, page: str) -> str:
    """Write a page to a path or a URI, whole or not at all; return what was written, for a message.

    A file that is there is replaced, and the message says so.

    Raises:
        StorageError: The page cannot be written.
    """
    content = page.encode("utf-8", "replace")
    if "://" in output:
        folder, _, name = output.rpartition("/")
        storage = open_storage(folder)
        replaced = storage.stat(name) is not None
        storage.write_bytes(name, content)
        return _written(output, content, replaced=replaced)
    temporary: Path | None = None
    try:
        path = Path(output).expanduser()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        replaced = path.exists()
        temporary.replace(path)
    except (OSError, RuntimeError, ValueError) as err:  # the latter two: `~user` is unknown, or the name is invalid
        if isinstance(err, OSError) and temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {output or 'a page without a name'}: {reason(err)}") from err
    return _written(output, content, replaced=replaced)


def _written(output: str, content: bytes, *, replaced: bool) -> str:
    return f"{output} ({bytes_text(len(content))}{', replaced' if replaced else ''})"


def empty_folder(option: str, output: str) -> Path:
    """Return the folder that an option names, and check that it is empty before anything is drawn or read.

    Raises:
        ConfigError: It is not empty, not a folder, or not on this machine.
    """
    if "://" in output:
        raise ConfigError(f"{option} must be a folder on this machine, where you look at the images, got {output}")
    try:
        folder = Path(output).expanduser()
        is_file = folder.exists() and not folder.is_dir()
        is_empty = is_file or not folder.is_dir() or next(folder.iterdir(), None) is None
    except (OSError, RuntimeError, ValueError) as err:  # the second: `~user` is unknown
        raise ConfigError(f"{option} {output} cannot be used: {reason(err)}; give another folder") from err
    if is_file:
        raise ConfigError(f"{option} {output} must be a folder, but is a file; give another {option}")
    if not is_empty:
        raise ConfigError(f"{option} {output} already holds files; give an empty folder")
    return folder


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make the folder; turn disk errors while writing to it into StorageError.

    Raises:
        StorageError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as err:
        raise StorageError(f"cannot write {folder}: {reason(err)}") from err
