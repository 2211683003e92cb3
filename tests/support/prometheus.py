"""A real Prometheus on the loopback interface, which scrapes the targets of a test and answers queries."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.local.ports import free_ports

START_S = 30.0
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed (Debian: apt-get install prometheus)"
)


@dataclass
class Prometheus:
    url: str

    def get(self, path: str, **query: str) -> Any:
        """Call Prometheus' API; a query that it rejects is an AssertionError with the reason."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as err:
            raise AssertionError(f"{query}: {err.read().decode(errors='replace')}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current series of an expression, each with `metric` and `value`."""
        series: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return series


@contextmanager
def running_prometheus(
    folder: Path, scrape_configs: Sequence[dict], rules: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """Run Prometheus until the block ends; it scrapes every second.

    Args:
        folder: Folder for its configuration and data.
        scrape_configs: The same key of its configuration.
        rules: Rule files.
    """
    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": list(scrape_configs),
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    log = folder / "prometheus.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{running.url}/-/ready", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Prometheus did not start:\n{log.read_text()}") from None
                time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(30)
