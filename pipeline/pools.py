"""How many processes do what: from the resources that Ray has, and from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from models.classifier import Choice, Provider
from models.errors import ConfigError
from pipeline.cluster_session import Cluster
from pipeline.config import LabelConfig, Shape

# Samples per inference. On a CPU more gain nothing; a GPU wants hundreds.
CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Pools:
    """How many of what.

    Attributes:
        actors: Least and most actors that hold the model.
        actor_cpus: CPUs of each.
        actor_gpus: GPUs of each.
        decoders: Decode tasks at a time; 0 where actors decode.
        batch_size: Images per inference.
    """

    actors: tuple[int, int]
    actor_cpus: float
    actor_gpus: float
    decoders: int
    batch_size: int

    def describe(self, cluster: Cluster) -> str:
        """Say in one line what was chosen."""
        low, high = self.actors
        count = f"{low}" if low == high else f"{low} to {high}"
        plural = "s" if high > 1 else ""
        has = f"of {cluster.cpus:g} CPUs" + (f" and {cluster.gpus:g} GPUs" if cluster.gpus else "")
        if self.decoders == 0:
            does = "read, decode and label, on a CPU each" if high > 1 else "reads, decodes and labels, on a CPU"
            return f"{count} actor{plural} {does}, {has}; batches of {self.batch_size}"
        feeds = f"{self.decoders} decode tasks feed" if self.decoders > 1 else "1 decode task feeds"
        return f"{feeds} {count} actor{plural}, {has}; batches of {self.batch_size}"


def batch_size(config: LabelConfig, choice: Choice) -> int:
    """Return the batch size asked for, or the one for the device."""
    if config.batch_size is not None:
        return config.batch_size
    return CPU_BATCH_SIZE if choice.provider is Provider.CPU else GPU_BATCH_SIZE


def plan_pools(config: LabelConfig, choice: Choice, cluster: Cluster, *, pending: int) -> Pools:
    """Size the pools: one fused actor per CPU, or decode tasks on the CPUs that actors leave.

    Args:
        config: What was asked for.
        choice: Whether actors need a GPU.
        cluster: What Ray has.
        pending: Units to do; more fused actors than that would be idle.

    Raises:
        ConfigError: What was asked for does not fit; the message says what is missing.
    """
    size = batch_size(config, choice)
    on_gpu = choice.provider is Provider.CUDA
    wants_stages = on_gpu or config.preprocess_cpus is not None
    if config.shape is Shape.FUSED or (config.shape is Shape.AUTO and not wants_stages):
        actors = _bounds(config, max(1, min(int(cluster.cpus), pending)))
        pools = Pools(actors, actor_cpus=1, actor_gpus=float(on_gpu), decoders=0, batch_size=size)
    elif on_gpu:
        actors = _bounds(config, max(1, int(cluster.gpus)))
        decoders = config.preprocess_cpus or max(1, int(cluster.cpus) - actors[0])
        pools = Pools(actors, actor_cpus=1, actor_gpus=1, decoders=decoders, batch_size=size)
    else:
        # On a CPU inference takes several times what decoding does: a quarter of the CPUs keeps the actors fed.
        decoders = config.preprocess_cpus or max(1, int(cluster.cpus) // 4)
        actors = _bounds(config, max(1, int(cluster.cpus) - decoders))
        pools = Pools(actors, actor_cpus=1, actor_gpus=0, decoders=decoders, batch_size=size)
    _check(pools, cluster)
    return pools


def _bounds(config: LabelConfig, chosen: int) -> tuple[int, int]:
    low, high = config.actor_bounds()
    return (low, high) if high else (chosen, chosen)


def _check(pools: Pools, cluster: Cluster) -> None:
    """Raise where Ray Data would wait for ever."""
    low = pools.actors[0]
    need = low * pools.actor_cpus + min(1, pools.decoders)
    if need > cluster.cpus:
        who = f"{low} actors" + (" and a decode task" if pools.decoders else "")
        raise ConfigError(f"{who} need {need:g} CPUs, and Ray has {cluster.cpus:g}; give fewer --actors, or more CPUs")
    gpus = low * pools.actor_gpus
    if gpus > cluster.gpus:
        raise ConfigError(f"{low} actors need {gpus:g} GPUs, and Ray has {cluster.gpus:g}; give fewer --actors")
