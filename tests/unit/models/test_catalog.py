from __future__ import annotations

import pytest

from models.catalog import DEFAULT_MODEL, load_labels, load_spec, model_names
from models.errors import ArtifactError, ConfigError, UnknownModelError
from models.spec import Precision

# From the contract: what a user relies on.
RESNET_SHA256 = "3b4d048057854022232aa20bf68262e31718ab7119a17f920b8a2dc1433f824b"


def test_the_default_model_is_the_zoos_resnet():
    spec = load_spec(DEFAULT_MODEL)
    artifact = spec.artifact(Precision.FP32)

    assert (spec.name, artifact.file) == ("resnet18-v2", "resnet18-v2-7.onnx")
    assert (artifact.sha256, artifact.size_bytes) == (RESNET_SHA256, 46_806_737)
    assert (spec.input.name, spec.output.name) == ("data", "resnetv22_dense0_fwd")
    assert [(pair.top1, pair.top5) for pair in spec.reported] == [(69.93, 89.29), (69.70, 89.49)]
    assert len(artifact.sources) >= 2


ZOO_RESNETS = [f"resnet{layers}-v{version}" for layers in (18, 34, 50, 101, 152) for version in (1, 2)]


def test_the_zoos_resnets_are_all_there_and_no_two_are_one_file():
    files = {name: load_spec(name).artifact(Precision.FP32) for name in ZOO_RESNETS}

    assert len({artifact.sha256 for artifact in files.values()}) == len(ZOO_RESNETS)
    for name, artifact in files.items():
        assert artifact.file == f"{name}-7.onnx"
        assert all(url.endswith(f"/{artifact.file}") for url in artifact.sources)
        assert "ONNX_HUB_MANIFEST.json" in (artifact.note or "")
    # Weights are 4 bytes each: more layers, a larger file.
    sizes = [files[f"resnet{layers}-v2"].size_bytes for layers in (18, 34, 50, 101, 152)]
    assert sizes == sorted(sizes)


def test_what_was_reported_of_a_precision_comes_before_what_was_of_the_model():
    spec = load_spec("resnet50-v1-12")

    assert [pair.top1 for pair in spec.reported_for(Precision.INT8)] == [74.77]
    assert [pair.top1 for pair in spec.reported_for(Precision.FP32)] == [74.97]
    assert [pair.top1 for pair in load_spec("resnet18-v2").reported_for(Precision.FP32)] == [69.93, 69.70]


@pytest.mark.parametrize("name", model_names())
def test_every_entry_of_the_catalog_has_a_thousand_labels(name):
    labels = load_labels(load_spec(name))

    assert len(labels) == 1000
    assert (labels[0], labels[504], labels[999]) == ("tench", "coffee mug", "toilet tissue")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownModelError, match=r"must be one of .*resnet18-v2.*got 'resnet19'"):
        load_spec("resnet19")


def test_a_precision_that_a_model_lacks_lists_those_it_has():
    with pytest.raises(UnknownModelError, match=r"one that resnet18-v2 has \(fp32\), got int8"):
        load_spec("resnet18-v2").artifact(Precision.INT8)


def test_a_users_own_model_needs_only_its_entry_beside_it(tiny_model):
    spec = load_spec(str(tiny_model))

    assert spec.name == "tiny"
    assert load_labels(spec) == ("red", "green", "blue")
    assert spec.artifact(Precision.FP32).size_bytes == tiny_model.stat().st_size


