"""On a cluster of several nodes: whether a local folder is the same one on each node, or a folder on the node's own disk."""

from __future__ import annotations

import uuid
from contextlib import suppress

from models.errors import ConfigError, ShardlabelError
from pipeline.dest.plan import STATE_FOLDER
from pipeline.session.connect import Cluster
from pipeline.storage.storage import Storage

# Limit for one look on each node: a worker process has to start there first.
LOOK_S = 60.0


def check_disks(cluster: Cluster | None, source: Storage, dest: Storage, *, is_shared: bool) -> None:
    """Raise where local SOURCE or DEST is not the same folder on all nodes of the joined cluster.

    With `is_shared` this is tested: DEST gets a file, and a task on each node looks for it, and for SOURCE's folder. Nodes
    that join later are not tested.

    Raises:
        ConfigError: There are several nodes, and each has its own folder; the message says what to do.
    """
    if cluster is None:
        return
    import ray

    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    local = [storage for storage in (source, dest) if storage.is_local]
    if len(nodes) < 2 or not local:
        return
    if not is_shared:
        raise ConfigError(
            f"{local[-1].describe()} is on a node's own disk, and the cluster has {len(nodes)} nodes: give an object "
            "storage URI, or --shared-filesystem if all nodes see that folder under that name"
        )
    name = f"{STATE_FOLDER}/seen-by-all-{uuid.uuid4().hex}"
    try:
        if dest.is_local:
            dest.write_bytes(name, b"Is this seen by all nodes?")
        blind = _blind_nodes(nodes, source, dest, name)
    finally:
        if dest.is_local:
            with suppress(ShardlabelError):
                dest.delete(name)
    if blind:
        which, what = next(iter(blind.items()))
        raise ConfigError(
            f"--shared-filesystem: {len(blind)} of {len(nodes)} nodes do not see {what}, the first is {which}: mount it "
            "there under the same name, or give an object storage URI"
        )


def _blind_nodes(nodes: dict[str, str], source: Storage, dest: Storage, name: str) -> dict[str, str]:
    """Return the nodes that do not see a folder, each with that folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def unseen() -> str | None:
        if dest.is_local and dest.stat(name) is None:
            return dest.describe()
        if source.is_local and not source.is_folder():
            return source.describe()
        return None

    look = ray.remote(num_cpus=0, max_retries=0)(unseen)
    tasks = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)).remote(): node
        for node in nodes
    }
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=LOOK_S)
    answers = {tasks[task]: _answer(task) if task in done else "anything: it does not answer" for task in tasks}
    return {f"{nodes[node]} ({node[:8]})": what for node, what in answers.items() if what is not None}


def _answer(task: object) -> str | None:
    import ray

    try:
        answer: str | None = ray.get(task)
    except ray.exceptions.RayError as err:
        return f"anything: {type(err).__name__}"
    return answer
