"""What two runs must have in common to write the same rows: a run goes on with nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from models.class_names import LabelText
from models.classifier import Choice
from models.errors import ConfigError, SourceError
from models.spec import ModelSpec
from pipeline.config import LabelConfig
from pipeline.plan import PLAN_VERSION, Plan, Slice, iter_units
from pipeline.sources import Source
from pipeline.storage import Storage


def fingerprint(config: LabelConfig, source: Source, spec: ModelSpec, choice: Choice) -> dict[str, Any]:
    """Return what must be the same for two runs to write the same rows."""
    return {
        "source": source.base.uri,
        "format": source.format.value,
        "model": spec.name,
        "artifact": spec.artifact(choice.precision).sha256,
        "precision": choice.arithmetic,
        "decode": config.decode.value,
        "preprocessing": spec.preprocessing_id,
        "top-k": config.top_k,
        # Absent where it is the usual one: plans of before it existed can be resumed.
        "labels": None if config.labels is LabelText.NAME else config.labels.value,
        "embeddings": config.embeddings,
        "image-column": config.image_column,
        "key-column": config.key_column,
        "carry": list(config.carry),
        "limit": config.limit,
        "max-pixels": config.max_pixels,
        "max-image-bytes": config.max_image_bytes,
    }


def check_settings(plan: Plan, settings: dict[str, Any], dest: Storage) -> None:
    """Refuse to go on with settings that would give other rows.

    Raises:
        ConfigError: Names the first difference.
    """
    if plan.version != PLAN_VERSION:
        raise ConfigError(
            f"{dest.describe()} was begun by an older version of shardlabel, whose plan does not say all that has to be "
            "the same; finish it with that version, give another --output, or --overwrite"
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
        plan: Its head.
        slices: What SOURCE is now.
        limited: Whether the plan took only the first images of SOURCE, so that more shards may follow.

    Raises:
        SourceError: A shard changed, went away or came; the message names the first.
    """
    planned = (piece for unit in iter_units(dest, plan) for piece in unit.slices)
    advice = "label it into another --output, or start anew with --overwrite"
    current = iter(slices)
    for old in planned:
        new = next(current, None)
        if new is None or new.shard != old.shard:
            found = "nothing" if new is None else new.shard
            raise SourceError(f"SOURCE is not what was planned: expected shard {old.shard}, found {found}; {advice}")
        # A listing may tell no ETag: then the size has to do.
        if new.size != old.size or (new.etag and old.etag and new.etag != old.etag):
            what = f"its size was {old.size} bytes and is {new.size}" if new.size != old.size else "it was written anew"
            raise SourceError(f"shard {old.shard} has changed since the run began: {what}; {advice}")
        if (new.start, new.stop) != (old.start, old.stop):
            raise SourceError(f"shard {old.shard} has changed since the run began: it divides differently; {advice}")
    extra = None if limited else next(current, None)
    if extra is not None:
        raise SourceError(f"SOURCE is not what was planned: shard {extra.shard} is new; {advice}")


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else f"{text[:77]}..."
