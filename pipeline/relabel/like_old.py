"""The settings of a relabelling: OLD's own, but for what was asked for otherwise, and what may not differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from models.errors import ConfigError, SourceError
from models.spec import Precision
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.finished import FinishedDest
from pipeline.dest.merge import MODEL_COLUMN
from pipeline.dest.plan import iter_units
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import open_storage

# Of a plan's settings; what is not there is of a run without it.
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
    "class names": "the model of now has other classes than OLD's",
    "calibration": "OLD's scores are calibrated otherwise than those of now would be (--calibration takes OLD's file)",
}
_NEEDED = ("source", "format", "model", "artifact", "precision", "decode", "top-k")
# The first says what a file held, and not where it is. The second is for whoever runs the command to say.
_NOT_TAKEN = {"calibration", "allow-private-hosts"}
MODELS_KEY = "shardlabel.models"


def config_like(old: FinishedDest, options: Mapping[str, object]) -> LabelConfig:
    """Return the settings that OLD was labelled with, and in their place what is asked for.

    Args:
        old: OLD.
        options: By field of `LabelConfig`; None means not given. `output` is needed.

    Raises:
        ConfigError: A setting cannot be, or OLD's plan lacks what is needed.
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
            f"the plan of {old.dest.describe()} does not say its {missing[0]}, as those of older versions; nothing can be "
            "labelled anew by it: use `label` into a DEST of its own"
        )
    # Of another model, what there is of it; of OLD's, what was used.
    if "model" in given or taken.get("precision") not in list(Precision):
        taken.pop("precision", None)
    return LabelConfig(**{**taken, **given})


def source_of(old: FinishedDest, config: LabelConfig) -> Source:
    """Return OLD's SOURCE, as OLD's plan has it; it lists the first files that are still there.

    Raises:
        SourceError: It is not there any more.
    """
    base = open_storage(config.source[0])
    if base.can_list and not base.is_folder():
        raise SourceError(
            f"{base.describe()}, which {old.dest.describe()} was labelled from, is not there: put it back, or "
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
    """Refuse settings whose rows cannot stand beside OLD's.

    Args:
        old: OLD.
        settings: What the rows are to be made by; see `pipeline.dest.fingerprint.fingerprint`.
        is_same_model: Whether no other model was asked for.

    Raises:
        ConfigError: Names the first difference.
    """
    plan, where = old.plan.settings, old.dest.describe()
    for name in SAME:
        have, now = plan.get(name), settings.get(name)
        if have != now:
            shown = _DIFFERENT.get(name, f"OLD has {json.dumps(have)}, and now it is {json.dumps(now)}")
            raise ConfigError(
                f"the rows of {where} and new ones have to have the same {name}: {shown}; use `label` into a DEST of its own"
            )
    if is_same_model and settings["precision"] == plan["precision"] and settings["artifact"] != plan["artifact"]:
        raise ConfigError(
            f"{where} was labelled with another file of {plan['model']} (SHA-256 {plan['artifact'][:8]}..., and now "
            f"{settings['artifact'][:8]}...); give --model {plan['model']} to label with the one of now"
        )


def check_columns(old: FinishedDest, schema: pa.Schema) -> None:
    """Refuse where new rows have other columns than OLD's.

    Args:
        old: OLD.
        schema: Of new rows, without the column `model`.

    Raises:
        ConfigError: Names the first difference.
    """
    where = old.dest.describe()
    if MODEL_COLUMN in schema.names:
        raise ConfigError(
            f"{where} carries a column {MODEL_COLUMN} of SOURCE, and that is what relabel calls its own; label it into a "
            "DEST of its own"
        )
    before = {one.name: one.type for one in old.schema if one.name != MODEL_COLUMN or MODELS_KEY not in old.metadata}
    after = {one.name: one.type for one in schema}
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            have, now = before.get(name, "missing"), after.get(name, "missing")
            raise ConfigError(
                f"the rows of {where} and new ones have to have the same columns, and {name} is {have} in OLD and would "
                f"be {now}; use `label` into a DEST of its own"
            )


def model_names(old: FinishedDest, settings: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Return what the column `model` calls the model of now and OLD's own, and the artifact's SHA-256 by such a name.

    A name is `model:precision:decode`. Where OLD has rows of another artifact of that name, `@` and the first digits of
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
