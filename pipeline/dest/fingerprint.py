"""What two runs must have in common to write the same rows, and so to resume one another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from typing import Any

from models.calibration import Calibration
from models.decode.mode import DecodeMode
from models.errors import ConfigError, ModelError, ProviderUnavailableError, SourceError
from models.inference.classifier import Device, DeviceChoice, Provider, choose
from models.spec import ModelSpec, Precision
from pipeline.config import LabelConfig, batch_size
from pipeline.dest.plan import PLAN_VERSION, Plan, iter_units, read_plan
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import Storage

_ADVICE = "label it into another --output, or start over with --overwrite"
_DEVICES = {Provider.CPU: Device.CPU, Provider.CUDA: Device.CUDA, Provider.TENSORRT: Device.TENSORRT}


def fingerprint(
    config: LabelConfig,
    source: Source,
    spec: ModelSpec,
    choice: DeviceChoice,
    labels: tuple[str, ...],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Return the settings that must match for two runs to write the same rows: all inputs of the graph and the rows.

    Software versions and the CPU model are not among them: last bits may differ between them.

    Args:
        config: Settings of the run.
        source: SOURCE.
        spec: The model.
        choice: Device and precision that run it.
        labels: Name of each class in the output.
        calibration: Calibration of its scores.
    """
    graph = {
        f"{name}.{key}" if key else name: value
        for name, setting in spec.graph_settings().items()
        for key, value in (setting.items() if isinstance(setting, dict) else [("", setting)])
    }
    private = config.allow_private_hosts
    return {
        "source": source.base.uri,
        "format": source.format.value,
        "model": spec.name,
        "artifact": spec.artifact(choice.precision).sha256,
        "precision": choice.arithmetic,
        "provider": choice.provider.value,
        # A GPU computes batches of one size; another size may change the order of summation. On a CPU an image's
        # scores do not depend on its batch.
        "batch-size": batch_size(config, choice) if choice.provider in (Provider.CUDA, Provider.TENSORRT) else None,
        **graph,
        "decode": config.decode.value,
        "top-k": config.top_k,
        "labels": config.labels.value,
        "class names": class_names(labels),
        "embeddings": config.embeddings,
        "calibration": None if calibration is None else calibration.sha256,
        "image-column": config.image_column,
        "uri-column": config.uri_column,
        "key-column": config.key_column,
        "carry": list(config.carry),
        "limit": config.limit,
        "part": config.part,
        "max-pixels": config.max_pixels,
        "max-image-bytes": config.max_image_bytes,
        "image-timeout-s": config.image_timeout_s,
        # Plans from before manifests do not have it.
        **({"allow-private-hosts": private} if private or config.uri_column is not None else {}),
    }


def class_names(labels: tuple[str, ...]) -> str:
    """Return a hash of the class names: outputs with the same hash number their classes alike."""
    return sha256("\n".join(labels).encode()).hexdigest()


def file_metadata(
    spec: ModelSpec, choice: DeviceChoice, decode: DecodeMode, calibration: Calibration | None
) -> dict[str, str]:
    """Return a part file's metadata about the model that labelled its rows."""
    metadata = {
        "shardlabel.version": version("shardlabel"),
        "shardlabel.model": spec.name,
        "shardlabel.artifact_sha256": spec.artifact(choice.precision).sha256,
        "shardlabel.precision": choice.arithmetic,
        "shardlabel.decode": decode.value,
        "shardlabel.preprocessing": json.dumps(spec.preprocessing.model_dump(mode="json"), sort_keys=True),
    }
    if calibration is not None:
        metadata["shardlabel.calibration_sha256"] = calibration.sha256
        metadata["shardlabel.temperature"] = repr(calibration.temperature)
    return metadata


