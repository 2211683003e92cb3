"""The models behind one endpoint, by name and version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from models.errors import ConfigError, RequestError, UnknownModelError
from serve.model.engine import Engine


class Models:
    """The models that one replica answers for. The first is meant where none is named, or no version of a name."""

    def __init__(self, *engines: Engine) -> None:
        self.unavailable: dict[str, str] = {}  # why models that this replica was told of are not there, by name
        self._watchers: list[Callable[[], None]] = []
        self._engines: tuple[Engine, ...] = ()
        self.replace(engines)

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines)

    @property
    def names(self) -> list[str]:
        """Return the names, each once."""
        return list(dict.fromkeys(engine.spec.name for engine in self))

    @property
    def is_ready(self) -> bool:
        """Tell whether any model is ready: one that is not must not keep callers from the others."""
        return not self._engines or any(engine.is_ready for engine in self)

    def replace(self, engines: Sequence[Engine]) -> None:
        """Set the models, all at once: a request finds either the old or the new.

        Raises:
            ConfigError: Two have one name and one version.
        """
        keys = [(engine.spec.name, engine.spec.version) for engine in engines]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ConfigError(
                f"model {twice[0]!r} is given twice with version {twice[1]!r}; give one entry another name or version"
            )
        self._engines = tuple(engines)
        for call in self._watchers:
            call()

    def watch(self, call: Callable[[], None]) -> None:
        """Call something now, and whenever the models are others."""
        self._watchers.append(call)
        call()

    def find(self, name: str | None = None, version: str | None = None) -> Engine:
        """Return the model that a caller means, by what the caller wrote; None, or "" as a version, means the first.

        Raises:
            UnknownModelError: There is none; the message names those that there are.
        """
        for engine in self:
            if name in (None, engine.spec.name) and (not version or version == engine.spec.version):
                return engine
        raise self.unknown(name, version)

    def unknown(self, name: str | None, version: str | None = None) -> UnknownModelError:
        """Build the refusal of a name, or of a version of one."""
        have = [engine.spec.version for engine in self if engine.spec.name == name]
        if have:
            versions = ", ".join(map(repr, have))
            return UnknownModelError(f"model {name!r} has version {versions}, got {str(version)[:60]!r}")
        known = f"there {'are' if len(self.names) > 1 else 'is'} {', '.join(self.names) or 'none'}"
        return UnknownModelError(f"no model {'' if name is None else repr(name[:60]) + ' '}is served here; {known}")

    def admit(self, images: int) -> None:
        """Raise why no model can take so many images more: before it is known which is meant."""
        for number, engine in enumerate(self, 1):
            try:
                return engine.admit(images)
            except RequestError:
                if number == len(self._engines):
                    raise
        return None
