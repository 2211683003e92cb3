"""How many processes do what: from Ray's resources, and from the options."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.errors import ConfigError
from models.inference.classifier import DeviceChoice, Provider
from pipeline.config import LabelConfig, Shape, batch_size
from pipeline.session.connect import Cluster

# Limit for one run, however large the cluster.
MOST_PROCESSES = 4096


@dataclass(frozen=True, slots=True)
class Pools:
    """Number and kind of a run's processes.

    Attributes:
        actors: Least and most actors that hold the model.
        actor_cpus: CPUs of each actor.
        actor_gpus: GPUs of each actor, as Ray counts them; 0 for a simulated GPU, which is no Ray resource.
        decoders: Processes that decode for the actors; 0 where actors decode.
        batch_size: Images per inference.
        gpu_share: Part of a GPU that each actor has; 0 without GPUs.
        cuda_graphs: Whether GPUs replay a recorded batch.
        growth: Most processes that take units on a cluster that grows; 0 where their number is fixed.
    """

    actors: tuple[int, int]
    actor_cpus: float
    actor_gpus: float
    decoders: int
    batch_size: int
    gpu_share: float = 0.0
    cuda_graphs: bool = False
    growth: int = 0

    @property
    def readers(self) -> int:
        """How many processes read SOURCE; on a cluster that grows, before it grows."""
        return self.decoders or self.actors[1]

    def describe(self, cluster: Cluster) -> str:
        """Return a line that says what was chosen."""
        low, high = self.actors
        count = f"{low}" if low == high else f"{low} to {high}"
        plural = "s" if high > 1 else ""
        has = f"of {cluster.cpus:g} CPUs" + (f" and {cluster.gpus:g} GPUs" if cluster.gpus else "")
        if self.growth:
            has += " now, and more as it grows"
        if self.decoders == 0:
            does = "read, decode and label, on a CPU each" if high > 1 else "reads, decodes and labels, on a CPU"
            return f"{count} actor{plural} {does}, {has}; batches of {self.batch_size}"
        feeds = f"{self.decoders} decoders feed" if self.decoders > 1 else "1 decoder feeds"
        share = f" with {self.gpu_share:g} of a GPU each" if 0 < self.gpu_share < 1 else ""
        return f"{feeds} {count} actor{plural}{share}, {has}; batches of {self.batch_size}"


def plan_pools(config: LabelConfig, choice: DeviceChoice, cluster: Cluster, *, pending: int) -> Pools:
    """Size the pools: one fused actor per CPU, or decoders on the CPUs that actors leave.

    Args:
        config: Settings of the run.
        choice: Whether actors need a GPU.
        cluster: Resources of Ray.
        pending: Units to do; more fused actors than that would be idle.

    Raises:
        ConfigError: The settings do not fit; the message says what is missing.
    """
    size = batch_size(config, choice)
    on_gpu = choice.provider is not Provider.CPU
    if not on_gpu and config.gpus_per_actor is not None:
        raise ConfigError("--gpus-per-actor is for a GPU, and the model runs on the CPU; leave it out")
    wants_stages = on_gpu or config.preprocess_cpus is not None
    if config.shape is Shape.FUSED or (config.shape is Shape.AUTO and not wants_stages):
        pools = _fused(config, choice, cluster, pending, size)
    elif on_gpu:
        share = config.gpus_per_actor or 1.0
        actors = _bounds(config, max(1, int(_gpus(choice, cluster) / share)))
        # An actor with a GPU computes little on its CPU, and mostly waits: all CPUs can decode.
        decoders = config.preprocess_cpus or max(1, min(int(cluster.cpus), pending))
        growth = 0 if config.preprocess_cpus else _growth(cluster, pending)
        pools = Pools(actors, 0, share * _is_real(choice), decoders, size, share, growth=growth)
    else:
        # On a CPU inference takes several times as long as decoding: a quarter of the CPUs keeps the actors busy.
        decoders = config.preprocess_cpus or max(1, int(cluster.cpus) // 4)
        actors = _bounds(config, max(1, int(cluster.cpus) - decoders))
        pools = Pools(actors, actor_cpus=1, actor_gpus=0, decoders=decoders, batch_size=size)
    _check(pools, cluster)
    return replace(pools, cuda_graphs=config.cuda_graphs)


def _fused(config: LabelConfig, choice: DeviceChoice, cluster: Cluster, pending: int, size: int) -> Pools:
    if choice.provider is Provider.CPU:
        # On a cluster with several jobs, start with the free CPUs.
        free = cluster.cpus if cluster.free_cpus is None else cluster.free_cpus
        actors = _bounds(config, max(1, min(int(free), pending)))
        growth = 0 if config.actors else _growth(cluster, pending)
        return Pools(actors, actor_cpus=1, actor_gpus=0, decoders=0, batch_size=size, growth=growth)
    actors = _bounds(config, max(1, min(int(cluster.cpus), pending)))
    # Rounded down: three actors with a third of a GPU each must not need more than one GPU.
    share = config.gpus_per_actor or min(1.0, int(100 * _gpus(choice, cluster) / actors[1]) / 100)
    return Pools(actors, 1, share * _is_real(choice), 0, size, share)


def _gpus(choice: DeviceChoice, cluster: Cluster) -> float:
    """Return how many GPUs there are: Ray's GPUs, or a simulated one on each node."""
    if choice.provider is not Provider.SIMULATED:
        return cluster.gpus
    import ray

    return float(sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))


def _is_real(choice: DeviceChoice) -> bool:
    return choice.provider is not Provider.SIMULATED


def _bounds(config: LabelConfig, chosen: int) -> tuple[int, int]:
    low, high = config.actor_bounds()
    return (low, high) if high else (chosen, chosen)


def _growth(cluster: Cluster, pending: int) -> int:
    """Return the most processes that may take units. Ray starts only as many as fit."""
    return min(pending, MOST_PROCESSES) if cluster.may_grow else 0


def _check(pools: Pools, cluster: Cluster) -> None:
    """Raise ConfigError where Ray would wait for ever."""
    low = pools.actors[0]
    need = low * pools.actor_cpus + pools.decoders
    if need > cluster.cpus:
        who = f"{low} actor{'s' * (low > 1)}" if pools.actor_cpus else ""
        who += " and " * bool(who and pools.decoders) + f"{pools.decoders} decoders" * bool(pools.decoders)
        less = "fewer --actors" if pools.decoders <= 1 else "fewer --actors or --preprocess-cpus"
        raise ConfigError(f"{who} need {need:g} CPUs, and Ray has {cluster.cpus:g}; give {less}, or more CPUs")
    gpus = low * pools.actor_gpus
    if gpus > cluster.gpus:
        raise ConfigError(f"{low} actors need {gpus:g} GPUs, and Ray has {cluster.gpus:g}; give fewer --actors")
