"""`--where`: a condition on the columns of the output, parsed into an Arrow expression. Python evaluates nothing.

    condition  := and { "or" and }
    and        := not { "and" not }
    not        := "not" not | test
    test       := "(" condition ")" | column | value ("=" | "!=" | "<" | ...) value
                | column ["not"] "in" "(" literal { "," literal } ")" | column "is" ["not"] "null"
    value      := column | literal

As in SQL, a comparison with null is neither true nor false, and a row matches where the whole condition is true.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConfigError

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 100  # nested parentheses and nots
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_KEYWORDS = ("and", "or", "not", "in", "is", "null", "true", "false")
_KNOWN = "comparisons, and, or, not, in, is null"
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*') | (?P<quoted>"(?:[^"]|"")+") | (?P<name>[^\W\d]\w*)
      | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.]) | (?P<sign><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Token:
    """A word, a value or a sign.

    Attributes:
        kind: text, quoted (a name), name, number, sign, word (a keyword), or end.
        text: The text as written; a keyword in lower case.
        place: Position of its first character, from 1.
    """

    kind: str
    text: str
    place: int

    @property
    def shown(self) -> str:
        """Its text in an error."""
        if self.kind == "end":
            return "the end"
        words = " ".join(self.text.split())
        return words if len(words) <= 40 else f"{words[:39]}…"

    def wrong(self, why: str) -> ConfigError:
        """Return an error that gives its position."""
        return ConfigError(f"--where, character {self.place}: {why}")


@dataclass(frozen=True, slots=True)
class Where:
    """A condition, checked against a schema.

    Attributes:
        text: The condition as given, without surrounding white space.
        expression: True for matching rows, false or null for the others.
    """

    text: str
    expression: pc.Expression


class _Kind(StrEnum):
    """Kinds of values; only values of one kind can be compared."""

    TEXT = "text"
    NUMBER = "a number"
    TRUTH = "true or false"


@dataclass(frozen=True, slots=True)
class _Value:
    kind: _Kind
    expression: Any  # of a column
    token: _Token
    literal: Any = None  # in Python
    type: pa.DataType | None = None  # of a column


def parse_where(text: str, schema: pa.Schema) -> Where:
    """Parse a condition.

    Args:
        text: The condition.
        schema: Schema of the rows.

    Raises:
        ConfigError: It is malformed, names a column that does not exist or cannot be compared, or is too long or too deep.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"--where has {len(text)} characters, but at most {MAX_LENGTH} are allowed; shorten it")
    parser = _Parser(_tokens_of(text), schema)
    expression = parser.condition(0)
    if parser.token.kind != "end":
        parser.fail("`and`, `or` or the end")
    return Where(text.strip(), expression)


def _tokens_of(text: str) -> list[_Token]:
    tokens, place = [], 0
    while rest := text[place:].lstrip():
        place = len(text) - len(rest)
        found = _TOKEN.match(text, place)
        if found is None:
            quote = {"'": "a text", '"': "a name"}.get(rest[0])
            what = f"{quote} without its closing quote" if quote else f"{rest[0]!r} is not allowed there"
            raise _Token("", "", place + 1).wrong(f"{what}; expected {_KNOWN}")
        kind = str(found.lastgroup)
        word = found[kind]
        if kind == "name" and word.lower() in _KEYWORDS:
            kind, word = "word", word.lower()
        tokens.append(_Token(kind, word, place + 1))
        place = found.end()
    return [*tokens, _Token("end", "", len(text) + 1)]


def _joined(join: Callable[[Any, Any], Any], terms: list[Any]) -> Any:  # noqa: ANN401 (Arrow's expression)
    """Join terms in a balanced tree, so that recursion over the expression stays as shallow as possible."""
    while len(terms) > 1:
        terms = [
            join(*pair) if len(pair) == 2 else pair[0] for pair in (terms[i : i + 2] for i in range(0, len(terms), 2))
        ]
    return terms[0]


