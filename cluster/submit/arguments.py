"""Check the `label ARGS...` of a submission before anything is sent, and rewrite them for a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.errors import ConfigError
from pipeline.cli import parse_label
from pipeline.config import build_config
from pipeline.storage.stores import absolute, split_location
from pipeline.storage.uris import has_secrets, without_secrets


@dataclass(frozen=True, slots=True)
class LabelArguments:
    """A checked `label` command.

    Attributes:
        words: Its arguments, with `--config` merged in and absolute local paths.
        local: Those of SOURCE, the calibration and DEST that are on a local disk, as given.
        is_shared: Whether the user says that all nodes mount that disk.
    """

    words: tuple[str, ...]
    local: tuple[str, ...]
    is_shared: bool


def check_arguments(words: list[str]) -> LabelArguments:
    """Check a command as `label` itself would, and rewrite it for a cluster.

    Args:
        words: `label` and its arguments.

    Raises:
        ConfigError: The command is not `label`, or an argument is invalid.
        typer's UsageError: `label` has no such option.
    """
    if not words or words[0] != "label":
        got = f"got {words[0]!r}" if words else "nothing came after `--`"
        raise ConfigError(f"submit runs `label`: shardlabel submit [OPTIONS] -- label SOURCE... --output DEST; {got}")
    options, others = parse_label(words[1:])
    settings = build_config(options, others["config"])
    if settings.address is not None:
        raise ConfigError("--address has no use behind `label`, which runs on the job's cluster: give it before `--`")
    calibration = () if settings.calibration is None else (settings.calibration,)
    places = (*settings.source, *calibration, settings.output)
    for text in places:
        if has_secrets(text.removeprefix("@")):
            raise ConfigError(
                f"{without_secrets(text)} has credentials in it, which the cluster's dashboard would show: give the "
                "nodes a role, or pass --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY before `--`"
            )
    # Not model_dump: an option takes the text of a value that is an object.
    given: dict[str, Any] = {name: getattr(settings, name) for name in sorted(settings.model_fields_set)}
    given["source"] = [_absolute(text) for text in settings.source]
    given["output"] = _absolute(settings.output)
    if settings.calibration is not None:
        given["calibration"] = _absolute(settings.calibration)
    if settings.model.endswith(".onnx"):
        given["model"] = absolute(settings.model)
    for name in ("dry_run", "price"):
        given[name] = others[name]
    given["json"] = others["as_json"]
    local = tuple(text for text in places if _is_local(text))
    return LabelArguments(tuple(_words(given)), local, settings.shared_filesystem)


def _words(given: dict[str, Any]) -> list[str]:
    """Return settings as command-line arguments. SOURCE comes last, behind `--`, as it may begin with a dash."""
    words: list[str] = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name == "source" or value is None or value is False or value == ():
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words.append(f"{option}={','.join(value)}")
        elif name == "dry_run":
            words += [option, str(value)]
        else:
            words.append(f"{option}={value}")
    return [*words, "--", *given["source"]]


def _is_local(text: str) -> bool:
    return split_location(text.removeprefix("@"))[0] == ""


def _absolute(text: str) -> str:
    """Return an absolute path; a URI is unchanged."""
    mark = "@" if text.startswith("@") else ""
    location = text.removeprefix("@")
    return text if not _is_local(text) or "://" in location else f"{mark}{absolute(location)}"
