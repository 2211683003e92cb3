"""Check a cluster before a job is sent: the versions of Ray and Python, its packages, and access to the data."""

from __future__ import annotations

import asyncio
import base64
import secrets
import shlex
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import orjson

from cluster.submit import probe as probe_script
from cluster.submit.arguments import LabelArguments
from cluster.submit.jobs_client import ClusterFacts, Job, JobsClient
from models.errors import ClusterError, ConfigError

# A cluster that has not run one line of Python within this time has no room for a job either.
PROBE_S = 60.0
PROBE_POLL_S = 0.2
LEAST_PYTHON = (3, 11)

# A job's shell is a child of a Ray worker, itself a child of the raylet, whose command line names the workers' Python.
# That need not be on the PATH: Ray also starts by `/opt/venv/bin/ray start`. -P: no imports from the current folder.
_FIND_PYTHON = (
    r"""R=$(sed 's/.*) . //' /proc/$PPID/stat 2>/dev/null | cut -d' ' -f1);"""
    r""" W=$(tr '\0' '\n' < /proc/$R/cmdline 2>/dev/null | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p');"""
    r""" for P in "$W" python3 python; do command -v "$P" > /dev/null 2>&1 && exec "$P" -P -c {code}; done;"""
    r""" echo 'no Python was found'; exit 1"""
)


@dataclass(frozen=True, slots=True)
class ClusterPython:
    """The Python that jobs of a cluster run in.

    Attributes:
        path: Path of its executable, on the head.
        digest: The `code_digest` of the shardlabel installed there; None if there is none.
        artifacts: The folder of its bundled models; None if there is none.
        probe_id: The job that found this out; to be deleted once Ray has finished with it.
    """

    path: str
    digest: str | None
    artifacts: str | None
    probe_id: str


def check_versions(facts: ClusterFacts) -> None:
    """Raise ConfigError if the cluster's Ray or Python cannot run this version of the project."""
    ours = version("ray")
    if facts.ray_version.split(".")[:2] != ours.split(".")[:2]:
        raise ConfigError(
            f"the cluster runs Ray {facts.ray_version}, but shardlabel {version('shardlabel')} needs "
            f"{'.'.join(ours.split('.')[:2])}: use a cluster or an image with Ray {ours}"
        )
    found = tuple(int(part) for part in facts.python_version.split(".")[:2] if part.isdecimal())
    if found and found < LEAST_PYTHON:
        raise ConfigError(
            f"the cluster runs Python {facts.python_version}, but shardlabel needs "
            f"{'.'.join(map(str, LEAST_PYTHON))} or newer: use an image with such a Python"
        )


async def check_data(client: JobsClient, arguments: LabelArguments) -> None:
    """Raise ConfigError if data are on a local disk and the cluster has several nodes."""
    if not arguments.local or arguments.is_shared:
        return
    nodes = await client.num_nodes()
    if nodes > 1:
        raise ConfigError(
            f"{arguments.local[-1]} is on a node's own disk, but the cluster has {nodes} nodes: give an object storage "
            "URI, or --shared-filesystem to `label` if all nodes mount that folder at that path"
        )


async def probe(client: JobsClient, environment: dict[str, str]) -> ClusterPython:
    """Find out what a cluster's Python has, by a job that takes a second.

    Raises:
        ConfigError: The cluster's Python lacks dependencies of the project.
        ClusterError: The job does not run.
    """
    text = base64.b64encode(Path(probe_script.__file__).read_bytes()).decode()
    code = shlex.quote(f"import base64; exec(base64.b64decode('{text}'))")
    name = f"shardlabel-probe-{secrets.token_hex(6)}"
    request = {
        "entrypoint": _FIND_PYTHON.replace("{code}", code),
        "submission_id": name,
        "runtime_env": {"env_vars": environment},
    }
    await client.submit(request)
    job = await _wait(client, name)
    log = await client.log(name)
    lines = [line for line in log.splitlines() if line.startswith(probe_script.MARK)]
    if not lines:
        last = (job.message or log).strip().splitlines()[-1:] or [job.status]
        raise ClusterError(f"the cluster cannot run a line of Python: {last[0][:300]}")
    found = orjson.loads(lines[-1].removeprefix(probe_script.MARK))
    if found["missing"]:
        raise ConfigError(
            f"the cluster's Python ({found['python']}) lacks {', '.join(found['missing'])}: "
            "install shardlabel's dependencies in its image; `submit` sends only code"
        )
    return ClusterPython(found["python"], found["digest"], found["artifacts"], name)


async def _wait(client: JobsClient, name: str) -> Job:
    deadline = time.monotonic() + PROBE_S
    while True:
        job = await client.job(name)
        if job is not None and job.is_over:
            return job
        if time.monotonic() > deadline:
            await client.stop(name)
            raise ClusterError(
                f"the cluster has not started a job in {PROBE_S:g} s: {job.message if job else 'unknown'}"
            )
        await asyncio.sleep(PROBE_POLL_S)
