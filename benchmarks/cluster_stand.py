"""A cluster of real nodes, an S3 server, and what counts between them: what the shows of `cluster_shows` run on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.support.cluster_nodes import Nodes, running_nodes
from tests.support.s3_server import BUCKET, Call, FaultProxy, S3Server, running_proxy, running_s3
from tests.support.tcp_proxy import TcpProxy, running_tcp_proxy
from tests.support.tiny_model import build_tiny_model, colour_shards, write_tar

SAMPLE_DATA = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"


@dataclass
class Stand:
    """A cluster, storage and what counts between them."""

    work: Path
    server: S3Server
    storage: FaultProxy
    nodes: Nodes
    line: TcpProxy
    seconds_per_read: list[float] = field(default_factory=lambda: [0.0])

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.storage.environment(), "RAY_AUTH_TOKEN": self.nodes.environment["RAY_AUTH_TOKEN"]}

    def submit(self, name: str, *label: str, options: tuple[str, ...] = ()) -> Submitted:
        """Start a submission of that id, which labels the source to a DEST of that name."""
        command = [
            sys.executable, "-m", "cluster.cli", "submit", "--address", self.line.url, "--submission-id", name,
            *options, "--", "label", f"s3://{BUCKET}/in", "--output", f"s3://{BUCKET}/{name}", "--json", *label,
        ]  # fmt: skip
        return Submitted(command, self.environment())

    def digests(self, name: str) -> dict[str, str]:
        folder = self.server.fetch(name)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}

    def bytes_read(self) -> int:
        return sum(count for name, count in self.storage.bytes_by_object().items() if name.startswith("in/"))

    def bytes_of_source(self) -> int:
        return sum(path.stat().st_size for path in self.server.fetch("in").iterdir())


class Submitted:
    """A `submit` that runs: each line with when it came."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.began = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.lines.append((time.monotonic() - self.began, text.rstrip()))
            sys.stderr.write(f"{self.lines[-1][0]:7.1f} {text}")

    def wait_for(self, wanted: str, timeout_s: float = 120) -> float:
        deadline = time.monotonic() + timeout_s
        while not (found := [at for at, text in self.lines if wanted in text]):
            if time.monotonic() > deadline:
                raise TimeoutError(wanted)
            time.sleep(0.05)
        return found[0]

    def end(self, timeout_s: float = 280) -> int:
        code = self.process.wait(timeout_s)
        time.sleep(0.3)
        return code

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(text for _, text in reversed(self.lines) if text.startswith("{")))
        return found


@contextmanager
def stand(
    workers: int, *, source: str = "colours", shards: int = 60, samples: int = 60, cpus: int = 1
) -> Iterator[Stand]:
    """Run all that a show needs."""
    with tempfile.TemporaryDirectory(prefix="shows-") as folder:
        work = Path(folder)
        write_source(work / "data" / BUCKET / "in", source, shards, samples)
        build_tiny_model(work)
        wait = [0.0]

        def slow(call: Call) -> None:
            if call.method == "GET" and "/in/" in call.path and not call.is_listing:
                time.sleep(wait[0])

        with (
            running_s3(work / "data") as server,
            running_proxy(server, slow) as storage,
            running_nodes(workers, cpus=cpus, SHARDLABEL_HOME=str(work / "home"), **storage.environment()) as nodes,
            running_tcp_proxy(nodes.dashboard_port) as line,
        ):
            yield Stand(work, server, storage, nodes, line, wait)


def write_source(folder: Path, source: str, shards: int, samples: int) -> None:
    if source == "colours":
        colour_shards(folder, shards=shards, samples=samples)
        return
    images = cycle(sample_images())
    folder.mkdir(parents=True)
    for shard in range(shards):
        write_tar(folder / f"shard-{shard:03d}.tar", {f"{i:04d}.jpg": next(images) for i in range(samples)})


def sample_images() -> list[bytes]:
    """Return the sample images, encoded."""
    found = []
    for path in sorted(SAMPLE_DATA.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.name.endswith(".jpg")]
            found += [file.read() for member in members if (file := tar.extractfile(member)) is not None]
    if not found:
        raise SystemExit(f"the sample images are not here: {SAMPLE_DATA}")
    return found
