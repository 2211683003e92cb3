"""The models behind one endpoint, by name and version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from models.errors import ConfigError, RequestError, UnknownModelError
from serve.model.engine import Engine


class Models:
    """The models that one replica answers for; the first is the one that is meant where none is named.

    A version is that of the model's entry; of several versions of a name the first is meant where none is named.

    Args:
        backends: In order.

    Attributes:
        unavailable: Why models that this replica was told of are not there, by name.
    """

    def __init__(self, *backends: Engine) -> None:
        self.unavailable: dict[str, str] = {}
        self._watchers: list[Callable[[], None]] = []
        self._backends: tuple[Engine, ...] = ()
        self.replace(backends)

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._backends)

    @property
    def names(self) -> list[str]:
        """Return the names, each once."""
        return list(dict.fromkeys(backend.spec.name for backend in self._backends))

    @property
    def is_ready(self) -> bool:
        """Tell whether any model is ready: one that is not must not keep callers from the others."""
        return not self._backends or any(backend.is_ready for backend in self._backends)

    def replace(self, backends: Iterable[Engine]) -> None:
        """Set the models, all at once: a request finds either the old or the new.

        Raises:
            ConfigError: Two have one name and one version.
        """
        found = tuple(backends)
        keys = [(backend.spec.name, backend.spec.version) for backend in found]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ConfigError(
                f"model {twice[0]!r} is given twice with version {twice[1]!r}; give one entry another name or version"
            )
        self._backends = found
        for call in self._watchers:
            call()

    def watch(self, call: Callable[[], None]) -> None:
        """Call something now, and whenever the models are others."""
        self._watchers.append(call)
        call()

    def find(self, name: str | None = None, version: str | None = None) -> Engine:
        """Return the model that a caller means.

        Args:
            name: As the caller wrote it; None for the first.
            version: As the caller wrote it; None or "" for the first of that name.

        Raises:
            UnknownModelError: There is none; the message names those that there are.
        """
        for backend in self._backends:
            if name in (None, backend.spec.name) and (not version or version == backend.spec.version):
                return backend
        raise self.unknown(name, version)

    def unknown(self, name: str | None, version: str | None = None) -> UnknownModelError:
        """Build the refusal of a name, or of a version of one."""
        have = [backend.spec.version for backend in self._backends if backend.spec.name == name]
        if name is not None and have:
            return UnknownModelError(
                f"model {name!r} has version {', '.join(map(repr, have))}, got {str(version)[:60]!r}"
            )
        known = f"there {'are' if len(self.names) > 1 else 'is'} {', '.join(self.names) or 'none'}"
        return UnknownModelError(f"no model {'' if name is None else repr(name[:60]) + ' '}is served here; {known}")

    def admit(self, images: int) -> None:
        """Raise why no model can take so many images more: before it is known which is meant."""
        for number, backend in enumerate(self._backends, 1):
            try:
                return backend.admit(images)
            except RequestError:
                if number == len(self._backends):
                    raise
        return None
