"""Bulk labelling as a KubeRay RayJob."""

from __future__ import annotations

import shlex
from typing import Any

from cluster.manifests.pods import TMP_MOUNT, TMP_VOLUME, container_security, pod_labels, pod_security
from cluster.manifests.raycluster import metadata, queued_metadata, ray_cluster, worker_groups
from cluster.manifests.settings import ClusterConfiguration
from cluster.manifests.yaml_text import dump


def rayjob(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the RayJob, or with a schedule a RayCronJob. Each retry gets a new cluster, and `label` resumes."""
    spec = _job(config)
    if config.job.schedule:
        # KubeRay chooses the names and labels of its jobs.
        cron = {"schedule": config.job.schedule, "jobTemplate": spec}
        return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": metadata(config), "spec": cron}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": queued_metadata(config), "spec": spec}


def _job(config: ClusterConfiguration) -> dict[str, Any]:
    job = config.job
    spec: dict[str, Any] = {
        "entrypoint": entrypoint(config),
        "submissionMode": job.submission,
        "backoffLimit": job.retries,
        **({"activeDeadlineSeconds": job.deadline_s} if job.deadline_s else {}),
        **({"preRunningDeadlineSeconds": job.start_deadline_s} if job.start_deadline_s else {}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.keep_s,
    }
    if job.env:
        spec["runtimeEnvYAML"] = dump({"env_vars": job.env})
    if job.submission == "K8sJobMode":
        spec["submitterPodTemplate"] = _submitter(config)
    spec["rayClusterSpec"] = ray_cluster(config, worker_groups(config))
    return spec


def entrypoint(config: ClusterConfiguration) -> str:
    """Return the command line of the run, quoted for a shell."""
    options = ["--model", config.model, "--precision", config.precision, "--device", config.device]
    if config.device == "cuda":
        # One actor per GPU; the pool grows as the autoscaler adds workers.
        gpus = config.gpu
        options += ["--actors", f"{max(1, gpus.min * gpus.gpus)}:{gpus.max * gpus.gpus}"]
    options += ["--progress", "plain", *config.job.options]
    if config.job.schedule and "--append" not in options:
        options.append("--append")
    return shlex.join(["shardlabel", "label", *config.job.source, "--output", config.job.output, *options])


def _submitter(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the submitter's pod template: it only waits and prints, so it is small."""
    amounts = {"cpu": "500m", "memory": "512Mi"}
    secret = config.image.pull_secret
    return {
        "metadata": {"labels": pod_labels(config)},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": pod_security(),
            **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
            "containers": [
                {
                    "name": "submitter",
                    "image": config.image.name("cpu"),
                    "imagePullPolicy": config.image.pull_policy,
                    "resources": {"requests": dict(amounts), "limits": dict(amounts)},
                    "securityContext": container_security(),
                    "volumeMounts": [TMP_MOUNT],
                }
            ],
            "volumes": [TMP_VOLUME],
        },
    }
