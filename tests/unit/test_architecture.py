"""The house rules that a machine can check: which folder may import which, and where print may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "models": set(),
    "pipeline": {"models"},
    "serve": {"models"},
    "cluster": {"models", "pipeline", "serve"},
}
# How a local Ray is started is the same for a run and for an endpoint, and imports nothing of the rest.
SHARED = {"serve": {"pipeline.session.local"}}
FORBIDDEN = {"models": {"ray", "fastapi", "starlette"}, "pipeline": {"fastapi", "starlette"}}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_it_may(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files

    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imported_modules(path)
        if module not in SHARED.get(folder, set())
        and module.split(".")[0]
        in (ALLOWED.keys() - ALLOWED[folder] - {folder}) | FORBIDDEN.get(folder, set()) | {"tests", "benchmarks"}
    }

    assert not wrong


@pytest.mark.parametrize("module", sorted(set().union(*SHARED.values())))
def test_what_is_shared_imports_nothing_of_its_folder(module):
    path = ROOT / f"{module.replace('.', '/')}.py"

    assert not {name.split(".")[0] for name in imported_modules(path)} & ALLOWED.keys()


def test_models_can_be_used_without_ray():
    code = (
        "import sys, models.inference.classifier, models.catalog, models.decode.decode; sys.exit('ray' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_command_line_starts_without_ray_onnx_or_onnxruntime():
    code = (
        "import sys, cluster.cli; cluster.cli.build_app(); heavy = {'ray', 'onnx', 'onnxruntime', 'cv2', 'pyarrow'}\n"
    )
    code += "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"

    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)

    assert done.returncode == 0, f"imported at start: {done.stderr}"


@pytest.mark.parametrize("folder", ALLOWED)
def test_nothing_prints(folder):
    for path in (ROOT / folder).rglob("*.py"):
        calls = [node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
        assert "print" not in calls, path


def test_each_package_says_what_it_is():
    for folder in ALLOWED:
        assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
