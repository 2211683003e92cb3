"""Run a submission: check the cluster, send the code, start the job, follow it, and retry it."""

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
from cluster.submit.console import ask_user, handle_signals, say
from cluster.submit.follow import LOST_S, STOP_WAIT_S, JobLog, Outcome, Watch
from cluster.submit.jobs_client import Job, JobsClient, JobsUnreachableError, auth_headers, dashboard_url
from cluster.submit.package import Package, build_package
from cluster.submit.preflight import ClusterPython, check_data, check_versions, probe
from models.errors import ClusterError, ConfigError

EXIT_FAILED = 1
EXIT_STOPPED = 4
EXIT_TIMED_OUT = 5
EXIT_LEFT = 130

# Exit codes of `label` after which a retry would end the same way: bad usage, and over --max-error-rate.
FINAL_EXITS = frozenset({2, 3})
# For this long after a job's end, Ray's monitor may still look up its name, and would stop a new job of that name.
SETTLE_S = 4.0
RETRY_PAUSE_S = 5.0
_ARGUMENTS = "shardlabel.arguments"
_ATTEMPT = "shardlabel.attempt"


@dataclass(frozen=True, slots=True)
class Submission:
    """The settings of a submission.

    Attributes:
        address: URL of the dashboard, as given, or None.
        submission_id: The job's name.
        arguments: Arguments of `label`; None to attach only.
        deadline: `time.monotonic()` when to stop the job; None for never.
        waits: Whether to follow the job until its end.
        retries: How often to restart a failed job.
        environment: Environment variables of the job.
    """

    address: str | None
    submission_id: str
    arguments: LabelArguments | None
    deadline: float | None
    waits: bool
    retries: int
    environment: dict[str, str]


async def run_submission(submission: Submission) -> int:
    """Run a submission; return the exit code.

    Raises:
        ConfigError: The cluster, the package or the data do not fit.
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
    """A submission in progress."""

    submission: Submission
    client: JobsClient
    package: Package | None
    _python: ClusterPython | None = None

    async def run(self) -> int:
        """Attach to the job or start it; then follow it."""
        name = self.submission.submission_id
        job = await self.client.job(name)
        mark = self._attached(job) if job is not None else None
        if mark is None:
            mark = await self._start(job)
        tidying = asyncio.create_task(self._forget_probe())
        try:
            code = await self._follow_with_retries(mark) if self.submission.waits else 0
            await tidying
            if not self.submission.waits:
                say(f"job {name} has started; to attach: {self._attach_command()}")
            return code
        finally:
            tidying.cancel()

    async def _follow_with_retries(self, mark: str) -> int:
        """Follow the job, and restart it if it fails; return the exit code."""
        for attempt in range(self.submission.retries + 1):
            code, may_retry = await self._follow(mark)
            if not may_retry or attempt == self.submission.retries or self.submission.arguments is None:
                break
            say(f"restarting the job, retry {attempt + 1} of {self.submission.retries}")
            await asyncio.sleep(RETRY_PAUSE_S)
            mark = await self._restart()
        return code

    async def _restart(self) -> str:
        """Restart the job. A cluster that does not answer may be restarting itself, so wait for it."""
        deadline = time.monotonic() + LOST_S
        while True:
            try:
                return await self._start(await self.client.job(self.submission.submission_id))
            except JobsUnreachableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    def _attached(self, job: Job) -> str | None:
        """Return the mark of a job to attach to; None if it must be restarted."""
        name, arguments = self.submission.submission_id, self.submission.arguments
        if _ARGUMENTS not in job.metadata:
            raise ConfigError(f"job {name} was not submitted by shardlabel: give another --submission-id")
        if job.is_over and job.status != "SUCCEEDED" and arguments is not None:
            say(f"job {name} {job.status.lower()} before, and is restarted: finished units are not redone")
            return None
        if arguments is not None and json.loads(job.metadata[_ARGUMENTS]) != list(arguments.words):
            raise ConfigError(
                f"job {name} {'succeeded' if job.is_over else 'runs'} with other arguments "
                f"({shlex.join(json.loads(job.metadata[_ARGUMENTS]))}): give another --submission-id"
            )
        say(f"job {name} exists ({job.status.lower()}): attaching to it")
        return _mark(job.metadata[_ATTEMPT])

    async def _start(self, before: Job | None) -> str:
        """Start the job, in place of an earlier one that has ended; return the mark of its log."""
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
        """Delete the probe's job once Ray no longer looks at it: earlier, it would reappear as failed."""
        if self._python is not None:
            await asyncio.sleep(SETTLE_S)
            with suppress(ClusterError, ConfigError):
                await self.client.delete(self._python.probe_id)

    async def _request(self, arguments: LabelArguments, python: ClusterPython, package: Package) -> dict[str, Any]:
        """Return the request; first send the code if the cluster has a different one."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_WAIT_S:.0f}", **self.submission.environment}
        runtime_env: dict[str, Any] = {"env_vars": variables}
        if python.digest == package.digest:
            say(f"the cluster has this shardlabel {version('shardlabel')}: nothing is sent")
        else:
            if await self.client.has_package(package.name):
                say("the cluster has the code from an earlier submission: nothing is sent")
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
        """Start the job; return its mark. A lost answer is harmless: the retry finds the name taken by this job."""
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
            # Taken by our own request whose answer was lost, or by the same command elsewhere.
            return _mark(job.metadata[_ATTEMPT])

    async def _follow(self, mark: str) -> tuple[int, bool]:
        """Follow the job; return the exit code, and whether a retry may succeed."""
        name = self.submission.submission_id
        watch = Watch(self.client, name, JobLog(mark), say, ask_user, self.submission.deadline)
        with handle_signals(watch):
            outcome, job = await watch.follow()
        if outcome is Outcome.LEFT:
            say(f"job {name} keeps running; to attach: {self._attach_command()}")
            return EXIT_LEFT, False
        if outcome is Outcome.FORGOTTEN:
            say(f"job {name} failed: the cluster no longer knows it, and was probably restarted")
            return EXIT_FAILED, True
        if outcome is Outcome.TIMED_OUT:
            say(f"job {name} timed out and was stopped; run the same command again to resume")
            return EXIT_TIMED_OUT, False
        assert job is not None
        return self._judge(job, shown=watch.log.has_begun)

    def _judge(self, job: Job, *, shown: bool) -> tuple[int, bool]:
        name = self.submission.submission_id
        if job.status == "SUCCEEDED":
            say(f"job {name} succeeded")
            return 0, False
        if job.status == "STOPPED":
            say(f"job {name} was stopped; run the same command again to resume")
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
    """Return a comment that ends a job's command line, which Ray logs before it starts the job."""
    return f"# attempt {attempt}"
