"""Answers in any of their forms, and what is wrong with some, each in one line that names the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.catalog import load_spec
from models.errors import ConfigError
from models.labels import LabelText, label_texts
from pipeline.dest.plan import Plan, open_plan
from pipeline.review.answers import read_answers
from pipeline.review.classes import NO_CLASS_ID, Classes
from pipeline.review.draws import Draw, DrawnRow, Stratum
from pipeline.review.ranking import By
from pipeline.review.sample import Wanted, draw_sample
from tests.support.tiny_dest import make_dest
from tests.support.tiny_model import colour_shards

NAMES = ("cat", "great white shark", "crane", "7 up, lemonade", "crane", "1990")


def draw_of(names=NAMES):
    rows = [DrawnRow(0, i, "a.tar", f"key,{i}", i, 0.5, Stratum.RANDOM, True, name) for i, name in enumerate(names)]
    return Draw(1, By.MARGIN, 1, 0, "", 1, tuple(rows))


def classes_of(draw, **settings):
    return Classes(Plan({"model": "not in the catalog", **settings}, 1, 1, 1), draw.rows)


def read(path: Path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    draw = draw_of()
    return read_answers([path], [draw], classes_of(draw))


def test_an_answer_is_a_name_or_a_number_and_empty_is_none_given(tmp_path):
    text = 'shard,key,label\na.tar,"key,0",Great_White shark\na.tar,"key,1",1\na.tar,"key,2", none \na.tar,"key,3",\n\n'

    found = read(tmp_path / "a.csv", text)

    assert found.classes == {("a.tar", "key,0"): 1, ("a.tar", "key,1"): 1, ("a.tar", "key,2"): NO_CLASS_ID}
    assert found.empty == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'\xef\xbb\xbfshard,key,label\r\na.tar,"key,0",cat\r\n', id="byte order mark"),
        pytest.param("shard;key;label\na.tar;key,0;cat\n", id="semicolons"),
        pytest.param("shard\tkey\tlabel\na.tar\tkey,0\tcat\n", id="tabs"),
        pytest.param('label,image,Shard,id,KEY\ncat,"data:,x",a.tar,9,"key,0"\n', id="other columns and case"),
        pytest.param('label,image,shard,key\ncat,"' + "x" * 300_000 + '",a.tar,"key,0"\n', id="a picture in it"),
    ],
)
def test_lists_of_other_programs_are_read(tmp_path, content):
    assert read(tmp_path / "a.csv", content).classes == {("a.tar", "key,0"): 0}


def test_label_studios_json_min_is_read(tmp_path):
    tasks = [{"shard": "a.tar", "key": "key,0", "label": "cat", "id": 7}, {"shard": "a.tar", "key": "key,1", "id": 8}]

    found = read(tmp_path / "a.json", json.dumps(tasks))

    assert (found.classes, found.empty) == ({("a.tar", "key,0"): 0}, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "its first line must name the columns shard, key and label, got nothing"),
        ("shard,key\n", "got 'shard', 'key'"),
        ("shard,key,label\na.tar\n", "line 2: expected 3 values, got 1"),
        ('shard,key,label\na.tar,"key,0",cat\nb.tar,x,cat\n', "line 3: no draw of DEST has .* shard 'b.tar' and key 'x'"),
        ('shard,key,label\na.tar,"key,0",caat\n', "line 2: 'caat' is not a class of DEST; similar names are 'cat'"),
        ('shard,key,label\na.tar,"key,0",99\n', "line 2: '99' is not a class of DEST; expected a class's name or number"),
        ('shard,key,label\na.tar,"key,0",crane\n', r"'crane' is a name of several classes: 2 \(crane\), 4 \(crane\)"),
        ('shard,key,label\na.tar,"key,0",cat\na.tar,"key,0",1\n', "line 3: .* another answer than in .*, line 2"),
        (b"shard,key,label\n\xff", "must be UTF-8, but is not at byte 16"),
        (b'shard,key,label\n"a', "cannot be read as CSV"),
        (b"shard,key,label\n\0,\0,\0\n", "no draw of DEST"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line_that_names_the_place(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path / "a.csv", content)

    assert str(tmp_path / "a.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "must be a list of tasks"),
        ("[1]", "task 1: expected shard, key and label as text"),
        ('[{"shard": 1}]', "task 1: expected shard, key and label as text"),
        ("[", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[" + "9" * 5000 + "]", "cannot be read as JSON"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said):
        read(tmp_path / "a.json", content)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.csv cannot be read: No such file or directory; give the CSV file"):
        read_answers([tmp_path / "nowhere.csv"], [], classes_of(draw_of()))


def test_the_same_answer_twice_is_one(tmp_path):
    assert len(read(tmp_path / "a.csv", "shard,key,label\n" + 2 * 'a.tar,"key,0",cat\n').classes) == 1


def test_every_class_is_called_so_that_the_name_comes_back_as_the_class():
    draw = draw_of()
    classes = classes_of(draw)

    assert classes.names[2] == "crane (2)"
    assert classes.names[4] == "crane (4)"
    assert classes.names[5] == "1990 (5)"
    assert len(set(classes.names.values())) == len(NAMES)
    assert {classes.find(name): index for index, name in classes.names.items()} == {i: i for i in range(len(NAMES))}


def test_classes_are_those_of_the_model_where_the_catalog_has_it():
    from hashlib import sha256

    labels = label_texts(load_spec("efficientnet-lite0"), LabelText.NAME)
    digest = sha256("\n".join(labels).encode()).hexdigest()
    draw = draw_of((labels[0],))

    known = classes_of(draw, model="efficientnet-lite0", labels="name", **{"class names": digest})
    other = classes_of(draw, model="efficientnet-lite0", labels="name", **{"class names": "of another"})

    assert len(known.names) == 1000
    assert known.find("n01440764") == known.find("Tinca tinca") == 0
    assert {known.find(name): index for index, name in known.names.items()} == {i: i for i in range(1000)}
    assert other.names == {0: labels[0]}


def test_classes_that_no_drawn_image_has_are_named_by_the_best_k_of_others(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=6)
    dest = make_dest(tmp_path, tiny_model)
    draw = draw_sample(dest, open_plan(dest), Wanted(By.RANDOM, 1)).draw

    classes = Classes.of(dest, open_plan(dest), [row for row in draw.rows if row.label == "red"])

    assert "red" in classes.names.values()
    assert len(classes.names) > 1
    assert all(classes.find(name) == index for index, name in classes.names.items())


def test_a_class_that_is_called_none_is_one():
    draw = draw_of(("some", "None"))

    assert classes_of(draw).find("none") == 1
