"""Ray's own key-value store: part of the cluster, without a process, and gone with it.

Ray's public way is an actor, which is another Python process, and slower (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def _store() -> Any:  # noqa: ANN401 (untyped library)
    from ray.experimental import internal_kv

    return internal_kv


def put(namespace: str, key: str, value: bytes) -> None:
    """Set a value."""
    _store()._internal_kv_put(key, value, True, namespace=namespace)


def get(namespace: str, key: str) -> bytes | None:
    """Return a value; None where there is none."""
    value: bytes | None = _store()._internal_kv_get(key, namespace=namespace)
    return value


def items(namespace: str) -> Iterator[tuple[str, bytes]]:
    """Yield every key with its value."""
    for key in _store()._internal_kv_list(b"", namespace=namespace):
        value = get(namespace, key.decode())
        if value is not None:
            yield key.decode(), value


def delete(namespace: str, key: str) -> None:
    """Remove a value, if it is there."""
    _store()._internal_kv_del(key, namespace=namespace)


def clear(namespace: str) -> None:
    """Remove all values."""
    _store()._internal_kv_del(b"", del_by_prefix=True, namespace=namespace)