class _Parser:
    def __init__(self, tokens: list[_Token], schema: pa.Schema) -> None:
        self._tokens = tokens
        self._schema = schema
        self._next = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def fail(self, expected: str) -> NoReturn:
        raise self.token.wrong(f"expected {expected}, got {self.token.shown}")

    def _take(self, *texts: str) -> str | None:
        """Consume the next token if it is one of these keywords or signs, and return it."""
        if self.token.kind in ("word", "sign") and self.token.text in texts:
            self._next += 1
            return self._tokens[self._next - 1].text
        return None

    def _need(self, text: str, expected: str) -> None:
        if self._take(text) is None:
            self.fail(expected)

    def condition(self, depth: int) -> Any:  # noqa: ANN401
        terms = [self._and(depth)]
        while self._take("or"):
            terms.append(self._and(depth))
        return _joined(operator.or_, terms)

    def _and(self, depth: int) -> Any:  # noqa: ANN401
        terms = [self._not(depth)]
        while self._take("and"):
            terms.append(self._not(depth))
        return _joined(operator.and_, terms)

    def _not(self, depth: int) -> Any:  # noqa: ANN401
        if depth > MAX_DEPTH:
            raise self.token.wrong(f"parentheses and nots nest more than {MAX_DEPTH} deep; simplify the condition")
        if self._take("not"):
            return ~self._not(depth + 1)
        if self._take("("):
            inner = self.condition(depth + 1)
            self._need(")", "`)`, `and` or `or`")
            return inner
        return self._test()

    def _test(self) -> Any:  # noqa: ANN401
        value = self._value()
        if self.token.text in _COMPARE and self.token.kind == "sign":
            return self._comparison(value)
        if value.expression is None:
            self.fail("a comparison")
        if self._take("is"):
            negated = self._take("not")
            self._need("null", "`null`")
            return value.expression.is_valid() if negated else value.expression.is_null()
        negated = self._take("not")
        if self._take("in"):
            found = self._membership(value)
            return ~found if negated else found
        if negated or value.kind is not _Kind.TRUTH:
            self.fail("`in`" if negated else f"a comparison with {value.token.shown}")
        return value.expression

    def _value(self) -> _Value:
        token = self.token
        if token.kind in ("name", "quoted"):
            return self._column(token)
        self._next += 1
        if token.kind == "text":
            return _Value(_Kind.TEXT, None, token, token.text[1:-1].replace("''", "'"))
        if token.kind == "number":
            is_short = len(token.text) <= 300  # Python parses at most 4,300 digits
            number = float(token.text) if re.search(r"[.eE]", token.text) or not is_short else int(token.text)
            if not is_short or not -1e300 < number < 1e300:
                raise token.wrong("the number is too large")
            return _Value(_Kind.NUMBER, None, token, number)
        if token.kind == "word" and token.text in ("true", "false"):
            return _Value(_Kind.TRUTH, None, token, token.text == "true")
        self._next -= 1
        hint = "; nothing equals null: write `is null`" if token.text == "null" else ""
        return self.fail(f"a column or a value{hint}")

    def _column(self, token: _Token) -> _Value:
        name = token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text
        self._next += 1
        if self.token.text == "(" and self.token.kind == "sign":
            raise token.wrong(f"{token.shown}(...) is not allowed in a condition; allowed are {_KNOWN}")
        if name not in self._schema.names:
            near = get_close_matches(name.lower(), self._schema.names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self._schema.names)}"
            hint += " (put text in 'single quotes')" if token.kind == "quoted" else ""
            raise token.wrong(f"there is no column {token.shown}; {hint}")
        kind = self._schema.field(name).type
        found = _kind(kind)
        if found is None:
            raise token.wrong(f"{token.shown} holds {kind}; text, numbers, and true or false can be compared")
        column = pc.field(name)
        return _Value(found, column.cast(pa.string()) if pa.types.is_dictionary(kind) else column, token, type=kind)

    def _comparison(self, left: _Value) -> Any:  # noqa: ANN401
        sign = self.token.text
        self._next += 1
        right = self._value()
        if left.expression is None:
            left, right, sign = right, left, _SWAPPED.get(sign, sign)
        if left.expression is None:
            raise right.token.wrong("two values are compared; expected a column on one side")
        _check(left, right)
        if left.kind is _Kind.TRUTH and _COMPARE[sign] not in (operator.eq, operator.ne):
            raise right.token.wrong("true and false have no order; write = or !=")
        if right.expression is not None:
            if left.type != right.type and left.kind is _Kind.NUMBER:
                return _COMPARE[sign](
                    left.expression.cast(pa.float64(), safe=False), right.expression.cast(pa.float64(), safe=False)
                )
            return _COMPARE[sign](left.expression, right.expression)
        column, (value,) = _comparable(left, [right.literal])
        return _COMPARE[sign](column, value)

    def _membership(self, column: _Value) -> Any:  # noqa: ANN401
        self._need("(", "`(`")
        values = []
        while True:
            value = self._value()
            if value.expression is not None:
                raise value.token.wrong(f"expected a value, got column {value.token.shown}")
            _check(column, value)
            values.append(value.literal)
            if not self._take(","):
                break
        self._need(")", "`,` or `)`")
        found, typed = _comparable(column, values)
        # Arrow's own `isin` is false for null, so `not in` would be true.
        return pc.if_else(column.expression.is_valid(), found.isin(typed), pa.scalar(None, pa.bool_()))


def _kind(kind: pa.DataType) -> _Kind | None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _Kind.TEXT
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _Kind.NUMBER
    return _Kind.TRUTH if pa.types.is_boolean(kind) else None


def _check(left: _Value, right: _Value) -> None:
    if left.kind is not right.kind:
        raise right.token.wrong(f"{left.token.shown} holds {left.kind}, but {right.token.shown} is {right.kind}")


def _comparable(column: _Value, values: list[Any]) -> tuple[Any, pa.Array]:
    """Return a column's expression and values in one type: integers as they are, other numbers as float64."""
    if column.kind is not _Kind.NUMBER:
        return column.expression, pa.array(values, pa.bool_() if column.kind is _Kind.TRUTH else pa.string())
    if pa.types.is_integer(column.type) and all(isinstance(value, int) for value in values):
        with suppress(OverflowError, pa.ArrowInvalid):
            return column.expression, pa.array(values, column.type)
    return column.expression.cast(pa.float64(), safe=False), pa.array([float(value) for value in values], pa.float64())
