"""Which storage errors are transient, and retries until they pass or the time for them is used up.

obstore itself retries a request for a second or two if it was throttled, reset or cut off. This module retries for
minutes, says why a run waits, and shortens an error to one line.
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
from obstore.exceptions import BaseError, GenericError

from models.errors import StorageError
from pipeline.storage.uris import without_secrets

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Fault(Enum):
    """What an error says about retries."""

    PERMANENT = "permanent"  # wrong keys, no such bucket, full disk: the same every time
    TRANSIENT = "transient"  # throttling, resets, stalls
    UNREACHABLE = "unreachable"  # no server answers: it restarts, or the address is wrong


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and for how long, one storage operation is tried.

    Attributes:
        attempts: Tries in all. Each request among them is itself tried up to 4 times within a second or two.
        first_wait_s: Longest wait after the first failure; it doubles each time, with full jitter.
        longest_wait_s: Maximum of one wait.
        budget_s: No new try once this much time has passed.
        unreachable_s: The same if no server answers at all: a wrong address must not cost minutes.
    """

    attempts: int = 12
    first_wait_s: float = 0.2
    longest_wait_s: float = 20.0
    budget_s: float = 180.0
    unreachable_s: float = 30.0


DEFAULT_RETRY = RetryPolicy()
# From this try on the user should know why the run waits.
_LOUD_ATTEMPT = 3

# Common errors of obstore have exceptions of their own; the others have the text of its Rust crate: one line, and then
# the error's parts by name.
_DEBUG = "\n\nDebug source:"
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
# Azure's continues with lines that name the request.
_MESSAGE = re.compile(r"<Message>([^<]*?)(?:\s+RequestId:[^<]*)?</Message>")
_HTTP_TRANSIENT = frozenset({"408", "425", "429"})
# A 400 from S3 for a request that came too slowly.
_CODE_TRANSIENT = frozenset({"RequestTimeout"})
_NO_CONNECTION = "kind: Connect,"
_CERTIFICATE = re.compile(r"InvalidCertificate|InvalidMessage|certificate|Tls", re.IGNORECASE)
_NO_REQUEST = "kind: Builder"
_BROKEN = ("HTTP error:", "Got invalid list response")
# The system's message, in the innermost part.
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"')
_ERRNO_UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN})
_ERRNO_TRANSIENT = frozenset(
    {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ESTALE,
     errno.EBUSY, errno.ENETDOWN, errno.ENETRESET}
)  # fmt: skip


def classify(err: BaseException) -> Fault:
    """Classify a storage error by what it says about retries; unknown errors are permanent."""
    if isinstance(err, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return Fault.PERMANENT
    if isinstance(err, GenericError):
        return _classify_text(str(err))
    number = getattr(err, "errno", None)
    if number in _ERRNO_UNREACHABLE:
        return Fault.UNREACHABLE
    if number in _ERRNO_TRANSIENT or isinstance(err, (TimeoutError, ConnectionError)):
        return Fault.TRANSIENT
    return Fault.PERMANENT


def _classify_text(text: str) -> Fault:
    line, _, parts = text.partition(_DEBUG)
    if status := _STATUS.search(line):
        code = _CODE.search(line)
        mends = status[1] >= "500" or status[1] in _HTTP_TRANSIENT or (code and code[1] in _CODE_TRANSIENT)
        return Fault.TRANSIENT if mends else Fault.PERMANENT
    if _NO_CONNECTION in parts:
        return Fault.PERMANENT if _CERTIFICATE.search(parts) else Fault.UNREACHABLE
    is_broken = any(words in line for words in _BROKEN) and _NO_REQUEST not in parts
    return Fault.TRANSIENT if is_broken else Fault.PERMANENT


def status_of(err: BaseException | None) -> str:
    """Return the HTTP status in an error of obstore's; "" if there is none."""
    found = _STATUS.search(str(err).partition(_DEBUG)[0])
    return found[1] if found else ""


def is_missing(err: BaseException | None) -> bool:
    """Tell whether an error says that a file, or the bucket that is listed, does not exist."""
    return isinstance(err, FileNotFoundError) or status_of(err) == "404"


def retried(what: str, operation: Callable[[], T], policy: RetryPolicy = DEFAULT_RETRY) -> T:
    """Run a storage operation, and retry it after transient errors.

    Args:
        what: The operation and its path, for messages: "read s3://bucket/a.tar".
        operation: Safe to repeat.
        policy: How often and how long to retry.

    Raises:
        StorageError: It failed for good, or for longer than the policy allows; the cause is the last error.
    """
    started = time.perf_counter()
    for attempt in range(1, policy.attempts + 1):
        try:
            return operation()
        except (OSError, BaseError, pa.ArrowException) as err:
            fault = classify(err)
            if fault is Fault.PERMANENT:
                raise StorageError(f"cannot {what}: {reason(err)}") from err
            spent = time.perf_counter() - started
            budget = policy.unreachable_s if fault is Fault.UNREACHABLE else policy.budget_s
            if attempt == policy.attempts or spent >= budget:
                raise StorageError(f"cannot {what}: {reason(err)} ({attempt} tries in {spent:.0f} s)") from err
            wait = min(policy.longest_wait_s, policy.first_wait_s * 2 ** (attempt - 1)) * random.random()
            level = logging.WARNING if attempt >= _LOUD_ATTEMPT else logging.INFO
            logger.log(level, "cannot %s yet, retrying: %s attempt=%d", what, reason(err), attempt)
            time.sleep(min(wait, max(0.0, budget - spent)))
    raise AssertionError("unreachable")


_KEYS = "check the credentials and their permissions; `shardlabel doctor` names those it finds"
_HINTS = {
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "check the bucket's name, and the endpoint",
    "ContainerNotFound": "check the container's name",
    "AuthorizationFailure": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "AuthenticationFailed": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def reason(err: BaseException) -> str:
    """Return a storage error as one short line."""
    if isinstance(err, OSError) and err.errno == errno.ENOSPC:
        return "no space left on the device"
    line, _, parts = str(err).partition(_DEBUG)
    line = " ".join(line.split())
    if parts or isinstance(err, BaseError):
        return without_secrets(_reason_of_store(err, line, parts))[:300]
    if isinstance(err, FileNotFoundError):
        return "it does not exist"
    if isinstance(err, PermissionError):
        return "permission denied"
    text = err.strerror if isinstance(err, OSError) and err.errno is not None and err.strerror else line
    return text[:300] or type(err).__name__


def _reason_of_store(err: BaseException, line: str, parts: str) -> str:
    if status := re.search(r"status code: (\d{3}[\w ]*)", line):
        code, message = _CODE.search(line), _MESSAGE.search(line)
        hint = _HINTS.get(code[1] if code else "", _KEYS if status[1][:3] in ("401", "403") else None)
        if isinstance(err, FileNotFoundError) and hint is None:
            return "it does not exist"
        said = ": ".join(found[1] for found in (code, message) if found and found[1])
        return f"{status[1].strip()}{f', {said}' if said else ''}{f' ({hint})' if hint else ''}"
    if isinstance(err, FileNotFoundError):
        return "it does not exist"
    cause = _CAUSE.findall(parts)
    if _NO_CONNECTION in parts:
        return f"cannot connect: {cause[-1]}" if cause else "cannot connect"
    if "kind: Timeout" in parts:
        return "the server is silent"
    return line.removeprefix("Generic ")
