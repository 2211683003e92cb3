"""The words of a condition, and where each stands."""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.errors import ConfigError

_KEYWORDS = ("and", "or", "not", "in", "is", "null", "true", "false")
KNOWN = "comparisons, and, or, not, in, is null"
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*') | (?P<quoted>"(?:[^"]|"")+") | (?P<name>[^\W\d]\w*)
      | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.]) | (?P<sign><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a value or a sign.

    Attributes:
        kind: text, quoted (a name), name, number, sign, word (a keyword), or end.
        text: As it was written; a keyword in lower case.
        place: Of its first character, from 1.
    """

    kind: str
    text: str
    place: int

    @property
    def shown(self) -> str:
        """What to call it in an error."""
        if self.kind == "end":
            return "the end"
        words = " ".join(self.text.split())
        return words if len(words) <= 40 else f"{words[:39]}…"


def tokens_of(text: str) -> list[Token]:
    """Cut a condition into tokens; the last one is its end.

    Raises:
        ConfigError: Something in it is no token.
    """
    tokens, place = [], 0
    while rest := text[place:].lstrip():
        place = len(text) - len(rest)
        found = _TOKEN.match(text, place)
        if found is None:
            quote = {"'": "a text", '"': "a name"}.get(rest[0])
            what = f"{quote} without its closing quote" if quote else f"{rest[0]!r} is not known there"
            raise ConfigError(f"--where, character {place + 1}: {what}; expected {KNOWN}")
        kind = str(found.lastgroup)
        word = found[kind]
        if kind == "name" and word.lower() in _KEYWORDS:
            kind, word = "word", word.lower()
        tokens.append(Token(kind, word, place + 1))
        place = found.end()
    return [*tokens, Token("end", "", len(text) + 1)]
