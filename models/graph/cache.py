"""Cache joined graphs, so that a later start neither imports onnx nor builds a graph (1.0 s for ResNet18-v2)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from models.catalog import ENTRIES
from models.errors import ArtifactError
from models.sandbox.sandbox import try_join
from models.spec import Artifact, ModelSpec
from models.store.files import home, publishing

logger = logging.getLogger(__name__)

# Part of the key: raise it when the joined graph changes.
GRAPH_VERSION = 6
_DIGEST_BYTES = 32


def load_joined_graph(spec: ModelSpec, artifact: Artifact, path: Path) -> bytes:
    """Return the joined graph (see `models.graph.join`), from the cache if it was built before.

    Args:
        spec: The model's entry.
        artifact: Which file of it.
        path: That file's path; already verified.

    Raises:
        ArtifactError: The file is not an ONNX model, or is not safe to load; see `models.sandbox.untrusted_onnx`.
        SignatureError: It lacks the tensors that the entry names.
    """

    def make() -> bytes:
        if spec.folder != ENTRIES:
            # A user's file is not trusted: a child process tries it first.
            return try_join(spec, path)
        from models.graph.join import join_graph

        return join_graph(spec, path.read_bytes())

    return cached_graph(spec, artifact, "", make)


def cached_graph(spec: ModelSpec, artifact: Artifact, variant: str, make: Callable[[], bytes]) -> bytes:
    """Return a graph derived from an artifact, from the cache if it was made before; otherwise make and cache it."""
    key = _key(spec, artifact)
    cached = home() / "graphs" / (f"{key}-{variant}.onnx" if variant else f"{key}.onnx")
    graph = _read(cached)
    if graph is None:
        graph = make()
        _write(cached, graph)
    return graph


def _key(spec: ModelSpec, artifact: Artifact) -> str:
    parts = spec.graph_settings() | {"sha256": artifact.sha256, "version": GRAPH_VERSION}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    """Return the cached graph, or None if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, graph = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(graph).digest() == digest:
        return graph
    logger.warning("graph cache: %s is damaged, rebuilding it", path.name)
    return None


def _write(path: Path, graph: bytes) -> None:
    """Write atomically. A cache that cannot be written only costs a second at the next start."""
    try:
        with publishing(path) as file:
            file.write(hashlib.sha256(graph).digest())
            file.write(graph)
    except ArtifactError as err:
        logger.warning("graph cache: %s", err)