def test_an_entry_may_be_yaml(tiny_model, tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_model.read_bytes())
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    (tmp_path / "m.yaml").write_text(
        "input: {name: pixels}\noutput: {name: scores, kind: logits}\nlabels: names.txt\n"
        "preprocessing: {resize_shorter: 8, crop: 8, interpolation: bicubic, scale: 1.0, mean: [0,0,0], std: [1,1,1]}\n"
    )

    assert load_labels(load_spec(str(tmp_path / "m.onnx"))) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(("crop = 8", "crop = 9"), r"tiny\.toml: preprocessing: .*crop must be at most", id="crop"),
        pytest.param(("scale", "scael"), r"tiny\.toml: preprocessing\.", id="misspelt"),
        pytest.param(('kind = "logits"', 'kind = "odds"'), r"output\.kind: .*'logits' or 'probabilities'", id="kind"),
        pytest.param(("[preprocessing]", "[preprocessing"), "cannot be read", id="no-toml"),
    ],
)
def test_a_malformed_entry_is_an_error_that_names_file_and_key(tiny_model, tmp_path, change, message):
    (tmp_path / "tiny.onnx").write_bytes(tiny_model.read_bytes())
    (tmp_path / "tiny.toml").write_text(tiny_model.with_suffix(".toml").read_text().replace(*change))

    with pytest.raises(ConfigError, match=message):
        load_spec(str(tmp_path / "tiny.onnx"))


def test_a_model_file_without_an_entry_says_where_it_is_expected(tiny_model, tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_model.read_bytes())

    with pytest.raises(
        ConfigError, match=r"needs an entry beside it: .*m\.toml .*shardlabel models add .*m\.onnx --name"
    ):
        load_spec(str(tmp_path / "m.onnx"))


def test_a_misspelt_model_is_an_error_that_suggests_the_nearest():
    with pytest.raises(UnknownModelError, match=r"got 'eficientnet-lite'; did you mean efficientnet-lite0\?$"):
        load_spec("eficientnet-lite")


def test_a_model_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UnknownModelError, match=r"gone\.onnx does not exist"):
        load_spec(str(tmp_path / "gone.onnx"))


def test_missing_labels_are_an_error_that_names_the_file(tiny_model):
    spec = load_spec(str(tiny_model)).model_copy(update={"labels": "none.txt"})

    with pytest.raises(ArtifactError, match=r"labels of tiny: cannot read .*none\.txt"):
        load_labels(spec)


@pytest.mark.parametrize("way", ["absolute", "up", "link", "link above", "artifact"])
def test_an_entry_names_files_of_its_own_folder_and_no_others(tiny_model, tmp_path, way):
    folder, secret = tmp_path / "theirs", tmp_path / "elsewhere" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("hunter2\n" * 3)
    folder.mkdir()
    (folder / "m.onnx").write_bytes(tiny_model.read_bytes())
    (folder / "link.txt").symlink_to(secret)
    (folder / "above").symlink_to(secret.parent)
    names = {
        "absolute": str(secret),
        "up": "../elsewhere/secret.txt",
        "link": "link.txt",
        "link above": "above/secret.txt",
    }
    if way == "artifact":
        (folder / "m.onnx").rename(secret)
        (folder / "m.onnx").symlink_to(secret)
    entry = tiny_model.with_suffix(".toml").read_text()
    labels = load_spec(str(tiny_model)).labels
    entry = entry.replace(f'labels = "{labels}"', f'labels = "{names.get(way, labels)}"')
    (folder / "m.toml").write_text(entry)

    with pytest.raises(ConfigError, match=r"m\.toml names .* outside the entry's folder") as raised:
        load_spec(str(folder / "m.onnx"))

    assert "hunter2" not in str(raised.value)


def test_files_below_the_entrys_folder_and_links_that_stay_in_it_are_taken(tiny_model, tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_model.read_bytes())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "real.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "link.txt").symlink_to("labels/real.txt")
    entry = tiny_model.with_suffix(".toml").read_text()
    labels = load_spec(str(tiny_model)).labels

    for name in ("labels/real.txt", "link.txt"):
        (tmp_path / "m.toml").write_text(entry.replace(f'labels = "{labels}"', f'labels = "{name}"'))

        assert load_labels(load_spec(str(tmp_path / "m.onnx"))) == ("red", "green", "blue")
