"""What Ray Serve is told by the environment, in one table: `shardlabel serve`, the manifests of `cluster/` and the docs.

Serve reads these variables when it is imported, so that each process of it has to start with them: on a cluster every
node before its Ray, on a laptop the command before its own.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from serve.config import ServeConfig, ServeOptions
from serve.local import grpc_listener, haproxy
from serve.local.ports import free_ports

LEAST_MESSAGE_BYTES = 64 * 2**20  # both ways: 64 MiB are the answers of 10,000 images
# What `grpc_servicer_functions` of Serve names: every proxy imports it, so that it loads no model.
GRPC_SERVICER = "serve.oip.grpc.service:add_to_server"


def message_bytes(config: ServeConfig) -> int:
    """Return the most that a gRPC message may have. Ray would let 2 GiB into memory before anybody looks at them."""
    return max(config.max_request_bytes + 2**20, LEAST_MESSAGE_BYTES)


def of_every_node(config: ServeConfig) -> dict[str, str]:
    """Return what Serve's processes are told, wherever they run and whatever stands before them."""
    return {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
        grpc_listener.MESSAGE_VARIABLE: str(message_bytes(config)),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.local.grpc_listener:guard",
    }


def of_haproxy(config: ServeConfig, launcher: str) -> dict[str, str]:
    """Return what puts HAProxy, by the path of its launcher, before the replicas: Serve's own proxy doubles the cost."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        haproxy.RAY_BINARY_VARIABLE: launcher,
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(grpc_listener.HELD_BYTES),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # One goes to another replica. Where there is none, some are spent on connections to the dead one that were kept
        # and are not yet known to be closed, before Serve's own proxy is tried.
        "RAY_SERVE_HAPROXY_RETRIES": "5",
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # Of a replica that does not answer at all: it says itself when a deadline has passed.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(config.deadline_s) + 20),
    }


def of_this_machine(options: ServeOptions, folder: Path | None) -> dict[str, str]:
    """Return what only an endpoint with a Ray of its own is told; the folder is for its HAProxy, where it has one."""
    told = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A machine that is busy has been seen to take more than Ray's 5 s, after which it kills the proxy.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Says that a replica finds no room, which is otherwise only seen by waiting.
        "SERVE_SLOW_STARTUP_WARNING_S": "20",
        "SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "5",
        # A replica that ends waits so long, for load balancers of other machines to notice. Here there are none, and
        # Serve's own 30 s would be what Ctrl-C takes.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        grpc_listener.HOST_VARIABLE: options.host,
    }
    if folder is None:
        return told
    metrics, stats, http, grpc = free_ports(4)
    return told | {
        haproxy.HOST_VARIABLE: options.host,
        haproxy.TLS_CERT_VARIABLE: str(options.tls_cert or ""),
        haproxy.TLS_KEY_VARIABLE: str(options.tls_key or ""),
        grpc_listener.HOST_VARIABLE: "127.0.0.1",  # of what is behind it
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # A datagram per request to a Python process, for metrics of Ray's that nobody collects here.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # On one machine HAProxy knows at once which replica goes.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    }
