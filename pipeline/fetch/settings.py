"""What fetching is told. Loads no client: the driver plans with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.storage.stores import split_location

_SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How images are fetched. Picklable.

    Attributes:
        allow_private_hosts: Whether web addresses may lead to hosts of private, loopback and link-local networks.
        connections_per_host: To one web host at a time, of one process.
        requests_per_second: To one web host, of one process; None without limit.
        timeout_s: What one image may take, tries and redirects included; not the wait for its turn.
        storage_options: Query of the URIs of each kind of object store: its endpoint and region, as the driver's
            environment names them. A row names none.
    """

    allow_private_hosts: bool = False
    connections_per_host: int = 8
    requests_per_second: float | None = None
    timeout_s: float = 60.0
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)

    def shared_by(self, processes: int) -> FetchSettings:
        """Return what each of so many processes may do, so that all together keep to the limits of each host.

        Each has at least one connection.
        """
        rate = self.requests_per_second
        return replace(
            self,
            connections_per_host=max(1, self.connections_per_host // processes),
            requests_per_second=None if rate is None else rate / processes,
        )


# Nothing asked for.
ANY_FETCH = FetchSettings()


def storage_options() -> dict[str, str]:
    """Return what the environment of this process says of each kind of object store, for other processes."""
    return {scheme: split_location(f"{scheme}://bucket")[0].partition("?")[2] for scheme in _SCHEMES}
