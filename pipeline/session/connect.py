"""Join a Ray cluster, or start a local one that ends with the command."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass

from models.errors import ClusterError, ConfigError, ShardlabelError
from pipeline.patches.data_patches import without_cluster_actors
from pipeline.patches.looks_patches import dead_process, local_node
from pipeline.patches.start_patches import command_line_noted, short_errors
from pipeline.session.local import join_ray, start_local_ray, stop_ray, until_left
from pipeline.storage.uris import without_secrets

logger = logging.getLogger(__name__)

# How long other jobs may use the needed resources before that is an error.
WAIT_S = 60.0
# After Ray's own processes died: time for the run to notice by itself and to close in order.
DEAD_RAY_GRACE_S = 5.0
# How long a cluster's address may not answer before that is an error.
ANSWER_S = 10.0
# How long to wait for CPUs in use, which may be about to become free.
SETTLE_S = 3.0
# Tasks sent to a pool's actors, divided by the tasks that they run at a time.
POOL_GROWS_AT = 1.25


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that this process is connected to.

    Attributes:
        cpus: All CPUs of Ray.
        gpus: All GPUs of Ray.
        is_ours: Whether this run joined or started Ray, and leaves it at its end; False in a notebook with its own Ray.
        free_cpus: CPUs that nobody used when this process joined; None for all.
        may_grow: Whether nodes may come and go: the cluster existed before this run.
    """

    cpus: float
    gpus: float
    is_ours: bool
    free_cpus: float | None = None
    may_grow: bool = False

    def wait_for(self, cpus: float, gpus: float) -> None:
        """Wait until so many CPUs and GPUs are free.

        Raises:
            ConfigError: They were not free for WAIT_S; the message says what is missing.
        """
        import ray

        deadline = time.monotonic() + WAIT_S
        need = {"CPU": min(cpus, self.cpus), "GPU": gpus}
        while True:
            free = ray.available_resources()
            missing = {name: amount - free.get(name, 0) for name, amount in need.items() if free.get(name, 0) < amount}
            if not missing:
                return
            if time.monotonic() > deadline:
                what = " and ".join(f"{amount:g} more {name}s" for name, amount in missing.items())
                raise ConfigError(
                    f"the run needs {what}, which other jobs have been using for {WAIT_S:g} s; wait for them, or "
                    "give fewer --actors"
                )
            time.sleep(0.2)

    def close(self) -> None:
        """Leave Ray; a local Ray is stopped."""
        if self.is_ours:
            stop_ray()


def connect(address: str | None) -> Cluster:
    """Join the cluster at an address, or start a local Ray. A Ray that this process already has is used as it is.

    Raises:
        ConfigError: Nothing answers at the address.
        ClusterError: A local Ray does not start.
    """
    # Ray's workers import what the driver does: without cached bytecode a start takes 20 s instead of 8.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A driver renews its claim on a cluster every 10 s. The claim of a killed driver blocks the next one for this long: by
    # default three minutes, in which a pool does not grow.
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    if address and address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is a cluster's dashboard: from outside the cluster run `shardlabel submit --address {address} "
            "-- label ...`; `label --address` takes auto, or HOST:PORT of the cluster that this machine belongs to"
        )
    check_address(address)
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        stop_ray()  # a Ray that somebody else has shut down leaves its patches
        until_left.enter_context(short_errors())
        with command_line_noted(without_secrets):
            join_or_start(address)
        if not address:
            until_left.enter_context(without_cluster_actors())
    _quiet()
    if is_ours and not address:
        threading.Thread(target=_watch_local_ray, name="ray-watch", daemon=True).start()
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    return Cluster(cpus, gpus, is_ours, free_cpus=_free_cpus(cpus) if address else None, may_grow=bool(address))


def join_or_start(address: str | None, library: str = "ray.data") -> None:
    """Join the Ray at an address, or start a local one, for a library of Ray.

    Raises:
        ConfigError: It could not be joined.
        ClusterError: A local one did not start.
    """
    try:
        if address:
            join_ray(address)
        else:
            start_local_ray(library)
    except ShardlabelError:
        raise
    except Exception as err:  # Ray raises bare exceptions here
        why = " ".join(str(err).split())[:300]
        if address:
            raise ConfigError(f"cannot join the Ray cluster at {address}: {why}") from err
        raise ClusterError(f"cannot start a local Ray: {why}; run the same command again") from err


def check_address(address: str | None) -> None:
    """Check that something listens at the address: Ray itself tries for more than five minutes, and says nothing.

    Raises:
        ConfigError: Nothing listens, for ANSWER_S: a cluster may be about to start.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return  # "auto", and forms for which Ray has its own messages
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
                return
        except (OSError, OverflowError) as err:
            if time.monotonic() > deadline or _is_final(err):
                raise ConfigError(
                    f"cannot join the Ray cluster at {address}: {err}; give the address that `ray start --head` printed, "
                    "and see that this machine can reach it"
                ) from err
        time.sleep(0.5)


def _is_final(err: Exception) -> bool:
    """Tell whether a retry is useless: the name or the port does not exist."""
    return isinstance(err, OverflowError) or (isinstance(err, socket.gaierror) and err.errno != socket.EAI_AGAIN)


def _free_cpus(cpus: float) -> float:
    """Return how many CPUs are free, once the workers of a run that was just killed have had time to end."""
    import ray

    deadline = time.monotonic() + SETTLE_S
    while (free := float(ray.available_resources().get("CPU", 0.0))) < cpus and time.monotonic() < deadline:
        time.sleep(0.2)
    return free


def _watch_local_ray() -> None:
    """End this process when a local Ray's own processes die: Ray's client does so after a minute, without a message.

    This loses nothing: a run may be killed at any moment, and its records are written as units finish.
    """
    node = local_node()
    while node is not None and node is local_node():
        name = dead_process(node)
        if name is not None:
            time.sleep(DEAD_RAY_GRACE_S)
            if node is local_node():
                sys.stderr.write(f"shardlabel: error: Ray's {name} died; run the same command again\n")
                sys.stderr.flush()
                os._exit(1)
        time.sleep(1.0)


def _quiet() -> None:
    """Keep Ray Data's own bars and plans off the terminal: `--progress` alone reports there."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    # A pool grows where its actors are sent more tasks than they run at a time. Ray's own 1.75 is out of reach for actors
    # that run two units at a time and are sent one more.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = POOL_GROWS_AT
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
