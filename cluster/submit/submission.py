"""The life of a submission: look, send, start, follow, and start anew."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cluster.submit.arguments import LabelArguments
from cluster.submit.console import ask_wish, obeying_signals, say
from cluster.submit.follow import LOST_S, STOP_WAIT_S, JobLog, Outcome, Watch
from cluster.submit.jobs_client import Job, JobsClient, JobsUnreachableError, auth_headers, dashboard_url
from cluster.submit.package import Package, build_package
from cluster.submit.preflight import ClusterPython, check_data, check_versions, probe
from models.errors import ClusterError, ConfigError

EXIT_FAILED = 1
EXIT_STOPPED = 4
EXIT_TIMED_OUT = 5
EXIT_LEFT = 130

# What `label` exits with where the same command would end the same way again: bad usage, and over --max-error-rate.
FINAL_EXITS = frozenset({2, 3})
# Ray's monitor of a job may look at its name for so long after its end, and would end a new job of that name.
SETTLE_S = 4.0
RETRY_PAUSE_S = 5.0
_ARGUMENTS = "shardlabel.arguments"
_ATTEMPT = "shardlabel.attempt"


@dataclass(frozen=True, slots=True)
class Submission:
    """What a user wants.

    Attributes:
        address: As given, or None.
        submission_id: The job's name.
        arguments: Of `label`; None to attach only.
        deadline: `time.monotonic()` when the job is to be stopped.
        waits: Whether to stay until its end.
        retries: How often a failed job is started anew.
        environment: Of the job.
    """

    address: str | None
    submission_id: str
    arguments: LabelArguments | None
    deadline: float | None
    waits: bool
    retries: int
    environment: dict[str, str]


async def run_submission(submission: Submission) -> int:
    """Do it; return the exit code.

    Raises:
        ConfigError: The cluster, the package or the data cannot be used so.
        ClusterError: The cluster does not answer, or refuses.
    """
    environment = dict(os.environ)
    package = build_package() if submission.arguments else None
    url = dashboard_url(submission.address, environment)
    async with JobsClient(url, auth_headers(environment)) as client:
        try:
            facts = await client.facts()
        except JobsUnreachableError as err:
            raise ConfigError(str(err)) from err
        check_versions(facts)
        return await _Run(submission, client, package).run()


@dataclass
class _Run:
    """A submission on its way."""

    submission: Submission
    client: JobsClient
    package: Package | None
    _python: ClusterPython | None = None

    async def run(self) -> int:
        """Attach, report, or start; then follow."""
        name = self.submission.submission_id
        job = await self.client.job(name)
        mark = self._attached(job) if job is not None else None
        if mark is None:
            mark = await self._start(job)
        tidying = asyncio.create_task(self._forget_probe())
        try:
            code = await self._see_through(mark) if self.submission.waits else 0
            await tidying
            if not self.submission.waits:
                say(f"job {name} is started; to attach: {self._attach_command()}")
            return code
        finally:
            tidying.cancel()

    async def _see_through(self, mark: str) -> int:
        """Follow the job, and start it anew where it fails; return the exit code."""
        for attempt in range(self.submission.retries + 1):
            code, may_retry = await self._follow(mark)
            if not may_retry or attempt == self.submission.retries or self.submission.arguments is None:
                break
            say(f"starting the job anew, time {attempt + 1} of {self.submission.retries}")
            await asyncio.sleep(RETRY_PAUSE_S)
            mark = await self._start_again()
        return code

    async def _start_again(self) -> str:
        """Start the job anew; a cluster that does not answer may be starting anew itself."""
        deadline = time.monotonic() + LOST_S
        while True:
            try:
                return await self._start(await self.client.job(self.submission.submission_id))
            except JobsUnreachableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    def _attached(self, job: Job) -> str | None:
        """Return the mark of a job to attach to; None where it has to be started anew."""
        name, arguments = self.submission.submission_id, self.submission.arguments
        if _ARGUMENTS not in job.metadata:
            raise ConfigError(f"{name} is the name of a job that is none of shardlabel's: give another --submission-id")
        if job.is_over and job.status != "SUCCEEDED" and arguments is not None:
            say(f"job {name} {job.status.lower()} before, and is started anew: what is finished is not done again")
            return None
        if arguments is not None and json.loads(job.metadata[_ARGUMENTS]) != list(arguments.words):
            raise ConfigError(
                f"job {name} {'succeeded' if job.is_over else 'runs'} with other arguments "
                f"({shlex.join(json.loads(job.metadata[_ARGUMENTS]))}): give another --submission-id"
            )
        say(f"job {name} is there already ({job.status.lower()}), and is attached to")
        return _mark(job.metadata[_ATTEMPT])

    async def _start(self, before: Job | None) -> str:
        """Start the job, in place of an earlier one that is over; return the mark of its log."""
        arguments, name = self.submission.arguments, self.submission.submission_id
        if arguments is None or self.package is None:
            raise ConfigError(f"{self.client.url} has no job {name} to attach to; give `-- label ARGS...` to start one")
        await check_data(self.client, arguments)
        if self._python is None:
            self._python = await probe(self.client, self.submission.environment)
        request = await self._request(arguments, self._python, self.package)
        if before is not None:
            await asyncio.sleep(max(0.0, SETTLE_S - (before.ended_s_ago or 0.0)))
            await self.client.delete(name)
        return await self._post(request)

    async def _forget_probe(self) -> None:
        """Delete the probe's job, when Ray does not look at it any more: it would be there again, as failed."""
        if self._python is not None:
            await asyncio.sleep(SETTLE_S)
            with suppress(ClusterError, ConfigError):
                await self.client.delete(self._python.probe_id)

    async def _request(self, arguments: LabelArguments, python: ClusterPython, package: Package) -> dict[str, Any]:
        """Return the request, after sending the code where the cluster has another."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_WAIT_S:.0f}", **self.submission.environment}
        runtime_env: dict[str, Any] = {"env_vars": variables}
        if python.digest == package.digest:
            say(f"the cluster has this shardlabel {version('shardlabel')}: nothing is sent")
        else:
            if await self.client.has_package(package.name):
                say("the cluster has the code from before: nothing is sent")
            else:
                await self.client.put_package(package.name, package.content)
                say(f"sent the code: {len(package.content)} bytes")
            runtime_env["working_dir"] = package.uri
            if python.artifacts is not None:
                variables["SHARDLABEL_ARTIFACTS"] = python.artifacts
        attempt = secrets.token_hex(8)
        command = shlex.join([python.path, "-P", "-m", "cluster.cli", "label", *arguments.words])
        return {
            "entrypoint": f"exec {command} {_mark(attempt)}",
            "submission_id": self.submission.submission_id,
            "runtime_env": runtime_env,
            "metadata": {
                _ARGUMENTS: json.dumps(list(arguments.words)),
                _ATTEMPT: attempt,
                "shardlabel.version": version("shardlabel"),
            },
        }

    async def _post(self, request: dict[str, Any]) -> str:
        """Start the job. A lost answer does no harm: the name is taken then, and by this very attempt."""
        name, attempt = request["submission_id"], request["metadata"][_ATTEMPT]
        deadline = time.monotonic() + 60.0
        while True:
            try:
                is_new = await self.client.submit(request)
            except JobsUnreachableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1.0)
                continue
            if is_new:
                say(f"job {name} at {self.client.url}")
                return _mark(attempt)
            job = await self.client.job(name)
            if job is None or _ATTEMPT not in job.metadata:
                raise ClusterError(f"the name {name} was taken in the meantime: give another --submission-id")
            # By an answer that was lost, or by the same command elsewhere.
            return _mark(job.metadata[_ATTEMPT])

    async def _follow(self, mark: str) -> tuple[int, bool]:
        """Follow the job; return the exit code, and whether another attempt may do better."""
        name = self.submission.submission_id
        watch = Watch(self.client, name, JobLog(mark), say, ask_wish, self.submission.deadline)
        with obeying_signals(watch):
            outcome, job = await watch.follow()
        if outcome is Outcome.LEFT:
            say(f"job {name} goes on; to attach: {self._attach_command()}")
            return EXIT_LEFT, False
        if outcome is Outcome.FORGOTTEN:
            say(f"job {name} failed: the cluster does not know it any more, and was probably started anew")
            return EXIT_FAILED, True
        if outcome is Outcome.TIMED_OUT:
            say(f"job {name} timed out and was stopped; the same command does the rest")
            return EXIT_TIMED_OUT, False
        assert job is not None
        return self._judge(job, shown=watch.log.has_begun)

    def _judge(self, job: Job, *, shown: bool) -> tuple[int, bool]:
        name = self.submission.submission_id
        if job.status == "SUCCEEDED":
            say(f"job {name} succeeded")
            return 0, False
        if job.status == "STOPPED":
            say(f"job {name} was stopped; the same command does the rest")
            return EXIT_STOPPED, False
        why = f"label exited with {job.exit_code}" if job.exit_code is not None else " ".join(job.message.split())
        if not shown and job.exit_code is not None:
            why += ": " + " ".join(job.message.split())
        say(f"job {name} failed: {why[:1000]}")
        return EXIT_FAILED, job.exit_code not in FINAL_EXITS

    def _attach_command(self) -> str:
        return shlex.join(
            ["shardlabel", "submit", "--address", self.client.url, "--submission-id", self.submission.submission_id]
        )


def _mark(attempt: str) -> str:
    """Return the end of a job's command line, which Ray writes into its log before it starts: a comment."""
    return f"# attempt {attempt}"
