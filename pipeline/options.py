"""Build a command's options from the fields of the settings class that checks them, so that each is described once.

A field's name, with dashes, is the option; its description, followed by its default, is the help. A default that
depends on something is in the description itself, as `[default: 16 on a CPU]`. The class's `GROUPS` names the group of
options that begins at a field.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from models.errors import ConfigError

SettingsT = TypeVar("SettingsT", bound=BaseModel)
CommandT = TypeVar("CommandT", bound=Callable[..., None])

# The `json_schema_extra` of a field whose option works, but is named in neither help nor errors.
HIDDEN: dict[str, JsonValue] = {"hidden": True}


def options_of(
    settings: type[BaseModel],
    *names: str,
    argument: str = "",
    short: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Callable[[CommandT], CommandT]:
    """Give a command the fields of a settings class as options; it gets them as `**options`, None where not given.

    Args:
        settings: The class.
        names: Fields that become options; all if none are named.
        argument: The field that is the positional argument, of several words.
        short: One-letter options, such as `-o`, by field.
        defaults: Default to show in the help, by field, where the command's differs from the class's.
    """

    def decorate(command: CommandT) -> CommandT:
        own = inspect.signature(command, eval_str=True).parameters.values()
        made, panel = [], None
        for name, field in settings.model_fields.items():
            panel = getattr(settings, "GROUPS", {}).get(name, panel)
            if names and name not in names:
                continue
            said = (defaults or {}).get(name)
            kind = _annotation(name, field, name == argument, (short or {}).get(name), said, panel)
            made.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
        named = [one.replace(kind=one.KEYWORD_ONLY) for one in own if one.kind is not one.VAR_KEYWORD]
        # What typer reads.
        command.__signature__ = inspect.Signature([*made, *named])  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in (*made, *named)}
        return command

    return decorate


def _annotation(
    name: str, field: FieldInfo, is_argument: bool, short: str | None, said: str | None, panel: str | None
) -> Any:  # noqa: ANN401
    import typer

    if is_argument:
        return Annotated[list[str] | None, typer.Argument(help=field.description)]
    is_list = field.annotation == tuple[str, ...]
    kind: Any = next((kind for kind in (bool, int, float, Path) if field.annotation in (kind, kind | None)), str)
    dashed = name.replace("_", "-")
    option = typer.Option(
        # An option that is on by default needs a word that switches it off.
        *(f"--{dashed}/--no-{dashed}" if field.default is True else f"--{dashed}", *([short] if short else [])),
        help=_help(field, said),
        hidden=field.json_schema_extra == HIDDEN,
        rich_help_panel=panel,
        callback=_split_at_commas if is_list else None,
    )
    return Annotated[(list[str] if is_list else kind) | None, option]


def _help(field: FieldInfo, said: str | None) -> str:
    if said is not None:
        return f"{str(field.description).partition(' [default')[0]} [default: {said}]"
    default = field.default
    if field.default_factory or field.is_required() or isinstance(default, bool | tuple | None):
        return field.description or ""
    text = default.value if isinstance(default, Enum) else f"{default:g}" if isinstance(default, float) else default
    return f"{field.description} [default: {text}]"


def _split_at_commas(values: list[str] | None) -> list[str] | None:
    return [part for value in values for part in value.split(",")] if values else None


def build_settings(
    settings: type[SettingsT], options: Mapping[str, object], config_file: Path | None = None
) -> SettingsT:
    """Merge the options of a command with those of a YAML file, and check them; the command takes precedence.

    Args:
        settings: The class.
        options: By field; None or [] means not given.
        config_file: YAML whose keys are the option names, with dashes or underscores.

    Raises:
        ConfigError: A key is unknown or a value invalid; one line says which, what it got and what was expected.
    """
    from_file = read_table(config_file) if config_file is not None else {}
    values = {str(key).replace("-", "_"): value for key, value in from_file.items()}
    values |= {name: value for name, value in options.items() if value is not None and value != []}
    try:
        return settings.model_validate(values)
    except ValidationError as err:
        raise ConfigError(one_line(err, settings)) from err


def read_table(path: Path) -> dict[str, Any]:
    """Return the contents of a `--config` file.

    Raises:
        ConfigError: It cannot be read, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as err:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(err).split())}") from err
    if not isinstance(values, dict | None):
        raise ConfigError(f"--config {path} must be a mapping of options, got {type(values).__name__}")
    return values or {}


def one_line(err: ValidationError, settings: type[BaseModel]) -> str:
    """Describe the first error: which option, what it got and what was expected."""
    first = err.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    option = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
    if first["type"] == "extra_forbidden":
        shown = [key.replace("_", "-") for key, f in settings.model_fields.items() if f.json_schema_extra != HIDDEN]
        near = "".join(f"did you mean {key}? " for key in get_close_matches(name.replace("_", "-"), shown, 1))
        return f"unknown option {name!r}; {near}known options are {', '.join(shown)}"
    if first["type"] == "missing":
        return f"{option} is missing"
    about = settings.model_fields[name].description
    return f"{option}: {message[0].lower()}{message[1:]}, got {first['input']!r} ({about})"
