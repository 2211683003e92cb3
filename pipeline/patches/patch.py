"""A patch of Ray: named, checked against the installed Ray before it replaces anything, and undone afterwards."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from models.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)

# Ray's release for which the patches were written; its patch releases count as the same.
MADE_FOR = "2.60"
SWITCH_VARIABLE = "SHARDLABEL_RAY_PATCHES"

# Takes the present value, and returns its replacement.
Wrap = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A part of Ray, as it is in `MADE_FOR`.

    Attributes:
        module: Module in which it is looked up.
        name: Name of the attribute, with dots below a class; "" for the module itself.
        parameters: Names that must be among a function's parameters, in this order; None to skip this check.
        words: Text that the module's source must contain.
    """

    module: str
    name: str = ""
    parameters: tuple[str, ...] | None = None
    words: str = ""

    def find(self) -> tuple[Any, str, Any]:
        """Return the object that has the attribute, the attribute's own name, and its value.

        Raises:
            ImportError: There is no such module.
            AttributeError: The module has no such attribute.
        """
        value: Any = import_module(self.module)
        owner, last = value, ""
        for last in self.name.split(".") if self.name else ():
            owner, value = value, getattr(value, last)
        return owner, last, value

    def difference(self) -> str | None:
        """Return how it differs from what is expected; None where it does not."""
        where = f"{self.module}.{self.name}".rstrip(".")
        try:
            _, _, value = self.find()
            if self.words and self.words not in inspect.getsource(value):
                return f"{where} does not contain {self.words!r}"
            if self.parameters is not None:
                found = tuple(inspect.signature(value).parameters)
                if tuple(name for name in found if name in self.parameters) != self.parameters:
                    return f"{where} takes ({', '.join(found)}), expected ({', '.join(self.parameters)})"
        except (ImportError, AttributeError, OSError, TypeError, ValueError) as err:
            return f"{where} is missing or cannot be inspected ({err})"
        return None


@dataclass(frozen=True, slots=True)
class Patch:
    """One change to how Ray behaves in this process.

    Attributes:
        name: Name that switches it off.
        kind: "speed" and "words" (what Ray prints) are skipped where they are switched off or Ray differs; "safety" cannot
            be switched off, and fails where Ray differs.
        why: Reason for the patch.
        gain: Measured gain; docs/decisions.md says how.
        places: What it replaces or relies on.
    """

    name: str
    kind: Literal["speed", "words", "safety"]
    why: str
    gain: str
    places: tuple[Place, ...]

    def fits(self) -> bool:
        """Tell whether to apply it here: it is not switched off, and Ray is as expected. Logs why not.

        Raises:
            ClusterError: It is for safety, and Ray is not as expected.
        """
        if self.kind != "safety" and is_switched_off(self.name):
            logger.info("patch=%s is switched off", self.name)
            return False
        difference = next(filter(None, (_other_release(), *(place.difference() for place in self.places))), None)
        if difference is None:
            return True
        if self.kind == "safety":
            raise ClusterError(
                f"this Ray is not the expected one, and `{self.name}` is needed for safety ({self.why}): {difference}; "
                f"install Ray {MADE_FOR}"
            )
        logger.info("patch=%s is skipped, Ray's own behaviour stays: %s", self.name, difference)
        return False

    def apply(self, *wraps: Wrap) -> Callable[[], None]:
        """Replace the first places, each by the result of its wrap, if the patch fits; other places are only checked.

        Returns:
            A function that undoes it.
        """
        found = [place.find() for place in self.places[: len(wraps)]] if self.fits() else []
        for (owner, name, value), wrap in zip(found, wraps, strict=False):
            setattr(owner, name, wrap(value))

        def undo() -> None:
            for owner, name, value in found:
                setattr(owner, name, value)

        return undo

    @contextmanager
    def applied(self, *wraps: Wrap) -> Iterator[None]:
        """Apply it for the body of a `with` statement; see `apply`."""
        undo = self.apply(*wraps)
        try:
            yield
        finally:
            undo()


def _switch() -> list[str]:
    return [word.strip() for word in os.environ.get(SWITCH_VARIABLE, "").split(",") if word.strip()]


def is_switched_off(name: str) -> bool:
    """Tell whether the environment's SHARDLABEL_RAY_PATCHES switches a patch off.

    It is a list with commas, read from the left: `off` (all), `-NAME` (this patch off), `NAME` (this patch on again).
    """
    is_off = False
    for word in _switch():
        if word in ("off", f"-{name}"):
            is_off = True
        elif word == name:
            is_off = False
    return is_off


def check_switch(patches: Iterable[Patch]) -> None:
    """Raise ConfigError where SHARDLABEL_RAY_PATCHES has a word that names no patch that can be switched off."""
    names = sorted(patch.name for patch in patches if patch.kind != "safety")
    for word in _switch():
        if word != "off" and word.removeprefix("-") not in names:
            raise ConfigError(
                f"{SWITCH_VARIABLE}: expected `off`, NAME or -NAME, separated by commas, with NAME one of "
                f"{', '.join(names)}; got {word!r} (patches for safety stay on)"
            )


def _other_release() -> str | None:
    import ray

    if ray.__version__.startswith(f"{MADE_FOR}."):
        return None
    return f"this is Ray {ray.__version__}, expected {MADE_FOR}"
