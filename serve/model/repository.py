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
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import NamedTuple

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

# Between two attempts to rebuild a model that has failed.
REBUILD_S = 10.0
_PATH = re.compile(r"(?<![\w:/.])(?:/[\w.@+-]+)+/")


class _Loaded(NamedTuple):
    """A model that is there, and when callers had asked for it: `time.time_ns()`, or 0 where it is as configured."""

    asked: int
    engine: Engine


class Repository:
    """Holds the models of one replica. Everything happens on its event loop.

    Args:
        models: What is offered; kept up to date.
        settle: Finds a model by its name or file; blocks.
        build: Builds its engine; blocks for seconds.
        store: What callers have asked for, which all replicas share; None where they may not.
        call_all: Has every replica `follow`; returns what each says went wrong, under "" where it says nothing.
        keep_s: For how long an engine that is offered no more may still be asked: the longest deadline.
    """

    def __init__(
        self,
        models: Models,
        *,
        settle: Callable[[str], Settled],
        build: Callable[[Settled], Engine],
        store: RayStore | None,
        call_all: Callable[[], Awaitable[Sequence[Mapping[str, str]]]],
        keep_s: float,
    ) -> None:
        self._models = models
        self._settle = settle
        self._build = build
        self._store = store
        self._call_all = call_all
        self._keep_s = keep_s
        # By name or file, as all that follows; settled by the driver, or not yet.
        self._configured: dict[str, Settled | None] = {}
        self._loaded: dict[str, _Loaded] = {}
        # Offered no more, and not ended yet.
        self._retired: set[Engine] = set()
        self._one_at_a_time = asyncio.Lock()
        # `time.monotonic()` before which a model that has failed, or could not be built, is not rebuilt.
        self._not_before: dict[str, float] = {}
        self._tasks: set[asyncio.Future[object]] = set()

    async def configure(self, sources: Sequence[str], settled: Sequence[Settled] = ()) -> None:
        """Have the models that the endpoint is configured with, or what callers have made of that list.

        Args:
            sources: Names or files.
            settled: The same, where they are settled already.

        Raises:
            ConfigError: One cannot be loaded; the others stay, or are there.
        """
        self._configured = {**dict.fromkeys(sources), **dict(zip(sources, settled, strict=False))}
        wrong = await self.follow()
        # A model that callers had asked for, and that cannot be had any more, keeps no replica from starting.
        if own := [text for source, text in wrong.items() if source in sources or not self._loaded]:
            raise ConfigError("; ".join(own))

    async def follow(self, *, patient: bool = False) -> dict[str, str]:
        """Have what callers have asked for by now; return what goes wrong, by name or file.

        Args:
            patient: Whether to leave a model alone for a while that could not be loaded just now.
        """
        async with self._one_at_a_time:
            return await self._reconcile({}, patient=patient)

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
        asked = dict.fromkeys(sources or [name], time.time_ns())
        async with self._one_at_a_time:
            found = await self._reconcile(asked)
            wrong = [text for source, text in found.items() if source in asked]
            if not wrong:
                await self._write(asked)
        wrong = wrong or await self._tell(asked)
        if wrong:
            raise ConfigError(f"model {name!r} could not be loaded: {'; '.join(dict.fromkeys(wrong))}")

    async def _unload(self, name: str) -> None:
        # By its name also where this replica could not load what others have.
        sources = {*await asyncio.to_thread(self._sources, name), name}
        async with self._one_at_a_time:
            gone = sources & (await asyncio.to_thread(self._read)).keys()
            if not gone:
                raise self._models.unknown(name)
            await self._write(dict.fromkeys(gone))
        if wrong := await self._tell(gone):
            raise ConfigError(f"model {name!r} could not be unloaded everywhere: {'; '.join(wrong)}")

    def look_after(self) -> str | None:
        """Follow what callers have asked for, and rebuild what has failed; both go on after this returns.

        Returns:
            Why the whole replica should be replaced, every model having failed; else None.
        """
        faults = {source: loaded.engine.fault() for source, loaded in self._loaded.items()}
        if faults and all(faults.values()):
            return "; ".join(f"{source}: {fault}" for source, fault in faults.items())
        if (any(faults.values()) or self._store is not None) and not self._one_at_a_time.locked():
            self._begin(self.follow(patient=True))
        return None

    def close(self) -> None:
        """End all engines; may take seconds."""
        for engine in [*(each.engine for each in self._loaded.values()), *self._retired]:
            engine.close()

    def _sources(self, name: str) -> list[str]:
        """Return where the models of a name are from, of those that are configured or there; reads their files."""
        names = {source: loaded.engine.spec.name for source, loaded in self._loaded.items()}
        for source in self._configured:
            with contextlib.suppress(ShardlabelError):
                names[source] = load_spec(source).name
        return [source for source, found in names.items() if found == name]

    def _read(self) -> dict[str, int]:
        """Return what every replica is to have: what is configured, but for what callers have changed of just that."""
        wanted = dict.fromkeys(self._configured, 0)
        for source, value in () if self._store is None else self._store.all().items():
            change = orjson.loads(value)
            if change["configured"] != list(self._configured):
                continue
            if change["asked"] is None:
                wanted.pop(source, None)
            else:
                wanted[source] = change["asked"]
        return wanted

    async def _write(self, changes: Mapping[str, int | None]) -> None:
        """Write down when each model was asked for, or None for not any more."""
        assert self._store is not None, "callers may change what is there"
        for source, asked in changes.items():
            value = orjson.dumps({"configured": list(self._configured), "asked": asked})
            await asyncio.to_thread(self._store.put, source, value)

    async def _tell(self, sources: Collection[str]) -> list[str]:
        """Have every replica follow, this one first; return what goes wrong with these models, and with no other."""
        said = [await self.follow(), *await self._call_all()]
        return [text for wrong in said for source, text in wrong.items() if source in sources or not source]

    async def _reconcile(self, asked: Mapping[str, int], *, patient: bool = False) -> dict[str, str]:
        """Build what is wanted and not there, or broken; offer that and nothing else; return what goes wrong."""
        # Read here: what was read before another change would undo it.
        wanted = {**await asyncio.to_thread(self._read), **asked}
        wrong = {}
        for source, when in wanted.items():
            try:
                if not patient or self._not_before.get(source, 0.0) <= time.monotonic():
                    await self._have(source, when)
            except Exception as err:
                is_ours = isinstance(err, ShardlabelError)
                # No paths of this machine: callers see it.
                text = _PATH.sub("", str(err)) if is_ours else "an internal error; the replica's log says more"
                if source in asked and isinstance(err, UnknownModelError):
                    raise UnknownModelError(text) from None
                logger.warning("model cannot be loaded model=%s: %s", source, err, exc_info=None if is_ours else err)
                name = source.rpartition("/")[2]
                self._not_before[source] = time.monotonic() + REBUILD_S
                self._models.unavailable[name] = text
                wrong[source] = f"{name}: {text}"
        self._offer({source: self._loaded[source] for source in wanted if source in self._loaded})
        return wrong

    async def _have(self, source: str, asked: int) -> None:
        there = self._loaded.get(source)
        fault = None if there is None else there.engine.fault()
        # An entry that callers ask for may have changed since it was settled.
        settled = None if asked else self._configured.get(source)
        if there is not None and there.asked == asked:
            if fault is None:
                return
            settled = there.engine.settled
            self._not_before[source] = time.monotonic() + REBUILD_S
            logger.error("model is rebuilt model=%s fault=%s", source, fault)
        if settled is None:
            settled = await asyncio.to_thread(self._settle, source)
        if there is not None and fault is None and there.engine.settled == settled:
            self._loaded[source] = there._replace(asked=asked)
            return
        engine = await asyncio.to_thread(self._build, settled)
        try:
            self._offer({**self._loaded, source: _Loaded(asked, engine)})
        except BaseException:
            self._begin(asyncio.to_thread(engine.close))
            raise

    def _offer(self, loaded: dict[str, _Loaded]) -> None:
        """Offer these from now on; end what is not among them once nobody can be asking it any more."""
        kept = [each.engine for each in loaded.values()]
        self._models.replace(kept)
        for each in self._loaded.values():
            if each.engine not in kept:
                self._models.unavailable[each.engine.spec.name] = "unloaded"
                self._retired.add(each.engine)
                self._begin(self._retire(each.engine))
        self._loaded = loaded
        for name in self._models.names:
            self._models.unavailable.pop(name, None)

    async def _retire(self, engine: Engine) -> None:
        await asyncio.sleep(self._keep_s)
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
