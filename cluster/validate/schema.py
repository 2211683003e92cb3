"""Check values strictly against the JSON Schemas of KubeRay, Ray and pydantic.

Strictly: if a schema lists properties, no other key is allowed. Ray Serve's own models allow any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from jsonschema import Draft4Validator, Draft202012Validator, ValidationError
from jsonschema.validators import extend

from cluster.manifests.settings_sources import nearest
from cluster.validate.documents import Path

Schema = dict[str, Any]
Finding = tuple[Path, str]
# Messages by the rule that is violated; for other rules jsonschema's own message is used.
REASONS = {
    "const": "expected {rule!r}, got {got}",
    "pattern": "expected text that matches {rule}, got {got}",
    "minLength": "expected at least {rule} characters, got {length}",
    "maxLength": "expected at most {rule} characters, got {length}",
    "minItems": "must have at least {rule} items, got {length}",
    "minimum": "must be at least {rule}, got {got}",
    "maximum": "must be at most {rule}, got {got}",
    "exclusiveMinimum": "must be above {rule}, got {got}",
    "exclusiveMaximum": "must be below {rule}, got {got}",
}


def check(value: object, schema: Schema) -> Iterator[Finding]:
    """Yield the faults of a value as (path, reason).

    Args:
        value: Any parsed YAML.
        schema: A schema, with the `$defs` that it refers to.
    """
    findings: list[Finding] = []
    value = _with_text_keys(value, (), findings)
    yield from findings
    for error in StrictValidator(strict(schema)).iter_errors(value):
        yield from _findings(error)


def strict(schema: Any) -> Any:  # noqa: ANN401 (any part of a schema)
    """Return a schema for jsonschema that allows no unlisted key."""
    if isinstance(schema, list):
        return [strict(below) for below in schema]
    if not isinstance(schema, dict):
        return schema
    # The properties in a condition do not list all allowed keys.
    made = {key: below if key in ("if", "then") else strict(below) for key, below in schema.items()}
    if made.get("type") == "object" and "properties" in made:
        made.setdefault("additionalProperties", False)
    if made.get("nullable") is True:
        made["type"] = [made["type"], "null"]
    options = made.get("anyOf")
    if isinstance(options, list) and any("$ref" in option for option in options):
        # With an untyped mapping as an alternative to a mapping of known keys, every typo would pass.
        made["anyOf"] = [option for option in options if option.get("type") != "object"]
    return made


def _pattern(validator: Any, pattern: str, value: object, _: Schema) -> Iterator[ValidationError]:  # noqa: ANN401
    # Python's $ also matches before a final newline; in JSON Schema it does not.
    if validator.is_type(value, "string") and not re.search(re.sub(r"\$$", r"\\Z", pattern), str(value)):
        yield ValidationError(pattern)


def _list_map_keys(_: object, keys: list[str], value: object, __: Schema) -> Iterator[ValidationError]:
    seen: set[str] = set()
    for number, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, dict) and all(key in item for key in keys):
            name = ", ".join(f"{key} {item[key]!r}" for key in keys)
            if name in seen:
                yield ValidationError(f"{name} is given twice", path=[number])
            seen.add(name)


# Draft 4 is the last draft for which 2.0 is not an integer.
StrictValidator = extend(
    Draft202012Validator,
    {"pattern": _pattern, "x-kubernetes-list-map-keys": _list_map_keys},
    type_checker=Draft4Validator.TYPE_CHECKER,
)


def _with_text_keys(value: Any, path: Path, findings: list[Finding]) -> Any:  # noqa: ANN401
    """Return a value without keys that are not strings, which JSON does not have; add a finding for each."""
    if isinstance(value, list):
        return [_with_text_keys(item, (*path, number), findings) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    findings += [
        (path, f"keys must be text, got {key!r}; write it in quotes") for key in value if not isinstance(key, str)
    ]
    return {key: _with_text_keys(item, (*path, key), findings) for key, item in value.items() if isinstance(key, str)}


def _findings(error: ValidationError) -> Iterator[Finding]:
    path, value, rule, schema = tuple(error.absolute_path), error.instance, error.validator_value, error.schema
    known = schema.get("properties", {})
    if schema.get("x-kubernetes-int-or-string"):
        kinds = "a quantity as 2," if error.validator == "pattern" else "a whole number or text as"
        yield path, f"expected {kinds} 500m or 8Gi, got {shown(value)}"
    elif error.validator == "anyOf":
        yield from _nearest_option(error)
    elif error.validator == "type":
        yield path, _wrong_type(value, rule)
    elif error.validator == "enum":
        if "type" not in schema or StrictValidator({"type": schema["type"]}).is_valid(value):
            near = nearest(value, map(str, rule), or_all=False) if isinstance(value, str) else ""
            yield path, f"expected {' or '.join(map(str, rule))}, got {shown(value)}{near}"
    elif error.validator == "additionalProperties":
        for name in value.keys() - known.keys():
            yield (*path, name), f"unknown key {name!r}{nearest(name, known)}"
    elif error.validator == "required":
        missing = error.message.removesuffix(" is a required property")
        # A misspelt key is reported once, as unknown.
        if not any(nearest(name, [missing.strip("'")], or_all=False) for name in value.keys() - known.keys()):
            yield path, f"missing key {missing}"
    else:
        length = len(value) if isinstance(value, (str, list)) else 0
        reason = REASONS.get(str(error.validator))
        yield path, reason.format(rule=rule, got=shown(value), length=length) if reason else error.message


def _nearest_option(error: ValidationError) -> Iterator[Finding]:
    """Yield the faults by the option of an `anyOf` that the value fits best."""
    options = [list(errors) for _, errors in groupby(error.context or [], key=lambda below: below.schema_path[0])]
    mistyped = [one for errors in options for one in errors if one.validator == "type" and not one.path]
    if len(mistyped) == len(options):
        kinds = [one.validator_value for one in mistyped if one.validator_value != "null"]
        yield tuple(error.absolute_path), _wrong_type(error.instance, kinds)
        return
    fitting = [errors for errors in options if not any(one in mistyped for one in errors)]
    for one in min(fitting, key=len):
        yield from _findings(one)


def shown(value: object) -> str:
    """Return a value for a message: at most 80 characters; mappings and lists only by type."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing (null)"
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong_type(value: object, kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number",
             "number": "a number", "boolean": "true or false", "null": "nothing"}  # fmt: skip
    kinds = [kind] if isinstance(kind, str) else kind
    expected = " or ".join(dict.fromkeys(names[one] for one in kinds))
    hint = ""
    if "string" in kinds and not isinstance(value, (dict, list, type(None))):
        hint = "; write it in quotes"
    elif isinstance(value, str) and not {"string", "object", "array"} & set(kinds):
        hint = "; write it without quotes"
    return f"expected {expected}, got {shown(value)}{hint}"
