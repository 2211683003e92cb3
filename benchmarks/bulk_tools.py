"""The tools that `benchmarks.bulk` compares: how each is started, and what it needs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bulk_inputs import Mode

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"

# Name of each peer, its module, and what that imports that this project does not bring.
PEERS = {
    "daft-own": ("daft_own", ("daft",)),
    "daft-pillow": ("daft_pillow", ("daft",)),
    "daft-given": ("daft_given", ("daft",)),
    "ray-docs": ("ray_docs", ("ray",)),
    "ray-published": ("ray_published", ("ray",)),
    "clip-retrieval": ("clip_retrieval", ("torch", "webdataset")),
    "spark": ("spark_udf", ("pyspark", "pandas")),
}
# Of a mode's images, for a tool that would take an hour for all of them.
SHARES = {"spark": 0.1}
TOOLS = ("bare", "bare-parquet", "ours", *PEERS)
ABOUT = {
    "bare": "one process per core, no framework, nothing written",
    "bare-parquet": "the same, and a Parquet file per shard",
    "ours": "shardlabel label",
    "daft-own": "Daft, its own download and decode of loose files",
    "daft-pillow": "Daft, given Pillow's draft mode in a process per core",
    "daft-given": "Daft, given this project's decode in a process per core",
    "ray-docs": "Ray Data, the idiom of its documentation",
    "ray-published": "Ray Data, the idiom of its published benchmark",
    "clip-retrieval": "webdataset, DataLoader workers, one process infers",
    "spark": "Spark, binaryFile and pandas UDFs",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool.

    Attributes:
        tool: Its name.
        mode: What it does.
        inputs: From `prepare_images`.
        output: An empty folder's name.
        more: Options of `shardlabel label`, for ours and its variants.
    """

    tool: str
    mode: Mode
    inputs: Path
    output: Path
    more: Sequence[str] = ()


def command(run: Run, python: str, peers_python: str) -> list[str]:
    """Return the command line."""
    model = ["--model", run.mode.model, "--precision", run.mode.precision]
    shards = str(run.inputs / "shards" / "*.tar")
    if run.tool in PEERS:
        bound = ["--inference-bound"] if run.mode.inference_bound else []
        module = f"benchmarks.peers.{PEERS[run.tool][0]}"
        return [peers_python, "-m", module, "--inputs", str(run.inputs), "--output", str(run.output), *model, *bound]
    if run.tool.startswith("bare"):
        parquet = ["--parquet", str(run.output)] if run.tool == "bare-parquet" else []
        return [python, "-m", "benchmarks.bare", shards, *model, *parquet]
    label = ["label", shards, "--output", str(run.output), "--progress", "none", "--json"]
    return [python, "-m", "cluster.cli", *label, *model, *run.more]


def environment(home: Path, progress: Path) -> dict[str, str]:
    """Return the environment of every tool: bytecode kept, no usage statistics, one cache of models."""
    changed = {
        "PYTHONPATH": str(ROOT),
        "SHARDLABEL_HOME": str(home),
        "SHARDLABEL_BENCH_PROGRESS": str(progress),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "DAFT_ANALYTICS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
    }
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}, **changed}


def missing(tool: str, peers_python: str, env: Mapping[str, str]) -> str | None:
    """Say what a tool lacks here, or None."""
    if tool not in PEERS:
        return None
    if tool == "spark" and shutil.which("java") is None:
        return "no Java (apt-get install default-jre-headless)"
    for module in PEERS[tool][1]:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        if subprocess.run([peers_python, "-c", code], env=env, check=False).returncode:
            return f"no {module} in {peers_python} (see benchmarks/README.md)"
    return None


def parse_variants(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read `NAME=OPTIONS`: ours, with more options of `shardlabel label`."""
    variants = {}
    for text in texts:
        name, equals, options = text.partition("=")
        if not equals or not name or name in TOOLS:
            raise SystemExit(f"--variant: expected NAME=OPTIONS with a name of its own, got {text!r}")
        variants[name] = shlex.split(options)
    return variants


def default_peers_python() -> str:
    """Return the interpreter of the peers' environment, or this one."""
    return str(PEERS_PYTHON) if PEERS_PYTHON.exists() else sys.executable
