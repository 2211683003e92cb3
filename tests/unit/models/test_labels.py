from __future__ import annotations

import pytest

from models.catalog import load_labels, load_spec
from models.errors import ArtifactError, ConfigError, SignatureError
from models.labels import ClassFinder, ClassName, LabelText, check_classes, label_texts, load_classes


@pytest.fixture(scope="module")
def classes():
    return load_classes(load_spec("resnet18-v2"))


def test_the_catalog_keeps_synset_id_and_all_synonyms(classes):
    assert classes[2] == ClassName("n01484850", "great white shark, white shark, man-eater, man-eating shark, "
                                   "Carcharodon carcharias")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"),
    [(LabelText.NAME, "tench"), (LabelText.WNID, "n01440764"), (LabelText.ALL, "tench, Tinca tinca")],
)
def test_a_label_is_the_first_name_the_synset_id_or_all_names(kind, text):
    assert label_texts(load_spec("resnet18-v2"), kind)[0] == text


def test_synset_ids_that_a_model_does_not_have_are_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"--labels wnid: class 0 of tiny \('red'\) has no synset id in colours\.txt"):
        label_texts(load_spec(str(tiny_model)), LabelText.WNID)


@pytest.mark.parametrize(
    "text",
    ["2", "n01484850", "great white shark", "White_Shark", "man-eater", "Carcharodon  carcharias",
     "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"],
)  # fmt: skip
def test_a_class_is_found_by_index_synset_id_or_any_name(classes, text):
    assert ClassFinder(classes).find(text) == 2


def test_a_name_of_two_classes_is_no_answer_and_says_which(classes):
    finder = ClassFinder(classes)

    assert finder.find("crane") is None
    assert "a name of several classes: 134 (crane), 517 (crane)" in finder.explain("crane")
    assert (finder.find("n02012849"), finder.find("n03126707")) == (134, 517)


@pytest.mark.parametrize("text", ["1000", "-1", "99999999999999999999", "zebrafish", "", "n99999999"])
def test_what_is_no_class_is_none_and_says_what_was_expected(classes, text):
    finder = ClassFinder(classes)

    assert finder.find(text) is None
    assert "expected 0 to 999, or a synset id or name" in finder.explain(text)


def test_labels_with_a_byte_order_mark_and_blank_lines_at_the_end_are_read(tiny_model, tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc\r\n\r\n")
    spec = load_spec(str(tiny_model)).model_copy(update={"labels": "names.txt", "folder": tmp_path})

    assert load_labels(spec) == ("a", "b", "c")


def test_labels_that_are_not_utf8_are_an_error_that_names_the_file(tiny_model, tmp_path):
    (tmp_path / "names.txt").write_bytes(b"caf\xe9\n")
    spec = load_spec(str(tiny_model)).model_copy(update={"labels": "names.txt", "folder": tmp_path})

    with pytest.raises(ArtifactError, match=r"cannot read .*names\.txt"):
        load_labels(spec)


def test_labels_of_another_number_of_classes_are_refused(tiny_model):
    spec = load_spec(str(tiny_model))
    check_classes(spec, 3)

    with pytest.raises(SignatureError, match=r"tiny has 4 classes, but its labels file colours\.txt names 3"):
        check_classes(spec, 4)
