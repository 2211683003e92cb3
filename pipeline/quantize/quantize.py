"""Quantise a model on the user's own labelled images, and keep the result if it loses little enough accuracy.

SOURCE is divided: some images set the ranges of the activations, all others are held out. Each method of setting the ranges
gives a candidate. The candidate with the best top-1 is chosen, and among equals the one whose probabilities moved least.
The same images choose and measure it, which overstates its accuracy by up to the difference that the table shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from models.catalog import load_spec
from models.decode.decode import ImageLimits, decode_image
from models.errors import ConfigError, InputError, SourceError
from models.labels import ClassFinder, load_classes
from models.spec import ModelSpec, Precision
from models.store.locate import locate
from pipeline.config import LabelConfig
from pipeline.evaluate.labelled import LabelledSource
from pipeline.evaluate.statistics import wilson
from pipeline.quantize.candidates import Candidate, Images, line, measure
from pipeline.storage.uris import without_secrets

UInt8Array = npt.NDArray[np.uint8]

MIN_IMAGES = 20
# These stay float32: features are taken from the pools, and 8-bit scores would tie.
FLOAT_OPS = frozenset({"ReduceMean", "GlobalAveragePool", "Softmax", "LogSoftmax", "LayerNormalization"})


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What to quantise, on which images, and how accurate it has to be.

    Attributes:
        config: The model, SOURCE, decode mode, and how many images are kept in memory, 150 kB each.
        max_drop: Points of top-1 that may be lost.
        calibration_images: How many images set the ranges, evenly spaced in SOURCE.
        methods: Methods of setting the ranges.
        half: Whether to measure float16 too; it is made from fp32 at first use, and not registered.
        label_field: As in `evaluate`.
    """

    config: LabelConfig
    max_drop: float
    calibration_images: int
    methods: tuple[str, ...]
    half: bool
    label_field: str | None


@dataclass(frozen=True, slots=True)
class Quantised:
    """The result.

    Attributes:
        model: Name of the model.
        calibrated_on: Number of images that set the ranges.
        images: Number of held-out images.
        candidates: All measured candidates, fp32 first.
        chosen: Names of the registered candidates.
        max_drop: Points of top-1 that could be lost.
        uncertainty: Half the width of the 95 % interval of fp32's top-1 on these images, points.
    """

    model: str
    calibrated_on: int
    images: int
    candidates: tuple[Candidate, ...]
    chosen: tuple[str, ...]
    max_drop: float
    uncertainty: float


