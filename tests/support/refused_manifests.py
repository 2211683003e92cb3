"""One manifest for each rule that KubeRay's operator checks after the schema, made from valid rendered ones."""

from __future__ import annotations

from typing import Any

from tests.support.broken_manifests import GPU, GPU_POD, HEAD, JOB, SERVICE
from tests.support.manifests import Change, put

JOB_PATH = "spec.rayClusterSpec"
ENV_PATH = f"{JOB_PATH}.headGroupSpec.template.spec.containers[0].env"
RULES = "spec.deletionStrategy.deletionRules"
STRATEGY = ("spec", "deletionStrategy")
OPTIONS_PATH = "spec.upgradeStrategy.clusterUpgradeOptions"


def both(*changes: Change) -> Change:
    """Make several changes."""

    def change(documents: list[Any]) -> None:
        for one in changes:
            one(documents)

    return change


def variable(name: str, value: str) -> Change:
    """Add an environment variable to the head."""
    return lambda documents: documents[-1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][
        0
    ]["env"].append({"name": name, "value": value})


def annotate(name: str, value: str) -> Change:
    """Add an annotation to the resource."""
    return lambda documents: documents[-1]["metadata"].setdefault("annotations", {}).update({name: value})


def delete(*rules: tuple[str, dict[str, object]], **more: object) -> Change:
    """Give the job deletion rules as (policy, condition), and remove the settings that shut it down."""
    made = [{"policy": policy, "condition": condition} for policy, condition in rules]
    return both(shuts(False), put(*STRATEGY, to={"deletionRules": made, **more}))


def shuts(down: bool) -> Change:
    """Shut the cluster down right after the job, or not at all."""
    return both(put("spec", "shutdownAfterJobFinishes", to=down), put("spec", "ttlSecondsAfterFinished", to=0))


def selected(cluster: dict[str, str]) -> Change:
    """Submit the job to an existing cluster."""

    def change(documents: list[Any]) -> None:
        spec = documents[-1]["spec"]
        del spec["rayClusterSpec"]
        spec |= {"clusterSelector": cluster, "backoffLimit": 0}

    return change


def autoscaler(version: str | None) -> Change:
    """Use another autoscaler than v2, or none, and remove the settings that only v2 has."""

    def change(documents: list[Any]) -> None:
        spec = documents[-1]["spec"]
        cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
        cluster |= {"enableInTreeAutoscaling": version is not None, "autoscalerOptions": {"version": version}}
        if version is None:
            del cluster["autoscalerOptions"]
        for group in cluster["workerGroupSpecs"]:
            group.pop("idleTimeoutSeconds", None)
            group.pop("priority", None)

    return change


def alone(auth: dict[str, object]) -> Change:
    """Turn the job into its cluster, with other authentication options."""

    def change(documents: list[Any]) -> None:
        spec = documents[-1]["spec"]["rayClusterSpec"] | {"authOptions": auth}
        documents[-1] |= {"kind": "RayCluster", "spec": spec}

    return change


def upgraded(**options: object) -> Change:
    """Upgrade incrementally."""
    good = {"gatewayClassName": "istio", "intervalSeconds": 10, "stepSizePercent": 10, "maxSurgePercent": 50}
    return put("spec", "upgradeStrategy", to={
        "type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": {**good, **options}})  # fmt: skip


V1 = autoscaler("v1")
SUCCEEDED, FAILED = {"jobStatus": "SUCCEEDED"}, {"jobStatus": "FAILED"}

