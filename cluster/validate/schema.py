"""Values against the three dialects of JSON Schema that are met here: KubeRay's, Ray's and pydantic's. Strictly.

Strict: where a schema lists properties, no other key may stand. Ray Serve's own models take any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cluster.manifests.settings_sources import nearest
from cluster.validate.documents import Path

Schema = dict[str, Any]
Finding = tuple[Path, str]
# Told by a test: a keyword that is neither checked nor known to say nothing would be a rule that is not kept.
CHECKED = {
    "$ref", "type", "nullable", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minItems", "items", "properties", "patternProperties", "required",
    "additionalProperties", "anyOf", "allOf", "if", "then", "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
SAYS_NOTHING = {"description", "title", "default", "$defs", "definitions", "$schema", "$id"}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class SchemaChecker:
    """Checks values against the schemas of one bundle.

    Args:
        root: What `$ref`s point into.
    """

    def __init__(self, root: Schema) -> None:
        self.root = root

    def check(self, value: object, schema: Schema, path: Path = ()) -> Iterator[Finding]:
        """Yield what is wrong, as (path, reason)."""
        schema = self.resolve(schema)
        if value is None and schema.get("nullable"):
            return
        if schema.get("x-kubernetes-int-or-string"):
            yield from _int_or_string(value, schema, path)
            return
        if "anyOf" in schema:
            yield from self._any_of(value, schema["anyOf"], path)
            return
        if "type" in schema and not is_type(value, schema["type"]):
            yield path, _wrong_type(value, schema["type"])
            return
        yield from _scalar(value, schema, path)
        if isinstance(value, dict):
            yield from self._object(value, schema, path)
        elif isinstance(value, list):
            yield from self._array(value, schema, path)
        for rule in schema.get("allOf", []):
            if "if" not in rule:
                yield from self.check(value, rule, path)
            elif not any(self._loose(value, rule["if"])):
                yield from self._loose(value, rule.get("then", {}))

    def resolve(self, schema: Schema) -> Schema:
        """Return what a `$ref` points to, with what stands beside it."""
        while "$ref" in schema:
            target: Any = self.root
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        return schema

    def _object(self, value: dict[Any, Any], schema: Schema, path: Path) -> Iterator[Finding]:
        properties = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        more = schema.get("additionalProperties")
        for name in schema.get("required", []):
            # a misspelt key is told once, as unknown
            if name not in value and not any(_looks_like(name, key) for key in value if key not in properties):
                yield path, f"missing key {name!r}"
        is_open = more is True or not (properties or patterns) or schema.get("x-kubernetes-preserve-unknown-fields")
        for name, item in value.items():
            if not isinstance(name, str):
                yield path, f"keys must be text, got {name!r}; write it in quotes"
            elif name in properties:
                yield from self.check(item, properties[name], (*path, name))
            elif below := [rule for pattern, rule in patterns.items() if re.search(pattern, name)]:
                yield from self.check(item, below[0], (*path, name))
            elif isinstance(more, dict):
                yield from self.check(item, more, (*path, name))
            elif more is False or not is_open:
                yield (*path, name), f"unknown key {name!r}{nearest(name, properties)}"

    def _array(self, value: list[Any], schema: Schema, path: Path) -> Iterator[Finding]:
        if len(value) < schema.get("minItems", 0):
            yield path, f"must have at least {schema['minItems']} items, got {len(value)}"
        for number, item in enumerate(value):
            yield from self.check(item, schema.get("items", {}), (*path, number))
        keys = schema.get("x-kubernetes-list-map-keys", [])
        seen: set[str] = set()
        for number, item in enumerate(value if keys else []):
            if isinstance(item, dict) and all(key in item for key in keys):
                name = ", ".join(f"{key} {item[key]!r}" for key in keys)
                if name in seen:
                    yield (*path, number), f"{name} is there twice"
                seen.add(name)

    def _any_of(self, value: object, options: list[Schema], path: Path) -> Iterator[Finding]:
        """Yield nothing where one option holds; otherwise what the option says that the value seems meant for."""
        resolved = [self.resolve(option) for option in options]
        if any("properties" in option for option in resolved):
            # A table of anything beside a table of known keys would let every typo pass.
            resolved = [option for option in resolved if option.get("type") != "object" or "properties" in option]
        fitting = [option for option in resolved if "type" not in option or is_type(value, option["type"])]
        if not fitting:
            kinds = [str(option["type"]) for option in resolved if option.get("type") not in (None, "null")]
            yield path, _wrong_type(value, kinds)
            return
        results = [list(self.check(value, option, path)) for option in fitting]
        yield from min(results, key=len)

    def _loose(self, value: object, schema: Schema) -> Iterator[Finding]:
        """Check an `if` or `then`, whose properties are no list of all that may stand."""
        yield from self.check(value, {"additionalProperties": True, **schema})


def is_type(value: object, kind: str | list[str]) -> bool:
    """Tell whether a value is of a JSON type, or of one of several."""
    if isinstance(kind, list):
        return any(is_type(value, one) for one in kind)
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind])


def shown(value: object) -> str:
    """Return a value for a message: short, and said what it is where that is not seen."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing (null)"
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong_type(value: object, kind: str | list[str]) -> str:
    names = {"object": "a table", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number",
             "boolean": "true or false", "null": "nothing"}  # fmt: skip
    kinds = [kind] if isinstance(kind, str) else kind
    expected = " or ".join(dict.fromkeys(names[one] for one in kinds))
    hint = ""
    if "string" in kinds and not isinstance(value, (dict, list, type(None))):
        hint = "; write it in quotes"
    elif isinstance(value, str) and not {"string", "object", "array"} & set(kinds):
        hint = "; write it without quotes"
    return f"expected {expected}, got {shown(value)}{hint}"


