"""The package that `submit` sends to a cluster: code only, a few hundred kB, never models or data."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cluster.submit.probe import code_digest, code_files
from models.errors import ConfigError

# Ray's dashboard accepts up to 100 MiB. The code has a few hundred kB, so a larger package holds a stray file.
LIMIT_BYTES = 2 * 2**20
# Zip stores times, and a package is named by its bytes: the same code must give the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Package:
    """The code, packed.

    Attributes:
        name: Derived from the content, in Ray's format.
        content: A zip with the folders models, pipeline, serve and cluster, and the project's metadata.
        digest: The `code_digest` of the code in it.
    """

    name: str
    content: bytes
    digest: str

    @property
    def uri(self) -> str:
        """Return the URI for a job's `working_dir`."""
        return f"gcs://{self.name}"


def build_package(root: Path | None = None, *, limit_bytes: int = LIMIT_BYTES) -> Package:
    """Pack the project's code.

    Args:
        root: The folder that holds the packages; by default, the one that this process imports from.
        limit_bytes: Maximum size of the package.

    Raises:
        ConfigError: The package is over the limit; the message names its largest file.
    """
    root = root or Path(__file__).resolve().parents[2]
    files = code_files(root)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, path in files.items():
            archive.writestr(_entry(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
        # For importlib.metadata: a run's output names the version.
        number = version("shardlabel")
        metadata = f"Metadata-Version: 2.1\nName: shardlabel\nVersion: {number}\n"
        archive.writestr(_entry(f"shardlabel-{number}.dist-info/METADATA"), metadata)
    content = buffer.getvalue()
    if len(content) > limit_bytes:
        name, largest = max(files.items(), key=lambda item: item[1].stat().st_size)
        raise ConfigError(
            f"the code would be a package of {len(content)} bytes, over the limit of {limit_bytes}: "
            f"{name} alone has {largest.stat().st_size}; move it out of the project's folders"
        )
    return Package(f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content, code_digest(root))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    return entry
