"""What storage says decides what is tried again, for how long, and what the user is told."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pyarrow as pa
import pytest
from obstore.exceptions import GenericError, InvalidPathError, PermissionDeniedError

from models.errors import StorageError
from pipeline.storage.retries import Fault, RetryPolicy, classify, reason, retried

QUICK = RetryPolicy(first_wait_s=0.0001, longest_wait_s=0.001)

SENDING = "HTTP error: error sending request"


def generic(line: str, *parts: str) -> GenericError:
    return GenericError(
        "\n\nDebug source:\n".join([f"Generic S3 error: Error performing GET http://h:1/b/k in 1ms - {line}", *parts])
    )


def answer(status: str, body: str = "") -> str:
    return f"Server returned non-2xx status code: {status}: {body}"


# As obstore 0.12 gave them, when it was made to fail.
MESSAGES: dict[str, tuple[Fault, Exception]] = {
    "slow-down": (Fault.TRANSIENT, generic(answer(
        "503 Service Unavailable", "<Code>SlowDown</Code><Message>Please reduce your request rate.</Message>"))),
    "503-of-head": (Fault.TRANSIENT, generic(answer("503 Service Unavailable"))),
    "500": (Fault.TRANSIENT, generic(answer("500 Internal Server Error", "<Error><Code>InternalError</Code></Error>"))),
    "429": (Fault.TRANSIENT, generic(answer("429 Too Many Requests"))),
    "slow-body": (Fault.TRANSIENT, generic(answer("400 Bad Request", "<Error><Code>RequestTimeout</Code></Error>"))),
    "reset": (Fault.TRANSIENT, generic(SENDING, "HttpError { kind: Request, source: hyper::Error( IncompleteMessage, ), }")),
    "cut": (Fault.TRANSIENT, GenericError(
        "Generic S3 error: HTTP error: request or response body error\n\nDebug source:\nkind: Interrupted, IncompleteBody")),
    "cut-listing": (Fault.TRANSIENT, GenericError(
        "Generic S3 error: Got invalid list response: ill-formed document: start tag not closed: `</Key>` not found")),
    "stall": (Fault.TRANSIENT, generic(SENDING, "HttpError { kind: Timeout, source: TimedOut, }")),
    "refused": (Fault.UNREACHABLE, generic(
        SENDING, 'HttpError { kind: Connect, ConnectError( "tcp connect error", message: "Connection refused", ), }')),
    "no-such-host": (Fault.UNREACHABLE, generic(
        SENDING, 'HttpError { kind: Connect, "dns error", error: "failed to lookup address information: Name or service not '
        'known", }')),
    "no-tls": (Fault.PERMANENT, generic(SENDING, "{ kind: Connect, error: InvalidMessage( InvalidContentType, ), }")),
    "certificate": (Fault.PERMANENT, generic(
        SENDING, "HttpError { kind: Connect, error: InvalidCertificate( UnknownIssuer, ), }")),
    "no-url": (Fault.PERMANENT, generic("HTTP error: builder error", "HttpError { kind: Builder, source: BadScheme, }")),
    "denied": (Fault.PERMANENT, PermissionDeniedError(
        "The operation lacked the necessary privileges to complete for path 503.tar: HEAD http://h/b - "
        + answer("403 Forbidden"))),
    "misleading-name": (Fault.PERMANENT, PermissionDeniedError(
        "The operation lacked the necessary privileges for path HTTP error: kind: Connect,: - " + answer("403 Forbidden"))),
    "denied-listing": (Fault.PERMANENT, generic(answer("403 Forbidden", "<Error><Code>InvalidAccessKeyId</Code></Error>"))),
    "no-bucket": (Fault.PERMANENT, generic(answer(
        "404 Not Found", "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"))),
    "redirect": (Fault.PERMANENT, generic(
        "Received redirect without LOCATION, this normally indicates an incorrectly configured region")),
    "no-such-key": (Fault.PERMANENT, FileNotFoundError(
        "Object at location x not found: " + answer("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>"))),
    "bad-path": (Fault.PERMANENT, InvalidPathError("Path \"w/k//b\" contained empty path segment")),
    "azure-container": (Fault.PERMANENT, generic(answer("404 Not Found", "<Error><Code>ContainerNotFound</Code></Error>"))),
    "local-full": (Fault.PERMANENT, OSError(errno.ENOSPC, "No space left on device")),
    "local-io": (Fault.PERMANENT, OSError(errno.EIO, "Input/output error")),
    "local-stale": (Fault.TRANSIENT, OSError(errno.ESTALE, "Stale file handle")),
    "local-reset": (Fault.TRANSIENT, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
    "local-refused": (Fault.UNREACHABLE, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")),
    "local-missing": (Fault.PERMANENT, FileNotFoundError(errno.ENOENT, "No such file or directory")),
    "arrow-invalid": (Fault.PERMANENT, pa.ArrowInvalid("Unexpected query parameter in S3 URI: 'foo'")),
    "unknown": (Fault.PERMANENT, OSError("something that nobody has seen before, 503 times")),
}  # fmt: skip


@pytest.mark.parametrize(("expected", "err"), MESSAGES.values(), ids=MESSAGES)
def test_errors_are_told_apart_by_what_storage_says(expected: Fault, err: Exception) -> None:
    assert classify(err) is expected
    line = reason(err)
    assert line
    assert "\n" not in line
    assert len(line) <= 400


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "denied",
            "403 Forbidden (check the credentials and their permissions; `shardlabel doctor` names those it finds)",
        ),
        ("denied-listing", "403 Forbidden, InvalidAccessKeyId (check AWS_ACCESS_KEY_ID)"),
        ("refused", "cannot connect: Connection refused"),
        ("no-such-host", "cannot connect: failed to lookup address information"),
        ("stall", "the server is silent"),
        ("no-such-key", "it does not exist"),
        ("slow-down", "503 Service Unavailable, SlowDown: Please reduce your request rate."),
        ("bad-path", "contained empty path segment"),
        ("local-full", "no space left on the device"),
        ("local-missing", "it does not exist"),
        ("no-bucket", "check the bucket's name"),
    ],
)
def test_reasons_say_what_to_do(name: str, text: str) -> None:
    assert text in reason(MESSAGES[name][1])


def failing(times: int, err: Exception) -> Callable[[], str]:
    left = [err] * times

    def operation() -> str:
        if left:
            raise left.pop()
        return "done"

    return operation


def test_transient_errors_are_tried_again() -> None:
    assert retried("read x", failing(5, MESSAGES["slow-down"][1]), QUICK) == "done"


def test_permanent_errors_are_not() -> None:
    with pytest.raises(StorageError, match=r"cannot read x: 403 Forbidden.*check the credentials"):
        retried("read x", failing(1, MESSAGES["denied"][1]))


def test_attempts_run_out() -> None:
    with pytest.raises(StorageError, match=r"cannot read x: 503 Service Unavailable.*\(3 tries in 0 s\)") as caught:
        retried("read x", failing(9, MESSAGES["slow-down"][1]), RetryPolicy(3, 0.0001))
    assert isinstance(caught.value.__cause__, GenericError)


@pytest.mark.parametrize(("name", "budget"), [("slow-down", "budget_s"), ("refused", "unreachable_s")])
def test_patience_runs_out(name: str, budget: str) -> None:
    policy = RetryPolicy(10**6, 0.001, 0.01, **{budget: 0.15})
    started = time.perf_counter()

    with pytest.raises(StorageError, match=r"tries in \d s\)"):
        retried("read x", failing(10**6, MESSAGES[name][1]), policy)

    assert 0.15 <= time.perf_counter() - started < 5


def test_errors_of_the_program_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        retried("read x", failing(1, ZeroDivisionError()), QUICK)
