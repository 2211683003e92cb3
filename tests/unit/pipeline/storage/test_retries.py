"""What storage says decides what is tried again, for how long, and what the user is told."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from models.errors import StorageError
from pipeline.storage.retries import Fault, RetryPolicy, classify, reason, retried

QUICK = RetryPolicy(first_wait_s=0.0001, longest_wait_s=0.001)

# As pyarrow 26 gave them, when it was made to fail.
AWS_KEY = "When reading information for key 'SLOW_DOWN/403.tar' in bucket 'bucket': AWS Error "
GCS_END = " Permanent error, with a last message of x error_info={reason=, domain=, metadata={}})"
MESSAGES: dict[str, tuple[Fault, Exception]] = {
    "s3-slow-down": (Fault.TRANSIENT, OSError(
        "AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.")),
    "s3-503-of-head": (Fault.TRANSIENT, OSError(
        AWS_KEY + "UNKNOWN (HTTP status 503) during HeadObject operation: No response body.")),
    "s3-500": (Fault.TRANSIENT, OSError(
        "When listing objects under key '' in bucket 'b': AWS Error INTERNAL_FAILURE during ListObjectsV2 operation: "
        "We encountered an internal error. Please try again.")),
    "s3-reset": (Fault.TRANSIENT, OSError(
        "When uploading object with key 'AccessDenied' in bucket 'b': AWS Error NETWORK_CONNECTION during PutObject "
        "operation: curlCode: 56, Failure when receiving data from the peer; Details: Recv failure: Connection reset "
        "by peer")),
    "s3-cut": (Fault.TRANSIENT, OSError(
        "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file; Details: "
        "end of response with 250000 bytes missing")),
    "s3-stall": (Fault.TRANSIENT, OSError(
        AWS_KEY + "NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached; Details: "
        "Operation too slow. Less than 1 bytes/sec transferred the last 3 seconds")),
    "s3-refused": (Fault.UNREACHABLE, OSError(
        AWS_KEY + "NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server; Details: "
        "Failed to connect to 127.0.0.1:59549 after 0 ms: Could not connect to server")),
    "s3-no-such-host": (Fault.UNREACHABLE, OSError(
        AWS_KEY + "NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname; Details: "
        "Could not resolve host: no-such-host.invalid")),
    "s3-certificate": (Fault.PERMANENT, OSError(
        AWS_KEY + "NETWORK_CONNECTION during HeadObject operation: curlCode: 60, SSL peer certificate or SSH remote "
        "key was not OK")),
    "s3-denied": (Fault.PERMANENT, OSError(
        AWS_KEY + "ACCESS_DENIED during HeadObject operation: No response body.")),
    "s3-misleading-name": (Fault.PERMANENT, OSError(
        "When getting information for key 'AWS Error SLOW_DOWN during curlCode: 7, Could not connect' in bucket 'b': "
        "AWS Error ACCESS_DENIED during HeadObject operation: No response body.")),
    "s3-unknown-key": (Fault.PERMANENT, OSError(
        "When listing objects under key '' in bucket 'b': AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 "
        "operation: The Access Key Id you provided does not exist in our records.")),
    "s3-wrong-secret": (Fault.PERMANENT, OSError(
        "When uploading object with key 'x' in bucket 'b': AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject "
        "operation: The request signature we calculated does not match the signature you provided.")),
    "s3-no-bucket": (Fault.PERMANENT, OSError(
        "When uploading object with key 'x' in bucket 'nobucket': AWS Error NO_SUCH_BUCKET during PutObject operation: "
        "The specified bucket does not exist")),
    "s3-411": (Fault.PERMANENT, OSError(
        "When uploading part for key 'w/small' in bucket 'bucket': AWS Error UNKNOWN (HTTP status 411) during "
        "UploadPart operation: Unable to parse ExceptionName: MissingContentLength Message: MissingContentLength")),
    "gcs-503": (Fault.TRANSIENT, OSError(
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of x error_info={reason=})")),
    "gcs-reset": (Fault.TRANSIENT, OSError(
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of PerformWork() - CURL error "
        "[56]=Failure when receiving data from the peer error_info={reason=})")),
    "gcs-refused": (Fault.UNREACHABLE, OSError(
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of PerformWork() - CURL error "
        "[7]=Could not connect to server error_info={reason=})")),
    "gcs-denied": (Fault.PERMANENT, PermissionError(
        errno.EACCES, "google::cloud::Status(PERMISSION_DENIED:" + GCS_END)),
    "gcs-not-found": (Fault.PERMANENT, FileNotFoundError(
        errno.ENOENT, "google::cloud::Status(NOT_FOUND:" + GCS_END)),
    "azure-busy": (Fault.TRANSIENT, OSError(
        "Check for Hierarchical Namespace support on 'http://h/acc/cont' failed. Azure Error: [ServerBusy] 503 Service "
        "Unavailable\n\nRequest ID: ")),
    "azure-timed-out": (Fault.TRANSIENT, OSError(
        "GetProperties failed for 'x'. Azure Error: [OperationTimedOut] 500 Internal Server Error\n\nRequest ID: ")),
    "azure-reset": (Fault.TRANSIENT, OSError(
        "Check for Hierarchical Namespace support on 'x' failed. Azure Error: [] Error while reading from network "
        "socket. CURLE code: 56. Failure when receiving data from the peer")),
    "azure-refused": (Fault.UNREACHABLE, OSError(
        "Check for Hierarchical Namespace support on 'x' failed. Azure Error: [] Fail to get a new connection for: "
        "http://127.0.0.1:1. Could not connect to server")),
    "azure-denied": (Fault.PERMANENT, OSError(
        "GetProperties failed for 'http://h/acc/503/a.tar'. Cannot initialise an ObjectInputFile without knowing the "
        "file size. Azure Error: [AuthenticationFailed] 403 Forbidden\n\nRequest ID: ")),
    "azure-no-container": (Fault.PERMANENT, OSError(
        "UploadFrom failed for 'x'. Azure Error: [ContainerNotFound] 404 Not Found\nbecause\nRequest ID: ")),
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
        ("s3-denied", "AWS Error ACCESS_DENIED during HeadObject operation (check AWS_ACCESS_KEY_ID"),
        ("local-full", "no space left on the device"),
        ("local-missing", "it does not exist"),
        ("gcs-denied", "PERMISSION_DENIED"),
        ("s3-no-bucket", "check the bucket's name"),
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
    assert retried("read x", failing(5, MESSAGES["s3-slow-down"][1]), QUICK) == "done"


def test_permanent_errors_are_not() -> None:
    with pytest.raises(StorageError, match=r"cannot read x: AWS Error ACCESS_DENIED.*what they may do"):
        retried("read x", failing(1, MESSAGES["s3-denied"][1]))


def test_attempts_run_out() -> None:
    with pytest.raises(StorageError, match=r"cannot read x: AWS Error SLOW_DOWN.*\(3 tries in 0 s\)") as caught:
        retried("read x", failing(9, MESSAGES["s3-slow-down"][1]), RetryPolicy(3, 0.0001))
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("name", "budget"), [("s3-slow-down", "budget_s"), ("s3-refused", "unreachable_s")])
def test_patience_runs_out(name: str, budget: str) -> None:
    policy = RetryPolicy(10**6, 0.001, 0.01, **{budget: 0.15})
    started = time.perf_counter()

    with pytest.raises(StorageError, match=r"tries in 0 s\)"):
        retried("read x", failing(10**6, MESSAGES[name][1]), policy)

    assert 0.15 <= time.perf_counter() - started < 1


def test_errors_of_the_program_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        retried("read x", failing(1, ZeroDivisionError()), QUICK)
