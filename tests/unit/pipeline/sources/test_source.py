"""What SOURCE names: every form of it, in one order, each shard once, and errors that name what is wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.decode.decode import ImageLimits
from models.errors import SourceError
from pipeline.config import SourceFormat
from pipeline.sources.images import read_images
from pipeline.sources.patterns import expand_braces, fixed_folder, has_pattern, is_hidden, matches, may_match_below
from pipeline.sources.sample import ShardNotes
from pipeline.sources.source import Source, format_of, in_part, open_source
from pipeline.sources.unit import Slice
from pipeline.storage.listing import Lookup, walk
from pipeline.storage.location import FileStat
from pipeline.storage.storage import open_storage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def shards(*specs: str, wanted: SourceFormat = SourceFormat.AUTO) -> list[str]:
    return names_of(open_source(specs, wanted))


def names_of(source: Source) -> list[str]:
    return [file.shard for file in source.files()]


def test_a_file_is_relative_to_its_folder(folder: Path) -> None:
    touch(folder, "data/a.tar")

    source = open_source(["data/a.tar"], SourceFormat.AUTO)

    [file] = source.files()
    assert (file.shard, file.size) == ("a.tar", len("data/a.tar"))
    assert source.base.root == str(folder / "data")
    assert source.format is SourceFormat.WEBDATASET


@pytest.mark.parametrize(
    "spec",
    ["data", "data/", "./data", "../{here}/data", "{here_path}/data", "file://{here_path}/data", "x/../data", "data//"],
)
def test_a_folder_in_any_spelling_gives_all_below_it_in_order(folder: Path, spec: str) -> None:
    touch(folder, "data/b.tar", "data/a/z.tar", "data/a-b/y.tar", "data/a.tar.gz", "data/notes.txt", "x/other.tar")

    found = shards(spec.replace("{here_path}", str(folder)).replace("{here}", folder.name))

    assert found == ["a-b/y.tar", "a.tar.gz", "a/z.tar", "b.tar"]


def test_the_order_is_that_of_paths_as_text(folder: Path) -> None:
    names = ["a/x.tar", "a-b/x.tar", "a.b/x.tar", "a0.tar", "B.tar", "é.tar", "a/b/c.tar"]
    touch(folder, *names)

    assert shards(".") == sorted(names)


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    touch(folder, "a.tar", ".b.tar", "_c.tar", "_shardlabel/d.tar", ".git/e.tar", "x/_y/f.tar")

    assert shards(".") == ["a.tar"]
    assert shards("**/*.tar") == ["a.tar"]
    assert shards("_shardlabel") == ["d.tar"]
    assert shards("_*.tar") == ["_c.tar"]
    assert shards("_c.tar", "a.tar") == ["_c.tar", "a.tar"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["a.tar", "b1.tar", "b2.tar"]),
        ("b?.tar", ["b1.tar", "b2.tar"]),
        ("b[2-9].tar", ["b2.tar"]),
        ("**/*.tar", ["a.tar", "b1.tar", "b2.tar", "p/c.tar", "p/q/d.tar", "r/q/e.tar"]),
        ("*/q/*.tar", ["p/q/d.tar", "r/q/e.tar"]),
        ("**/q/*", ["p/q/d.tar", "r/q/e.tar"]),
        ("p/**", ["c.tar", "q/d.tar"]),
        ("{p,r}/q/*.tar", ["p/q/d.tar", "r/q/e.tar"]),
        ("b{1..2}.tar", ["b1.tar", "b2.tar"]),
        ("{r,p}", ["r/q/e.tar", "p/c.tar", "p/q/d.tar"]),
        ("{p/c,r/{q/e,q/e}}.tar", None),
    ],
)
def test_globs_and_braces(folder: Path, pattern: str, expected: list[str] | None) -> None:
    touch(folder, "a.tar", "b1.tar", "b2.tar", "p/c.tar", "p/q/d.tar", "r/q/e.tar", "p/q/readme.md")

    if expected is None:
        with pytest.raises(SourceError, match=r"names r/q/e\.tar twice"):
            shards(pattern)
    else:
        assert shards(pattern) == expected


@pytest.mark.parametrize(
    "name",
    ["a b.tar", "é漢.tar", "x[1].tar", "x{1,2}.tar", "x{1..3}.tar", "100%.tar", "a#b.tar", "what?.tar", "*.tar",
     "%20.tar", "@x.tar", "a=b?c=d.tar", "x{.tar", "x[.tar", "'q'.tar", "-o.tar", "back\\slash.tar"],
)  # fmt: skip
def test_a_name_that_exists_is_that_file_whatever_its_characters(folder: Path, name: str) -> None:
    touch(folder, "data/" + name, "data/x1.tar", "data/x2.tar", "data/x3.tar", "data/whatX.tar")

    assert shards(f"data/{name}") == [name]
    assert name in shards("data")
    (folder / "list.txt").write_text(f"data/{name}\n")
    assert shards("@list.txt") == [name]


def test_a_folder_that_exists_is_that_folder_whatever_its_characters(folder: Path) -> None:
    touch(folder, "x[1]/a.tar", "x1/b.tar", "y{1,2}/c.tar", "y1/d.tar")

    assert shards("x[1]") == ["a.tar"]
    assert shards("y{1,2}") == ["c.tar"]
    assert shards("x[1]/a.tar", "y{1,2}/c.tar") == ["x[1]/a.tar", "y{1,2}/c.tar"]


def test_a_file_uri_is_unescaped_and_a_plain_path_is_not(folder: Path) -> None:
    touch(folder, "a b.tar", "a%20b.tar")

    assert shards(f"file://{folder}/a%20b.tar") == ["a b.tar"]
    assert shards("a%20b.tar") == ["a%20b.tar"]
    with pytest.raises(SourceError, match="got a host: server"):
        shards("file://server/a.tar")


def test_up_goes_where_the_operating_system_goes(folder: Path) -> None:
    touch(folder, "real/deep/inner/x.tar", "real/deep/a.tar", "b.tar")
    (folder / "link").symlink_to(folder / "real/deep/inner")

    assert shards("link/../a.tar") == ["a.tar"]


def test_a_list_keeps_its_order_and_may_hold_every_other_form(folder: Path) -> None:
    touch(folder, "data/a.tar", "data/b.tar", "data/x1.tar", "data/x2.tar", "more/c.tar", "glob/d.tar", "dir/e.tar")
    lines = ["\ufeff# comment", "", f"{folder}/data/b.tar  ", "data/a.tar\r", "data/x{1..2}.tar", "glob/*.tar", "dir"]
    (folder / "list.txt").write_text("\n".join([*lines, f"file://{folder}/more/c.tar"]))

    found = shards("@list.txt")

    assert found == ["data/b.tar", "data/a.tar", "data/x1.tar", "data/x2.tar", "glob/d.tar", "dir/e.tar", "more/c.tar"]


def test_paths_in_a_list_are_relative_to_the_working_directory(folder: Path) -> None:
    touch(folder, "data/a.tar", "lists/data/b.tar")
    (folder / "lists/list.txt").write_text("data/a.tar\n")

    assert shards("@lists/list.txt") == ["a.tar"]


def test_several_sources_share_the_folder_above_them(folder: Path) -> None:
    touch(folder, "x/p/a.tar", "x/q/b.tar", "x/q/c.tar")

    source = open_source(["x/q", "x/p/a.tar"], SourceFormat.AUTO)

    assert source.base.root == str(folder / "x")
    assert names_of(source) == ["q/b.tar", "q/c.tar", "p/a.tar"]
    assert names_of(source) == names_of(source)


@pytest.mark.parametrize(
    "specs", [("*.tar", "a*.tar"), ("a.tar", "a.tar"), (".", "./b.tar"), ("@l",), ("{a,b,a}.tar",)]
)
def test_a_shard_named_twice_is_an_error_that_names_it(folder: Path, specs: tuple[str, ...]) -> None:
    touch(folder, "a.tar", "b.tar", "c.tar")
    (folder / "l").write_text("b.tar\nc.tar\nb.tar\n")

    source = open_source(specs, SourceFormat.AUTO)

    with pytest.raises(SourceError, match=r"names [ab]\.tar twice"):
        names_of(source)


def test_a_list_that_names_one_glob_twice_is_an_error(folder: Path) -> None:
    touch(folder, "a.tar")
    (folder / "l").write_text("*.tar\n*.tar\n")

    with pytest.raises(SourceError, match=r"names a\.tar twice"):
        shards("@l")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("nowhere.tar",), r"SOURCE nowhere\.tar does not exist"),
        (("nowhere",), r"SOURCE nowhere does not exist"),
        (("data/{00..03}.tar",), r"SOURCE data/\{00\.\.03\}\.tar: .*/data/02\.tar does not exist"),
        (("data/*.parquet",), r"SOURCE data/\*\.parquet matches no files"),
        (("empty",), r"SOURCE empty is a folder without files; looked for \.tar, \.tar\.gz, \.parquet and images"),
        (("@nolist",), r"there is no list file nolist"),
        (("@empty.txt",), r"its list is empty"),
        (("@bad.txt",), r"SOURCE gone\.tar does not exist"),
        (("",), r"SOURCE is an empty name"),
        (("data/readme",), r"cannot tell the format of readme; give --format"),
        (("mixed",), r"SOURCE mixes formats: b\.parquet is not webdataset"),
        (("data", "s3://bucket/x.tar"), r"one storage and bucket, got local disk and s3://bucket/x\.tar"),
        (("ftp://host/x.tar",), r"ftp://host/x.tar: expected one of s3"),
        (("links",), r"broken\.tar is a link to a file that does not exist"),
    ],
)
def test_errors_name_what_is_wrong(folder: Path, specs: tuple[str, ...], message: str) -> None:
    touch(folder, "data/00.tar", "data/01.tar", "data/03.tar", "data/readme", "mixed/a.tar", "mixed/b.parquet")
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "bad.txt").write_text("data/00.tar\ngone.tar\n")
    (folder / "links").mkdir()
    (folder / "links/broken.tar").symlink_to(folder / "gone")

    with pytest.raises(SourceError, match=message):
        shards(*specs)


def test_a_broken_link_among_loose_images_is_kept_for_a_row(folder: Path) -> None:
    touch(folder, "a.jpg")
    (folder / "b.jpg").symlink_to(folder / "gone")

    source = open_source(["."], SourceFormat.AUTO)

    assert [(file.shard, file.size) for file in source.files()] == [("a.jpg", 5), ("b.jpg", 0)]


def test_a_name_that_is_not_utf_8_is_an_error_that_shows_it(folder: Path) -> None:
    touch(folder, "a.tar")
    (folder / os.fsdecode(b"caf\xe9.tar")).touch()

    with pytest.raises(SourceError, match=r"caf\\udce9\.tar' is not UTF-8"):
        shards(".")


def test_format_restricts_folders_and_accepts_named_files(folder: Path) -> None:
    touch(folder, "a.tar", "b.parquet", "c.jpg", "shard-1", "shard-2", "d.json")

    assert shards(".", wanted=SourceFormat.PARQUET) == ["b.parquet"]
    assert shards("shard-1", wanted=SourceFormat.WEBDATASET) == ["shard-1"]
    assert shards("shard-*", wanted=SourceFormat.WEBDATASET) == ["shard-1", "shard-2"]
    assert shards("*", wanted=SourceFormat.WEBDATASET) == ["a.tar"]


def test_files_of_dest_are_never_input(folder: Path) -> None:
    touch(folder, "data/a.parquet", "data/out/part-00000.parquet", "data/out-2/b.parquet")
    dest = open_storage("data/out")

    for spec in ("data", "data/**/*.parquet", "data/**"):
        source = open_source([spec], SourceFormat.AUTO, exclude=dest)
        assert names_of(source) == ["a.parquet", "out-2/b.parquet"], spec
    assert names_of(open_source(["data"], SourceFormat.AUTO, exclude=open_storage("elsewhere")))[1] == (
        "out-2/b.parquet"
    )


def test_links_to_folders_are_followed_but_never_in_circles(folder: Path) -> None:
    touch(folder, "data/sub/a.tar", "else/b.tar")
    (folder / "data/sub/up").symlink_to(folder / "data")
    (folder / "data/else").symlink_to(folder / "else")

    assert shards("data") == ["else/b.tar", "sub/a.tar"]


@pytest.mark.parametrize("target", [".", "sub", "..", "sub/deep"])
def test_a_link_to_a_folder_that_is_listed_anyway_is_not_followed(folder: Path, target: str) -> None:
    touch(folder, "data/b.tar", "data/sub/a.tar", "data/sub/deep/c.tar")
    (folder / "data/loop").symlink_to(target)
    (folder / "data/zloop").symlink_to(folder / "data" / target)

    assert shards("data") == ["b.tar", "sub/a.tar", "sub/deep/c.tar"]
    assert shards("data/**/*.tar") == ["b.tar", "sub/a.tar", "sub/deep/c.tar"]


def test_a_folder_elsewhere_is_listed_through_one_of_its_links(folder: Path) -> None:
    touch(folder, "data/b.tar", "else/a.tar", "else/in/c.tar", "data/.store/d.tar")
    (folder / "else/loop").symlink_to(folder / "else/in")
    for name in ("one", "two"):
        (folder / "data" / name).symlink_to(folder / "else")
    (folder / "data/stored").symlink_to(".store")

    assert shards("data") == ["b.tar", "one/a.tar", "one/in/c.tar", "stored/d.tar"]


def test_a_link_that_leads_to_itself_and_a_name_that_is_not_utf_8_are_rows(folder: Path) -> None:
    touch(folder, "a.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / os.fsdecode(b"caf\xe9.jpg")).touch()
    source = open_source(["."], SourceFormat.AUTO)

    pieces = [Slice(file.shard, file.size, file.etag) for file in source.files()]
    rows = [(s.key, s.status, s.error) for s in read_images(source.base, pieces, ShardNotes(), ImageLimits())]

    assert rows == [
        ("a.jpg", None, None),
        ("caf\\xe9.jpg", "unsupported", "the file's name is not UTF-8; rename the file"),
        ("self.jpg", "empty", "the file is a link that leads to itself"),
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.jpg", {"a.jpg", "b//c.jpg", "b/../d.jpg", "./e.jpg"}),
        ("b/*/*.jpg", {"b//c.jpg", "b/../d.jpg"}),
        ("*.jpg", {"a.jpg"}),
        ("b//*.jpg", {"b//c.jpg"}),
    ],
)
def test_empty_names_and_dots_alone_in_keys_are_not_hidden(pattern: str, expected: set[str]) -> None:
    keys = ["a.jpg", "b//c.jpg", "b/../d.jpg", "./e.jpg", "b/.x/f.jpg", "_y/g.jpg"]

    assert {key for key in keys if matches(key.split("/"), pattern.split("/"))} == expected
    assert [key for key in keys if is_hidden(key)] == ["b/.x/f.jpg", "_y/g.jpg"]


def test_listing_is_lazy(folder: Path) -> None:
    touch(folder, *(f"{i:03d}/x.tar" for i in range(200)))
    entered: list[str] = []

    files = walk(open_storage("."), enter=lambda path: bool(entered.append(path)) or True)
    next(files)

    assert len(entered) == 1


def names_in_part(folder: Path, number: int, parts: int) -> list[str]:
    source = in_part(open_source((str(folder),), SourceFormat.AUTO), number, parts)
    return [file.shard for file in source.files()]


def test_each_shard_is_in_one_part_whatever_comes_beside_it(folder: Path) -> None:
    touch(folder, *(f"{number:04d}.tar" for number in range(0, 400, 2)))
    before = [names_in_part(folder, number, 3) for number in (1, 2, 3)]
    touch(folder, *(f"{number:04d}.tar" for number in range(1, 400, 2)))
    after = [names_in_part(folder, number, 3) for number in (1, 2, 3)]

    assert sorted(name for part in after for name in part) == [f"{number:04d}.tar" for number in range(400)]
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))
    assert all(110 < len(part) < 160 and part == sorted(part) for part in after)


@pytest.mark.parametrize("name", ["{:05d}.tar", "train-{:05d}.tar", "shard-{:03d}.tar"])
def test_few_shards_that_differ_in_one_digit_are_not_all_in_one_part(folder: Path, name: str) -> None:
    touch(folder, *(name.format(number) for number in range(8)))

    assert all(len(names_in_part(folder, number, 4)) < 8 for number in (1, 2, 3, 4))


def test_sizes_and_etags_are_those_of_a_stat(folder: Path) -> None:
    touch(folder, "a.tar", "sub/b.tar")
    storage = open_storage(".")

    assert [storage.stat("a.tar"), storage.stat("sub/b.tar")] == list(walk(storage))
    assert storage.list(recursive=True) == list(walk(storage))


@dataclass
class FakeStorage:
    """Remote storage of empty files, that counts what it is asked."""

    names: set[str]
    listed: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)
    is_local: bool = False

    def key(self, name: str) -> str:
        return name

    def stat(self, name: str) -> FileStat | None:
        self.looked_up.append(name)
        return FileStat(name, 0, "") if name in self.names else None

    def list(self, folder: str) -> list[FileStat]:
        self.listed.append(folder)
        return [FileStat(name, 0, "") for name in sorted(self.names) if name.rpartition("/")[0] == folder]


@pytest.mark.parametrize("kept", [10**6, 100], ids=["all-kept", "few-kept"])
def test_a_list_that_hops_between_folders_lists_each_once_at_most(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr("pipeline.storage.listing.FILES_KEPT", kept)
    names = [f"{folder:02d}/{i:02d}.jpg" for folder in range(20) for i in range(50)]
    random.Random(0).shuffle(names)
    storage = FakeStorage(set(names) - {"07/07.jpg"})

    found = list(Lookup(storage).find(iter(names)))  # type: ignore[arg-type] (it quacks)

    assert [path for path, _ in found] == names
    assert [path for path, file in found if file is None] == ["07/07.jpg"]
    assert all(file is None or file.path == path for path, file in found)
    assert len(storage.listed) == len(set(storage.listed))
    if kept > 1000:
        assert len(storage.looked_up) < 256  # of the first batch, before it was clear how many there are
    else:
        assert len(storage.listed) < 20


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{1..3}", ["1", "2", "3"]), ("{08..11}", ["08", "09", "10", "11"]), ("{3..1}", ["3", "2", "1"]),
        ("{0..9..4}", ["0", "4", "8"]), ("{a..c}", ["a", "b", "c"]), ("x{a,b{1,2}}y", ["xay", "xb1y", "xb2y"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]), ("{,a}", ["", "a"]), ("{}", ["{}"]), ("{a}", ["{a}"]),
        ("{a..}", ["{a..}"]), ("{", ["{"]), ("a}{b", ["a}{b"]), ("{1{2,3}", ["{12", "{13"]),
        ("{{1..2}}", ["{1}", "{2}"]), ("{-1..1}", ["-1", "0", "1"]),
        ("{01..100}", [f"{i:03d}" for i in range(1, 101)]), ("{1..2..0}", ["1", "2"]),
    ],
)  # fmt: skip
def test_braces_expand_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected
    assert has_pattern(pattern) == (expected != [pattern])


def test_a_range_of_a_trillion_names_is_expanded_as_far_as_it_is_asked() -> None:
    assert next(expand_braces("{000000000000..999999999999}.tar")) == "000000000000.tar"


@given(st.text("ab{},.1/*[", max_size=14))
def test_no_pattern_breaks_the_parser(pattern: str) -> None:
    names = list(expand_braces(pattern))

    assert names
    assert pattern.startswith(fixed_folder(pattern))
    assert all(name.startswith(fixed_folder(pattern)) for name in names)


_PARTS = st.lists(st.sampled_from(["a", "b", "_h", "ab"]), min_size=1, max_size=4)
_PATTERN = st.lists(st.sampled_from(["a", "*", "**", "?", "_*"]), min_size=1, max_size=4)


@given(_PARTS, _PATTERN)
def test_no_folder_is_left_out_that_holds_a_match(parts: list[str], pattern: list[str]) -> None:
    if matches(parts, pattern):
        assert all(may_match_below(parts[:depth], pattern) for depth in range(1, len(parts)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.TAR", SourceFormat.WEBDATASET), ("a.tgz", SourceFormat.WEBDATASET), ("a.PQ", SourceFormat.PARQUET),
     ("a.JPEG", SourceFormat.IMAGES), ("a.jpg.txt", None), ("tar", None)],
)  # fmt: skip
def test_format_of(name: str, kind: SourceFormat | None) -> None:
    assert format_of(name) is kind


def test_the_same_source_is_the_same_in_every_spelling(folder: Path) -> None:
    touch(folder, "data/a.tar")
    spellings: Iterable[str] = ["data", "./data", str(folder / "data"), f"file://{folder}/data"]

    assert len({open_source([spec], SourceFormat.AUTO).base.uri for spec in spellings}) == 1
