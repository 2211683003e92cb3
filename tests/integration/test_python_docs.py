"""docs/python.md and the README's Python: what they show runs, as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_python_of_the_documents_runs_one_block_after_the_other(tmp_path):
    samples = ROOT / "models" / "samples" / "photos.tar"
    (tmp_path / "shards").mkdir()
    for number in range(2):
        shutil.copy(samples, tmp_path / "shards" / f"train-{number:05d}.tar")
    with tarfile.open(samples) as tar:
        images = {one.name: tar.extractfile(one).read() for one in tar if one.name.endswith((".jpg", ".png", ".webp"))}
    table = pa.table({"image": list(images.values()), "name": list(images)})
    pq.write_table(table, tmp_path / "photos.parquet")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    (readme,) = re.findall(r"^    import ray\n(?:    .*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    blocks.append("\n".join(line[4:] for line in readme.replace('"labelled"', '"all"').splitlines()))
    assert len(blocks) == 4

    code = "import ray\nray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n" + "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    sure, every = (pq.read_table(tmp_path / name).to_pylist() for name in ("labelled", "all"))
    assert sorted(row["name"] for row in every) == sorted(images)
    assert {row["name"]: row["label"] for row in every}["coffee.webp"] == "espresso"
    assert [row["name"] for row in sure] == [row["name"] for row in every if (row["score"] or 0) > 0.5]
    assert "16 16 {} {}" in done.stdout.splitlines()  # among what Ray says
    assert len(list((tmp_path / "labels").glob("*.parquet"))) == 2
