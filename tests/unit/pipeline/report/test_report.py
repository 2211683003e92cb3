from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from hashlib import sha256
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import SourceError, StorageError
from pipeline.dest.commits import CommitLog
from pipeline.report.contact_sheet import Group
from pipeline.report.findings import gather
from pipeline.report.page import write_report
from pipeline.report.unit_table import UnitTable
from pipeline.sources.unit import part_name
from pipeline.storage.storage import open_storage
from tests.support.tiny_dest import made_up_dest, make_dest
from tests.support.tiny_model import build_tiny_model, colour_jpeg, colour_shards, write_tar

EVIL = '</style><img src=x onerror="alert(1)">&\'"{{ 7 * 191 }}'


class Page(HTMLParser):
    """What the tests look at in a page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path):
    write_report(str(tmp_path / "out"), str(tmp_path / "page.html"))
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_counts_labels_and_scores_are_those_of_the_rows(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=3, samples=5)
    dest = make_dest(tmp_path, tiny_model)

    found = gather(dest)

    assert found.counts.labels == {0: ("red", 6), 1: ("green", 6), 2: ("blue", 3)}
    scores = pq.read_table(tmp_path / "out").column("score").to_numpy()
    assert found.counts.scores.tolist() == np.histogram(scores, bins=20, range=(0, 1))[0].tolist()
    assert found.sentence() == "15 images: 15 ok; 3 of 3 units are finished"


def test_the_page_says_what_run_it_is(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    make_dest(tmp_path, tiny_model)

    message = write_report(str(tmp_path / "out"), str(tmp_path / "deep" / "page.html"))

    words = Page((tmp_path / "deep" / "page.html").read_text()).words
    for part in ("tiny", "fp32", "exact", "ab" * 32, str(tmp_path / "in"), "finished", "0.0.9", version("shardlabel")):
        assert part in words
    assert re.match(r"5 images: 5 ok; 1 of 1 units are finished\nreport: .*page\.html \(\d", message)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_the_distribution_of_labels_and_scores_stands_above_the_samples(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    make_dest(tmp_path, tiny_model)

    words = page_of(tmp_path).words

    headings = ["Labels", "Scores", "Samples", "Images without a label", "Throughput", "Shards", "Sizes", "The run"]
    assert [line for line in words.splitlines() if line in headings] == headings


def test_errors_are_shown_by_kind_with_examples(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    bad = {f"b{i}.jpg": b"" for i in range(7)} | {"e.jpg": colour_jpeg("red")[:200]}
    write_tar(tmp_path / "in" / "x.tar", {"a.jpg": colour_jpeg("red"), **bad})
    dest = make_dest(tmp_path, tiny_model)

    found = gather(dest)

    assert [row.key for row in found.examples["empty"]] == ["b0", "b1", "b2", "b3", "b4"]
    assert [(row.key, row.status) for row in found.examples["undecodable"]] == [("e", "undecodable")]
    assert {row.status for row in found.sheet.groups[Group.BAD][:2]} == {"empty", "undecodable"}
    words = page_of(tmp_path).words
    assert "empty: the first 5 of 7" in words
    assert found.examples["undecodable"][0].error in words
    assert "empty777.78 %" in words


def test_nothing_that_users_name_can_become_markup(tmp_path, tiny_model):
    folder = tmp_path / "model"
    folder.mkdir()
    model = build_tiny_model(folder)
    (folder / "colours.txt").write_text(f"{EVIL}\ngreen\nblue\n")
    (tmp_path / "in").mkdir()
    members = {f"{EVIL}/a.jpg": colour_jpeg("red"), f"{EVIL}/b.jpg": b"{key} {0} hello", f"{EVIL}\x00c.jpg": b""}
    write_tar(tmp_path / "in" / "x{y}.tar", members)
    make_dest(tmp_path, model)

    page = page_of(tmp_path)

    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.words.count("onerror=") >= 3
    assert page.words.count("{{ 7 * 191 }}") >= 3
    assert "1337" not in page.words
    assert EVIL in [sample["data-label"] for sample in page.all("li")]


def test_characters_that_a_page_may_not_hold_are_replaced(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", {"fdp\u202egpj.jpg": b"", "bell\x07.jpg": colour_jpeg("red")})
    make_dest(tmp_path, tiny_model)

    page_of(tmp_path)

    text = (tmp_path / "page.html").read_text()
    assert "fdp�gpj" in text
    assert "bell�" in text
    assert not set(text) & {"\u202e", "\x07"}


def test_the_page_needs_nothing_from_outside(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2)
    make_dest(tmp_path, tiny_model)

    page = page_of(tmp_path)

    assert page.all("script") == [{}]
    assert not page.all("link")
    (script,) = re.findall(r"<script>(.*?)</script>", (tmp_path / "page.html").read_text(), re.DOTALL)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    # No other script runs, whatever a name holds.
    assert policy.endswith(f"script-src 'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'")
    assert not re.search(r"https?://", (tmp_path / "page.html").read_text())
    assert not [attrs for _, attrs in page.tags if str(attrs.get("src", "data:")).partition(":")[0] != "data"]


def test_the_page_can_be_read_by_a_screen_reader(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2)
    make_dest(tmp_path, tiny_model)

    page = page_of(tmp_path)

    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("caption")) == len(page.all("table")) > 3
    assert all(image["alt"] for image in page.all("img"))
    assert all(attrs.get("aria-label") for _, attrs in page.tags if attrs.get("role") in ("img", "region"))


def test_a_run_that_is_not_finished_has_a_page_too(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=4)
    make_dest(tmp_path, tiny_model, finish=1)

    words = page_of(tmp_path).words

    assert "unfinished" in words
    assert "1 of 4 units are finished" in words


def test_a_run_that_has_only_a_plan_has_a_page_too(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2)
    make_dest(tmp_path, tiny_model, finish=0)

    assert "0 of 2 units are finished" in page_of(tmp_path).words


def test_a_source_that_is_gone_is_said_and_the_rest_is_there(tmp_path, tiny_model):
    for path in colour_shards(tmp_path / "in", shards=5, samples=9):
        path.rename(path)
    make_dest(tmp_path, tiny_model)
    for path in (tmp_path / "in").iterdir():
        path.unlink()

    page = page_of(tmp_path)

    assert "shard-000.tar: it does not exist" in page.words
    assert "pictures are missing" in page.words
    assert page.all("img") == []
    assert "The 3 most" in page.words or "Best labels by frequency" in page.words
    assert "000-000" in page.words


def test_incomplete_shards_and_skipped_members_are_named(tmp_path, tiny_model):
    first, second = colour_shards(tmp_path / "in", shards=2, samples=6)
    first.write_bytes(first.read_bytes()[:5000])
    write_tar(second, {"README": b"no key", "a.jpg": colour_jpeg("red")})
    make_dest(tmp_path, tiny_model)

    words = page_of(tmp_path).words

    assert "shard-000.tartruncated" in words
    assert "no_key1" in words


def test_a_part_that_cannot_be_read_is_named_and_the_others_count(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=3)
    dest = make_dest(tmp_path, tiny_model)
    (tmp_path / "out" / part_name(1)).write_bytes(b"PAR1 no more")

    found = gather(dest)

    assert set(found.counts.unreadable) == {part_name(1)}
    assert sum(count for _, count in found.counts.labels.values()) == 10
    assert part_name(1) in page_of(tmp_path).words


def test_a_unit_that_is_recorded_twice_counts_once(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2)
    dest = make_dest(tmp_path, tiny_model)
    (path,) = (tmp_path / "out" / "_shardlabel" / "commits").glob("*-000000000-*")
    path.with_name("commits-000000009-abcdef01.jsonl").write_bytes(path.read_bytes())

    assert gather(dest).sentence() == "10 images: 10 ok; 2 of 2 units are finished"


def test_a_merge_of_records_while_they_are_read_does_not_matter(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=3)
    make_dest(tmp_path, tiny_model)
    original = CommitLog.records

    def merged_meanwhile(self, names=None):
        monkeypatch.setattr(CommitLog, "records", original)
        raise StorageError("cannot read commits-0.jsonl: it does not exist") from FileNotFoundError()

    monkeypatch.setattr(CommitLog, "records", merged_meanwhile)

    assert "15 images: 15 ok" in write_report(str(tmp_path / "out"), str(tmp_path / "page.html"))


def test_classes_of_one_name_stay_apart(tmp_path):
    made_up_dest(tmp_path / "out", 3000, classes=3, name="crane")

    page = page_of(tmp_path)

    assert all(f"crane ({label_id})" in page.words for label_id in range(3))


def test_images_count_over_the_time_that_their_unit_took():
    table = UnitTable(3)
    table.done[:] = True
    table.rows[:] = (100, 50, 0)
    table.seconds[:] = (10.0, 5.0, 1.0)
    table.ended[:] = (1010.0, 1020.0, 5000.0)

    images, edges = table.images_over_time(4)

    assert edges.tolist() == [1000.0, 1005.0, 1010.0, 1015.0, 1020.0]
    assert images.tolist() == [50.0, 50.0, 0.0, 50.0]
    table.ended[1] = np.nan
    assert table.images_over_time(4) is None


def test_the_command_says_where_the_page_is(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=1)
    make_dest(tmp_path, tiny_model)
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(build_app(), ["report", "out"])
    again = CliRunner().invoke(build_app(), ["report", "out"])
    wrong = CliRunner().invoke(build_app(), ["report", "in"])

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("5 images: 5 ok; 1 of 1 units are finished\nreport: report.html (")
    assert "replaced" not in done.stdout
    assert re.search(r"report: report\.html \([^,]*, replaced\)$", again.stdout.strip())
    assert (tmp_path / "report.html").exists()
    assert isinstance(wrong.exception, SourceError)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="holds no run of shardlabel"):
        write_report(str(tmp_path), str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_a_file_is_not_taken_for_a_folder_that_is_missing(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    make_dest(tmp_path, tiny_model)
    part = tmp_path / "out" / part_name(0)

    with pytest.raises(
        SourceError, match=f"{part} holds no run of shardlabel: it is a file; give a folder that `label`"
    ):
        write_report(str(part), str(tmp_path / "page.html"))
    with pytest.raises(SourceError, match="there is no such folder"):
        write_report(str(tmp_path / "nowhere"), str(tmp_path / "page.html"))


# In a process of its own, which ends without stopping tracemalloc: CPython may crash there where pyarrow has threads.
MEASURE = """
import os, sys, tracemalloc
from pipeline.quantities import bytes_text, count_text, duration_text, rate_text, share_text
from pipeline.report.findings import gather
from pipeline.storage.storage import open_storage
from pipeline.report.unit_table import UnitTable
tracemalloc.start()
for folder in (sys.argv[1], *sys.argv[1:]):
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    gather(open_storage(folder))
    print(tracemalloc.get_traced_memory()[1] - before, flush=True)
os._exit(0)
"""


def test_memory_does_not_grow_with_rows(tmp_path):
    for rows in (40_000, 160_000):
        made_up_dest(tmp_path / str(rows), rows)

    command = [sys.executable, "-c", MEASURE, str(tmp_path / "40000"), str(tmp_path / "160000")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4]).stdout

    _, small, large = map(int, printed.split())  # the first is for what is imported late
    # A list of the other 120,000 labels alone would be 7 MB.
    assert large < small + 2**20, printed


def test_the_page_is_small_and_counts_every_row(tmp_path):
    num_ok = made_up_dest(tmp_path / "out", 40_000)

    counts = gather(open_storage(str(tmp_path / "out"))).counts

    assert counts.scores.sum() == sum(count for _, count in counts.labels.values()) == num_ok
    assert len(counts.labels) > 4900
    write_report(str(tmp_path / "out"), str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size < 200_000


def test_pictures_in_the_page_are_jpegs_of_at_most_128_pixels(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    make_dest(tmp_path, tiny_model)

    images = page_of(tmp_path).all("img")

    assert len(images) == 5
    for image in images:
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"), validate=True)
        assert max(Image.open(io.BytesIO(data)).size) <= 128