# (target, change, where the fault is, what the message says)
REFUSED: dict[str, tuple[str, Change, str, str]] = {
    "an existing cluster, without its name": (
        "rayjob", selected({"app": "x"}), "spec.clusterSelector", "missing key 'ray.io/cluster'"),
    "retries on an existing cluster": (
        "rayjob", both(selected({"ray.io/cluster": "x"}), put("spec", "backoffLimit", to=2)),
        "spec.backoffLimit", "expected 0 with clusterSelector, got 2"),
    "sidecar on an existing cluster": (
        "rayjob", both(selected({"ray.io/cluster": "x"}), put("spec", "submissionMode", to="SidecarMode"),
                       lambda documents: documents[-1]["spec"].pop("submitterPodTemplate")),
        "spec.clusterSelector", "cannot be used in SidecarMode"),
    "suspended on an existing cluster": (
        "rayjob", both(selected({"ray.io/cluster": "x"}), put("spec", "suspend", to=True)),
        "spec.suspend", "cannot be used with clusterSelector"),
    "suspended, and never shut down": (
        "rayjob", both(shuts(False), put("spec", "suspend", to=True)), "spec.suspend", "shutdownAfterJobFinishes: true"),
    "retries in InteractiveMode": (
        "rayjob", put("spec", "submissionMode", to="InteractiveMode"), "spec.backoffLimit", "expected 0 in InteractiveMode"),
    "sidecar of a head that is restarted": (
        "rayjob", both(put("spec", "submissionMode", to="SidecarMode"), V1,
                       lambda documents: documents[-1]["spec"].pop("submitterPodTemplate"),
                       put(*HEAD, "template", "spec", "restartPolicy", to="Always")),
        "headGroupSpec.template.spec.restartPolicy", "expected 'Never' in SidecarMode, got 'Always'"),
    "settings of a submitter beside the head": (
        "rayjob", both(put("spec", "submissionMode", to="SidecarMode"),
                       lambda documents: documents[-1]["spec"].pop("submitterPodTemplate"),
                       put("spec", "submitterConfig", to={"backoffLimit": 1})),
        "spec.submitterConfig", "expected no submitterConfig"),
    "a negative retention time": (
        "rayjob", put("spec", "ttlSecondsAfterFinished", to=-1), "spec.ttlSecondsAfterFinished", "at least 0, got -1"),
    "a run time of 0": (
        "rayjob", put("spec", "activeDeadlineSeconds", to=0), "spec.activeDeadlineSeconds", "at least 1, got 0"),
    "rules of deletion beside the older form": (
        "rayjob", delete(("DeleteSelf", SUCCEEDED), onSuccess={"policy": "DeleteSelf"}, onFailure={"policy": "DeleteSelf"}),
        "spec.deletionStrategy", "got both"),
    "half of the older form": (
        "rayjob", both(shuts(True), put(*STRATEGY, to={"onSuccess": {"policy": "DeleteSelf"}})),
        "spec.deletionStrategy", "both onSuccess and onFailure"),
    "older form without a policy": (
        "rayjob", both(shuts(True), put(*STRATEGY, to={"onSuccess": {}, "onFailure": {"policy": "DeleteSelf"}})),
        "spec.deletionStrategy.onSuccess", "missing key 'policy'"),
    "kept and shut down": (
        "rayjob", both(shuts(True), put(*STRATEGY, to={
            "onSuccess": {"policy": "DeleteNone"}, "onFailure": {"policy": "DeleteSelf"}})),
        "spec.deletionStrategy.onSuccess.policy", "expected no 'DeleteNone'"),
    "rules of deletion and shut down": (
        "rayjob", both(delete(("DeleteSelf", SUCCEEDED)), put("spec", "shutdownAfterJobFinishes", to=True)),
        "spec.deletionStrategy", "expected no shutdownAfterJobFinishes"),
    "the job gone before its cluster": (
        "rayjob", delete(("DeleteCluster", {**FAILED, "ttlSeconds": 60}), ("DeleteSelf", {**FAILED, "ttlSeconds": 10})),
        RULES, "expected DeleteSelf (10 s) no sooner than DeleteCluster (60 s)"),
    "one rule of deletion twice": (
        "rayjob", delete(("DeleteSelf", SUCCEEDED), ("DeleteSelf", {**SUCCEEDED, "ttlSeconds": 5})),
        f"{RULES}[1]", "DeleteSelf is given twice"),
    "workers deleted under an autoscaler": (
        "rayjob", delete(("DeleteWorkers", SUCCEEDED)), f"{RULES}[0].policy", "with enableInTreeAutoscaling"),
    "two conditions": (
        "rayjob", delete(("DeleteSelf", {**FAILED, "jobDeploymentStatus": "Failed"})),
        f"{RULES}[0].condition", "expected either jobStatus or"),
    "no condition": ("rayjob", delete(("DeleteSelf", {})), f"{RULES}[0].condition", "expected either jobStatus or"),
    "workers of another's cluster deleted": (
        "rayjob", both(delete(("DeleteCluster", SUCCEEDED)), selected({"ray.io/cluster": "x"})),
        f"{RULES}[0].policy", "with clusterSelector"),
    "Kubernetes' tokens in a job": (
        "rayjob", put(*JOB, "authOptions", "enableK8sTokenAuth", to=True),
        f"{JOB_PATH}.authOptions.enableK8sTokenAuth", "only in a RayCluster"),
    "Kubernetes' tokens in a service": (
        "rayservice", put(*SERVICE, "authOptions", "enableK8sTokenAuth", to=True),
        "authOptions.enableK8sTokenAuth", "only in a RayCluster"),
    "Kubernetes' tokens without Ray's": (
        "rayjob", alone({"enableK8sTokenAuth": True}),
        "spec.authOptions.enableK8sTokenAuth", "needs authOptions.mode: token"),
    "Kubernetes' tokens and a secret": (
        "rayjob", alone({"mode": "token", "enableK8sTokenAuth": True, "secretName": "x"}),
        "spec.authOptions.secretName", "expected none with enableK8sTokenAuth, got 'x'"),
    "an upgrade of a job's cluster": (
        "rayjob", put(*JOB, "upgradeStrategy", to={"type": "Recreate"}),
        f"{JOB_PATH}.upgradeStrategy.type", "only in a RayCluster"),
    "a group that is idle without v2": (
        "rayjob", both(V1, put(*GPU, "idleTimeoutSeconds", to=60)),
        "workerGroupSpecs[0].idleTimeoutSeconds", "expected autoscalerOptions.version: v2"),
    "a group that is idle before it began": (
        "rayjob", put(*GPU, "idleTimeoutSeconds", to=-1), "workerGroupSpecs[0].idleTimeoutSeconds", "at least 0, got -1"),
    "a cluster that is idle before it began": (
        "rayjob", put(*JOB, "autoscalerOptions", "idleTimeoutSeconds", to=-1),
        f"{JOB_PATH}.autoscalerOptions.idleTimeoutSeconds", "at least 0, got -1"),
    "a negative number of workers": (
        "rayjob", put(*GPU, "minReplicas", to=-1), "workerGroupSpecs[0].minReplicas", "at least 0, got -1"),
    "a group suspended under an autoscaler": (
        "rayjob", put(*GPU, "suspend", to=True), "workerGroupSpecs[0].suspend", "cannot be used"),
    "workers that are restarted under v2": (
        "rayjob", both(put(*JOB, "autoscalerOptions", "version", to="v2"), put(*GPU_POD, "restartPolicy", to="Always")),
        "workerGroupSpecs[0].template.spec.restartPolicy", "expected 'Never' with autoscaler v2, got 'Always'"),
    "a head that is restarted under v2": (
        "rayjob", both(put(*JOB, "autoscalerOptions", "version", to="v2"),
                       put(*HEAD, "template", "spec", "restartPolicy", to="Always")),
        "headGroupSpec.template.spec.restartPolicy", "expected 'Never' with autoscaler v2, got 'Always'"),
    "v2 given twice": (
        "rayjob", both(put(*JOB, "autoscalerOptions", "version", to="v2"), variable("RAY_enable_autoscaler_v2", "1")),
        ENV_PATH, "got both"),
    "v2 without an autoscaler": (
        "rayjob", both(autoscaler(None), variable("RAY_enable_autoscaler_v2", "1")),
        ENV_PATH, "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"),
    "a Redis by a variable": (
        "rayjob", variable("RAY_REDIS_ADDRESS", "redis:6379"), ENV_PATH, "expected gcsFaultToleranceOptions.redisAddress"),
    "a Redis by both": (
        "rayjob", both(variable("RAY_REDIS_ADDRESS", "redis:6379"),
                       put(*JOB, "gcsFaultToleranceOptions", to={"redisAddress": "redis:6379"})),
        ENV_PATH, "expected gcsFaultToleranceOptions.redisAddress"),
    "a user of Redis by a variable": (
        "rayjob", variable("REDIS_USERNAME", "ray"), ENV_PATH, "expected gcsFaultToleranceOptions.redisUsername"),
    "a user of Redis by a parameter": (
        "rayjob", put(*HEAD, "rayStartParams", "redis-username", to="ray"),
        "rayStartParams.redis-username", "expected gcsFaultToleranceOptions.redisUsername"),
    "a password of Redis by a variable": (
        "rayjob", both(lambda documents: documents[-1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
                       ["containers"][0]["env"].append({"name": "REDIS_PASSWORD", "valueFrom": {
                           "secretKeyRef": {"name": "redis", "key": "password"}}}),
                       put(*JOB, "gcsFaultToleranceOptions", to={"redisAddress": "redis:6379"})),
        ENV_PATH, "expected gcsFaultToleranceOptions.redisPassword"),
    "a password of Redis by a parameter": (
        "rayjob", both(put(*HEAD, "rayStartParams", "redis-password", to="x"),
                       put(*JOB, "gcsFaultToleranceOptions", to={"redisAddress": "redis:6379"})),
        "rayStartParams.redis-password", "expected gcsFaultToleranceOptions.redisPassword"),
    "fault tolerance by an annotation too": (
        "rayjob", both(annotate("ray.io/ft-enabled", "true"),
                       put(*JOB, "gcsFaultToleranceOptions", to={"redisAddress": "redis:6379"})),
        f"{JOB_PATH}.gcsFaultToleranceOptions", "expected no annotation ray.io/ft-enabled"),
    "a namespace of Redis by an annotation": (
        "rayjob", both(annotate("ray.io/external-storage-namespace", "x"),
                       put(*JOB, "gcsFaultToleranceOptions", to={"redisAddress": "redis:6379"})),
        f"{JOB_PATH}.gcsFaultToleranceOptions", "expected externalStorageNamespace in it"),
    "labels by a parameter": (
        "rayjob", put(*GPU, "rayStartParams", "labels", to="a=b"),
        "workerGroupSpecs[0].rayStartParams.labels", "expected the group's own key 'labels'"),
    "an invalid label": (
        "rayjob", put(*GPU, "labels", to={"zone": "a b"}), "workerGroupSpecs[0].labels.zone", "at most 63 letters"),
    "resources given twice": (
        "rayjob", both(put(*GPU, "resources", to={"CPU": "8"}), put(*GPU, "rayStartParams", "num-cpus", to="8")),
        "workerGroupSpecs[0].resources", "got both"),
    "an unknown manager": (
        "rayjob", put("spec", "managedBy", to="kueue"), "spec.managedBy", "expected ray.io/kuberay-operator or"),
    "a name for the head's service": (
        "rayservice", put(*SERVICE, "headGroupSpec", "headService", to={"metadata": {"name": "x"}}),
        "headService.metadata.name", "expected no name"),
    "a startup timeout that is no duration": (
        "rayservice", annotate("ray.io/initializing-timeout", "soon"), "annotations['ray.io/initializing-timeout']",
        "above 0, or a duration as '30m'"),
    "a startup timeout without a valid unit": (
        "rayservice", annotate("ray.io/initializing-timeout", "5d"), "metadata.annotations['ray.io/initializing-timeout']",
        "got '5d'"),
    "a startup timeout of 0": (
        "rayservice", annotate("ray.io/initializing-timeout", "0s"), "annotations['ray.io/initializing-timeout']",
        "above 0, or a duration as '30m'"),
    "an incremental upgrade without options": (
        "rayservice", put("spec", "upgradeStrategy", to={"type": "NewClusterWithIncrementalUpgrade"}),
        "spec.upgradeStrategy", "missing key 'clusterUpgradeOptions'"),
    "an incremental upgrade without an autoscaler": (
        "rayservice", both(upgraded(), autoscaler(None)),
        "spec.rayClusterConfig", "expected enableInTreeAutoscaling: true"),
    "a surge above 100 %": (
        "rayservice", upgraded(maxSurgePercent=120), f"{OPTIONS_PATH}.maxSurgePercent", "must be at most 100, got 120"),
    "steps without an interval": (
        "rayservice", upgraded(intervalSeconds=0), f"{OPTIONS_PATH}.intervalSeconds", "at least 1, got 0"),
    "no gateway class": (
        "rayservice", upgraded(gatewayClassName=""), f"{OPTIONS_PATH}.gatewayClassName", "expected at least 1 characters"),
}  # fmt: skip

# Rules that came with KubeRay 1.7.
SINCE_1_7: dict[str, tuple[str, Change, str, str]] = {
    "a group's priority without v2": (
        "rayjob", both(V1, put(*GPU, "priority", to=1)), "workerGroupSpecs[0].priority",
        "expected autoscalerOptions.version: v2"),
    "steps above the surge": (
        "rayservice", upgraded(stepSizePercent=60), f"{OPTIONS_PATH}.stepSizePercent",
        "expected at most maxSurgePercent, got 60"),
}  # fmt: skip
