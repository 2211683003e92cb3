"""Which models a replica has: as configured, as callers say (`--model-control explicit`), and as they fail.

Callers ask one replica. It loads first, so that what cannot be loaded changes nothing. Then it writes that down, where a
replica that starts or that missed the call finds it, and calls all replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import orjson

from models.catalog import load_spec
from models.errors import ConfigError, ShardlabelError, UnknownModelError
from models.malloc import give_back_freed_memory
from models.spec import ModelSpec
from pipeline.patches.kv_patches import RayStore
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.settled import Settled

logger = logging.getLogger(__name__)

REBUILD_S = 10.0  # between two attempts to rebuild a model that has failed
_PATH = re.compile(r"(?<![\w:/.])(?:/[\w.@+-]+)+/")


@dataclass(eq=False)
class Repository:
    """Holds the models of one replica. Everything happens on its event loop."""

    models: Models  # what is offered; kept up to date
    settle: Callable[[str], Settled]  # finds a model by its name or file; blocks
    build: Callable[[Settled], Engine]  # blocks for seconds
    store: RayStore | None  # what callers have asked for, which all replicas share; None where they may not
    # Has every replica `follow`; returns what each says went wrong, under "" where it says nothing.
    call_all: Callable[[], Awaitable[Sequence[Mapping[str, str]]]]
    keep_s: float  # for how long an engine that is offered no more may still be asked: the longest deadline

    # By name or file, as all that follows; settled by the driver, or not yet.
    _configured: dict[str, Settled | None] = field(default_factory=dict)
    # And since when callers have asked for it, `time.time_ns()`; 0 where it is as configured.
    _loaded: dict[str, tuple[Engine, int]] = field(default_factory=dict)
    _retired: set[Engine] = field(default_factory=set)  # offered no more, and not ended yet
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    # `time.monotonic()` before which a model that has failed, or could not be built, is not rebuilt.
    _not_before: dict[str, float] = field(default_factory=dict)
    _tasks: set[asyncio.Future[object]] = field(default_factory=set)

    async def configure(self, sources: Sequence[str], settled: Sequence[Settled] = ()) -> None:
        """Have the models that the endpoint is configured with, or what callers have made of that list.

        Args:
            sources: Names or files.
            settled: The same, where they are settled already.

        Raises:
            ConfigError: One cannot be loaded; the others stay, or are there.
        """
        self._configured = dict(zip_longest(sources, settled))
        wrong = await self.follow()
        # A model that callers had asked for, and that cannot be had any more, keeps no replica from starting.
        if own := [text for source, text in wrong.items() if source in sources or not self._loaded]:
            raise ConfigError("; ".join(own))

    async def follow(self, asked: Mapping[str, int | None] = {}, *, patient: bool = False) -> dict[str, str]:
        """Build what is wanted by now and is not there, or broken; offer that and nothing else.

        Args:
            asked: Since when a caller wants a model, or None for not any more; written down where that can be had.
            patient: Whether to leave a model alone for a while that could not be loaded just now.

        Returns:
            What goes wrong, by name or file.
        """
        wrong = {}
        async with self._one_at_a_time:
            # Read here: what was read before another change would undo it.
            wanted = await asyncio.to_thread(self._wanted, asked)
            for source, since in wanted.items():
                if patient and self._not_before.get(source, 0.0) > time.monotonic():
                    continue
                try:
                    await self._have(source, since)
                except Exception as err:
                    is_ours = isinstance(err, ShardlabelError)
                    # No paths of this machine: callers see it.
                    text = _PATH.sub("", str(err)) if is_ours else "an internal error; the replica's log says more"
                    if source in asked and isinstance(err, UnknownModelError):
                        raise UnknownModelError(text) from None
                    logger.warning(
                        "model cannot be loaded model=%s: %s", source, err, exc_info=None if is_ours else err
                    )
                    name = source.rpartition("/")[2]
                    self._not_before[source] = time.monotonic() + REBUILD_S
                    self.models.unavailable[name] = text
                    wrong[source] = f"{name}: {text}"
            if not asked.keys() & wrong.keys():
                await self._write(asked)
            self._offer({source: self._loaded[source] for source in wanted if source in self._loaded})
        return wrong

    async def load(self, name: str) -> None:
        """Load a model in every replica, or replace it where its entry is another than the one that is loaded.

        Raises:
            UnknownModelError: The catalog has none of this name.
            ConfigError: It cannot be loaded; the message says why. What was there stays.
        """
        # Also where the caller does not wait for it.
        await asyncio.shield(self._begin(self._load(name)))

    async def unload(self, name: str) -> None:
        """Unload a model in every replica; the requests that it has are finished.

        Raises:
            UnknownModelError: It is not loaded.
        """
        await asyncio.shield(self._begin(self._unload(name)))

    async def _load(self, name: str) -> None:
        sources = await asyncio.to_thread(self._sources, name)
        if not sources and (name.endswith(".onnx") or not ModelSpec.is_name(name)):
            # Not a file, whatever the name: where files lie is not for callers to say.
            raise UnknownModelError(
                f"the catalog has no model {name[:60]!r}; `shardlabel models list` shows those it has"
            )
        if wrong := await self._change(dict.fromkeys(sources or [name], time.time_ns())):
            raise ConfigError(f"model {name!r} could not be loaded: {'; '.join(dict.fromkeys(wrong))}")

    async def _unload(self, name: str) -> None:
        # By its name also where this replica could not load what others have.
        sources = {*await asyncio.to_thread(self._sources, name), name}
        async with self._one_at_a_time:
            gone = sources & (await asyncio.to_thread(self._wanted)).keys()
        if not gone:
            raise self.models.unknown(name)
        if wrong := await self._change(dict.fromkeys(gone)):
            raise ConfigError(f"model {name!r} could not be unloaded everywhere: {'; '.join(wrong)}")

    def look_after(self) -> str | None:
        """Follow what callers have asked for, and rebuild what has failed; both go on after this returns.

        Returns:
            Why the whole replica should be replaced, every model having failed; else None.
        """
        faults = {source: engine.fault() for source, (engine, _) in self._loaded.items()}
        if faults and all(faults.values()):
            return "; ".join(f"{source}: {fault}" for source, fault in faults.items())
        if (any(faults.values()) or self.store is not None) and not self._one_at_a_time.locked():
            self._begin(self.follow(patient=True))
        return None

    def close(self) -> None:
        """End all engines; may take seconds."""
        for engine in [*(engine for engine, _ in self._loaded.values()), *self._retired]:
            engine.close()

    def _sources(self, name: str) -> list[str]:
        """Return where the models of a name are from, of those that are configured or there; reads their files."""
        names = {source: engine.spec.name for source, (engine, _) in self._loaded.items()}
        for source in self._configured:
            with contextlib.suppress(ShardlabelError):
                names[source] = load_spec(source).name
        return [source for source, found in names.items() if found == name]

    def _wanted(self, asked: Mapping[str, int | None] = {}) -> dict[str, int]:
        """Return what every replica is to have: what is configured, but for what callers have changed of just that."""
        wanted: dict[str, int | None] = dict.fromkeys(self._configured, 0)
        for source, value in () if self.store is None else self.store.all().items():
            change = orjson.loads(value)
            if change["configured"] == list(self._configured):
                wanted[source] = change["asked"]
        return {source: since for source, since in {**wanted, **asked}.items() if since is not None}

    async def _write(self, asked: Mapping[str, int | None]) -> None:
        for source, since in asked.items():
            assert self.store is not None, "callers may change what is there"
            value = orjson.dumps({"configured": list(self._configured), "asked": since})
            await asyncio.to_thread(self.store.put, source, value)

    async def _change(self, asked: Mapping[str, int | None]) -> list[str]:
        """Have every replica follow, this one first; return what goes wrong with these models, and with no other."""
        said: list[Mapping[str, str]] = [await self.follow(asked)]
        if not asked.keys() & said[0].keys():
            said += await self.call_all()
        return [text for wrong in said for source, text in wrong.items() if source in asked or not source]

    async def _have(self, source: str, since: int) -> None:
        engine, known_since = self._loaded.get(source, (None, 0))
        fault = None if engine is None else engine.fault()
        # An entry that callers ask for may have changed since it was settled.
        settled = None if since else self._configured.get(source)
        if engine is not None and known_since == since:
            if fault is None:
                return
            settled = engine.settled
            self._not_before[source] = time.monotonic() + REBUILD_S
            logger.error("model is rebuilt model=%s fault=%s", source, fault)
        if settled is None:
            settled = await asyncio.to_thread(self.settle, source)
        if engine is not None and fault is None and engine.settled == settled:
            self._loaded[source] = engine, since
            return
        built = await asyncio.to_thread(self.build, settled)
        try:
            self._offer({**self._loaded, source: (built, since)})
        except BaseException:
            self._begin(asyncio.to_thread(built.close))
            raise

    def _offer(self, loaded: dict[str, tuple[Engine, int]]) -> None:
        """Offer these from now on; end what is not among them once nobody can be asking it any more."""
        kept = [engine for engine, _ in loaded.values()]
        self.models.replace(kept)
        for engine, _ in self._loaded.values():
            if engine not in kept:
                self.models.unavailable[engine.spec.name] = "unloaded"
                self._retired.add(engine)
                self._begin(self._retire(engine))
        self._loaded = loaded
        for name in self.models.names:
            self.models.unavailable.pop(name, None)

    async def _retire(self, engine: Engine) -> None:
        await asyncio.sleep(self.keep_s)
        await asyncio.to_thread(engine.close)
        self._retired.discard(engine)
        del engine
        await asyncio.sleep(0.2)  # its threads have ended
        await asyncio.to_thread(gc.collect)
        await asyncio.to_thread(give_back_freed_memory)

    def _begin(self, work: Coroutine[None, None, object]) -> asyncio.Future[object]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
