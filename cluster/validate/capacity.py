"""Whether what is asked for fits on the workers, at the most that the cluster grows to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, isnan

from cluster.validate.documents import Document, Path
from cluster.validate.raycluster import quantity, worker_paths


@dataclass(frozen=True, slots=True)
class Workers:
    """A group of equal workers.

    Attributes:
        name: Of the group.
        least: How many there are from the start.
        most: How many there can be.
        cpus: Of each.
        gpus: Of each.
    """

    name: str
    least: int
    most: int
    cpus: float
    gpus: float

    def holds(self, cpus: float, gpus: float) -> int:
        """Return how many processes of a size one worker holds."""
        per_cpu = floor(self.cpus / cpus + 1e-9) if cpus else 10**9
        per_gpu = floor(self.gpus / gpus + 1e-9) if gpus else 10**9
        return min(per_cpu, per_gpu)


@dataclass(frozen=True, slots=True)
class Capacity:
    """All workers of a cluster at their most."""

    groups: tuple[Workers, ...]

    @property
    def cpus(self) -> float:
        """Of all."""
        return sum(group.most * group.cpus for group in self.groups)

    @property
    def gpus(self) -> float:
        """Of all."""
        return sum(group.most * group.gpus for group in self.groups)

    def at_least(self) -> Capacity:
        """Return what is there from the start."""
        return Capacity(tuple(replace(group, most=group.least) for group in self.groups))

    def missing(self, what: str, count: int, cpus: float, gpus: float) -> str | None:
        """Say what is missing for some processes of one size; None where they fit.

        Args:
            what: Name of the processes, for the message.
            count: How many.
            cpus: Of each.
            gpus: Of each.
        """
        held = sum(group.most * group.holds(cpus, gpus) for group in self.groups)
        if count <= held:
            return None
        size = " and ".join(f"{amount:g} {unit}" for amount, unit in ((cpus, "CPUs"), (gpus, "GPUs")) if amount)
        workers = "; ".join(
            f"{group.name}: at most {group.most} with {group.cpus:g} CPUs and {group.gpus:g} GPUs"
            for group in self.groups
        )
        return f"{count} {what} of {size} each do not fit, {held} do ({workers or 'there are no workers'})"


def kuberay_capacity(document: Document, base: Path) -> Capacity | None:
    """Return what the workers of a RayClusterSpec have; None where the manifest does not say."""
    groups = []
    for _, path in worker_paths(document, base):
        most = document.get(*path, "maxReplicas")
        cpus = _amount(document, path, "cpu", "num-cpus", "CPU")
        gpus = _amount(document, path, "nvidia.com/gpu", "num-gpus", "GPU")
        if not isinstance(most, int) or cpus is None:
            return None
        least = document.get(*path, "minReplicas")
        name = str(document.get(*path, "groupName"))
        groups.append(Workers(name, least if isinstance(least, int) else 0, most, cpus, gpus or 0.0))
    return Capacity(tuple(groups))


def _amount(document: Document, group: Path, resource: str, param: str, ray_name: str) -> float | None:
    """Return how much of a resource Ray sees on a worker: what it is told, else the pod's limit."""
    limits = (*group, "template", "spec", "containers", 0, "resources", "limits")
    for path in ((*group, "resources", ray_name), (*group, "rayStartParams", param), (*limits, resource)):
        told = document.get(*path)
        if told is not None:
            amount = quantity(told)
            return None if isnan(amount) else amount
    return None
