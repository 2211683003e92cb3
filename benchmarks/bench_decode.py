"""Images per second of one core, from encoded bytes to the model's crop, of every way to decode that was weighed.

    python -m benchmarks.bench_decode 'shards/*.tar' [--model efficientnet-lite0] [--limit 500] [--repeats 7]

What bounds it: of the 2 ms that an ImageNet JPEG takes with Pillow's draft mode, 1.2 are libjpeg's, whoever calls it;
so the resize is what there is to save. The ways:

    plain      Pillow as in every tutorial: open, convert, resize, crop. The baseline.
    draft      Pillow's draft mode (a JPEG reduced by 2, 4 or 8 as it is decoded), then only the crop.
    exact      --decode exact.
    fast       --decode fast.
    only       simplejpeg and nothing else: the bound.

Counted is CPU time of one thread, after one round that is not counted; the ways take turns in every round, so that a
machine that slows down does so for all. `difference` is the mean over pixels of |way - plain|, of 255. With `--model`,
`agreement` is the share of images, in percent, that get the label which `plain` gives them.

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.decode.resize import RESAMPLING, crop_axes, resize_crop
from models.inference.classifier import Classifier, Device, choose
from models.spec import ModelSpec, Preprocessing

Way = Callable[[bytes, Preprocessing], np.ndarray]


def plain(data: bytes, p: Preprocessing) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    ratio = p.resize_shorter / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), RESAMPLING[p.interpolation])
    left, top = image.width // 2 - p.crop // 2, image.height // 2 - p.crop // 2
    return np.asarray(image.crop((left, top, left + p.crop, top + p.crop)))


def draft(data: bytes, p: Preprocessing) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    x, y = crop_axes(*image.size, 1, p)
    image.draft("RGB", (x.resized, y.resized))
    factor = round(x.side / image.width)
    return np.asarray(resize_crop(image.convert("RGB"), x, y, p.interpolation, factor=factor))


def exact(data: bytes, p: Preprocessing) -> np.ndarray:
    return decode_image(data, p, DecodeMode.EXACT, ImageLimits()).pixels


def fast(data: bytes, p: Preprocessing) -> np.ndarray:
    return decode_image(data, p, DecodeMode.FAST, ImageLimits()).pixels


def only(data: bytes, p: Preprocessing) -> np.ndarray:
    return simplejpeg.decode_jpeg(data)


WAYS: dict[str, Way] = {way.__name__: way for way in (plain, draft, exact, fast, only)}


def read_images(patterns: list[str], limit: int) -> list[bytes]:
    """Return the .jpg members of the tars, in order."""
    images: list[bytes] = []
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern)):  # noqa: PTH207 (an absolute pattern)
        with tarfile.open(path) as tar:
            images += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
        if len(images) >= limit:
            break
    return images[:limit]


def measure_rates(images: list[bytes], preprocessing: Preprocessing, repeats: int) -> dict[str, list[float]]:
    """Return images per second of each way, once per round."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for counted in [False] + [True] * repeats:
        for name, way in WAYS.items():
            started = time.process_time()
            for data in images:
                way(data, preprocessing)
            if counted:
                rates[name].append(len(images) / (time.process_time() - started))
    return rates


def compare_pixels(images: list[bytes], preprocessing: Preprocessing, spec: ModelSpec | None) -> dict[str, dict]:
    """Return `difference`, and with a model `agreement`, of each way that yields a crop."""
    crops = {
        name: np.stack([way(data, preprocessing) for data in images]) for name, way in WAYS.items() if way is not only
    }
    reference = crops["plain"].astype(np.int16)
    found = {name: {"difference": float(np.abs(c - reference).mean())} for name, c in crops.items()}
    if spec is not None:
        classifier = Classifier(spec, precision=choose(spec, Device.CPU, "auto", has_gpu=False).precision)
        labels = {
            name: np.concatenate([classifier.predict(c[i : i + 16]).label_ids[:, 0] for i in range(0, len(c), 16)])
            for name, c in crops.items()
        }
        for name in crops:
            found[name]["agreement"] = float((labels[name] == labels["plain"]).mean() * 100)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", help="paths or patterns of tars with .jpg members")
    parser.add_argument("--model", help="a model of the catalog: its preprocessing, and the agreement of its labels")
    parser.add_argument("--interpolation", choices=["bilinear", "bicubic"], help="instead of the model's (bicubic)")
    parser.add_argument("--limit", type=int, default=500, help="images (500)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    args = parser.parse_args()

    spec = load_spec(args.model) if args.model else None
    preprocessing = (spec or load_spec("efficientnet-lite0")).preprocessing
    if args.interpolation:
        preprocessing = Preprocessing(**preprocessing.model_dump() | {"interpolation": args.interpolation})
    images = read_images(args.tars, args.limit)
    rates = measure_rates(images, preprocessing, args.repeats)
    compared = compare_pixels(images, preprocessing, spec)

    result = {}
    print(f"{'way':8}{'images/s':>10}{'spread':>8}{'of plain':>10}{'difference':>12}{'agreement':>11}")
    for name in WAYS:
        rate = statistics.median(rates[name])
        result[name] = {
            "images_per_s": round(rate, 1),
            "spread": round((max(rates[name]) - min(rates[name])) / rate, 3),
            "of_plain": round(statistics.median(map(lambda a, b: a / b, rates[name], rates["plain"])), 2),
            **{key: round(value, 3) for key, value in compared.get(name, {}).items()},
        }
        row = result[name]
        print(
            f"{name:8}{row['images_per_s']:>10.0f}{row['spread']:>8.0%}{row['of_plain']:>10.2f}"
            f"{row.get('difference', float('nan')):>12.3f}{row.get('agreement', float('nan')):>11.1f}"
        )
    settings = {"images": len(images), "repeats": args.repeats, "interpolation": preprocessing.interpolation}
    print(json.dumps({"benchmark": Path(__file__).stem, **settings, "ways": result}))


if __name__ == "__main__":
    main()
