"""The parameters of a request, of a tensor or of an output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.oip.faults import malformed, shown


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request, read the same way for HTTP and gRPC."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def integer(self, name: str, default: int = 0, *, least: int = 0) -> int:
        """Return a whole number; some clients send it as text."""
        value = self.values.get(name, default)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is not int or value < least:
            raise malformed(f"parameter {name!r} must be a whole number of at least {least}, got {shown(value)}")
        return value

    def flag(self, name: str) -> bool | None:
        """Return a boolean, or None where it is not given."""
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            raise malformed(f"parameter {name!r} must be true or false, got {shown(value)}")
        return value

    def refuse_what_is_not_offered(self) -> None:
        """Refuse what would change the answer if it were done, and is not done here.

        Raises:
            Rejected: Shared memory or sequences are asked for.
        """
        for name in self.values:
            if name.startswith("shared_memory"):
                raise malformed("shared memory is not offered; send the tensor's data")
            if name.startswith("sequence_") and self.values[name] not in (0, "", False, None):
                raise malformed(
                    f"parameter {shown(name)} is for models that keep a state between requests; this one does not"
                )
