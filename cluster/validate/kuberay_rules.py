"""What KubeRay's operator refuses after the schema. Each rule is (path, condition of the fault, message).

tests/kubernetes compares these rules with the operator's own verdict. Keys behind its feature gates are not covered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cluster.validate.documents import Document, Fault, Path
from cluster.validate.kubernetes import check_labels
from cluster.validate.schema import shown

HEAD_POD = "headGroupSpec.template.spec"
OPTIONS = "upgradeStrategy.clusterUpgradeOptions"
HEAD_ENV = f"{HEAD_POD}.containers.0.env"
# A Go duration (1h30m), or seconds.
DURATION = re.compile(r"\+?(?=.*[1-9])(?:\d+|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Spec:
    """A specification inside a document; paths are dotted and relative to `base`."""

    document: Document
    base: Path

    def path(self, dotted: str) -> Path:
        return (*self.base, *(int(part) if part.isdigit() else part for part in dotted.split(".") if part))

    def get(self, dotted: str) -> Any:  # noqa: ANN401
        return self.document.get(*self.path(dotted))

    def table(self, dotted: str) -> dict[str, Any]:
        value = self.get(dotted)
        return value if isinstance(value, dict) else {}

    def number(self, dotted: str) -> float:
        """Return the integer at a path, else nan, for which every comparison is false."""
        value = self.get(dotted)
        return value if isinstance(value, int) else float("nan")

    def env(self, name: str) -> Any:  # noqa: ANN401
        """Return an environment variable of the head's first container, as a mapping; None if there is none."""
        variables = self.document.items(*self.path(HEAD_ENV))
        return next((one for one in variables if isinstance(one, dict) and one.get("name") == name), None)

    def annotation(self, name: str) -> str:
        return str(self.document.get("metadata", "annotations", name) or "")

    def fault(self, dotted: str, reason: str) -> Fault:
        return self.document.fault(self.path(dotted), reason.replace("{got}", shown(self.get(dotted))))

    # For a RayJob.
    def mode(self) -> object:
        return self.get("submissionMode") or "K8sJobMode"

    def shuts_down(self) -> bool:
        return self.get("shutdownAfterJobFinishes") is True

    def older(self) -> list[str]:
        """Return which keys of the older form of a deletionStrategy are given."""
        return [name for name in ("onSuccess", "onFailure") if name in self.table("deletionStrategy")]

    # For a RayCluster.
    def autoscales(self) -> bool:
        return self.get("enableInTreeAutoscaling") is True

    def is_v2(self) -> bool:
        return bool(self.get("autoscalerOptions.version") == "v2")

    def has_gcs(self) -> bool:
        return self.get("gcsFaultToleranceOptions") is not None


Rule = tuple[str, Callable[[_Spec], object], str]
JOB: tuple[Rule, ...] = (
    ("", lambda s: s.get("rayClusterSpec") is None and not s.get("clusterSelector"),
     "missing key 'rayClusterSpec' (or 'clusterSelector', for an existing cluster)"),
    ("clusterSelector", lambda s: s.table("clusterSelector") and not s.table("clusterSelector").get("ray.io/cluster"),
     "missing key 'ray.io/cluster', the name of the existing cluster"),
    ("clusterSelector", lambda s: s.get("clusterSelector") and s.mode() == "SidecarMode", "cannot be used in SidecarMode"),
    ("backoffLimit", lambda s: s.number("backoffLimit") > 0 and s.get("clusterSelector"),
     "expected 0 with clusterSelector, got {got}"),
    ("backoffLimit", lambda s: s.number("backoffLimit") > 0 and s.mode() == "InteractiveMode",
     "expected 0 in InteractiveMode, got {got}"),
    *((name, lambda s, name=name: s.get(name) is not None and s.mode() in ("SidecarMode", "HTTPMode"),
       f"expected no {name}: SidecarMode and HTTPMode have no submitter pod")
      for name in ("submitterPodTemplate", "submitterConfig")),
    (f"rayClusterSpec.{HEAD_POD}.restartPolicy",
     lambda s: s.mode() == "SidecarMode" and s.get(f"rayClusterSpec.{HEAD_POD}.restartPolicy") not in (None, "Never"),
     "expected 'Never' in SidecarMode, got {got}"),
    ("submitterPodTemplate.spec.restartPolicy",
     lambda s: s.mode() == "K8sJobMode" and s.get("submitterPodTemplate.spec.restartPolicy") == "Always",
     "expected 'Never' or 'OnFailure', got 'Always', which a Kubernetes Job refuses"),
    ("ttlSecondsAfterFinished", lambda s: s.number("ttlSecondsAfterFinished") > 0 and not s.shuts_down(),
     "needs shutdownAfterJobFinishes: true, got {got} without it"),
    ("suspend", lambda s: s.get("suspend") is True and not s.shuts_down(),
     "needs shutdownAfterJobFinishes: true"),
    ("suspend", lambda s: s.get("suspend") is True and s.get("clusterSelector"), "cannot be used with clusterSelector"),
    ("deletionStrategy", lambda s: "deletionRules" in s.table("deletionStrategy") and s.older(),
     "expected deletionRules or onSuccess and onFailure, got both"),
    ("deletionStrategy",
     lambda s: s.get("deletionStrategy") is not None and not s.get("deletionStrategy.deletionRules") and len(s.older()) < 2,
     "expected deletionRules, or both onSuccess and onFailure"),
    ("deletionStrategy", lambda s: s.get("deletionStrategy.deletionRules") and s.shuts_down(),
     "expected no shutdownAfterJobFinishes with deletionRules"),
)  # fmt: skip

