"""README.md and docs: what they tell a user to type runs, and where they point there is something."""

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
README = (ROOT / "README.md").read_text()


def commands(text: str) -> list[str]:
    """Return what stands after "$ " in indented lines, without comments."""
    return [line.split(" # ")[0].strip() for line in re.findall(r"^    \$ (.*)$", text, re.MULTILINE)]


def test_the_first_commands_are_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()

    targets = [command.split()[1] for command in commands(README) if command.startswith("make ")]

    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("page", "least"), [pytest.param("README.md", 10, id="readme"), pytest.param("docs/bulk.md", 4, id="bulk")]
)
def test_the_commands_of_a_page_run_one_after_the_other(tmp_path, page, least):
    """In an empty folder with the names the page uses; only downloading the default model is left out."""
    text = (ROOT / page).read_text()
    (tmp_path / "shards").mkdir()
    (tmp_path / "val").mkdir()
    samples = ROOT / "models" / "samples" / "photos.tar"
    for number in range(100):
        shutil.copy(samples, tmp_path / "shards" / f"train-{number:05d}.tar") if number < 2 else None
    shutil.copy(samples, tmp_path / "val" / "photos.tar")
    with tarfile.open(samples) as tar:
        tar.extract("chelsea.jpg", tmp_path, filter="data")
    pq.write_table(pa.table({"url": ["chelsea.jpg"]}), tmp_path / "urls.parquet")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command: list[str] | str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
            shell=isinstance(command, str), executable="/bin/bash" if isinstance(command, str) else None,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    ran = 0
    for command in commands(text):
        if command.startswith(("make ", "curl ")) or "models pull" in command or "models verify resnet18-v2" in command:
            continue
        if "shardlabel serve" in command:
            continue  # it stays: see test_serve.py
        if "--fit" in command:
            continue  # it wants 50 images: see test_calibrated.py
        run(command.replace(".venv/bin/", "").replace("{00000..00099}", "{00000..00001}"))
        ran += 1
    assert ran >= least
    if page != "README.md":
        return
    python = "\n".join(re.findall(r"^    (import .*|table = .*)$", README, re.MULTILINE))
    assert "read_table" in python
    assert run([sys.executable, "-c", python + "\nprint(table.num_rows)"]).strip() == "16"


FOLDERS = ("", "docs", "examples")
PAGES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def anchors(path: Path) -> set[str]:
    """Return the anchors that a page's headings have, as the usual renderers of Markdown make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^ {4}.*?$|^```.*?^```", "", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_project_leads_somewhere(page):
    path = ROOT / page

    for target in re.findall(r"\]\((?!https?://)([^)]+)", path.read_text()):
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), f"{page} points to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page} points to {target}"


def test_every_page_of_the_documentation_is_in_its_index():
    index = (ROOT / "docs" / "README.md").read_text()

    for path in (ROOT / "docs").glob("*.md"):
        assert f"({path.name})" in index or path.name == "README.md", path.name