def _int_or_string(value: object, schema: Schema, path: Path) -> Iterator[Finding]:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        yield path, f"expected a whole number or text as 500m or 8Gi, got {shown(value)}"
    elif isinstance(value, str) and not _matches(value, schema):
        yield path, f"expected a quantity as 2, 500m or 8Gi, got {value!r}"


def _scalar(value: object, schema: Schema, path: Path) -> Iterator[Finding]:
    if "enum" in schema and value not in schema["enum"]:
        known = [str(choice) for choice in schema["enum"]]
        near = nearest(value, known, or_all=False) if isinstance(value, str) else ""
        yield path, f"expected {' or '.join(known)}, got {shown(value)}{near}"
    if "const" in schema and value != schema["const"]:
        yield path, f"expected {schema['const']!r}, got {shown(value)}"
    if isinstance(value, str):
        yield from _text(value, schema, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number(value, schema, path)


def _matches(value: str, schema: Schema) -> bool:
    # Python's $ also matches before a last line break, the schemas' does not
    pattern = schema.get("pattern", "")
    return re.search(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern, value) is not None


def _text(value: str, schema: Schema, path: Path) -> Iterator[Finding]:
    if not _matches(value, schema):
        yield path, f"expected text that matches {schema['pattern']}, got {value!r}"
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        bounds = f"{schema.get('minLength', 0)} to {schema.get('maxLength', 'any number of')}"
        yield path, f"expected {bounds} characters, got {len(value)}"


def _number(value: float, schema: Schema, path: Path) -> Iterator[Finding]:
    if value < schema.get("minimum", value):
        yield path, f"must be at least {schema['minimum']}, got {value}"
    if value > schema.get("maximum", value):
        yield path, f"must be at most {schema['maximum']}, got {value}"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        yield path, f"must be above {schema['exclusiveMinimum']}, got {value}"
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        yield path, f"must be below {schema['exclusiveMaximum']}, got {value}"


def _looks_like(name: str, key: object) -> bool:
    return isinstance(key, str) and bool(nearest(key, [name], or_all=False))


def keywords(schema: object) -> Iterator[str]:
    """Yield every keyword that a schema uses, at any depth."""
    if not isinstance(schema, dict):
        return
    yield from schema
    for table in ("properties", "patternProperties", "$defs", "definitions", "kinds"):
        for below in schema.get(table, {}).values():
            yield from keywords(below)
    for name in ("items", "additionalProperties", "if", "then"):
        yield from keywords(schema.get(name))
    for name in ("anyOf", "allOf"):
        for below in schema.get(name, []):
            yield from keywords(below)
