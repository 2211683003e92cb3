"""Check the entrypoint of a RayJob: a command line of `shardlabel label` that works on this cluster."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path as FilePath

from cluster.manifests.settings_sources import nearest
from cluster.validate.capacity import Capacity
from cluster.validate.documents import Document, Fault, Path
from cluster.validate.raycluster import pod_paths
from models.errors import ConfigError
from pipeline.cli import parse_label
from pipeline.config import LabelConfig, build_config
from pipeline.storage.uris import has_secrets, without_secrets

REMOTE = re.compile(r"^@?[a-z][a-z0-9+.-]*://")
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")


def check_entrypoint(document: Document, path: Path, base: Path, capacity: Capacity | None) -> Iterator[Fault]:
    """Yield the faults of an entrypoint.

    Args:
        document: The RayJob.
        path: Path of the entrypoint.
        base: Path of the RayClusterSpec, which is missing if the job uses an existing cluster.
        capacity: Capacity of its workers, if known.
    """
    text = document.get(*path)
    if not isinstance(text, str):
        return
    try:
        config = parse_entrypoint(text)
    except ConfigError as err:
        yield document.fault(path, str(err))
        return
    if config is None:
        return
    for reason in (*_location_faults(document, config, base), *_capacity_faults(config, capacity)):
        yield document.fault(path, reason)


def parse_entrypoint(text: str) -> LabelConfig | None:
    """Return the configuration of a command line; None if its --config file is not here.

    Raises:
        ConfigError: The command is not `shardlabel label`, or `label` refuses its arguments.
    """
    try:
        words = shlex.split(text)
    except ValueError as err:
        raise ConfigError(f"the shell cannot parse it: {err}: {text!r}") from err
    while words and (ASSIGNMENT.match(words[0]) or words[0] == "exec"):
        words = words[1:]
    if not words or FilePath(words[0]).name != "shardlabel":
        got = repr(words[0]) if words else "nothing"
        raise ConfigError(
            f"expected `shardlabel label ...`, got {got}{nearest(words[0], ['shardlabel'], or_all=False) if words else ''}"
        )
    command = words[1] if len(words) > 1 else ""
    if command != "label":
        near = nearest(command, ["label"], or_all=False)
        raise ConfigError(f"expected `shardlabel label ...`, got `shardlabel {command}`{near}")
    try:
        options, others = parse_label(words[2:])
    except Exception as err:
        message = getattr(err, "format_message", None)
        if message is None:
            raise
        raise ConfigError(" ".join(message().split())) from err
    file = others["config"]
    return None if file is not None and not file.is_file() else build_config(options, file)


def _location_faults(document: Document, config: LabelConfig, base: Path) -> Iterator[str]:
    """Yield a reason for each SOURCE or DEST with credentials, or on a disk that only one node sees."""
    shared = _shared_mounts(document, base)
    for option, places in (("SOURCE", config.source), ("--output", (config.output,))):
        for place in places:
            if has_secrets(place.removeprefix("@")):
                yield f"{option}: expected no credentials, got some in {without_secrets(place)}: they belong in a Secret"
            on_disk = place.removeprefix("@").removeprefix("file://")
            if REMOTE.match(place) and not place.removeprefix("@").startswith("file://"):
                continue
            if not any(on_disk == mount or on_disk.startswith(mount.rstrip("/") + "/") for mount in shared):
                where = f" or a volume that every pod mounts ({', '.join(shared)})" if shared else ""
                yield f"{option}: expected shared storage as s3://bucket/...{where}, got {place!r} on each node's own disk"


def _shared_mounts(document: Document, base: Path) -> list[str]:
    """Return the paths at which every pod mounts the same volume."""
    paths: list[set[tuple[str, str]]] = []
    for pod in pod_paths(document, base):
        sources: dict[str, str] = {}
        for volume in document.items(*pod, "volumes"):
            if isinstance(volume, dict) and "emptyDir" not in volume:
                sources[str(volume.get("name"))] = str({key: item for key, item in volume.items() if key != "name"})
        mounts = document.items(*pod, "containers", 0, "volumeMounts")
        pairs = [(str(m.get("mountPath")), str(m.get("name"))) for m in mounts if isinstance(m, dict)]
        paths.append({(mount, sources[name]) for mount, name in pairs if name in sources})
    common = set.intersection(*paths) if paths else set()
    return sorted(mount for mount, _ in common)


def _capacity_faults(config: LabelConfig, capacity: Capacity | None) -> Iterator[str]:
    if capacity is None:
        return
    on_gpu = config.device == "cuda"
    if on_gpu and not capacity.gpus:
        yield "--device cuda: expected workers with GPUs (limits: nvidia.com/gpu), there are none"
        return
    actors = config.actor_bounds()[1] or (1 if on_gpu else 0)
    missing = capacity.missing("actors", actors, 1.0, float(on_gpu)) if actors else None
    if missing:
        yield f"--actors: {missing}"
        return
    # A run counts its GPUs when it starts, on the workers that exist then.
    least = config.actor_bounds()[0] or (1 if on_gpu else 0)
    missing = capacity.at_least().missing("actors", least, 1.0, float(on_gpu)) if least else None
    if missing:
        yield f"--actors: with the minimum of workers (minReplicas), {missing}"
    decoders = config.preprocess_cpus or 0
    if decoders > capacity.cpus:
        yield f"--preprocess-cpus: {decoders} CPUs do not fit, the workers have at most {capacity.cpus:g}"
