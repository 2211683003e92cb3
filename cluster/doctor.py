"""`shardlabel doctor`: what this machine has, and what `auto` would choose on it. For bug reports."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from models.catalog import DEFAULT_MODEL, load_all
from models.device import Device, choose
from models.errors import ShardlabelError
from models.store.files import home
from models.store.locate import is_cached
from pipeline.config import build_config
from pipeline.dest.made_by import cpu_info, cpu_model, versions
from pipeline.session.connect import Cluster
from pipeline.session.pools import plan_pools
from pipeline.storage.uris import without_secrets

# Packages whose versions belong in a bug report.
_PACKAGES = (
    "ray",
    "onnxruntime",
    "onnxruntime-gpu",
    "pyarrow",
    "obstore",
    "numpy",
    "pillow",
    "simplejpeg",
    "cykooz.resizer",
)
# CPU flags for 8-bit dot products: with any of them, int8 models are faster than float32.
_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
_CREDENTIALS = {
    "S3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL",
           "AWS_SKIP_SIGNATURE"),
    "GCS": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "STORAGE_EMULATOR_HOST"),
    "Azure": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID",
              "AZURE_FEDERATED_TOKEN_FILE", "AZURE_STORAGE_ENDPOINT"),
}  # fmt: skip
_FILES = {
    "S3": "~/.aws/credentials",
    "GCS": "~/.config/gcloud/application_default_credentials.json",
    "Azure": "~/.azure/azureProfile.json",
}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has, and what `--device auto` and `--precision auto` would choose on it.

    It starts nothing and does not use the network. It names credentials but never prints their values, so you can put
    the output into a bug report. A fact that cannot be determined says why.

    Exit code: 0.
    """
    facts = {name: _examined(examine) for name, examine in _EXAMINED.items()}
    if as_json:
        typer.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
        return
    for name, fact in facts.items():
        for label, text in _lines(name, fact):
            typer.echo(f"{label:<14}{text}")


def _examined(examine: Callable[[], Any]) -> Any:  # noqa: ANN401 (JSON)
    """Return a fact, or the error: one failing fact must not hide the others."""
    try:
        return examine()
    except ShardlabelError as err:
        return {"error": without_secrets(str(err))}
    except Exception as err:  # noqa: BLE001 (any failure here belongs in a bug report)
        return {"error": without_secrets(f"{type(err).__name__}: {err}")}


def _software() -> dict[str, str]:
    here = {"python": platform.python_version(), "system": platform.platform()}
    return {**versions(["shardlabel"]), **here, **versions(_PACKAGES)}


def _cpus() -> dict[str, Any]:
    info = cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "count": _cpu_count(),
        "model": cpu_model(),
        "int8": [flag for flag in _INT8_FLAGS if flag in flags],
    }


