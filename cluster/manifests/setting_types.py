"""Types of settings. Each refuses values that a shell, Kubernetes or KubeRay would misread."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.storage.uris import has_secrets
from serve.config import ServeConfig

QUANTITY = r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
# Minute, hour, day of month, month, day of week. No time zone: KubeRay uses its own.
CRON = r"^(@(hourly|daily|weekly|monthly|yearly)|[0-9A-Za-z*/,-]+( [0-9A-Za-z*/,?-]+){4})$"
HOST_PATH = r"^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$"
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)?", re.ASCII)
# Two shells read the entrypoint of a RayJob, and Kubernetes replaces $(NAME) in it. Quoting would survive that, but
# labelling images needs no other characters.
WORD = re.compile(r"[\w@%+=:,./*?{}\[\]~^!&#-]+", re.ASCII)


class Spot(StrEnum):
    """Whether a group of workers runs on spot nodes, which the cloud may reclaim."""

    NO = "no"
    PREFER = "prefer"
    REQUIRE = "require"
    FIRST = "first"


def _is_word(text: str) -> str:
    if text.startswith("-"):
        raise ValueError("must not start with a dash")
    return _is_option(text)


def _is_option(text: str) -> str:
    if not WORD.fullmatch(text):
        raise ValueError("must be one word of letters, digits and @%+=:,./*?{}[]~^!&#-")
    if has_secrets(text.removeprefix("@")):
        raise ValueError("must hold no credentials, which a manifest would show: name a Secret in storage_secret")
    return text


def _is_plain(text: str) -> str:
    if not text.isprintable() or set(text) & set('$`\\"'):
        raise ValueError('must be plain text without $ ` \\ ", which a shell would interpret')
    return text


def _is_label(text: str) -> str:
    if not text or len(text) > 63 or not LABEL_VALUE.fullmatch(text):
        raise ValueError("must be a Kubernetes label value: 1 to 63 letters, digits, dashes, dots and underscores")
    return text


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            raise ValueError(f"{key!r}: {value!r} is not a valid Kubernetes label")
    return labels


Word = Annotated[str, AfterValidator(_is_word)]
Option = Annotated[str, AfterValidator(_is_option)]
PlainText = Annotated[str, AfterValidator(_is_plain)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]
SecretName = Annotated[str, Field(pattern=DNS_NAME, max_length=253)]
Labels = Annotated[dict[str, str], AfterValidator(_are_labels)]
LabelText = Annotated[str, AfterValidator(_is_label)]
# Options of `serve` that have their own settings.
OWN_SERVE_OPTIONS = {"model", "precision", "device", "min_replicas", "max_replicas", "calibration", "api_keys_file"}


def _are_serve_options(options: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Return the options with the types that `serve` expects."""
    known = ServeConfig.model_fields.keys() - OWN_SERVE_OPTIONS
    for name in options:
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(sorted(known))}")
    try:
        return ServeConfig.model_validate(options).model_dump(mode="json", include=set(options))
    except ValidationError as err:
        first = err.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from err


ServeOptions = Annotated[dict[str, str | int | float | bool], AfterValidator(_are_serve_options)]


class Settings(BaseModel):
    """Base class of all settings: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
