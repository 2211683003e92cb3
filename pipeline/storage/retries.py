"""Which storage errors may mend by themselves, and trying again until they do or the patience is used up.

pyarrow passes storage's own words on as the text of an OSError. They were collected by running pyarrow 26 against
servers that fail on purpose (S3: rclone's behind a proxy; GCS and Azure: one that answers with their error documents).
"""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import pyarrow as pa

from models.errors import StorageError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Fault(Enum):
    """What an error says about trying again."""

    PERMANENT = "permanent"  # wrong keys, no such bucket, full disk: the same every time
    TRANSIENT = "transient"  # throttling, resets, stalls
    UNREACHABLE = "unreachable"  # nobody answers there: a server that restarts, or a wrong address


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and for how long, one storage operation is tried.

    Attributes:
        attempts: Tries in all. Each S3 request among them is itself tried up to 6 times within a second.
        first_wait_s: Longest wait after the first failure; it doubles each time, with full jitter.
        longest_wait_s: Cap of one wait.
        budget_s: No new try once this much time has gone by.
        unreachable_s: The same where nobody answers at all: a wrong address must not cost minutes.
    """

    attempts: int = 12
    first_wait_s: float = 0.2
    longest_wait_s: float = 20.0
    budget_s: float = 180.0
    unreachable_s: float = 30.0


DEFAULT_RETRY = RetryPolicy()
# From here on a user who waits should know what for.
_LOUD_ATTEMPT = 3

# From S3 comes "When ... key 'k' in bucket 'b': AWS Error SLOW_DOWN during GetObject operation: ..."; where the code is
# not known, and always for HEAD, "AWS Error UNKNOWN (HTTP status 503) during ...".
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during")
_AWS_TRANSIENT = frozenset(
    {
        "INTERNAL_FAILURE",
        "SERVICE_UNAVAILABLE",
        "THROTTLING",
        "SLOW_DOWN",
        "REQUEST_TIMEOUT",
        "NETWORK_CONNECTION",
        # The answer to a CompleteMultipartUpload got lost, and its repetition finds the upload gone.
        "NO_SUCH_UPLOAD",
    }
)
# From GCS, where its own client has tried again already, "... Status(UNAVAILABLE: Retry policy exhausted, with a ...".
_GCS = re.compile(r"google::cloud::Status\((\w+):")
_GCS_TRANSIENT = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED", "ABORTED"})
# From Azure "... failed. Azure Error: [ServerBusy] 503 ...", and with empty brackets where no answer came.
_AZURE = re.compile(r"Azure Error: \[(\w*)\] ?(\d{3}\b)?")
_AZURE_TRANSIENT = frozenset({"ServerBusy", "InternalError", "OperationTimedOut"})
_HTTP_TRANSIENT = frozenset({"408", "425", "429", "500", "502", "503", "504"})
# curl's numbers, as the three write them: "curlCode: 7," "CURL error [7]" "CURLE code: 7."
_CURL = re.compile(r"curl(?:Code:| error \[|e code:) ?(\d+)", re.IGNORECASE)
_CURL_UNREACHABLE = frozenset({5, 6, 7})  # no such proxy, no such host, connection refused
_CURL_PERMANENT = frozenset({1, 3, 51, 58, 59, 60, 77, 83, 90, 91})  # unknown protocol, bad URL, certificates
_NO_CONNECTION = re.compile(r"Could not connect|Could not resolve|Fail to get a new connection")
# Names of keys and buckets stand between quotes in these texts, and may hold any word: "Forbidden/SLOW_DOWN.tar".
_QUOTED = re.compile(r"'[^']*'")
_ERRNO_UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN})
_ERRNO_TRANSIENT = frozenset(
    {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ESTALE,
     errno.EBUSY, errno.ENETDOWN, errno.ENETRESET}
)  # fmt: skip


def classify(err: BaseException) -> Fault:
    """Tell what an error of a filesystem says about trying again; unknown ones are permanent."""
    if isinstance(err, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return Fault.PERMANENT
    number = getattr(err, "errno", None)
    if number in _ERRNO_UNREACHABLE:
        return Fault.UNREACHABLE
    if number in _ERRNO_TRANSIENT or isinstance(err, (TimeoutError, ConnectionError)):
        return Fault.TRANSIENT
    return _classify_text(_QUOTED.sub("''", str(err)))


def _classify_text(text: str) -> Fault:
    codes = [int(code) for code in _CURL.findall(text)]
    if _CURL_PERMANENT.intersection(codes):
        return Fault.PERMANENT
    if _CURL_UNREACHABLE.intersection(codes) or _NO_CONNECTION.search(text):
        return Fault.UNREACHABLE
    transient = False
    if match := _AWS.search(text):
        transient = match[1] in _AWS_TRANSIENT or match[2] in _HTTP_TRANSIENT
    elif match := _GCS.search(text):
        transient = match[1] in _GCS_TRANSIENT
    elif match := _AZURE.search(text):
        transient = match[1] in _AZURE_TRANSIENT or match[2] in _HTTP_TRANSIENT or not (match[1] or match[2])
    return Fault.TRANSIENT if transient or codes else Fault.PERMANENT


def retried(what: str, operation: Callable[[], T], policy: RetryPolicy = DEFAULT_RETRY) -> T:
    """Run a storage operation, again after errors that may mend.

    Args:
        what: The operation and its path, for messages: "read s3://bucket/a.tar".
        operation: Safe to repeat.
        policy: How often.

    Raises:
        StorageError: It failed for good, or for longer than the policy allows; the cause is the last error.
    """
    started = time.perf_counter()
    for attempt in range(1, policy.attempts + 1):
        try:
            return operation()
        except (OSError, pa.ArrowException) as err:
            fault = classify(err)
            if fault is Fault.PERMANENT:
                raise StorageError(f"cannot {what}: {reason(err)}") from err
            spent = time.perf_counter() - started
            budget = policy.unreachable_s if fault is Fault.UNREACHABLE else policy.budget_s
            if attempt == policy.attempts or spent >= budget:
                raise StorageError(f"cannot {what}: {reason(err)} ({attempt} tries in {spent:.0f} s)") from err
            wait = min(policy.longest_wait_s, policy.first_wait_s * 2 ** (attempt - 1)) * random.random()
            level = logging.WARNING if attempt >= _LOUD_ATTEMPT else logging.INFO
            logger.log(level, "cannot %s yet, trying again: %s attempt=%d", what, reason(err), attempt)
            time.sleep(min(wait, max(0.0, budget - spent)))
    raise AssertionError("unreachable")


_HINTS = {
    "ACCESS_DENIED": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do",
    "INVALID_ACCESS_KEY_ID": "check AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "check AWS_SECRET_ACCESS_KEY",
    "NO_SUCH_BUCKET": "check the bucket's name, and AWS_ENDPOINT_URL",
}


def reason(err: BaseException) -> str:
    """Make one short line of a storage error."""
    if isinstance(err, OSError) and err.errno == errno.ENOSPC:
        return "no space left on the device"
    text = " ".join(str(err).split())
    if match := _AWS.search(text):
        hint = _HINTS.get(match[1])
        # What stands before it repeats the path.
        text = text[match.start() :].replace(": No response body.", "")[:300]
        return f"{text} ({hint})" if hint else text
    if "::" in text or not isinstance(err, OSError):
        return text[:300] or type(err).__name__
    if isinstance(err, FileNotFoundError):
        return "it does not exist"
    if isinstance(err, PermissionError):
        return "permission denied"
    return (err.strerror if err.errno is not None and err.strerror else text)[:300] or type(err).__name__
