"""Every replica's metrics from whichever replica is asked.

Each replica puts its series into Ray's key-value store, once a second; who is asked reads the
others'. So no process is added, it works across nodes, and a scrape is at most a second old. A replica that is gone
stays readable for some minutes: Prometheus should see its last counts. Then another replica forgets it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from serve.store import RayStore

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
KEEP_S = 300.0


class MetricsShare:
    """Publish one replica's series, and read all.

    Args:
        store: Where they are shared.
        replica: This replica's name.
        render: Gives its series in Prometheus' text format; called in a thread.
    """

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
        looked = 0.0
        while not self._closed.wait(PERIOD_S):
            self._put()
            if time.monotonic() - looked > KEEP_S / 3:  # where nobody scrapes, nobody else looks for the dead
                looked = time.monotonic()
                self._others()
        self._put()

    def _put(self) -> None:
        try:
            self._store.put(self._replica, b"%f\n" % time.time() + self._render())
        except Exception as err:  # noqa: BLE001 (the next second tries again)
            logger.warning("metrics cannot be shared: %s", err)


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