OWNED: tuple[Rule, ...] = (  # a cluster that belongs to a RayJob or a RayService
    ("authOptions.enableK8sTokenAuth", lambda s: s.get("authOptions.enableK8sTokenAuth") is True,
     "expected false: KubeRay accepts it only in a RayCluster"),
    ("upgradeStrategy.type", lambda s: s.get("upgradeStrategy.type") is not None,
     "expected none: KubeRay accepts it only in a RayCluster"),
)  # fmt: skip

CLUSTER: tuple[Rule, ...] = (
    ("authOptions.enableK8sTokenAuth",
     lambda s: s.get("authOptions.enableK8sTokenAuth") is True and s.get("authOptions.mode") != "token",
     "needs authOptions.mode: token"),
    ("authOptions.secretName", lambda s: s.get("authOptions.enableK8sTokenAuth") is True and s.get("authOptions.secretName"),
     "expected none with enableK8sTokenAuth, got {got}"),
    ("autoscalerOptions", lambda s: s.get("autoscalerOptions") is not None and not s.autoscales(),
     "has no effect without enableInTreeAutoscaling: true"),
    (HEAD_ENV, lambda s: (s.env("RAY_enable_autoscaler_v2") or {}).get("value") in ("1", "true") and not s.autoscales(),
     "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling: true"),
    (HEAD_ENV, lambda s: s.env("RAY_enable_autoscaler_v2") and s.autoscales() and s.get("autoscalerOptions.version"),
     "expected autoscalerOptions.version or RAY_enable_autoscaler_v2, got both"),
    ("gcsFaultToleranceOptions", lambda s: s.has_gcs() and s.annotation("ray.io/ft-enabled"),
     "expected no annotation ray.io/ft-enabled with it"),
    ("gcsFaultToleranceOptions", lambda s: s.has_gcs() and s.annotation("ray.io/external-storage-namespace"),
     "expected externalStorageNamespace in it, got the annotation ray.io/external-storage-namespace"),
    (HEAD_ENV, lambda s: s.env("RAY_REDIS_ADDRESS") and (s.has_gcs() or s.annotation("ray.io/ft-enabled").lower() != "true"),
     "expected gcsFaultToleranceOptions.redisAddress, got the variable RAY_REDIS_ADDRESS"),
    (HEAD_ENV, lambda s: s.env("REDIS_PASSWORD") and s.has_gcs(),
     "expected gcsFaultToleranceOptions.redisPassword, got the variable REDIS_PASSWORD"),
    (HEAD_ENV, lambda s: s.env("REDIS_USERNAME"),
     "expected gcsFaultToleranceOptions.redisUsername, got the variable REDIS_USERNAME"),
    ("headGroupSpec.rayStartParams.redis-password",
     lambda s: s.get("headGroupSpec.rayStartParams.redis-password") and s.has_gcs(),
     "expected gcsFaultToleranceOptions.redisPassword instead"),
    ("headGroupSpec.rayStartParams.redis-username", lambda s: s.get("headGroupSpec.rayStartParams.redis-username"),
     "expected gcsFaultToleranceOptions.redisUsername instead"),
    (f"{HEAD_POD}.restartPolicy",
     lambda s: s.is_v2() and s.autoscales() and s.get(f"{HEAD_POD}.restartPolicy") not in (None, "Never"),
     "expected 'Never' with autoscaler v2, got {got}"),
)  # fmt: skip

GROUP: tuple[Rule, ...] = (  # the head's group and the workers' groups
    ("rayStartParams.labels", lambda s: "labels" in s.table("rayStartParams"), "expected the group's own key 'labels'"),
    ("resources",
     lambda s: s.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & s.table("rayStartParams").keys(),
     "expected resources here or in rayStartParams, got both"),
)  # fmt: skip

SERVICE: tuple[Rule, ...] = (
    ("rayClusterConfig.headGroupSpec.headService.metadata.name",
     lambda s: s.get("rayClusterConfig.headGroupSpec.headService.metadata.name"),
     "expected no name: KubeRay names the head's service itself"),
)  # fmt: skip

UPGRADE: tuple[Rule, ...] = (  # an incremental upgrade
    ("rayClusterConfig", lambda s: not s.get("rayClusterConfig.enableInTreeAutoscaling"),
     "expected enableInTreeAutoscaling: true, which an incremental upgrade needs"),
    ("upgradeStrategy", lambda s: s.get(OPTIONS) is None,
     "missing key 'clusterUpgradeOptions', which an incremental upgrade needs"),
    (f"{OPTIONS}.stepSizePercent",
     lambda s: s.number(f"{OPTIONS}.stepSizePercent") > s.number(f"{OPTIONS}.maxSurgePercent"),
     "expected at most maxSurgePercent, got {got}"),
)  # fmt: skip


