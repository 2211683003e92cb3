"""Write an entry as TOML: the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml_text(values: Mapping[str, Any], prefix: str = "") -> str:
    r"""Return tables, strings, numbers and lists of them as TOML.

    >>> toml_text({"a": "x", "b": {"c": [1, 2]}})
    'a = "x"\n\n[b]\nc = [1, 2]\n'
    """
    plain = [f"{_key(key)} = {_value(value)}\n" for key, value in values.items() if not _is_table(value)]
    parts = ["".join(plain)]
    for key, value in values.items():
        name = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            head = f"\n[{name}]\n" if any(not _is_table(one) for one in value.values()) else ""
            parts.append(head + toml_text(value, f"{name}."))
        elif _is_table(value):
            parts += [f"\n[[{name}]]\n" + toml_text(one, f"{name}.") for one in value]
    return "".join(parts)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _key(key: object) -> str:
    text = str(key)
    return text if text.replace("-", "").replace("_", "").isalnum() and text.isascii() else json.dumps(text)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(one) for one in value)}]"
    # A JSON string, number or boolean is one of TOML's, save the character that JSON alone leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