def _cpu_count() -> int:
    """Return how many CPUs this process may use, by its affinity and its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else min(count, max(1, int(quota) // int(period)))


def _memory() -> dict[str, Any]:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {name: int(value.split()[0]) for name, value in lines.items()}
    limit = Path("/sys/fs/cgroup/memory.max")
    limited = limit.read_text().strip() if limit.is_file() else "max"
    return {
        "total_bytes": 1024 * kib["MemTotal"],
        "available_bytes": 1024 * kib["MemAvailable"],
        "container_limit_bytes": None if limited == "max" else int(limited),
        "shared_memory_free_bytes": shutil.disk_usage("/dev/shm").free,
        "temporary_free_bytes": shutil.disk_usage("/tmp").free,
    }


def _gpus() -> list[dict[str, str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=10)
    if answer.returncode:
        raise OSError(f"nvidia-smi failed: {(answer.stderr or answer.stdout).strip()[:200]}")
    names = ("name", "memory", "driver")
    rows = (line.split(",") for line in answer.stdout.splitlines() if line.strip())
    return [dict(zip(names, map(str.strip, row), strict=True)) for row in rows]


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _ray() -> dict[str, Any]:
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    last = file.read_text().strip() if file.is_file() else ""
    return {
        "RAY_ADDRESS": without_secrets(os.environ.get("RAY_ADDRESS", "")) or None,
        "running_here": last if last and _listens(last) else None,
        "token": any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")),
    }


def _listens(address: str) -> bool:
    """Tell whether the address accepts connections: Ray leaves that of a killed cluster behind."""
    host, _, port = address.rpartition(":")
    with suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def _credentials() -> dict[str, list[str]]:
    found = {store: [name for name in names if os.environ.get(name)] for store, names in _CREDENTIALS.items()}
    for store, file in _FILES.items():
        if Path(file).expanduser().is_file():
            found[store].append(file)
    return found


def _cache() -> dict[str, Any]:
    folder = home()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {
        "folder": str(folder),
        "bytes": sum(path.stat().st_size for path in files),
        "free_bytes": shutil.disk_usage(_existing(folder)).free,
        "models": [f"{spec.name} {p}" for spec in load_all() for p in spec.artifacts if is_cached(spec, p)],
    }


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _auto() -> dict[str, Any]:
    """Return the choice for the default and every cached model, and the pools of a bulk run with the default."""
    gpus, cpus = len(_gpus()), _cpu_count()
    here = [s for s in load_all() if s.name == DEFAULT_MODEL or any(is_cached(s, p) for p in s.artifacts)]
    choices = {spec.name: choose(spec, Device.AUTO, "auto", has_gpu=gpus > 0) for spec in here}
    config = build_config({"source": "SOURCE", "output": "DEST"})
    cluster = Cluster(cpus, gpus, is_ours=True)
    pools = plan_pools(config, choices[DEFAULT_MODEL], cluster, pending=cpus)
    return {"models": {name: choice.reason for name, choice in choices.items()}, "label": pools.describe(cluster)}


def _environment() -> list[str]:
    """Return the names of the set variables that affect Ray, ONNX Runtime or the network."""
    prefixes = ("SHARDLABEL_", "RAY_", "ORT_", "OMP_", "CUDA_", "OTEL_")
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    return sorted(name for name in os.environ if name.startswith(prefixes) or name.lower() in proxies)


_EXAMINED: dict[str, Callable[[], Any]] = {
    "software": _software,
    "cpus": _cpus,
    "memory": _memory,
    "gpus": _gpus,
    "providers": _providers,
    "ray": _ray,
    "credentials": _credentials,
    "cache": _cache,
    "environment": _environment,
    "auto": _auto,
}


def _lines(name: str, fact: Any) -> list[tuple[str, str]]:  # noqa: ANN401 (JSON)
    """Return the lines of a fact as (label, text)."""
    if isinstance(fact, dict) and "error" in fact:
        return [(name, f"unknown: {fact['error']}")]
    if name == "auto":
        texts = [*fact["models"].values(), f"shardlabel label: {fact['label']}"]
        return [("auto" if i == 0 else "", text) for i, text in enumerate(texts)]
    return [(name, _TEXTS[name](fact))]


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def _cpus_text(fact: dict[str, Any]) -> str:
    fast = f"8-bit arithmetic: {', '.join(fact['int8'])}" if fact["int8"] else "no instructions for 8-bit arithmetic"
    return f"{fact['count']} of {fact['model']}; {fast}"


def _memory_text(fact: dict[str, Any]) -> str:
    limit = fact["container_limit_bytes"]
    return (
        f"{_gb(fact['total_bytes'])}, {_gb(fact['available_bytes'])} available"
        f"{f', limited to {_gb(limit)}' if limit else ''}; free in /dev/shm {_gb(fact['shared_memory_free_bytes'])}, "
        f"in /tmp {_gb(fact['temporary_free_bytes'])}"
    )


def _ray_text(fact: dict[str, Any]) -> str:
    here = f"one runs on this machine ({fact['running_here']})" if fact["running_here"] else "none runs on this machine"
    named = f"RAY_ADDRESS is {fact['RAY_ADDRESS']}" if fact["RAY_ADDRESS"] else "RAY_ADDRESS is not set"
    return f"{here}; {named}; {'a' if fact['token'] else 'no'} token in the environment"


_TEXTS: dict[str, Callable[[Any], str]] = {
    "software": lambda fact: ", ".join(f"{name} {value}" for name, value in fact.items()),
    "cpus": _cpus_text,
    "memory": _memory_text,
    "gpus": lambda fact: "; ".join(f"{g['name']}, {g['memory']}, driver {g['driver']}" for g in fact) or "none",
    "providers": ", ".join,
    "environment": lambda fact: ", ".join(fact) or "nothing set",
    "ray": _ray_text,
    "credentials": lambda fact: "; ".join(f"{store}: {', '.join(names) or 'none'}" for store, names in fact.items()),
    "cache": lambda fact: (
        f"{fact['folder']}, {_gb(fact['bytes'])}, {_gb(fact['free_bytes'])} free; models: "
        f"{', '.join(fact['models']) or 'none'}"
    ),
}


def register(app: typer.Typer) -> None:
    """Add `doctor` to the console command."""
    app.command()(doctor)
