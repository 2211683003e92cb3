"""A condition means for each row what SQL says it means; what is none is refused in one line that says where."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from pipeline.relabel.where import MAX_DEPTH, MAX_LENGTH, parse_where

SCHEMA = pa.schema(
    [
        ("status", pa.dictionary(pa.int32(), pa.string())), ("label", pa.string()), ("score", pa.float32()),
        ("label_id", pa.int32()), ("accepted", pa.bool_()), ("big", pa.uint64()), ("a b", pa.int64()),
        ("top_ids", pa.list_(pa.int32())), ("embedding", pa.list_(pa.float32(), 2)),
    ]
)  # fmt: skip
TEXTS, NUMBERS, TRUTHS = ("status", "label"), ("score", "label_id", "big", '"a b"'), ("accepted",)
COMPARE = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def meant(text: str, rows: list[dict[str, Any]]) -> list[bool | None]:
    table = pa.Table.from_pylist(rows, SCHEMA)
    return ds.dataset(table).to_table(columns={"it": parse_where(text, SCHEMA).expression})["it"].to_pylist()


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "status": st.none() | st.sampled_from(["ok", "empty", "it's"]),
            "label": st.none() | st.sampled_from(["ok", "cat", ""]),
            "score": st.none() | st.floats(0, 1, width=32) | st.just(0.5),
            "label_id": st.none() | st.integers(-3, 3),
            "accepted": st.none() | st.booleans(),
            "big": st.none() | st.integers(0, 3) | st.just(2**64 - 1),
            "a b": st.none() | st.integers(-3, 3),
        }
    ),
    min_size=1,
    max_size=6,
)
Tree = tuple[str, Any]  # text, and a function of a row


def column(name: str) -> Tree:
    return name, lambda row: row[name.strip('"')]


def literal(value: Any) -> Tree:
    text = f"'{value.replace(chr(39), chr(39) * 2)}'" if isinstance(value, str) else str(value).lower()
    return text, lambda row: value


def compared(sign: str, left: Tree, right: Tree) -> Tree:
    def value(row: dict[str, Any]) -> bool | None:
        a, b = left[1](row), right[1](row)
        return None if a is None or b is None else COMPARE[sign](a, b)

    return f"{left[0]} {sign} {right[0]}", value


def among(name: str, values: list[Any], negated: bool) -> Tree:
    key = name.strip('"')
    items = ", ".join(literal(value)[0] for value in values)
    return (
        f"{name} {'NOT in' if negated else 'in'} ({items})",
        lambda row: None if row[key] is None else (row[key] in values) is not negated,
    )


def nothing(name: str, negated: bool) -> Tree:
    return f"{name} is{' not' if negated else ''} Null", lambda row: (row[name.strip('"')] is None) is not negated


def both(left: Tree, right: Tree) -> Tree:
    def value(row: dict[str, Any]) -> bool | None:
        pair = {left[1](row), right[1](row)}
        return False if False in pair else None if None in pair else True

    return f"({left[0]} AND {right[0]})", value


def either(left: Tree, right: Tree) -> Tree:
    def value(row: dict[str, Any]) -> bool | None:
        pair = {left[1](row), right[1](row)}
        return True if True in pair else None if None in pair else False

    return f"({left[0]} or {right[0]})", value


def inverse(inner: Tree) -> Tree:
    return f"not {inner[0]}", lambda row: None if inner[1](row) is None else not inner[1](row)


TEXT = st.sampled_from(["ok", "empty", "it's", ""])
NUMBER = st.integers(-4, 4) | st.just(2**64 - 1) | st.just(0.5) | st.floats(-1, 1)
COLUMNS = st.sampled_from([*TEXTS, *NUMBERS, *TRUTHS])
SIGNS = st.sampled_from(list(COMPARE))
LEAVES = st.one_of(
    st.builds(
        compared, SIGNS, st.sampled_from(TEXTS).map(column), TEXT.map(literal) | st.sampled_from(TEXTS).map(column)
    ),
    st.builds(compared, SIGNS, st.sampled_from(NUMBERS).map(column), NUMBER.map(literal)),
    st.builds(compared, SIGNS, NUMBER.map(literal), st.sampled_from(NUMBERS).map(column)),
    st.builds(compared, SIGNS, st.just(column("score")), st.just(column("label_id"))),
    st.builds(compared, st.sampled_from(["=", "!="]), st.just(column("accepted")), st.booleans().map(literal)),
    st.builds(among, st.sampled_from(TEXTS), st.lists(TEXT, min_size=1, max_size=3), st.booleans()),
    st.builds(among, st.sampled_from(NUMBERS), st.lists(NUMBER, min_size=1, max_size=3), st.booleans()),
    st.builds(nothing, COLUMNS, st.booleans()),
    st.just(column("accepted")),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.builds(both, inner, inner) | st.builds(either, inner, inner) | st.builds(inverse, inner),
    max_leaves=6,
)


@given(TREES, ROWS)
def test_a_condition_means_what_sql_says(tree, rows):
    text, value = tree

    assert meant(text, rows) == [value(row) for row in rows]


def test_and_binds_more_than_or_and_not_more_than_and():
    rows = [{"label_id": i, "accepted": False} for i in range(4)]

    assert meant("label_id = 0 or label_id = 1 and label_id = 2", rows) == [True, False, False, False]
    assert meant("not label_id = 0 and label_id < 2", rows) == [False, True, False, False]
    assert meant("not (label_id = 0 or accepted) and not not label_id<2", rows) == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("scor < 0.5", "character 1: there is no column scor; did you mean score?", id="misspelt"),
        pytest.param("Score < 0.5", "did you mean score?", id="another case"),
        pytest.param("zzz < 0.5", "there is no column zzz; there are status, label, score", id="like nothing"),
        pytest.param('status = "ok"', "no column \"ok\"; .*put text in 'single quotes'", id="double quotes"),
        pytest.param("score < 'x'", "character 9: score holds a number, but 'x' is text", id="type"),
        pytest.param("status in ('ok', 3)", "character 18: status holds text, but 3 is a number", id="type in a list"),
        pytest.param("accepted > true", "true and false have no order", id="order of truth"),
        pytest.param("score <", "character 8: expected a column or a value, got the end", id="cut"),
        pytest.param("", "character 1: expected a column or a value, got the end", id="empty"),
        pytest.param("score < 0.5 or", "character 15: expected a column or a value, got the end", id="open or"),
        pytest.param("(score < 0.5", r"character 13: expected `\)`, `and` or `or`, got the end", id="open parenthesis"),
        pytest.param("score < 0.5)", r"character 12: expected `and`, `or` or the end, got \)", id="closed too often"),
        pytest.param("score < 0.5 score", "expected `and`, `or` or the end, got score", id="two"),
        pytest.param("score", "character 6: expected a comparison with score, got the end", id="no truth"),
        pytest.param("0.5", "expected a comparison", id="no column"),
        pytest.param("1 = 1", "two values are compared; expected a column", id="two values"),
        pytest.param("score = null", "write `is null`", id="equals null"),
        pytest.param("status = 'ok", "character 10: a text without its closing quote", id="open quote"),
        pytest.param("score + 1 < 2", r"character 7: '\+' is not allowed there", id="arithmetic"),
        pytest.param("score -1 < 2", "got -1", id="arithmetic with a sign"),
        pytest.param("lower(status) = 'ok'", r"character 1: lower\(...\) is not allowed in a condition", id="function"),
        pytest.param("label in (select label)", "there is no column select", id="sub-query"),
        pytest.param("label like 'a%'", "expected a comparison with label, got like", id="like"),
        pytest.param("score between 0 and 1", "got between", id="between"),
        pytest.param("label in (status)", "expected a value, got column status", id="column in a list"),
        pytest.param("label in ()", r"expected a column or a value, got \)", id="empty list"),
        pytest.param("score < 1; drop", "character 10: ';' is not allowed there", id="semicolon"),
        pytest.param("score < 0.5x", "character 9: '0' is not allowed there", id="number with a letter"),
        pytest.param("top_ids = 3", "top_ids holds list<element: int32>|top_ids holds list<item: int32>", id="list"),
        pytest.param("embedding is null", "embedding holds fixed_size_list", id="embedding"),
        pytest.param("score < " + "9" * 400, "the number is too large", id="huge number"),
        pytest.param("score < " + "9" * 5000, "the number is too large", id="more digits than Python reads"),
        pytest.param("score < 1e999", "the number is too large", id="endless number"),
        pytest.param("(" * 5000 + "accepted", f"more than {MAX_DEPTH} deep", id="deep"),
        pytest.param("not " * 2000 + "accepted", f"more than {MAX_DEPTH} deep", id="many nots"),
        pytest.param("x" * (MAX_LENGTH + 1), f"has {MAX_LENGTH + 1} characters, but at most {MAX_LENGTH}", id="long"),
        pytest.param("score < \x00", "is not allowed there", id="no text"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_its_place(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_where(text, SCHEMA)

    assert len(str(caught.value).splitlines()) == 1


WORDS = ("(", ")", "not", "and", "or", "in", "is", "null", "score", "status", "=", "<", "'a'", "1", ",")


@given(st.text(max_size=30) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_is_a_condition_or_a_config_error(text):
    with suppress(ConfigError):
        meant(text, [{"score": 0.5}])


def test_a_long_condition_is_no_deep_one():
    text = " or ".join(f"label_id={i}" for i in range(600))

    assert meant(text, [{"label_id": 599}, {"label_id": 600}]) == [True, False]
