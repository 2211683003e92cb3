"""What all replicas of an application share: values by key, in Ray's own key-value store."""

from __future__ import annotations

from pipeline.patches import kv_patches


class RayStore:
    """Ray's own key-value store, of one application: all its replicas share it. Calls may take milliseconds.

    Args:
        application: Its name in Ray Serve.
        what: Is kept in it.
    """

    def __init__(self, application: str, what: str) -> None:
        self._namespace = f"shardlabel-{what}-{application}"

    def put(self, key: str, value: bytes) -> None:
        """Set a value."""
        kv_patches.put(self._namespace, key, value)

    def all(self) -> dict[str, bytes]:
        """Return every value by its key."""
        return dict(kv_patches.items(self._namespace))

    def delete(self, key: str) -> None:
        """Remove a value."""
        kv_patches.delete(self._namespace, key)

    def clear(self) -> None:
        """Remove all values: those of replicas that nobody is left to forget."""
        kv_patches.clear(self._namespace)
