"""The bundled photographs, as the page offers them: the files, small pictures of them, and whose they are."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass
from importlib.resources import files

from PIL import Image, ImageOps

THUMBNAIL_SIDE = 192  # shown at up to 120 CSS pixels, on screens that have two of theirs for one
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@dataclass(frozen=True, slots=True)
class Photograph:
    """One bundled photograph.

    Attributes:
        name: Of the file, with its extension.
        title: What it shows.
        author: Who made it.
        source: Where it was published, or "".
        licence: Its name.
        licence_url: Its text, or "" for the public domain.
        content: The file.
        thumbnail: A square JPEG of `THUMBNAIL_SIDE` pixels.
    """

    name: str
    title: str
    author: str
    source: str
    licence: str
    licence_url: str
    content: bytes
    thumbnail: bytes

    @property
    def media_type(self) -> str:
        """The content type of the file."""
        return MEDIA_TYPES[self.name.rpartition(".")[2]]


def read_photographs() -> list[Photograph]:
    """Read models/samples; takes a tenth of a second."""
    folder = files("models").joinpath("samples")
    told = _read_licences(folder.joinpath("LICENSES.md").read_text(encoding="utf-8"))
    photographs = []
    with tarfile.open(fileobj=io.BytesIO(folder.joinpath("photos.tar").read_bytes())) as tar:
        for member in tar:
            if member.name.rpartition(".")[2] not in MEDIA_TYPES:
                continue
            stream = tar.extractfile(member)
            if stream is None:
                continue
            content, about = stream.read(), told[member.name]
            title = about["Shows"][0].upper() + about["Shows"][1:]
            author, source = _parted(about["Author and source"])
            licence, licence_url = _parted(about["Licence"])
            small = _thumbnail(content)
            photographs.append(Photograph(member.name, title, author, source, licence, licence_url, content, small))
    return photographs


def _parted(text: str) -> tuple[str, str]:
    """Return a text and the address at its end: "NASA, https://..."."""
    words, _, address = text.partition("http")
    return re.sub(r",? (by way of )?$|,$", "", words), f"http{address}" if address else ""


def _read_licences(text: str) -> dict[str, dict[str, str]]:
    """Return what LICENSES.md says of each file: the lines "- Key: value", which may go on in indented ones."""
    told = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        lines = re.findall(r"^- ([^:\n]+): (.*(?:\n +.*)*)", body, flags=re.MULTILINE)
        told[name.strip()] = {key: re.sub(r"\s+", " ", value) for key, value in lines}
    return told


def _thumbnail(content: bytes) -> bytes:
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    with Image.open(io.BytesIO(content)) as image:
        square = ImageOps.fit(image.convert("RGB"), side, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    square.save(out, "JPEG", quality=82, optimize=True)
    return out.getvalue()
