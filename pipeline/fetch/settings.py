"""Settings of fetching. Loads no client, since the driver plans with them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.storage.stores import split_location

_SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How images are fetched. Picklable.

    Attributes:
        allow_private_hosts: Whether web addresses may lead to hosts on private, loopback and link-local networks.
        connections_per_host: Maximum connections of one process to one web host at a time.
        requests_per_second: Maximum requests of one process to one web host; None for no limit.
        timeout_s: Maximum time for one image, with retries and redirects, without the wait for its turn.
        storage_options: URI query for each kind of object store: the endpoint and region from the driver's environment.
            A row cannot set them.
    """

    allow_private_hosts: bool = False
    connections_per_host: int = 8
    requests_per_second: float | None = None
    timeout_s: float = 60.0
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)

    def shared_by(self, processes: int) -> FetchSettings:
        """Return the settings for each of so many processes, so that together they keep the limits per host.

        Each has at least one connection.
        """
        rate = self.requests_per_second
        return replace(
            self,
            connections_per_host=max(1, self.connections_per_host // processes),
            requests_per_second=None if rate is None else rate / processes,
        )


# The defaults.
ANY_FETCH = FetchSettings()


def storage_options() -> dict[str, str]:
    """Return the options of each kind of object store from this process's environment, for other processes."""
    return {scheme: split_location(f"{scheme}://bucket")[0].partition("?")[2] for scheme in _SCHEMES}
