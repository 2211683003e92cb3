"""The house rules that a machine can check: one chain of folders, floors inside them, no circles, no crowds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.submit.probe import NEEDED

ROOT = Path(__file__).parents[2]
# Each folder may import itself and those before it.
CHAIN = ("models", "pipeline", "serve", "cluster")
# Inside a folder likewise, sub-package by sub-package, from the ground up.
FLOORS = {
    "models": ("store", "decode", "sandbox", "graph", "inference", "register"),
    "pipeline": (
        "storage",
        "fetch",
        "sources",
        "dest",
        "patches",
        "session",
        "operators",
        "html",
        "report",
        "relabel",
        "diff",
        "evaluate",
        "quantize",
        "review",
    ),
    "serve": ("model", "metrics", "http", "oip", "local"),
    "cluster": ("manifests", "validate", "submit"),
}
FORBIDDEN = {"models": {"ray", "fastapi", "starlette"}, "pipeline": {"fastapi", "starlette"}}
MOST_MODULES = 16
MOST_FLOORS = 9


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for folder in CHAIN for path in sorted((ROOT / folder).rglob("*.py"))}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {
    name: {other for other in imported_modules(path) if other in MODULES and other != name}
    for name, path in MODULES.items()
}


def test_the_folders_are_one_chain():
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if CHAIN.index(other.split(".")[0]) > CHAIN.index(name.split(".")[0])
    ]

    assert not wrong


@pytest.mark.parametrize("folder", CHAIN)
def test_a_folder_imports_no_framework_that_is_not_its_own_and_no_tests(folder):
    barred = FORBIDDEN.get(folder, set()) | {"tests", "benchmarks", "tools"}

    wrong = {
        f"{name} imports {module}"
        for name, path in MODULES.items()
        if name.split(".")[0] == folder
        for module in imported_modules(path)
        if module.split(".")[0] in barred
    }

    assert not wrong


@pytest.mark.parametrize("folder", CHAIN)
def test_sub_packages_import_only_those_below_them(folder):
    floors = FLOORS[folder]
    found = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert found <= set(floors), "a sub-package has no floor: give it one here"

    def floor(name: str) -> int | None:
        parts = name.split(".")
        return floors.index(parts[1]) if len(parts) > 1 and parts[1] in floors else None

    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if name.startswith(f"{folder}.") and floor(name) is not None
        for other in others
        if other.startswith(f"{folder}.") and (floor(other) or 0) > floor(name)
    ]

    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    circles: list[str] = []
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circles.append(" -> ".join((*above[above.index(name) :], name)))
        elif name not in done:
            for other in sorted(IMPORTS[name]):
                walk(other, (*above, name))
            done.add(name)

    for name in IMPORTS:
        walk(name, ())

    assert not circles


@pytest.mark.parametrize("folder", CHAIN)
def test_a_folder_has_no_more_modules_than_a_person_keeps_in_mind(folder):
    counts = {path: len(list(path.glob("*.py"))) for path in {path.parent for path in (ROOT / folder).rglob("*.py")}}

    assert {str(path.relative_to(ROOT)): count for path, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("folder", CHAIN)
def test_a_folder_has_no_more_floors_than_a_person_climbs(folder):
    room = {name: ".".join(name.split(".")[:2]) for name in MODULES if name.split(".")[0] == folder}
    below: dict[str, set[str]] = {own: set() for own in room.values()}
    for name, own in room.items():
        below[own] |= {room[other] for other in IMPORTS[name] if other in room} - {own}

    def height(own: str, above: tuple[str, ...] = ()) -> int:
        return 1 + max((height(other, (*above, own)) for other in below[own] if other not in above), default=0)

    assert max(map(height, below)) <= MOST_FLOORS


def private_parts(source: str) -> Iterator[str]:
    """Yield what a module touches of Ray that is private: by import, by attribute, or by a name in a string."""
    tree = ast.parse(source)
    of_ray = {"ray"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
            if str(node.module).split(".")[0] == "ray":
                of_ray |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            paths = [node.value] if re.fullmatch(r"ray(\.\w+)+", node.value) else []
        else:
            continue
        yield from (path for path in paths if re.match(r"ray\..*(\b_[a-z]|internal_kv)", path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = ast.unparse(node).split(".")[0]
            is_private = node.attr.startswith("_") and not node.attr.endswith("__")
            if root in of_ray and (is_private or isinstance(node.ctx, ast.Store)):
                yield ast.unparse(node)


def test_only_one_room_touches_the_private_parts_of_ray():
    found = {
        f"{name}: {part}"
        for name, path in MODULES.items()
        if path.parent != ROOT / "pipeline" / "patches"
        for part in private_parts(path.read_text())
    }

    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray._private import worker",
        "from ray.serve.context import _get_global_client",
        "from ray.experimental import internal_kv",
        "from ray.experimental.internal_kv import _internal_kv_put",
        "import ray\nray._private.worker.x()",
        "from ray import serve\nserve._private.x",
        "import ray\nray.get = None",
        "place = ('ray.data._internal.stats', 'get_or_create_stats_actor')",
    ],
)
def test_private_parts_are_found_however_they_are_touched(source):
    assert list(private_parts(source))


def test_models_can_be_used_without_ray():
    code = (
        "import sys, models.inference.classifier, models.catalog, models.decode.decode; sys.exit('ray' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("start", "heavy"),
    [
        ("import cluster.cli; cluster.cli.build_app()", {"ray", "onnx", "onnxruntime", "cv2", "pyarrow"}),
        ("import pipeline.job", {"ray", "onnxruntime", "pandas"}),  # a run starts Ray first, and imports meanwhile
    ],
)
def test_the_command_line_and_a_run_start_without_what_takes_long_to_import(start, heavy):
    code = f"import sys\n{start}\nsys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"

    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)

    assert done.returncode == 0, f"imported at start: {done.stderr}"


def third_party_roots(*folders: str) -> set[str]:
    found = {
        module.split(".")[0]
        for name, path in MODULES.items()
        if name.split(".")[0] in folders
        for module in imported_modules(path)
    }
    return found - sys.stdlib_module_names - set(CHAIN)


def test_pyproject_names_every_package_that_is_imported_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["aws"])]
    named = {canonicalize_name(one.name) for one in needed}
    named_here = {canonicalize_name(one.name) for one in needed if one.marker is None or one.marker.evaluate()}
    packages = packages_distributions()
    # Packages that may bring what is imported: several share `google`.
    brought_by = {
        root: {canonicalize_name(package) for package in packages.get(root, [root])}
        for root in third_party_roots(*CHAIN)
    }

    assert {root for root, any_of in brought_by.items() if not any_of & named} == set()
    assert named_here - set().union(*brought_by.values()) == set()


def test_submit_asks_of_a_cluster_what_a_run_imports():
    # A run does without these: profiles of AWS, and SIMD where there is a wheel.
    optional = {"boto3", "cykooz_resizer"}

    assert set(NEEDED) == third_party_roots("models", "pipeline") - optional


def test_nothing_prints():
    for path in MODULES.values():
        calls = [node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
        assert "print" not in calls, path


def test_each_package_says_what_it_is():
    for path in MODULES.values():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path
