"""`shardlabel submit`: run `label` on a cluster as a job, and follow it until it ends."""

from __future__ import annotations

import os
import re
import secrets
import time
from typing import Annotated

import typer

from models.errors import ConfigError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def submit(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- label ARGS...", help="The command to run, behind `--`.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="URL of the cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, else 127.0.0.1:8265]"),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(help="Name of the job, to attach to it later. [default: a new one]")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, metavar="S", help="Stop the job after this many seconds, and exit with 5.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Start the job, say how to attach to it, and exit.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Restart a failed job up to N times; it resumes.")
    ] = 0,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Environment of the job; without VALUE, the value here. Repeatable."),
    ] = None,
) -> None:
    """Run `label` on a Ray cluster as a job: send the code if the cluster lacks it, show the log, wait for the end.

    With the same --submission-id again, the command attaches to a running job, restarts one that failed or was stopped
    (finished units are not redone), and reports one that succeeded. Without `-- label ARGS...` it only attaches.
    Ctrl-C asks whether to stop the job or to leave it running.

    The token for the cluster comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Exit codes: 0 succeeded; 1 failed; 2 bad usage, address or cluster; 4 stopped; 5 timed out; 130 left running.

    Examples:
        shardlabel submit -- label 's3://bucket/train-{00000..00999}.tar' --output s3://bucket/labels

        shardlabel submit --submission-id nightly --retries 3 -- label s3://b/in --output s3://b/labels

        shardlabel submit --submission-id nightly
    """
    import asyncio

    from cluster.submit.arguments import check_arguments
    from cluster.submit.submission import Submission, run_submission

    if submission_id is not None and not _ID.fullmatch(submission_id):
        raise ConfigError(
            f"--submission-id must be letters, digits, '.', '_' and '-', at most 128, got {submission_id!r}"
        )
    if no_wait and (retries or timeout):
        raise ConfigError("--no-wait cannot be used with --retries or --timeout, which need the command to stay")
    if not command and submission_id is None:
        raise ConfigError("nothing to run: shardlabel submit [OPTIONS] -- label SOURCE... --output DEST")
    submission = Submission(
        address=address,
        submission_id=submission_id or f"shardlabel-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        arguments=check_arguments(command) if command else None,
        deadline=None if timeout is None else time.monotonic() + timeout,
        waits=not no_wait,
        retries=retries,
        environment=_environment(env or []),
    )
    raise typer.Exit(asyncio.run(run_submission(submission)))


def _environment(given: list[str]) -> dict[str, str]:
    """Return the environment of a job, from NAME=VALUE, or NAME for its value here."""
    environment = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--env must be NAME or NAME=VALUE, got {text!r}")
        if not has_value:
            if name not in os.environ:
                raise ConfigError(f"--env {name}: {name} is not set here; give --env {name}=VALUE")
            value = os.environ[name]
        environment[name] = value
    return environment


def register(app: typer.Typer) -> None:
    """Add `submit` to the console command."""
    app.command()(submit)
