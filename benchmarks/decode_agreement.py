"""How often `--decode fast` gives the label that `exact` gives, by kind of JPEG, and how much of that any change would do.

    python -m benchmarks.decode_agreement 'shards/*.tar' [--model efficientnet-lite0] [--precision int8] [--limit 500]

Each image is taken as it is, and encoded again at other qualities, chroma subsamplings and sizes. A label may flip
where the two best classes are nearly equal, whatever changed. So `fast` is set beside two changes that nobody would call
an error: `shift`, the exact crop taken one pixel to the right, and `grain`, one value of a hundred of the exact crop
changed by one. `difference` is the mean over pixels of |fast - exact|, of 255. `margin` is the median, over the images
whose label differs between `fast` and `exact`, of the best score less the second (by `exact`); `all` that of all images.

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bench_decode import read_images
from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.decode.resize import UInt8Array
from models.inference.classifier import Classifier
from models.spec import Precision, Preprocessing

Change = Callable[[Image.Image], bytes]


def encode(image: Image.Image, quality: int = 90, subsampling: str = "4:2:0") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def resized(image: Image.Image, scale: float) -> bytes:
    size = [max(1, round(side * scale)) for side in image.size]
    return encode(image.resize((size[0], size[1]), Image.Resampling.LANCZOS))


KINDS: dict[str, Change] = {
    **{f"quality {quality}": lambda image, quality=quality: encode(image, quality) for quality in (50, 75, 90, 95)},
    **{f"{name} at 90": lambda image, name=name: encode(image, 90, name) for name in ("4:4:4", "4:2:2")},
    "half": lambda image: resized(image, 0.5),
    "double": lambda image: resized(image, 2),
    "long side 2048": lambda image: resized(image, 2048 / max(image.size)),
    "short side 150": lambda image: resized(image, 150 / min(image.size)),
}


def crops(data: bytes, preprocessing: Preprocessing, seed: int) -> dict[str, UInt8Array]:
    """Return the crop in each way, uint8 of shape (crop, crop, 3)."""
    exact, fast = (
        decode_image(data, preprocessing, DecodeMode(mode), ImageLimits()).pixels for mode in ("exact", "fast")
    )
    wider = preprocessing.model_copy(update={"crop": preprocessing.crop + 2})
    shift = decode_image(data, wider, DecodeMode.EXACT, ImageLimits()).pixels[1:-1, 2:]
    chance = np.random.default_rng(seed)
    hit = chance.random(exact.shape) < 0.01
    grain = (exact.astype(np.int16) + hit * chance.choice((-1, 1), exact.shape)).clip(0, 255).astype(np.uint8)
    return {"exact": exact, "fast": fast, "shift": shift, "grain": grain}


def compare(images: list[bytes], classifier: Classifier) -> dict[str, float | list[dict]]:
    """Return the figures of one kind, in percent, and the images whose label differs."""
    labels: dict[str, list[int]] = {}
    margins, differences = [], []
    for number, data in enumerate(images):
        ways = crops(data, classifier.spec.preprocessing, number)
        found = classifier.predict(np.stack(list(ways.values())))
        margins.append(float(found.scores[0, 0] - found.scores[0, 1]))
        differences.append(float(np.abs(ways["fast"].astype(np.int16) - ways["exact"]).mean()))
        for way, label in zip(ways, found.label_ids[:, 0].tolist(), strict=True):
            labels.setdefault(way, []).append(label)
    exact = np.asarray(labels["exact"])
    differs = np.flatnonzero(exact != labels["fast"])
    return {
        **{way: float((exact == labels[way]).mean() * 100) for way in ("fast", "shift", "grain")},
        "difference": float(np.mean(differences)),
        "margin": float(np.median([margins[at] for at in differs])) if len(differs) else float("nan"),
        "all": float(np.median(margins)),
        "differ": [{"image": int(at), "margin": margins[at], "difference": differences[at]} for at in differs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", help="paths or patterns of tars with .jpg members")
    parser.add_argument("--model", default="efficientnet-lite0", help="a model of the catalog, or a file (%(default)s)")
    parser.add_argument("--precision", default="int8", help="%(default)s")
    parser.add_argument("--limit", type=int, default=500, help="images (%(default)s)")
    args = parser.parse_args()

    classifier = Classifier(load_spec(args.model), precision=Precision(args.precision), top_k=2)
    images = read_images(args.tars, args.limit)
    kinds = {"as it is": lambda image: None, **KINDS}
    result = {}
    columns = ("fast", "shift", "grain", "difference", "margin", "all")
    print(f"{'kind':16}" + "".join(f"{column:>12}" for column in columns))
    for kind, change in kinds.items():
        again = [change(Image.open(io.BytesIO(data)).convert("RGB")) or data for data in images]
        result[kind] = compare(again, classifier)
        print(f"{kind:16}" + "".join(f"{result[kind][column]:>12.3f}" for column in columns), flush=True)
    settings = {"images": len(images), "model": args.model, "precision": args.precision}
    print(json.dumps({"benchmark": Path(__file__).stem, **settings, "kinds": result}))


if __name__ == "__main__":
    main()
