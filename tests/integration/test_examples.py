"""examples/, docs/python.md and the README's Python: each runs as it stands there, on the bundled photographs and model."""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pipeline.session.local import stop_ray

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PHOTOGRAPHS = {"astronaut", "camera", "chelsea", "china", "coffee", "flower", "grace_hopper", "rocket"}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory) -> Iterator[Path]:
    """Go to a folder that has of the project what examples read, and start one Ray there for all of them."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "models").symlink_to(ROOT / "models")
    (folder / "examples").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stop_ray()
        # Ray's workers stay in the folder where it was started.
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield folder
        ray.shutdown()


def test_labels_are_queried_with_duckdb(capsys):
    runpy.run_path(str(EXAMPLES / "query_with_duckdb.py"), run_name="__main__")

    told = capsys.readouterr().out
    assert "8 of 8 images have a label" in told
    counted, _, unsure = told.partition("Images for a person to check")
    assert "espresso" in counted
    assert "grace_hopper" in unsure
    assert "coffee" not in unsure


def test_portraits_are_each_others_nearest_neighbours(capsys):
    runpy.run_path(str(EXAMPLES / "nearest_neighbours.py"), run_name="__main__")

    told = capsys.readouterr().out
    assert "astronaut (football helmet) is nearest to grace_hopper" in told
    assert "grace_hopper (mortarboard) is nearest to astronaut" in told
    assert {line.split()[0] for line in told.splitlines() if "is nearest to" in line} == PHOTOGRAPHS


def test_the_notebook_runs_cell_by_cell_and_holds_no_output(project, monkeypatch):
    monkeypatch.chdir(project / "examples")  # as Jupyter does
    cells = [
        one for one in json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"] if one["cell_type"] == "code"
    ]

    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)

    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert set(names["table"].index) == PHOTOGRAPHS
    assert names["table"].loc["coffee", "label"] == "espresso"
    assert names["least_sure"].name == "grace_hopper"


def test_labelling_between_own_operators_writes_thumbnails_of_what_is_sure(capsys):
    runpy.run_path(str(EXAMPLES / "ray_data_pipeline.py"), run_name="__main__")

    rows = pq.read_table("out/examples/thumbnails").to_pylist()
    assert "coffee: espresso (0.95)" in capsys.readouterr().out
    assert {row["key"] for row in rows} == PHOTOGRAPHS - {"astronaut", "grace_hopper"}
    assert {max(Image.open(io.BytesIO(row["bytes"])).size) for row in rows} == {96}


def test_the_python_of_the_documents_runs_one_block_after_the_other(project, capfd):
    samples = ROOT / "models" / "samples" / "photos.tar"
    (project / "shards").mkdir()
    for number in range(2):
        shutil.copy(samples, project / "shards" / f"train-{number:05d}.tar")
    with tarfile.open(samples) as tar:
        images = {one.name: tar.extractfile(one).read() for one in tar if one.name.endswith((".jpg", ".png", ".webp"))}
    table = pa.table({"image": list(images.values()), "name": list(images)})
    pq.write_table(table, project / "photos.parquet")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    (readme,) = re.findall(r"^    import ray\n(?:    .*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    blocks.append("\n".join(line[4:] for line in readme.replace('"labelled"', '"all"').splitlines()))
    assert len(blocks) == 4

    exec("\n".join(blocks), {})

    sure, every = (pq.read_table(project / name).to_pylist() for name in ("labelled", "all"))
    assert sorted(row["name"] for row in every) == sorted(images)
    assert {row["name"]: row["label"] for row in every}["coffee.webp"] == "espresso"
    assert [row["name"] for row in sure] == [row["name"] for row in every if (row["score"] or 0) > 0.5]
    assert "16 16 {} {}" in capfd.readouterr().out.splitlines()  # among what Ray says
    assert len(list((project / "labels").glob("*.parquet"))) == 2


def test_each_example_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text()

    for path in EXAMPLES.iterdir():
        assert f"({path.name})" in table or path.suffix not in {".py", ".ipynb"}, path.name
