"""Joining a cluster: what its Serve listens on already, room that comes, and an end that fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from models.errors import ClusterError, ConfigError
from pipeline.patches.grpc_patches import check_grpc
from serve import tracing
from serve.config import ServeConfig, ServeOptions
from serve.local import launch
from serve.local.ports import free_ports
from serve.local.running import Endpoint
from tests.support.certificates import write_certificate


def no_room():
    deployment = SimpleNamespace(message="1 replicas that have taken more than 20s to be scheduled")
    return SimpleNamespace(
        status=SimpleNamespace(value="DEPLOYING"), message="", deployments={"Classifier": deployment}
    )


def running():
    return SimpleNamespace(status=SimpleNamespace(value="RUNNING"), message="", deployments={})


@pytest.fixture
def statuses(monkeypatch):
    """No room ten times, then a replica."""
    left = [no_room()] * 10
    monkeypatch.setattr(launch, "ROOM_S", 0.05)
    monkeypatch.setattr(launch, "POLL_S", 0.02)
    monkeypatch.setattr(
        "ray.serve.status", lambda: SimpleNamespace(applications={"shardlabel": left.pop() if left else running()})
    )


def test_a_cluster_that_can_grow_is_waited_for_and_that_is_said(statuses, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "most_resources", lambda: {"CPU": 64.0})
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    said = []

    launch._wait_until_ready(ServeOptions(address="auto"), tmp_path, said.append)

    assert [text for text in said if "autoscaler" in text] == said
    assert len(said) == 1


@pytest.mark.parametrize("most", [{}, {"CPU": 2.0}])
def test_one_that_cannot_is_an_error(statuses, monkeypatch, tmp_path, most):
    monkeypatch.setattr(launch, "most_resources", lambda: most)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})

    with pytest.raises(ConfigError, match="no replica found room"):
        launch._wait_until_ready(ServeOptions(address="auto"), tmp_path, print)


def test_where_serve_runs_already_its_own_ports_count_and_that_is_said(monkeypatch):
    found = (SimpleNamespace(host="0.0.0.0", port=8123), SimpleNamespace(port=9123))
    monkeypatch.setattr(launch, "serve_options", lambda: found)
    said = []

    listen = launch._as_it_listens(ServeOptions(address="auto"), said.append)

    assert (listen.host, listen.port, listen.grpc_port) == ("0.0.0.0", 8123, 9123)
    assert "--host 127.0.0.1" in said[0]
    assert "0.0.0.0:8123" in said[0]


def test_nothing_is_said_where_they_are_what_was_asked_for_or_serve_does_not_run(monkeypatch):
    asked = ServeOptions(address="auto")
    for found in (None, (SimpleNamespace(host="127.0.0.1", port=8000), SimpleNamespace(port=9000))):
        monkeypatch.setattr(launch, "serve_options", lambda found=found: found)

        assert launch._as_it_listens(asked, pytest.fail) == asked


def test_an_application_that_cannot_be_deleted_is_an_error_and_not_stopped(monkeypatch, tmp_path):
    def fail(name):
        raise RuntimeError("the controller is gone")

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.serve.delete", fail)

    with pytest.raises(ClusterError, match=r"may still run.*the controller is gone"):
        Endpoint(ServeOptions(address="ray://x", port=1), tmp_path).close()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_replica_for_a_gpu_has_one(monkeypatch, device):
    from serve import replica

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    config = ServeConfig(model="efficientnet-lite0", precision="int8", device=device)

    (node,) = [replica.build_application(config, is_fixed=True)]
    deployment = node._bound_deployment

    assert deployment.ray_actor_options["num_gpus"] == 1
    assert deployment.ray_actor_options["num_cpus"] == 8


def test_a_refusal_of_haproxy_ends_the_start_with_its_words(tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "refused").write_text("HAProxy is not started: no stats socket")

    with pytest.raises(ClusterError, match="no stats socket"):
        launch._wait_until_ready(ServeOptions(), tmp_path, print)


def test_an_endpoint_that_runs_and_does_not_answer_is_an_error_that_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "READY_S", 0.05)
    monkeypatch.setattr(launch, "POLL_S", 0.1)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"shardlabel": running()}))

    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:\d+ does not answer: .*Connection refused"):
        launch._wait_until_ready(ServeOptions(port=free_ports(1)[0]), tmp_path, print)


def test_an_application_that_is_deleted_leaves_no_list_of_models_behind(monkeypatch, tmp_path):
    deleted = []
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.serve.delete", lambda name: None)
    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_del",
        lambda key, del_by_prefix, namespace: deleted.append((key, del_by_prefix, namespace)),
    )

    Endpoint(ServeOptions(address="ray://x", port=1), tmp_path).close()

    assert deleted == [(b"", True, "shardlabel-models-shardlabel")]


def test_a_ray_whose_grpc_listens_in_another_way_is_refused(monkeypatch):
    check_grpc()
    monkeypatch.setattr("ray.serve._private.default_impl.add_grpc_address", lambda server: None)

    with pytest.raises(ClusterError, match="add_grpc_address"):
        check_grpc()


@pytest.mark.parametrize(("host", "place"), [("127.0.0.1", "127.0.0.1:41000"), ("::1", "[::1]:41000")])
def test_servers_are_held_to_the_address_and_to_limits(monkeypatch, host, place):
    from ray.serve._private import constants, default_impl, replica

    from serve.local import grpc_listener

    for module, name in ((default_impl, "add_grpc_address"), (replica, "add_port_to_grpc_server")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(constants, "DEFAULT_GRPC_SERVER_OPTIONS", [("grpc.max_receive_message_length", 5)])
    monkeypatch.setenv("SHARDLABEL_GRPC_HOST", host)
    places = []

    # A replica does it itself, and is asked to once more.
    assert len(grpc_listener.guard()) == len(grpc_listener.guard()) == 1
    default_impl.add_grpc_address(SimpleNamespace(add_insecure_port=places.append), "[::]:41000")

    assert places == [place]
    assert len(constants.DEFAULT_GRPC_SERVER_OPTIONS) == 1 + len(grpc_listener.LIMITS)


def test_a_local_ray_that_would_listen_on_every_interface_is_refused(monkeypatch):
    import os

    from pipeline.session import local

    during = []
    monkeypatch.setattr("ray.init", lambda **options: during.append(os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.1.2.3")
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)

    with pytest.raises(RuntimeError, match="every interface"):
        local._start({})

    assert during == ["0"]
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


@pytest.mark.parametrize(("told", "refused"), [(None, True), ("2147483647", False)])
def test_a_replica_takes_no_message_beyond_its_limit_where_its_node_was_told_none(monkeypatch, told, refused):
    import asyncio

    import grpc
    from ray.serve._private import constants

    from serve.local import grpc_listener

    monkeypatch.setattr(constants, "DEFAULT_GRPC_SERVER_OPTIONS", [("grpc.max_receive_message_length", 2**31 - 1)])
    monkeypatch.delenv("SHARDLABEL_GRPC_HOST", raising=False)
    monkeypatch.delenv("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", raising=False)
    if told:
        monkeypatch.setenv("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", told)
    grpc_listener.guard(5 * 2**20)

    async def echo(request, context):
        return b"%d" % len(request)

    async def ask() -> str:
        server = grpc.aio.server(options=constants.DEFAULT_GRPC_SERVER_OPTIONS)
        handler = grpc.unary_unary_rpc_method_handler(echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                return (await channel.unary_unary("/a.B/C")(bytes(6 * 2**20), timeout=20)).decode()
            except grpc.aio.AioRpcError as err:
                return err.code().name
            finally:
                await server.stop(0)

    assert asyncio.run(ask()) == ("RESOURCE_EXHAUSTED" if refused else str(6 * 2**20))


def test_two_endpoints_of_one_machine_never_share_a_grpc_port(monkeypatch):
    import asyncio

    import grpc
    from ray.serve._private import constants

    from serve.local import grpc_listener

    monkeypatch.setattr(constants, "DEFAULT_GRPC_SERVER_OPTIONS", [])
    monkeypatch.delenv("SHARDLABEL_GRPC_HOST", raising=False)
    grpc_listener.guard()
    # As Ray 2.60 builds one; gRPC ignores the option, as it is text.
    options = [*constants.DEFAULT_GRPC_SERVER_OPTIONS, ("grpc.so_reuseport", "0")]

    async def listen_twice() -> None:
        first, second = grpc.aio.server(options=options), grpc.aio.server(options=options)
        port = first.add_insecure_port("127.0.0.1:0")
        await first.start()
        try:
            second.add_insecure_port(f"127.0.0.1:{port}")
        finally:
            await first.stop(0)

    with pytest.raises(RuntimeError, match="Failed to bind"):
        asyncio.run(listen_twice())


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')

    def log_message(self, *_: object) -> None:
        pass


def test_a_proxy_of_the_environment_does_not_keep_the_endpoint_from_being_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert launch._silence(ServeOptions(port=server.server_port)) == ""
    finally:
        server.shutdown()
        server.server_close()


def test_tls_without_haproxy_is_refused_and_leaves_no_folder(monkeypatch, tmp_path):
    cert, key = write_certificate(tmp_path)
    made = tmp_path / "made"
    monkeypatch.setattr(launch.tempfile, "mkdtemp", lambda *_: made.mkdir() or str(made))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(launch.os, "environ", dict(launch.os.environ))
    monkeypatch.setattr(launch, "check_free", lambda *_: None)

    endpoint = launch.running(ServeOptions(model="efficientnet-lite0", tls_cert=cert, tls_key=key), print)
    with pytest.raises(ConfigError, match="--tls-cert needs HAProxy"), endpoint:
        pass

    assert not made.exists()


@pytest.mark.parametrize(
    ("log", "spans", "deleted"),
    [("answers", None, ["shardlabel"]), (None, "http://collector:4318", ["shardlabel"]), (None, None, [])],
    ids=["rows", "spans", "neither"],
)
def test_behind_haproxy_replicas_are_told_to_stop_where_they_have_rows_or_spans_left(
    monkeypatch, tmp_path, log, spans, deleted
):
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    if spans:
        monkeypatch.setenv(tracing.ENDPOINTS[1], spans)
    found = []
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.serve.delete", found.append)
    haproxy = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "haproxy.cfg")])
    monkeypatch.setattr("ray.shutdown", haproxy.kill)

    Endpoint(ServeOptions(port=1, deadline_s=0.1, prediction_log=log), tmp_path).close()
    haproxy.wait()

    assert found == deleted


def test_why_serve_does_not_start_is_the_end_of_its_traceback(monkeypatch, tmp_path):
    def start(**_):
        frames = "".join(
            f'  File "/ray/_private/part_{number}.py", line 1, in ready\n    x()\n' for number in range(20)
        )
        raise RuntimeError(f"ray::ProxyActor.ready() (pid=1)\n{frames}OSError: port 8001 cannot be had\n")

    monkeypatch.setattr("ray.serve.start", start)
    monkeypatch.setattr("serve.replica.build_application", lambda *_, **__: None)

    with pytest.raises(ClusterError, match=r"^Ray Serve does not start: OSError: port 8001 cannot be had$"):
        launch._start_serve(ServeOptions(), "127.0.0.1", tmp_path)
