"""`from pipeline import label, read_shards, run` on a Ray that the caller has: the values of the command, and no hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from models.errors import ConfigError, UnknownModelError
from pipeline import LabelConfig, label, read_shards, run
from pipeline.session.local import stop_ray
from tests.support.shard_factory import huggingface_images, tar_bytes
from tests.support.tiny_model import COLOURS, colour_jpeg, colour_shards

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ADDED = ["label", "label_id", "score", "top_labels", "top_ids", "top_scores", "width", "height", "status", "error"]


def start_ray(cpus: int) -> None:
    stop_ray()
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False


@pytest.fixture(scope="module")
def callers_ray() -> Iterator[None]:
    """Start a Ray of two CPUs, as a notebook has it."""
    start_ray(2)
    yield
    ray.shutdown()


def table_of(dataset: ray.data.Dataset) -> pa.Table:
    return pa.concat_tables([ray.get(block) for block in dataset.to_arrow_refs()])


def rows_of(table: pa.Table) -> list[dict]:
    return sorted(table.to_pylist(), key=lambda row: (row["shard"], row["key"]))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Return a folder of whole tars, one with bad members, one that is truncated, and one that is none."""
    folder = tmp_path_factory.mktemp("shards")
    colour_shards(folder, shards=2, samples=40)
    members = [("a.jpg", b"no image"), ("b.jpg", b""), ("c.cls", b"1"), ("d.jpg", colour_jpeg("blue"))]
    (folder / "shard-bad.tar").write_bytes(tar_bytes(members))
    (folder / "shard-cut.tar").write_bytes(tar_bytes([("e.jpg", colour_jpeg("red")), ("f.jpg", bytes(9000))])[:9000])
    (folder / "shard-none.tar").write_bytes(b"no tar at all" * 100)
    return folder


@pytest.mark.parametrize("device", ["cpu", "simulated:5000"])
def test_labels_of_read_shards_are_what_the_command_writes(callers_ray, shards, tmp_path, tiny_model, device):
    options = {"model": str(tiny_model), "top_k": 3, "device": device, "embeddings": device == "cpu"}
    report = run(LabelConfig(source=shards, output=tmp_path / "out", progress="none", **options))

    labelled = table_of(label(read_shards(shards), **options))

    written = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
    assert report.images == labelled.num_rows == 2 * 40 + 5
    assert rows_of(labelled.drop_columns(["bytes"]).select(written.column_names)) == rows_of(written)
    assert labelled.column_names == ["shard", "key", "bytes", *ADDED, *["embedding"] * (device == "cpu")]
    for field in written.schema:
        assert labelled.schema.field(field.name).type == field.type, field.name
    assert {row["key"]: row["status"] for row in rows_of(labelled) if row["shard"] == "shard-bad.tar"} == {
        "a": "undecodable", "b": "empty", "c": "empty", "d": "ok"
    }  # fmt: skip


