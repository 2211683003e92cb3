"""Who is compared: how each server is started, and how it is asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
HERE = "benchmarks.serve_rivals"


@dataclass(frozen=True, slots=True)
class Contender:
    """One server.

    Attributes:
        name: For the command line and the results.
        title: For the table.
        command: Its command line; {port} and {folder} (an empty folder of its own) are filled in.
        path: Where it takes images.
        body: How: raw, base64 or form; see `benchmarks.serve_rivals.load.as_body`.
        ids: Finds the label ids in its answer.
        environment: Added to the runner's.
    """

    name: str
    title: str
    command: tuple[str, ...]
    path: str
    body: str
    ids: Callable[[object], list[int]]
    environment: dict[str, str] = field(default_factory=dict)


def contenders(rivals: Path) -> list[Contender]:
    """Return all of them.

    Args:
        rivals: The `bin` folder of the environment that benchmarks/requirements-serve.txt describes.
    """
    python, rival = sys.executable, str(rivals / "python")
    project_bin = Path(sys.executable).parent

    def plain_ids(answer: dict) -> list[int]:
        return answer["label_ids"]

    def lit(way: str, title: str) -> Contender:
        command = (rival, "-m", f"{HERE}.litserve_server", "--port", "{port}", "--as", way)
        return Contender(f"litserve-{way}", title, command, "/predict", "base64", plain_ids)

    def bento(name: str, title: str, service: str, ids: Callable) -> Contender:
        where = f"{HERE}.bentoml_service:{service}"
        command = (str(rivals / "bentoml"), "serve", where, "--host", "127.0.0.1", "--port", "{port}")
        environment = {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": "{folder}"}
        return Contender(name, title, command, "/classify", "form", ids, environment)

    def idiomatic(name: str, title: str, environment: dict[str, str]) -> Contender:
        command = (python, "-m", f"{HERE}.ray_idiomatic", "--port", "{port}")
        return Contender(name, title, command, "/classify", "raw", plain_ids, environment)

    return [
        Contender(
            "shardlabel", "shardlabel serve",
            (str(project_bin / "shardlabel"), "serve", "--model", "efficientnet-lite0", "--precision", "int8",
             "--port", "{port}", "--grpc-port", "{port2}", "--min-replicas", str(CORES), "--max-replicas", str(CORES)),
            "/v1/classify", "raw", lambda answer: [label["label_id"] for label in answer["results"][0]["labels"]],
        ),
        Contender(
            "fastapi", f"FastAPI, {CORES} processes, no batching",
            (str(rivals / "uvicorn"), f"{HERE}.fastapi_plain:app", "--host", "127.0.0.1", "--port", "{port}", "--workers",
             str(CORES), "--log-level", "warning"),
            "/classify", "raw", plain_ids,
        ),
        lit("parity", "LitServe, as in its parity benchmark"),
        lit("best", "LitServe, its best here"),
        bento("bentoml", "BentoML, adaptive batching", "Batched", lambda answer: answer[0]["label_ids"]),
        bento("bentoml-plain", "BentoML, no batching", "Plain", plain_ids),
        idiomatic("ray", "Ray Serve, FastAPI + @serve.batch", {}),
        idiomatic("ray-haproxy", "Ray Serve, the same with HAProxy", {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            # Its files and ports apart from those of any other on this machine.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": "{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{folder}",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": "{port2}",
            "RAY_SERVE_HAPROXY_STATS_PORT": "{port3}",
        }),
    ]  # fmt: skip