def rows_id(settings: dict[str, Any]) -> str:
    """Return a hash of a fingerprint without SOURCE and --part: the same shards give the same rows anywhere."""
    values = {name: value for name, value in settings.items() if name not in ("source", "part")}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def choose_as_begun(
    config: LabelConfig, spec: ModelSpec, dest: Storage, *, has_gpu: bool
) -> tuple[LabelConfig, DeviceChoice]:
    """Choose device and precision: `auto` means those that DEST was begun with, or for a new DEST those of `choose`.

    Raises:
        ProviderUnavailableError: What was requested, or what DEST was begun with, is not available here.
        UnknownModelError: The model has no artifact of that precision.
        ConfigError: DEST's plan is damaged.
    """
    plan = None if config.overwrite else read_plan(dest)
    # Another model is refused later, by name: what DEST has of its own model says nothing of this one.
    begun = plan.settings if plan is not None and plan.settings.get("model") == spec.name else {}
    taken: dict[str, Any] = {}
    if config.precision == "auto" and begun.get("precision") in list(Precision):
        taken["precision"] = begun["precision"]
    if config.device is Device.AUTO and begun.get("provider") in list(_DEVICES):
        taken["device"] = _DEVICES[Provider(begun["provider"])]
    if config.batch_size is None:
        taken["batch_size"] = begun.get("batch-size")
    config = config.model_copy(update=taken)
    try:
        choice = choose(spec, config.device, config.precision, has_gpu=has_gpu)
    except ModelError as err:
        if "device" not in taken and "precision" not in taken:
            raise
        what = f"{begun['precision']} on {begun.get('provider')}"
        raise ProviderUnavailableError(
            f"{dest.describe()} was begun with {what}, so `auto` means that, but it is not available here: {err}; "
            "resume on a machine that has it, or give another --output"
        ) from err
    if "precision" in taken and choice.provider is not Provider.SIMULATED:
        where, _, _ = choice.reason.partition(":")
        choice = replace(choice, reason=f"{where}: the precision that {dest.describe()} was begun with")
    return config, choice


def check_settings(plan: Plan, settings: dict[str, Any], dest: Storage) -> None:
    """Refuse to resume with settings that would give different rows.

    Raises:
        ConfigError: Names the first difference.
    """
    if plan.version < PLAN_VERSION:
        raise ConfigError(
            f"{dest.describe()} was begun by an older version of shardlabel, whose plan lacks some settings that "
            "must match; finish it with that version, give another --output, or --overwrite"
        )
    for name in [*settings, *(name for name in plan.settings if name not in settings)]:
        have, wanted = plan.settings.get(name), settings.get(name)
        if have != wanted:
            raise ConfigError(
                f"{dest.describe()} was begun with {name} {_short(have)}, and now it is {_short(wanted)}; "
                f"give the same {name}, another --output, or --overwrite"
            )


def check_source(dest: Storage, plan: Plan, slices: Iterable[Slice], *, limited: bool = False) -> None:
    """Compare the source as it is now with the source that was planned, one shard at a time.

    Args:
        dest: Holds the plan.
        plan: DEST's plan.
        slices: The slices of SOURCE now.
        limited: Whether the plan took only the first images of SOURCE, so that more shards may follow.

    Raises:
        SourceError: A shard was changed, removed or added; the message names the first.
    """
    planned = _shards(piece for unit in iter_units(dest, plan) for piece in unit.slices)
    current = _shards(slices)
    for old in planned:
        new = next(current, None)
        if new is None or new.shard != old.shard:
            found = "nothing" if new is None else f"{new.shard} (if that is new, --append labels it too)"
            raise SourceError(f"SOURCE is not what was planned: expected shard {old.shard}, found {found}; {_ADVICE}")
        refuse_changed(new, old)
    extra = None if limited else next(current, None)
    if extra is not None:
        refuse_new(extra)


def _shards(slices: Iterable[Slice]) -> Iterator[Slice]:
    """Yield one slice of each shard: how a shard is cut does not matter here."""
    return (next(pieces) for _, pieces in groupby(slices, key=attrgetter("shard")))


def refuse_new(piece: Slice) -> None:
    """Raise a SourceError for a shard that was not planned."""
    raise SourceError(
        f"SOURCE is not what was planned: shard {piece.shard} is new; label it too with --append, or {_ADVICE}"
    )


def refuse_changed(new: Slice, old: Slice) -> None:
    """Raise a SourceError if a shard is not as it was planned."""
    # A listing may have no ETags: then only sizes are compared.
    if new.size != old.size or (new.etag and old.etag and new.etag != old.etag):
        what = f"its size was {old.size} bytes and is {new.size}" if new.size != old.size else "it was rewritten"
        raise SourceError(f"shard {new.shard} has changed since the run began: {what}; {_ADVICE}")


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else f"{text[:77]}..."
