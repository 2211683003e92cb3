"""The pods that KubeRay's operator makes of a RayJob or a RayService: their commands and environment.

Follows KubeRay 1.6 (controllers/ray/common/pod.go and job.go) with its defaults, which only the operator's source
documents. Names of services are replaced by addresses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import yaml

GCS_PORT = 6379
DASHBOARD_PORT = 8265
AGENT_PORT = 52365
SWITCHES = ("true", "false")


@dataclass(frozen=True)
class PodCommand:
    """One container of a pod, with its init container and its preStop hook.

    Attributes:
        argv: Its command.
        env: Its whole environment, in addition to the image's.
        init: Command of the init container, in the same environment; empty for none.
        pre_stop: Command of the preStop hook; empty for none.
        grace_s: Seconds that it may take to stop, including the hook.
    """

    argv: list[str]
    env: dict[str, str]
    init: list[str] = field(default_factory=list)
    pre_stop: list[str] = field(default_factory=list)
    grace_s: int = 30


def shell(script: str, options: str = "c") -> list[str]:
    """Return the command by which KubeRay runs a script; a login shell if its operator has ENABLE_LOGIN_SHELL."""
    return ["/bin/bash", f"-{options}", "--", script]


def head_pod(cluster: dict[str, Any], *, token: str, secrets: dict[str, str], serves: bool) -> PodCommand:
    """Return the head of a RayClusterSpec.

    Args:
        cluster: The rendered RayClusterSpec.
        token: Ray's authentication token.
        secrets: Content of the Secret in `envFrom`.
        serves: Whether it belongs to a RayService.
    """
    params = {"dashboard-host": "0.0.0.0"}
    more = {"RAY_USAGE_STATS_EXTRA_TAGS": "kuberay_version=v1.6.0"}
    if cluster.get("enableInTreeAutoscaling"):
        params["no-monitor"] = "true"
        more["RAY_enable_autoscaler_v2"] = "true"
    group = cluster["headGroupSpec"]
    return _ray_pod(group, "headgroup", "ray start --head", params, "127.0.0.1", token, secrets | more, serves=serves)


def worker_pod(group: dict[str, Any], head: str, *, token: str, secrets: dict[str, str], serves: bool) -> PodCommand:
    """Return a worker of a group; its init container waits for the head at an address."""
    params = {"address": f"{head}:{GCS_PORT}"}
    more = {"FQ_RAY_IP": head, "RAY_IP": head}
    return _ray_pod(group, group["groupName"], "ray start", params, head, token, secrets | more, serves=serves)


def submitter(job: dict[str, Any], job_id: str, head: str, *, token: str) -> PodCommand:
    """Return the container of the Kubernetes Job that submits a RayJob and follows its log."""
    address = f"http://{head}:{DASHBOARD_PORT}"
    environment = json.dumps(yaml.safe_load(job["runtimeEnvYAML"]), separators=(",", ":"))
    script = (
        f"if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; then"
        f" ray job submit --address {address} --no-wait --runtime-env-json {json.dumps(environment)}"
        f" --submission-id {job_id} -- {job['entrypoint']} ; fi ;"
        f" ray job logs --address {address} --follow {job_id}"
    )
    env = {
        "PYTHONUNBUFFERED": "1",
        "RAY_DASHBOARD_ADDRESS": f"{head}:{DASHBOARD_PORT}",
        "RAY_JOB_SUBMISSION_ID": job_id,
        **_token(token),
    }
    return PodCommand(shell(script, "ce"), env)


def _ray_pod(
    group: dict[str, Any], group_name: str, start: str, params: dict[str, str], head: str, token: str,
    env: dict[str, str], *, serves: bool,
) -> PodCommand:  # fmt: skip
    spec = group["template"]["spec"]
    container = spec["containers"][0]
    limits = container["resources"]["limits"]
    params = {
        "num-cpus": limits["cpu"],
        "memory": str(_bytes(limits["memory"])),
        "block": "true",
        "dashboard-agent-listen-port": str(AGENT_PORT),
        **params,
        **group["rayStartParams"],
    }
    command = f"{start}  {'  '.join(_flag(name, params[name]) for name in sorted(params) if params[name] != 'false')} "
    env = {
        **{variable["name"]: variable["value"] for variable in container["env"]},
        **env,
        **_token(token),
        "RAY_CLUSTER_NAME": "rehearsal",
        "RAY_CLUSTER_NAMESPACE": "default",
        "RAY_NODE_TYPE_NAME": group_name,
        "KUBERAY_GEN_RAY_START_CMD": command,
        "RAY_PORT": str(GCS_PORT),
        "RAY_ADDRESS": f"{head}:{GCS_PORT}",
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    if serves:
        env |= {
            "RAY_timeout_ms_task_wait_for_death_info": "0",
            "RAY_gcs_server_request_timeout_seconds": "5",
            "RAY_SERVE_KV_TIMEOUT_S": "5",
        }
    waiting = f"until ray health-check --address {head}:{GCS_PORT} > /dev/null 2>&1; do sleep 5; done"
    return PodCommand(
        shell(f"ulimit -n 65536; {command}"),
        env,
        init=shell(waiting) if "address" in params else [],
        pre_stop=container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []),
        grace_s=spec.get("terminationGracePeriodSeconds", 30),
    )


def _flag(name: str, value: str) -> str:
    return f"--{name}" if value in SWITCHES else f"--{name}={value}"


def _token(token: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def _bytes(quantity: str) -> int:
    powers = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4}
    return int(quantity[:-2]) * 1024 ** powers[quantity[-2:]]
