"""Kinds of values that settings have: each refuses what a shell, Kubernetes or KubeRay would read otherwise."""

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
# Minute, hour, day of month, month, day of week. No time zone: KubeRay reads it in its own.
CRON = r"^(@(hourly|daily|weekly|monthly|yearly)|[0-9A-Za-z*/,-]+( [0-9A-Za-z*/,?-]+){4})$"
HOST_PATH = r"^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$"
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)?", re.ASCII)
# The entrypoint of a RayJob is read by two shells, and Kubernetes replaces $(NAME) in it. Quoting survives both, yet
# nothing that labels images needs more than these.
WORD = re.compile(r"[\w@%+=:,./*?{}\[\]~^!&#-]+", re.ASCII)


class Spot(StrEnum):
    """Whether a group of workers runs on nodes that the cloud may take back."""

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
        raise ValueError("must hold no credentials, which a manifest shows: name a Secret in storage_secret")
    return text


def _is_plain(text: str) -> str:
    if not text.isprintable() or set(text) & set('$`\\"'):
        raise ValueError('must be plain text without $ ` \\ ", which a shell would read')
    return text


def _is_label(text: str) -> str:
    if not text or len(text) > 63 or not LABEL_VALUE.fullmatch(text):
        raise ValueError("must be 1 to 63 letters, digits, dashes, dots and underscores, as a label has")
    return text


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            raise ValueError(f"{key!r}: {value!r} is not a label that Kubernetes takes")
    return labels


Word = Annotated[str, AfterValidator(_is_word)]
Option = Annotated[str, AfterValidator(_is_option)]
PlainText = Annotated[str, AfterValidator(_is_plain)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]
SecretName = Annotated[str, Field(pattern=DNS_NAME, max_length=253)]
Labels = Annotated[dict[str, str], AfterValidator(_are_labels)]
LabelText = Annotated[str, AfterValidator(_is_label)]
# What `serve` is told by settings of their own.
OWN_SERVE_OPTIONS = {"model", "precision", "device", "min_replicas", "max_replicas", "calibration", "api_keys_file"}


def _are_serve_options(options: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Return the options as `serve` takes them: numbers as numbers."""
    known = ServeConfig.model_fields.keys() - OWN_SERVE_OPTIONS
    for name in options:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(sorted(known))}")
    try:
        return ServeConfig.model_validate(options).model_dump(mode="json", include=set(options))
    except ValidationError as err:
        first = err.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from err


ServeOptions = Annotated[dict[str, str | int | float | bool], AfterValidator(_are_serve_options)]


class Settings(BaseModel):
    """Base of all: no unknown key, no change once built."""

    model_config = ConfigDict(frozen=True, extra="forbid")
