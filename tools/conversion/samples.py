"""Build the bundled photographs from packages that ship them under free licences (see models/samples/LICENSES.md).

    python -m tools.conversion.samples

JPEGs keep their package's bytes. Most PNGs become a JPEG or a WebP, so that the shard stays below 1 MB and has each
supported format. Two runs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from models.catalog import load_spec
from models.errors import SourceError
from models.spec import Precision
from models.store.files import publishing
from models.store.locate import locate
from tools.conversion.measure import open_session, read_samples, run, to_model_input, to_pixels

SAMPLES = Path(__file__).parents[2] / "models" / "samples"
MODEL = "efficientnet-lite0"
QUALITY = 90


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph of a package.

    Attributes:
        key: Its key in the shard.
        suffix: Its format in the shard. If that differs from `path`, the photograph is re-encoded.
        package: Distribution that ships it.
        path: Its path below site-packages.
        sha256: SHA-256 of that file.
        label: Class index, if it is beyond doubt.
        accepted: Class indices that would be right answers; empty if ImageNet has no class for it.
    """

    key: str
    suffix: str
    package: str
    path: str
    sha256: str
    label: int | None = None
    accepted: tuple[int, ...] = ()


PHOTOGRAPHS = (
    Photograph(
        "astronaut",
        ".jpg",
        "scikit-image",
        "skimage/data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photograph(
        "camera",
        ".png",
        "scikit-image",
        "skimage/data/camera.png",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        label=872,  # tripod
        accepted=(872, 759),  # reflex camera
    ),
    Photograph(
        "chelsea",
        ".jpg",
        "scikit-image",
        "skimage/data/chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        accepted=(281, 282, 285),  # tabby, tiger cat, Egyptian cat
    ),
    Photograph(
        "china",
        ".jpg",
        "scikit-learn",
        "sklearn/datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        accepted=(698, 663),  # palace, monastery
    ),
    Photograph(
        "coffee",
        ".webp",
        "scikit-image",
        "skimage/data/coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        label=967,  # espresso
        accepted=(967, 968),  # cup
    ),
    Photograph(
        "flower",
        ".jpg",
        "scikit-learn",
        "sklearn/datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        accepted=(985,),  # daisy, of the dahlia's family: the nearest class
    ),
    Photograph(
        "grace_hopper",
        ".jpg",
        "matplotlib",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        label=652,  # military uniform
        accepted=(652,),
    ),
    Photograph(
        "rocket",
        ".jpg",
        "scikit-image",
        "skimage/data/rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        accepted=(657, 744, 812),  # missile, projectile, space shuttle
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Write photos.tar and expected.json; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.conversion.samples",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=SAMPLES, metavar="DIR", help="folder (models/samples)")
    folder = parser.parse_args(arguments).output
    shard = folder / "photos.tar"
    with publishing(shard) as file:
        file.write(build_shard(PHOTOGRAPHS))
    expected = label_shard(shard, PHOTOGRAPHS)
    with publishing(folder / "expected.json") as file:
        file.write(orjson.dumps(expected, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.write(f"{shard}: {len(expected)} photographs, {shard.stat().st_size} bytes\n")
    return 0


def build_shard(photographs: tuple[Photograph, ...]) -> bytes:
    """Return a WebDataset tar, sorted by key, without times or owners.

    Raises:
        SourceError: A package's file is not the one whose licence was checked.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for photograph in sorted(photographs, key=lambda each: each.key):
            _add(tar, f"{photograph.key}{photograph.suffix}", encoded(photograph))
            if photograph.label is not None:
                _add(tar, f"{photograph.key}.cls", str(photograph.label).encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def encoded(photograph: Photograph) -> bytes:
    """Return a photograph encoded for the shard.

    Raises:
        SourceError: The package's file does not have the expected SHA-256.
    """
    path = Path(str(importlib.metadata.distribution(photograph.package).locate_file(photograph.path)))
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != photograph.sha256:
        raise SourceError(f"{path} must have SHA-256 {photograph.sha256}, got {digest}: use the pinned versions")
    if path.suffix == photograph.suffix:
        return content
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.save(buffer, {".jpg": "JPEG", ".webp": "WEBP"}[photograph.suffix], quality=QUALITY)
    return buffer.getvalue()


def label_shard(shard: Path, photographs: tuple[Photograph, ...]) -> dict[str, dict[str, Any]]:
    """Label each photograph with the bundled int8 model.

    Returns:
        By key: "accepted", the right class indices, and "int8", the class index that the model gives.
    """
    spec = load_spec(MODEL)
    session = open_session(locate(spec, Precision.INT8))
    accepted = {photograph.key: list(photograph.accepted) for photograph in photographs}
    expected = {}
    for sample in read_samples([shard]):
        image = to_model_input(to_pixels(sample.image, spec.preprocessing), spec)[None]
        expected[sample.key] = {"accepted": accepted[sample.key], "int8": int(run(session, image).argmax())}
    return expected


if __name__ == "__main__":
    sys.exit(main())
