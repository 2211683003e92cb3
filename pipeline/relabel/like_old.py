"""The settings of a relabelling: OLD's own, except those given, and the check of those that must not differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from models.errors import ConfigError, SourceError
from models.spec import Precision
from pipeline.config import DEFAULT_TOP_K, LabelConfig, SourceFormat
from pipeline.dest.finished import FinishedDest
from pipeline.dest.merge import MODEL_COLUMN
from pipeline.dest.plan import iter_units
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import open_storage

# Settings of a plan that must be the same; a missing one means that the run did not use it.
SAME = (
    "top-k",
    "labels",
    "class names",
    "embeddings",
    "calibration",
    "image-column",
    "uri-column",
    "key-column",
    "carry",
    "limit",
)
_DIFFERENT = {
    "class names": "the present model has other classes than OLD's",
    "calibration": "OLD's scores are calibrated differently (--calibration takes OLD's file)",
}
_NEEDED = ("source", "format", "model", "artifact", "precision", "decode", "top-k")
# The first says what a file contained, not where it is. The second is decided by the user of the command.
_NOT_TAKEN = {"calibration", "allow-private-hosts"}
MODELS_KEY = "shardlabel.models"


def config_like(old: FinishedDest, options: Mapping[str, object]) -> LabelConfig:
    """Return the settings that OLD was labelled with, overridden by the given ones.

    Args:
        old: OLD.
        options: Values by field of `LabelConfig`; None means not given. `output` is required.

    Raises:
        ConfigError: A setting is invalid, or OLD's plan lacks a required one.
    """
    plan = old.plan.settings
    given = {name: value for name, value in options.items() if value is not None}
    taken: dict[str, Any] = {}
    for name in LabelConfig.model_fields:
        setting = name.replace("_", "-")
        if setting in plan and setting not in _NOT_TAKEN:
            taken[name] = plan[setting]
    missing = [name for name in _NEEDED if name not in plan]
    if missing:
        raise ConfigError(
            f"the plan of {old.dest.describe()} is from an older version and does not say its {missing[0]}, so it cannot be "
            "relabelled; use `label` into another DEST"
        )
    # Another model runs in the precision that it has; OLD's model runs in OLD's.
    if "model" in given or taken.get("precision") not in list(Precision):
        taken.pop("precision", None)
    if taken["top_k"] == DEFAULT_TOP_K:
        taken.pop("top_k")  # not asked for
    return LabelConfig(**{**taken, **given})


def source_of(old: FinishedDest, config: LabelConfig) -> Source:
    """Return OLD's SOURCE, as in OLD's plan; it lists the first file of each unit, if that still exists.

    Raises:
        SourceError: It no longer exists.
    """
    base = open_storage(config.source[0])
    if base.can_list and not base.is_folder():
        raise SourceError(
            f"{base.describe()}, which {old.dest.describe()} was labelled from, does not exist: restore it, or "
            "label from its new place with `label`"
        )

    def files() -> Iterator[Slice]:
        last = ""
        for unit in iter_units(old.dest, old.plan):
            piece = unit.slices[0]
            if piece.shard != last and base.stat(piece.shard) is not None:
                yield piece
            last = piece.shard

    return Source(base, SourceFormat(config.format), files)


def check_like(old: FinishedDest, settings: Mapping[str, Any], *, is_same_model: bool) -> None:
    """Raise where rows made by these settings cannot be mixed with OLD's.

    Args:
        old: OLD.
        settings: Settings of the new rows; see `pipeline.dest.fingerprint.fingerprint`.
        is_same_model: Whether no other model was requested.

    Raises:
        ConfigError: The message names the first difference.
    """
    plan, where = old.plan.settings, old.dest.describe()
    for name in SAME:
        have, now = plan.get(name), settings.get(name)
        if have != now:
            shown = _DIFFERENT.get(name, f"OLD has {json.dumps(have)}, and now it is {json.dumps(now)}")
            raise ConfigError(
                f"the rows of {where} and new ones must have the same {name}: {shown}; use `label` into another DEST"
            )
    if is_same_model and settings["precision"] == plan["precision"] and settings["artifact"] != plan["artifact"]:
        raise ConfigError(
            f"{where} was labelled with another file of {plan['model']} (SHA-256 {plan['artifact'][:8]}..., and now "
            f"{settings['artifact'][:8]}...); give --model {plan['model']} to label with the present one"
        )


def check_columns(old: FinishedDest, schema: pa.Schema) -> None:
    """Raise where new rows have other columns than OLD's.

    Args:
        old: OLD.
        schema: Schema of new rows, without the column `model`.

    Raises:
        ConfigError: The message names the first difference.
    """
    where = old.dest.describe()
    if MODEL_COLUMN in schema.names:
        raise ConfigError(
            f"{where} carries a column {MODEL_COLUMN} of SOURCE, but relabel adds a column of that name; use `label` into "
            "another DEST"
        )
    before = {one.name: one.type for one in old.schema if one.name != MODEL_COLUMN or MODELS_KEY not in old.metadata}
    after = {one.name: one.type for one in schema}
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            have, now = before.get(name, "missing"), after.get(name, "missing")
            raise ConfigError(
                f"the rows of {where} and new ones must have the same columns, but {name} is {have} in OLD and would "
                f"be {now}; use `label` into another DEST"
            )


def model_names(old: FinishedDest, settings: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Return the names of the present model and of OLD's in column `model`, and the artifact's SHA-256 for each name.

    A name is `model:precision:decode`. If OLD has rows of another artifact with that name, `@` and the first digits of
    the SHA-256 follow.
    """
    plan = old.plan.settings
    own = _name(plan)
    models = json.loads(old.metadata.get(MODELS_KEY, "null")) or {own: plan["artifact"]}
    name = _name(settings)
    if models.get(name, settings["artifact"]) != settings["artifact"]:
        name = f"{name}@{settings['artifact'][:8]}"
    return name, own, {**models, name: settings["artifact"]}


def _name(settings: Mapping[str, Any]) -> str:
    return f"{settings['model']}:{settings['precision']}:{settings['decode']}"
