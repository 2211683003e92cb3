"""Patterns in the names of SOURCE: brace ranges as in a shell, and globs in which `**` crosses folders."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from itertools import pairwise

# Readers of folders skip names that begin with these: DEST/_shardlabel, .DS_Store, _SUCCESS.
HIDDEN = (".", "_")

_GLOB = re.compile(r"[*?\[]")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")


def is_hidden(path: str) -> bool:
    """Tell whether readers of folders skip a path: a name in it begins with . or _ (`.` and `..` are not names)."""
    return any(_is_hidden(part) for part in path.split("/"))


def _is_hidden(name: str) -> bool:
    return name.startswith(HIDDEN) and name not in (".", "..")


def has_pattern(path: str) -> bool:
    """Tell whether a path can be read as a glob or a brace range."""
    return has_glob(path) or has_braces(path)


def has_braces(path: str) -> bool:
    """Tell whether a path can be read as a brace range or list."""
    return "{" in path and next(expand_braces(path)) != path


def has_glob(path: str) -> bool:
    """Tell whether a path can be read as a glob."""
    return bool(_GLOB.search(path))


def fixed_folder(path: str) -> str:
    """Return the last folder before the first glob or brace."""
    end = match.start() if (match := _GLOB.search(path)) else len(path)
    if has_braces(path):
        end = min(end, path.index("{"))
    return path[:end].rpartition("/")[0]


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern stands for, lazily and in order; braces without a range or list stay.

    >>> list(expand_braces("{08..10}-{a,b}.tar"))[:3]
    ['08-a.tar', '08-b.tar', '09-a.tar']
    """
    opening = pattern.find("{")
    while opening >= 0:
        items = _items(pattern, opening)
        if items is not None:
            choices, end = items
            for choice in choices:
                for rest in expand_braces(pattern[end:]):
                    yield pattern[:opening] + choice + rest
            return
        opening = pattern.find("{", opening + 1)
    yield pattern


def _items(pattern: str, opening: int) -> tuple[Iterator[str], int] | None:
    """Return what the brace at `opening` stands for, and the position after it; None if it is only a brace."""
    depth = 0
    cuts = [opening]
    for position in range(opening, len(pattern)):
        char = pattern[position]
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 1:
            cuts.append(position)
        if depth == 0:
            cuts.append(position)
            break
    else:
        return None
    if len(cuts) > 2:
        parts = [pattern[a + 1 : b] for a, b in pairwise(cuts)]
        return (name for part in parts for name in expand_braces(part)), cuts[-1] + 1
    body = pattern[opening + 1 : cuts[-1]]
    if match := _NUMBERS.fullmatch(body):
        return _numbers(match[1], match[2], int(match[3] or 1)), cuts[-1] + 1
    if match := _LETTERS.fullmatch(body):
        return (chr(code) for code in _span(ord(match[1]), ord(match[2]), 1)), cuts[-1] + 1
    return None


def _numbers(first: str, last: str, step: int) -> Iterator[str]:
    padded = any(text.lstrip("-").startswith("0") and text.lstrip("-") != "0" for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return (f"{number:0{width}d}" for number in _span(int(first), int(last), step))


def _span(first: int, last: int, step: int) -> range:
    step = abs(step) or 1
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Tell whether a path matches a glob, both given part by part; wildcards do not match hidden names."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(parts) and not any(_is_hidden(part) for part in parts)
        return matches(parts, pattern[1:]) or (
            len(parts) > 1 and not _is_hidden(parts[0]) and matches(parts[1:], pattern)
        )
    return bool(parts) and _matches_one(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def may_match_below(folder: list[str], pattern: list[str]) -> bool:
    """Tell whether anything below a folder can match."""
    for index, part in enumerate(folder):
        if pattern[index] == "**":
            return True
        if index == len(pattern) - 1 or not _matches_one(part, pattern[index]):
            return False
    return True


def _matches_one(name: str, pattern: str) -> bool:
    if _is_hidden(name) and not pattern.startswith(name[0]):
        return False
    return fnmatch.fnmatchcase(name, pattern)
