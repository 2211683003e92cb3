"""A client of Ray's Jobs API, with a timeout for each request.

Ray's own client has no timeout, imports all of Ray, and takes a cut connection for the end of a log.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from models.errors import ClusterError, ConfigError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Timeout of a request. Submitting takes longest, because it waits for an agent.
ANSWER_S = 20.0
CONNECT_S = 5.0
# Interval of checks on a silent connection; a half-open one would otherwise be waited on forever.
HEARTBEAT_S = 5.0
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class JobsUnreachableError(ClusterError):
    """No answer: the connection is refused, cut, or silent. A retry may succeed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Why it failed.
        exit_code: Of its command; None if unknown.
        metadata: The metadata of its submission.
        ended_s_ago: Seconds since its end, by the cluster's clock; None while it runs.
    """

    status: str
    message: str
    exit_code: int | None
    metadata: dict[str, str]
    ended_s_ago: float | None

    @property
    def is_over(self) -> bool:
        """Tell whether its status is final."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What a cluster says about itself.

    Attributes:
        ray_version: Of the head.
        python_version: Of the head, as 3.11.9; empty if unknown.
    """

    ray_version: str
    python_version: str


def auth_headers(environment: dict[str, str]) -> dict[str, str]:
    """Return the headers that carry a token: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, or `~/.ray/auth_token`.

    Headers in `RAY_JOB_HEADERS` (JSON) are added, as by Ray's own client.

    Raises:
        ConfigError: The token's file or the JSON cannot be read.
    """
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    if not token and (named or path.is_file()):
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"the token in {path} cannot be read: {err}") from err
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    more = environment.get("RAY_JOB_HEADERS")
    if more:
        try:
            headers |= {str(name): str(value) for name, value in json.loads(more).items()}
        except (ValueError, AttributeError) as err:
            raise ConfigError(f"RAY_JOB_HEADERS must be a JSON object of strings, got {more[:100]!r}") from err
    return headers


def dashboard_url(address: str | None, environment: dict[str, str]) -> str:
    """Return the Jobs API's URL: as given, else `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS` if it is a URL.

    Raises:
        ConfigError: The address is not an HTTP URL or host:port.
    """
    named = address or environment.get("RAY_API_SERVER_ADDRESS")
    if not named:
        ray_address = environment.get("RAY_ADDRESS", "")
        named = ray_address if ray_address.startswith(("http://", "https://")) else DEFAULT_ADDRESS
    url = named if "://" in named else f"http://{named}"
    parts = urlsplit(url)
    try:
        is_good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # an invalid port
        is_good = False
    if not is_good:
        raise ConfigError(f"--address must be the URL of a cluster's dashboard, as {DEFAULT_ADDRESS}, got {named!r}")
    return url.rstrip("/")


class JobsClient:
    """A client of one cluster. Use it as an async context manager.

    Raises (all methods):
        JobsUnreachableError: No answer; the message names the address.
        ConfigError: The token is missing or wrong, or the server is not Ray.
        ClusterError: The cluster refuses; the message says why.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> JobsClient:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def facts(self) -> ClusterFacts:
        """Return what the cluster says about itself."""
        status, version, _ = await self._ask("GET", "/api/version")
        if status != 200 or not isinstance(version, dict) or "ray_version" not in version:
            raise ConfigError(f"{self.url} answers, but is not a Ray dashboard (HTTP {status} on /api/version)")
        status, metadata, _ = await self._ask("GET", "/api/v0/cluster_metadata")
        data = metadata.get("data", {}) if status == 200 and isinstance(metadata, dict) else {}
        python = str(data.get("pythonVersion") or data.get("python_version") or "")
        return ClusterFacts(str(version["ray_version"]), python)

    async def has_package(self, name: str) -> bool:
        """Tell whether the cluster has a package already."""
        status, _, text = await self._ask("GET", f"/api/packages/gcs/{name}")
        if status not in (200, 404):
            raise ClusterError(f"{self.url} cannot tell whether it has {name}: HTTP {status}: {_reason(text)}")
        return status == 200

    async def put_package(self, name: str, content: bytes) -> None:
        """Upload a package."""
        status, _, text = await self._ask("PUT", f"/api/packages/gcs/{name}", data=content)
        if status != 200:
            raise ClusterError(f"{self.url} refuses a package of {len(content)} bytes: HTTP {status}: {_reason(text)}")

    async def submit(self, request: dict[str, Any]) -> bool:
        """Start a job; return False if its submission id is taken."""
        status, _, text = await self._ask("POST", "/api/jobs/", payload=request)
        if status == 200:
            return True
        if "already exists" in text:
            return False
        raise ClusterError(f"{self.url} refuses the job: HTTP {status}: {_reason(text)}")

    async def job(self, submission_id: str) -> Job | None:
        """Return a job, or None if the cluster does not know it."""
        status, found, text = await self._ask("GET", f"/api/jobs/{quote(submission_id)}")
        if status == 404:
            return None
        if status != 200 or not isinstance(found, dict):
            raise ClusterError(f"{self.url} cannot report job {submission_id}: HTTP {status}: {_reason(text)}")
        ended = found.get("end_time")
        return Job(
            status=str(found["status"]),
            message=str(found.get("message") or ""),
            exit_code=found.get("driver_exit_code"),
            metadata=dict(found.get("metadata") or {}),
            ended_s_ago=None if not ended else max(0.0, found["_now"] - ended / 1000),
        )

    async def stop(self, submission_id: str) -> bool:
        """Ask a job to stop: SIGTERM now, SIGKILL later if needed. Return whether a running job got it."""
        status, found, text = await self._ask("POST", f"/api/jobs/{quote(submission_id)}/stop")
        if status != 200 or not isinstance(found, dict):
            raise ClusterError(f"job {submission_id} cannot be stopped: HTTP {status}: {_reason(text)}")
        return bool(found.get("stopped"))

    async def num_nodes(self) -> int:
        """Return how many nodes are alive, with the head; 0 if unknown."""
        path = "/api/v0/nodes?detail=1&limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        status, found, _ = await self._ask("GET", path)
        try:
            return len(found["data"]["result"]["result"]) if status == 200 else 0
        except (KeyError, TypeError):
            return 0

    async def delete(self, submission_id: str) -> None:
        """Delete a job that has ended, so that its name can be reused."""
        status, _, text = await self._ask("DELETE", f"/api/jobs/{quote(submission_id)}")
        if status not in (200, 404):
            raise ClusterError(f"job {submission_id} cannot be replaced: HTTP {status}: {_reason(text)}")

    async def log(self, submission_id: str) -> str:
        """Return the whole log of a job so far."""
        status, found, text = await self._ask("GET", f"/api/jobs/{quote(submission_id)}/logs")
        if status != 200 or not isinstance(found, dict):
            raise ClusterError(f"the log of {submission_id} cannot be fetched: HTTP {status}: {_reason(text)}")
        return str(found.get("logs", ""))

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Yield the log of a job in pieces, from its beginning, until the job or the connection ends."""
        url = f"{self.url}/api/jobs/{quote(submission_id)}/logs/tail"
        try:
            async with self._open().ws_connect(url, heartbeat=HEARTBEAT_S, max_msg_size=0) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield str(message.data)
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise JobsUnreachableError(f"the log's connection to {self.url} broke: {_why(err)}") from err

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def _ask(
        self, method: str, path: str, *, payload: dict[str, Any] | None = None, data: bytes | None = None
    ) -> tuple[int, Any, str]:
        """Return the HTTP status, the body as JSON (None if it is not), and the body as text."""
        try:
            async with self._open().request(method, self.url + path, json=payload, data=data) as answer:
                text = await answer.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
            raise JobsUnreachableError(
                f"no Ray dashboard answers at {self.url}: {_why(err)}; give --address, as {DEFAULT_ADDRESS}"
            ) from err
        if answer.status in (401, 403):
            raise ConfigError(self._refused(answer.status))
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            found["_now"] = _server_time(answer.headers.get("Date"))
        return answer.status, found, text

    def _refused(self, status: int) -> str:
        sent = any(name.lower() == "authorization" for name in self._headers)
        what = "does not accept the token" if sent else "needs a token"
        return (
            f"the cluster at {self.url} {what} (HTTP {status}): put the token into RAY_AUTH_TOKEN, "
            "or the path of its file into RAY_AUTH_TOKEN_PATH"
        )


def _server_time(date: str | None) -> float:
    """Return the server's time in seconds since 1970, from the Date header; without one, our own time."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return time.time()


def _reason(text: str) -> str:
    """Return the last line of what may be a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def _why(err: BaseException) -> str:
    """Return a short reason: aiohttp's own messages contain the bytes of an answer."""
    if isinstance(err, aiohttp.ClientConnectorError):
        return f"{err.os_error.strerror or err.os_error}".split(" [")[0]
    if isinstance(err, TimeoutError):
        return f"no answer in {ANSWER_S:g} s"
    if isinstance(err, aiohttp.ClientResponseError):
        return "the server there does not speak HTTP"
    return (" ".join(str(err).split()) or type(err).__name__)[:200]
