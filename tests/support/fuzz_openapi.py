"""Fuzz a live endpoint with requests that its OpenAPI document allows, and with many that it does not.

    python -m tests.support.fuzz_openapi http://127.0.0.1:8000 [--examples 200] [--seconds 300] [--key KEY]

Schemathesis generates the requests: for every operation of /openapi.json, cases that follow its schema and cases that
violate it (wrong types, methods, headers, bodies, content types). A finding is a 5xx other than 503 and 504, an error
that is not `{"error": "..."}`, an answer with a traceback or a path on the server, or a server that does not answer
afterwards.

The last line of output is one JSON object; the exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from itertools import product

import hypothesis
import requests
import schemathesis
from schemathesis import GenerationMode

EXPECTED_5XX = {503, 504}
TIMEOUT_S = 30
LEAK = re.compile(rb"Traceback|File \"|/(?:home|root|usr|tmp|opt|work)/|site-packages")


@dataclass
class Fuzz:
    """Counts of requests, and findings.

    Attributes:
        requests: Number of requests sent.
        statuses: Number of answers by status.
        operations: Number of requests by operation.
        findings: Sentences, each with the request that causes it.
    """

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def note(self, name: str, response: requests.Response) -> None:
        """Count one answer, and check it."""
        self.requests += 1
        self.statuses[str(response.status_code)] += 1
        self.operations[name] += 1
        request = response.request
        body = request.body if isinstance(request.body, bytes) else str(request.body or "").encode()
        where = f"{request.method} {request.url[:200]} {dict(request.headers)} {body[:200]!r}"
        if response.status_code >= 500 and response.status_code not in EXPECTED_5XX:
            self.findings.append(f"{response.status_code} to {where}: {response.text[:200]}")
        if response.status_code >= 400 and request.method != "HEAD" and not _is_error(response):
            self.findings.append(f"{response.status_code} without an error to {where}: {response.text[:200]}")
        if name not in ("GET /docs", "GET /metrics") and LEAK.search(response.content):
            self.findings.append(f"a leak to {where}: {response.text[:500]}")


def fuzz(url: str, *, examples: int, seconds: float, key: str | None = None, seed: int = 1) -> Fuzz:
    """Fuzz an endpoint.

    Args:
        url: The endpoint's URL, without a path.
        examples: Cases of each operation and kind.
        seconds: Time after which no new case is started.
        key: Bearer key, if the endpoint needs one.
        seed: The same seed gives the same requests.
    """
    found = Fuzz()
    until = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    with requests.Session() as session:
        session.headers.update(headers)
        ask = _Asker(url, session, found)
        operations = [result.ok() for result in schema.get_all_operations()]
        turns = list(product(operations, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)))
        for number, (operation, mode) in enumerate(turns):
            # Each turn has an equal share of the remaining time; unused time is left to later turns.
            now = time.monotonic()
            share = now + max(0.0, until - now) / (len(turns) - number)
            _run(operation.as_strategy(generation_mode=mode), ask, examples, share, seed)
    with urllib.request.urlopen(f"{url}/v2/health/live" if _has_v2(schema) else f"{url}/healthz", timeout=10) as answer:
        if answer.status != 200:
            found.findings.append(f"the server is not live afterwards: {answer.status}")
    return found


class _OutOfTimeError(Exception):
    """Raised to end a strategy's turn: otherwise Hypothesis would generate more cases, which are not sent."""


def _run(strategy, ask, examples: int, until: float, seed: int) -> None:
    """Send cases of a strategy, at least one."""
    asked = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def turn(case) -> None:
        nonlocal asked
        if asked and time.monotonic() > until:
            raise _OutOfTimeError
        asked += 1
        ask(case)

    with contextlib.suppress(_OutOfTimeError, hypothesis.errors.Flaky, hypothesis.errors.Unsatisfiable):
        turn()


class _Asker:
    """Sends cases; most cases that name a model get an existing model, since otherwise all would be 404.

    Args:
        url: The endpoint's URL.
        session: Has the headers of every request.
        found: Collects the answers.
    """

    def __init__(self, url: str, session: requests.Session, found: Fuzz) -> None:
        self._session, self._found = session, found
        answer = session.get(f"{url}/v2/models", timeout=TIMEOUT_S)
        self._models = answer.json()["models"] if answer.status_code == 200 else []
        self._version = "1"
        if self._models:
            self._version = session.get(f"{url}/v2/models/{self._models[0]}", timeout=TIMEOUT_S).json()["versions"][0]

    def __call__(self, case) -> None:
        self._aim(case)
        name = f"{case.operation.method.upper()} {case.operation.path}"
        try:
            response = self._session.request(**case.as_transport_kwargs(), timeout=TIMEOUT_S)
        except requests.exceptions.InvalidHeader:
            return  # a header that `requests` cannot send
        except requests.exceptions.RequestException as err:
            self._found.findings.append(f"no answer to {name}: {err!r}")
            return
        self._found.note(name, response)

    def _aim(self, case) -> None:
        turn = self._found.requests
        if self._models and turn % 5 and "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = self._models[turn % len(self._models)]
            if "version" in case.path_parameters:
                case.path_parameters["version"] = self._version


def _has_v2(schema) -> bool:
    return any(path.startswith("/v2") for path in schema)


def _is_error(response: requests.Response) -> bool:
    try:
        answer = response.json()
    except ValueError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("error"), str) and bool(answer["error"])


def main() -> int:
    """Read the options, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--examples", type=int, default=200, help="cases of each operation and kind (200)")
    parser.add_argument("--seconds", type=float, default=300, help="at most (300)")
    parser.add_argument("--key")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    found = fuzz(args.url.rstrip("/"), examples=args.examples, seconds=args.seconds, key=args.key, seed=args.seed)
    for finding in found.findings[:50]:
        sys.stderr.write(finding + "\n")
    result = {
        "requests": found.requests, "statuses": dict(sorted(found.statuses.items())), "operations": dict(found.operations),
        "findings": len(found.findings), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")
    return int(bool(found.findings))


if __name__ == "__main__":
    sys.exit(main())