def quantize(wanted: QuantizeRequest, say: Callable[[str], None]) -> tuple[Quantised, str | None]:
    """Make the candidates, measure them, and register the best if it loses no more than `max_drop`.

    Args:
        wanted: What to quantise, and how accurate it has to be.
        say: Called with a line about each step.

    Returns:
        The measurements; and why nothing was registered, or None.

    Raises:
        ConfigError: The model was given as a file, or has no fp32.
        SourceError: SOURCE cannot be read, or has too few labelled images.
        ModelError: The model cannot be loaded or used.
    """
    import onnx

    from models.graph.fp16 import to_half
    from models.graph.int8 import RangeMethod, quantize_int8
    from models.graph.join import join_graph

    spec = load_spec(wanted.config.model)
    if wanted.config.model.endswith(".onnx"):
        raise ConfigError(
            f"register {wanted.config.model} first with `shardlabel models add`, then quantise it by its name"
        )
    if Precision.FP32 not in spec.artifacts:
        raise ConfigError(f"{spec.name} has no fp32 to start from, only {', '.join(spec.artifacts)}")
    content = locate(spec, Precision.FP32).read_bytes()
    finder = ClassFinder(load_classes(spec))
    images = _read(wanted, spec, finder)
    rows = np.linspace(0, len(images.truth) - 1, min(wanted.calibration_images, len(images.truth) // 2)).astype(
        np.int64
    )
    calibration = images.take(rows)
    held_back = images.take(np.setdiff1d(np.arange(len(images.truth)), rows))
    say(f"{spec.name}: {len(rows)} images set the ranges, the other {len(held_back.truth)} are held out")
    whole = join_graph(spec, content)
    reference = measure("fp32", spec, Precision.FP32, whole, held_back, size=len(content))
    base = reference.candidate
    say(line(base, base))
    if wilson(round(base.top1 * len(held_back.truth) / 100), len(held_back.truth))[0] <= 1 / len(finder.classes):
        say(f"  note: {base.top1:.2f} % is no better than chance, so no drop can be seen: are these its labels?")
    made: list[tuple[Candidate, bytes]] = []
    model = onnx.load_model_from_string(content)
    for method in wanted.methods:
        started = time.perf_counter()
        name = f"int8 {method}"
        batches = _batches(calibration.pixels, spec)
        int8 = quantize_int8(model, batches, float_ops=FLOAT_OPS, method=RangeMethod(method)).SerializeToString()
        joined = join_graph(spec, int8)
        found = measure(name, spec, Precision.INT8, joined, held_back, size=len(int8), base=reference).candidate
        made.append((found, int8))
        say(f"{line(found, base)}  (made in {time.perf_counter() - started:.0f} s)")
    if wanted.half:
        half = to_half(whole)
        found = measure("fp16", spec, Precision.FP16, half, held_back, size=len(half), base=reference).candidate
        say(f"{line(found, base)}  (as --precision fp16 makes it for GPUs; here a CPU computes in float32 between)")
        made.append((found, b""))
    return _decide(wanted, spec, base, made, (len(rows), len(held_back.truth)))


def _read(wanted: QuantizeRequest, spec: ModelSpec, finder: ClassFinder) -> Images:
    labelled = LabelledSource(wanted.config, finder, wanted.label_field)
    limits, pixels, truth = ImageLimits(), [], []
    for sample, index in islice(labelled, wanted.config.limit):
        try:
            pixels.append(decode_image(sample.data or b"", spec.preprocessing, wanted.config.decode, limits).pixels)
        except InputError:
            continue
        truth.append(index)
    if len(truth) < MIN_IMAGES:
        raise SourceError(
            f"--calibration {without_secrets(' '.join(wanted.config.source))} has {len(truth)} labelled images that can be "
            f"decoded; at least {MIN_IMAGES} are needed, and a few hundred to see a drop of half a point"
        )
    return Images(np.stack(pixels), np.array(truth, np.int64))


def _batches(pixels: UInt8Array, spec: ModelSpec) -> Iterable[npt.NDArray[Any]]:
    """Yield the calibration images as the model takes them, one batch at a time; a fixed batch size gives whole ones."""
    from models.inference.model_input import to_model_input

    size = spec.input.batch or 1
    for start in range(0, len(pixels) - size + 1, size):
        yield to_model_input(pixels[start : start + size], spec)


def _decide(
    wanted: QuantizeRequest,
    spec: ModelSpec,
    base: Candidate,
    made: list[tuple[Candidate, bytes]],
    counts: tuple[int, int],
) -> tuple[Quantised, str | None]:
    from models.register.overlay import register_artifacts

    calibrated_on, judged_on = counts
    best = max(
        (pair for pair in made if pair[0].precision == "int8"), key=lambda pair: (pair[0].top1, -pair[0].divergence)
    )
    drop = round(base.top1 - best[0].top1, 3)
    low, high = wilson(round(base.top1 * judged_on / 100), judged_on)
    result = Quantised(
        spec.name, calibrated_on, judged_on, (base, *(pair[0] for pair in made)), (), wanted.max_drop,
        round(50 * (high - low), 2),
    )  # fmt: skip
    if drop > wanted.max_drop:
        return result, (
            f"{spec.name}: the best int8 ({best[0].name.removeprefix('int8 ')}) loses {drop:.2f} points of top-1 on "
            f"{judged_on} images ({base.top1:.2f} % to {best[0].top1:.2f} %), but at most {wanted.max_drop:g} are allowed; "
            "nothing was registered. Give more images, other --methods, or a larger --max-drop"
        )
    named = without_secrets(" ".join(wanted.config.source))
    where = f"calibrated on {calibrated_on} images, measured on {judged_on} others of {named}"[:300]
    note = f"{best[0].name} by `models quantize`, {where}: top-1 {best[0].top1:.2f} %, fp32 {base.top1:.2f} %"
    register_artifacts(spec, {Precision.INT8: (best[1], note)})
    return replace(result, chosen=(best[0].name,)), None
