"""Check whether processes fit on the workers of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, isnan

from cluster.validate.documents import Document, Path
from cluster.validate.raycluster import quantity, worker_paths


@dataclass(frozen=True, slots=True)
class Workers:
    """A group of identical workers.

    Attributes:
        name: Of the group.
        least: Minimum number of workers, which exist from the start.
        most: Maximum number of workers.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    name: str
    least: int
    most: int
    cpus: float
    gpus: float

    def holds(self, cpus: float, gpus: float) -> int:
        """Return how many processes with these resources fit on one worker."""
        per_cpu = floor(self.cpus / cpus + 1e-9) if cpus else 10**9
        per_gpu = floor(self.gpus / gpus + 1e-9) if gpus else 10**9
        return min(per_cpu, per_gpu)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The worker groups of a cluster. Sums count each group at its maximum."""

    groups: tuple[Workers, ...]

    @property
    def cpus(self) -> float:
        """Return the CPUs of all workers."""
        return sum(group.most * group.cpus for group in self.groups)

    @property
    def gpus(self) -> float:
        """Return the GPUs of all workers."""
        return sum(group.most * group.gpus for group in self.groups)

    def at_least(self) -> Capacity:
        """Return the capacity from the start, with each group at its minimum."""
        return Capacity(tuple(replace(group, most=group.least) for group in self.groups))

    def missing(self, what: str, count: int, cpus: float, gpus: float) -> str | None:
        """Return a message if `count` processes do not fit, else None.

        Args:
            what: Name of the processes, for the message.
            count: Number of processes.
            cpus: CPUs of each.
            gpus: GPUs of each.
        """
        held = sum(group.most * group.holds(cpus, gpus) for group in self.groups)
        if count <= held:
            return None
        size = " and ".join(f"{amount:g} {unit}" for amount, unit in ((cpus, "CPUs"), (gpus, "GPUs")) if amount)
        workers = "; ".join(
            f"{group.name}: at most {group.most} with {group.cpus:g} CPUs and {group.gpus:g} GPUs"
            for group in self.groups
        )
        return f"{count} {what} of {size} each do not fit, there is room for {held} ({workers or 'no workers'})"


def kuberay_capacity(document: Document, base: Path) -> Capacity | None:
    """Return the capacity of a RayClusterSpec; None if the manifest does not say."""
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
    """Return how much of a resource Ray sees on a worker: the configured amount, else the pod's limit."""
    limits = (*group, "template", "spec", "containers", 0, "resources", "limits")
    for path in ((*group, "resources", ray_name), (*group, "rayStartParams", param), (*limits, resource)):
        given = document.get(*path)
        if given is not None:
            amount = quantity(given)
            return None if isnan(amount) else amount
    return None
