"""Ray's own key-value store: part of the cluster, without a process, and gone with it.

Ray's public way is an actor, which is another Python process, and slower (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any


def _store() -> Any:  # noqa: ANN401 (untyped library)
    from ray.experimental import internal_kv

    return internal_kv


class RayStore:
    """Values by key, shared by all processes of a cluster. Calls may take milliseconds.

    Args:
        namespace: What the keys are below.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def put(self, key: str, value: bytes) -> None:
        """Set a value."""
        _store()._internal_kv_put(key, value, True, namespace=self._namespace)

    def get(self, key: str) -> bytes | None:
        """Return a value; None where there is none."""
        value: bytes | None = _store()._internal_kv_get(key, namespace=self._namespace)
        return value

    def all(self) -> dict[str, bytes]:
        """Return every value by its key."""
        keys = [key.decode() for key in _store()._internal_kv_list(b"", namespace=self._namespace)]
        return {key: value for key in keys if (value := self.get(key)) is not None}

    def delete(self, key: str) -> None:
        """Remove a value, if it is there."""
        _store()._internal_kv_del(key, namespace=self._namespace)

    def clear(self) -> None:
        """Remove all values."""
        _store()._internal_kv_del(b"", del_by_prefix=True, namespace=self._namespace)
