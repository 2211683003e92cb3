"""Every replica's metrics from whichever replica is asked.

Each replica puts its series into Ray's key-value store, once a second; the replica that is asked reads those of the
others. So no process is added, it works across nodes, and a scrape is at most a second old. A replica that is gone stays
readable for some minutes: Prometheus should see its last counts. Then another replica forgets it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from pipeline.patches.kv_patches import RayStore

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
KEEP_S = 300.0


class MetricsShare:
    """Publish one replica's series, which `render` gives as text, in a store of all replicas, and read all."""

    def __init__(self, store: RayStore, replica: str, render: Callable[[], bytes]) -> None:
        self._store = store
        self._replica = replica
        self._render = render
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="metrics", daemon=True)
        self._thread.start()

    def render_all(self) -> bytes:
        """Return the series of all replicas; blocks for milliseconds."""
        return merged([self._render(), *self._others()])

    def _others(self) -> list[bytes]:
        """Return what the other replicas have published, and forget those that are long gone."""
        texts = []
        try:
            for name, value in self._store.all().items():
                stamp, _, text = value.partition(b"\n")
                if name == self._replica:
                    continue
                if time.time() - float(stamp) < KEEP_S:
                    texts.append(text)
                else:
                    self._store.delete(name)
        except Exception as err:  # noqa: BLE001 (our own series are worth more than an error)
            logger.warning("metrics of the other replicas cannot be read: %s", err)
        return texts

    def close(self) -> None:
        """Publish the last counts, and stop."""
        self._closed.set()
        self._thread.join(timeout=2.0)

    def _publish(self) -> None:
        looked, is_last = 0.0, False
        while not is_last:
            is_last = self._closed.wait(PERIOD_S)
            try:
                self._store.put(self._replica, b"%f\n" % time.time() + self._render())
            except Exception as err:  # noqa: BLE001 (the next second tries again)
                logger.warning("metrics cannot be shared: %s", err)
            # Where nobody scrapes, nobody else looks for replicas that are gone.
            if not is_last and time.monotonic() - looked > KEEP_S / 3:
                looked = time.monotonic()
                self._others()


def merged(texts: Iterable[bytes]) -> bytes:
    """Join expositions that have the same families: each family's head once, then everyone's samples."""
    families: dict[str, dict[str, None]] = {}
    for text in texts:
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
            families.setdefault(family, {})[line] = None
    return "".join(f"{line}\n" for lines in families.values() for line in lines).encode()