def _apply(rules: tuple[Rule, ...], spec: _Spec) -> Iterator[Fault]:
    yield from (spec.fault(where, reason) for where, is_wrong, reason in rules if is_wrong(spec))


def job_rules(document: Document, base: Path) -> Iterator[Fault]:
    """Yield what KubeRay refuses in a RayJob's specification; its cluster's is checked by `cluster_rules`."""
    job = _Spec(document, base)
    yield from _apply(JOB, job)
    yield from _apply(OWNED, _Spec(document, (*base, "rayClusterSpec")))
    yield from _deletions(job)


def service_rules(document: Document, base: Path) -> Iterator[Fault]:
    """Yield what KubeRay refuses in a RayService's specification; its cluster's is checked by `cluster_rules`."""
    service = _Spec(document, base)
    yield from _apply(SERVICE, service)
    yield from _apply(OWNED, _Spec(document, (*base, "rayClusterConfig")))
    timeout = service.annotation("ray.io/initializing-timeout")
    if timeout and not DURATION.fullmatch(timeout):
        at = ("metadata", "annotations", "ray.io/initializing-timeout")
        yield document.fault(at, f"expected seconds above 0, or a duration as '30m', got {timeout!r}")
    if service.get("upgradeStrategy.type") == "NewClusterWithIncrementalUpgrade":
        yield from _apply(UPGRADE, service)


def cluster_rules(document: Document, base: Path, workers: list[Path]) -> Iterator[Fault]:
    """Yield what KubeRay refuses in a RayClusterSpec."""
    cluster = _Spec(document, base)
    yield from _apply(CLUSTER, cluster)
    for path in ((*base, "headGroupSpec"), *workers):
        group = _Spec(document, path)
        yield from _apply(GROUP, group)
        yield from check_labels(document, (*path, "labels"), group.table("labels"))
    for group in (_Spec(document, path) for path in workers):
        for name in ("idleTimeoutSeconds", "priority"):
            if group.get(name) is not None and not (cluster.is_v2() or cluster.env("RAY_enable_autoscaler_v2")):
                yield group.fault(name, "expected autoscalerOptions.version: v2, which this key needs")
        policy = group.get("template.spec.restartPolicy")
        if cluster.is_v2() and cluster.autoscales() and policy not in (None, "Never"):
            yield group.fault("template.spec.restartPolicy", "expected 'Never' with autoscaler v2, got {got}")
        if group.get("suspend") is True and cluster.autoscales():
            yield group.fault("suspend", "cannot be used with enableInTreeAutoscaling")


def _deletions(job: _Spec) -> Iterator[Fault]:
    """Yield the faults of each deletion policy, in both forms of a deletionStrategy."""
    count = len(job.document.items(*job.path("deletionStrategy.deletionRules")))
    rules = [f"deletionStrategy.deletionRules.{number}" for number in range(count)]
    older = [f"deletionStrategy.{name}" for name in job.older()]
    for where in (*rules, *older):
        policy = job.get(f"{where}.policy")
        if job.get("clusterSelector") and policy in ("DeleteCluster", "DeleteWorkers"):
            yield job.fault(f"{where}.policy", "expected no {got} with clusterSelector")
        elif policy == "DeleteWorkers" and job.get("rayClusterSpec.enableInTreeAutoscaling") is True:
            yield job.fault(f"{where}.policy", "expected no {got} with enableInTreeAutoscaling")
        elif where in older and policy is None:
            yield job.fault(where, "missing key 'policy'")
        elif where in older and policy == "DeleteNone" and job.shuts_down():
            yield job.fault(f"{where}.policy", "expected no {got} with shutdownAfterJobFinishes: true")
    yield from _order(job, rules)


def _order(job: _Spec, rules: list[str]) -> Iterator[Fault]:
    """Yield deletion rules that are duplicates, or that delete a parent before its parts."""
    keeps: dict[str, dict[str, float]] = {}
    for where in rules:
        condition = job.table(f"{where}.condition")
        names = [name for name in ("jobStatus", "jobDeploymentStatus") if name in condition]
        seconds = keeps.setdefault(" ".join(f"{name} {condition[name]}" for name in names), {})
        policy = str(job.get(f"{where}.policy"))
        if len(names) != 1:
            yield job.fault(f"{where}.condition", "expected either jobStatus or jobDeploymentStatus")
        elif policy in seconds:
            yield job.fault(where, f"{policy} is given twice for the same condition")
        seconds[policy] = job.number(f"{where}.condition.ttlSeconds") if condition.get("ttlSeconds") else 0
    for condition_text, seconds in keeps.items():
        order = [name for name in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if name in seconds]
        for first, then in pairwise(order):
            if seconds[then] < seconds[first]:
                reason = f"expected {then} ({seconds[then]} s) no sooner than {first} ({seconds[first]} s)"
                yield job.fault("deletionStrategy.deletionRules", f"{condition_text}: {reason}")