def test_a_users_own_dataset_keeps_its_rows_columns_and_order_and_is_written_by_ray(
    callers_ray, tmp_path, tiny_model, monkeypatch
):
    # Without it Ray Data writes what is there first, and the pieces of a block may come apart.
    monkeypatch.setattr(ray.data.DataContext.get_current().execution_options, "preserve_order", True)
    names = [list(COLOURS)[i % 3] for i in range(300)]
    images = huggingface_images([{"bytes": colour_jpeg(name), "path": f"{i}.jpg"} for i, name in enumerate(names)])
    (tmp_path / "in").mkdir()
    for part in range(2):
        rows = slice(150 * part, 150 * part + 150)
        table = pa.table({"image": images[rows], "number": list(range(300))[rows], "label": names[rows]})
        pq.write_table(table, tmp_path / "in" / f"{part}.parquet")
    dataset = ray.data.read_parquet(str(tmp_path / "in"))

    with pytest.raises(ConfigError, match="already has columns label, which labelling adds; give prefix="):
        label(dataset, image_column="image", model=str(tiny_model), top_k=3)
    label(dataset, image_column="image", model=str(tiny_model), top_k=3, prefix="our_").write_parquet(
        str(tmp_path / "out")
    )

    files = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    written = pa.concat_tables(files, promote_options="permissive")
    assert written.column_names == ["image", "number", "label", *(f"our_{name}" for name in ADDED)]
    assert sorted(written["number"].to_pylist()) == list(range(300))
    assert written["our_label"].to_pylist() == written["label"].to_pylist()
    assert set(written["our_status"].to_pylist()) == {"ok"}
    for file in files:
        numbers = file["number"].to_pylist()
        for part in range(2):  # pieces of two blocks may lie between one another's
            mine = [number for number in numbers if number // 150 == part]
            assert mine == sorted(mine)


def test_what_cannot_be_is_told_before_anything_runs(callers_ray, tmp_path, tiny_model):
    dataset = ray.data.from_items([{"picture": colour_jpeg("red")}])

    with pytest.raises(UnknownModelError, match="resnet-19"):
        label(dataset, image_column="picture", model="resnet-19")
    with pytest.raises(ConfigError, match=r"'bytes': there is no such column; there are picture \(binary\)"):
        label(dataset, model=str(tiny_model), top_k=3)
    with pytest.raises(ConfigError, match=r"--top-k must be between 1 and 3 \(classes of tiny\), got 5"):
        label(dataset, image_column="picture", model=str(tiny_model), top_k=5)
    with pytest.raises(ConfigError, match="num_gpus=1 is for a GPU"):
        label(dataset, image_column="picture", model=str(tiny_model), top_k=3, device="cpu", num_gpus=1)
    with pytest.raises(ConfigError, match="decode"):
        label(dataset, image_column="picture", model=str(tiny_model), top_k=3, decode="slow")


POISON = """
import os, signal, sys
import models.decode.decode

decode_image = models.decode.decode.decode_image

def poisoned(data, *args, **kwargs):
    if b"POISON" in bytes(data):
        with open({log!r}, "a") as file:
            file.write(sys.argv[0] + "\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_image(data, *args, **kwargs)

models.decode.decode.decode_image = poisoned
"""


DEADLY = """
import os, signal
import pipeline.dest.writer

def build_batch(*args):
    with open({log!r}, "a") as file:
        file.write("died\\n")
    os.kill(os.getpid(), signal.SIGKILL)

pipeline.dest.writer.build_batch = build_batch
"""


@pytest.mark.long
def test_what_kills_its_process_though_decoded_apart_fails_the_dataset_and_does_not_go_round(
    tmp_path, tiny_model, monkeypatch
):
    log = tmp_path / "deaths"
    (tmp_path / "sitecustomize.py").write_text(DEADLY.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start_ray(1)
    try:
        with pytest.raises(ray.exceptions.RayError):
            label(ray.data.from_items([{"bytes": colour_jpeg("red")}]), model=str(tiny_model), top_k=3).take_all()
    finally:
        ray.shutdown()

    assert log.read_text().splitlines() == ["died"] * 4


def test_images_that_kill_their_process_are_rows_on_one_cpu(tmp_path, tiny_model, monkeypatch):
    """Also: reading by tasks of a whole CPU comes to its end on one CPU."""
    log = tmp_path / "deaths"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    poison = (3, 17, 31)
    images = [colour_jpeg("green") + b"POISON" * (i in poison) for i in range(40)]
    pq.write_table(pa.table({"bytes": images, "number": range(40)}), tmp_path / "in.parquet")
    start_ray(1)
    try:
        labelled = table_of(label(ray.data.read_parquet(str(tmp_path / "in.parquet")), model=str(tiny_model), top_k=3))
    finally:
        ray.shutdown()

    assert labelled["number"].to_pylist() == list(range(40))
    assert labelled["status"].to_pylist() == ["undecodable" if i in poison else "ok" for i in range(40)]
    assert {labelled["error"][i].as_py() for i in poison} == {"the decoder died (signal SIGKILL)"}
    deaths = log.read_text().splitlines()
    assert len([name for name in deaths if "isolated" not in name]) == 1  # of the actor: from then on it takes care
    assert len(deaths) == 1 + len(poison)
