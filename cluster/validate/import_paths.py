"""Resolve import paths without running any code: a manifest may name third-party modules."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from cluster.manifests.settings_sources import nearest
from cluster.validate.schema import shown


def resolve(target: object) -> tuple[ast.stmt | None, str]:
    """Find the statement that an import path names, as module:name or module.name, here and in the working folder.

    Returns:
        (the statement, ""), (None, "") if only running the module would tell, or (None, the reason) if there is none.
    """
    if not isinstance(target, str):
        return None, f"expected an import path as serve.app:build_app, got {shown(target)}"
    module, _, name = target.partition(":") if ":" in target else target.rpartition(".")
    if not module or not name:
        return None, f"expected an import path as serve.app:build_app, got {target!r}"
    spec = _find(module)
    if spec is None:
        return None, f"{module!r} cannot be imported: no such module is installed here"
    if not spec.origin or not spec.origin.endswith(".py"):
        return None, ""  # compiled
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as err:
        return None, f"{module!r} cannot be imported: {type(err).__name__}: {' '.join(str(err).split())[:200]}"
    names = {known: statement for statement in _statements(tree.body) for known in _names(statement)}
    wanted = name.partition(".")[0]
    if wanted not in names and names.keys().isdisjoint(("*", "__getattr__")):
        public = [known for known in names if not known.startswith("_")]
        return None, f"{module!r} has no {wanted!r}{nearest(wanted, public)}"
    return names.get(wanted), ""


def _find(module: str) -> ModuleSpec | None:
    """Find a module's file. Not by importlib.util.find_spec, which would import its parent packages."""
    first, *rest = module.split(".")
    finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((spec for find in finders if (spec := find(first, None)) is not None), None)
    spec = spec or PathFinder.find_spec(first, [str(Path.cwd())])
    name = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, including those inside `if`, `try`, `with` and loops."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body)


def _names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement defines; `*` for a star import."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
