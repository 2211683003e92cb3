"""Benchmarks are no part of the type check: that each can be loaded at all is held here."""

from __future__ import annotations

import importlib
from pathlib import Path

import benchmarks

ROOT = Path(benchmarks.__path__[0])
# Of environments of their own, which benchmarks/README.md describes.
EXTRAS = {"bentoml", "daft", "litserve", "matplotlib", "mlperf_loadgen", "pyspark", "webdataset"}


def test_every_benchmark_finds_what_it_uses():
    modules = [path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py") if path.stem != "__main__"]
    assert len(modules) > 40

    missing = set()
    for module in modules:
        try:
            importlib.import_module(".".join(module.parts))
        except ModuleNotFoundError as err:
            missing.add(err.name)
    assert missing <= EXTRAS, missing - EXTRAS
