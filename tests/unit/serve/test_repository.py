"""Which models a replica has: loaded and unloaded by request, as the other replicas are told, and as they fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayActorError

from models.errors import ConfigError, NotReadyError, UnknownModelError
from pipeline.dest.prediction_log import begin_log
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig, plan_replica
from serve.metrics import ServeMetrics
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.prediction_log import PredictionLog
from serve.model.repository import Repository
from serve.model.settled import Settled, settle
from tests.support.calibrations import write_calibration
from tests.support.tiny_model import build_tiny_model, colour_jpeg
from tests.support.tiny_variant import tiny_variant

RED = colour_jpeg("red")


class FakeStore:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def all(self) -> dict[str, bytes]:
        return dict(self.values)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class Replicas:
    """Replicas that share a list, without Ray."""

    def __init__(self, *sources: Path | str) -> None:
        self.config = ServeConfig(model=[str(source) for source in sources], precision="fp32", batch_size=2)
        self.store = FakeStore()
        self.keep_s = 0.2
        self.every: list[tuple[Repository, Models]] = []
        self.observe = lambda engine: None

    async def add(self, settled: Sequence[Settled] = ()) -> tuple[Repository, Models]:
        models = Models()
        plan = plan_replica(self.config, on_gpu=False, cpus=1)

        def build(settled: Settled) -> Engine:
            engine = Engine(settled, self.config, plan)
            self.observe(engine)
            return engine

        repository = Repository(
            models, settle=lambda source: settle(source, self.config, has_gpu=False), build=build,
            store=self.store, call_all=self._call_all, keep_s=self.keep_s,
        )  # fmt: skip
        await repository.configure(self.config.model, settled)
        self.every.append((repository, models))
        return repository, models

    async def _call_all(self) -> list[dict[str, str]]:
        return [await repository.follow() for repository, _ in self.every]


@contextlib.asynccontextmanager
async def replicas(number: int, *sources: Path | str):
    these = Replicas(*sources)
    for _ in range(number):
        await these.add()
    try:
        yield these
    finally:
        for repository, _ in these.every:
            repository.close()


def own_model(folder: Path, name: str, factor: float = 10.0, version: str = "1") -> Path:
    """Write NAME.onnx with its entry; below 0 the weakest colour wins."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plain").mkdir(exist_ok=True)
    path = tiny_variant(build_tiny_model(folder / "plain"), folder, factor)
    entry = path.with_suffix(".toml")
    entry.write_text(f'name = "{name}"\nversion = "{version}"\n' + entry.read_text())
    return path


async def best(models: Models, name: str) -> str:
    backend = models.find(name)
    (outcome,) = await backend.label([RED], top_k=1, deadline=time.monotonic() + 30)
    return backend.labels[outcome.label_ids[0]]


def test_a_model_is_loaded_and_unloaded_in_every_replica_and_one_that_starts_later_has_it(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two", -10.0)
        async with replicas(2, one, two) as these:
            (first, _), _ = these.every
            names = []
            await first.unload("two")
            names.append([models.names for _, models in these.every])
            names.append((await these.add())[1].names)
            with pytest.raises(UnknownModelError, match="there is one"):
                these.every[1][1].find("two")
            await first.load("two")
            names.append([models.names for _, models in these.every])
            return names, await best(these.every[2][1], "two")

    names, label = asyncio.run(run())

    assert names == [[["one"], ["one"]], ["one"], [["one", "two"]] * 3]
    assert label != "red"


def test_what_cannot_be_loaded_says_why_and_changes_nothing(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(2, one, two) as these:
            (first, models), (_, others) = these.every
            await first.unload("two")
            two.write_bytes(b"no model")
            with pytest.raises(ConfigError) as caught:
                await first.load("two")
            again = await first.follow(patient=True)
            return (
                str(caught.value),
                models.names,
                others.names,
                dict(models.unavailable),
                again,
                await best(models, "one"),
            )

    message, names, others, unavailable, again, label = asyncio.run(run())

    assert message.startswith("model 'two' could not be loaded: ")
    assert str(tmp_path) not in message
    assert names == others == ["one"]
    assert list(unavailable) == ["two"] or "two" in unavailable
    assert again == {}
    assert label == "red"


@pytest.mark.parametrize("name", ["made-up", "../x", "/etc/passwd", "other.onnx", "A B"])
def test_only_models_of_the_catalog_are_loaded_by_request(tmp_path, monkeypatch, name):
    async def run():
        own_model(tmp_path, "one")
        monkeypatch.chdir(tmp_path)
        async with replicas(1, "other.onnx") as these:
            with pytest.raises(UnknownModelError):
                await these.every[0][0].load(name)
            return these.every[0][1].names

    assert asyncio.run(run()) == ["one"]


def test_a_changed_model_is_swapped_while_it_is_asked_and_no_request_fails(tmp_path):
    async def run():
        path = own_model(tmp_path, "one")
        async with replicas(2, path) as these:
            (first, models), (_, others) = these.every
            seen, stop = [], asyncio.Event()

            async def ask():
                while not stop.is_set():
                    seen.append((await best(models, "one"), models.find("one").spec.version))
                    await asyncio.sleep(0)

            asking = asyncio.create_task(ask())
            await asyncio.sleep(0.05)
            own_model(tmp_path, "one", -10.0, version="2")
            await first.load("one")
            await asyncio.sleep(0.3)  # the old engine has ended
            stop.set()
            await asking
            return seen, await best(others, "one"), models.names

    seen, other, names = asyncio.run(run())

    assert seen[0] == ("red", "1")
    assert seen[-1][0] != "red"
    assert seen[-1][1] == "2"
    assert other == seen[-1][0]
    assert names == ["one"]


def test_loading_what_is_loaded_and_unchanged_builds_nothing(tmp_path):
    async def run():
        async with replicas(1, own_model(tmp_path, "one")) as these:
            ((repository, models),) = these.every
            before = models.find("one")
            await repository.load("one")
            return models.find("one") is before

    assert asyncio.run(run())


def test_a_model_that_is_unloaded_finishes_its_requests_and_is_gone_from_memory(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(1, one, two) as these:
            these.keep_s = 3.0
            repository, models = await these.add()
            engine = models.find("two")
            gone = weakref.ref(engine)
            asked = [engine.label([RED], top_k=1, deadline=time.monotonic() + 30) for _ in range(20)]
            asked = [asyncio.create_task(each) for each in asked]
            await repository.unload("two")
            answers = await asyncio.gather(*asked)
            # A request that had found its model, and whose body was long in coming.
            await asyncio.sleep(0.3)
            answers.append(await engine.label([RED], top_k=1, deadline=time.monotonic() + 2))
            del engine, asked
            deadline = time.monotonic() + 10
            while gone() is not None and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
                gc.collect()
            return len(answers), gone() is None

    assert asyncio.run(run()) == (21, True)


def test_another_configuration_takes_the_place_of_what_callers_had_asked_for(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two", -10.0)
        async with replicas(1, one, two) as these:
            ((repository, models),) = these.every
            await repository.unload("two")
            await repository.configure([str(two)])
            first = models.names
            await repository.configure([str(two), str(one)])
            return first, models.names

    assert asyncio.run(run()) == (["two"], ["two", "one"])


def fail(*args, **kwargs):
    raise RuntimeError("CUDA error")


def test_a_broken_model_is_built_anew_and_the_others_never_notice(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(1, one, two) as these:
            ((repository, models),) = these.every
            broken = models.find("two")
            broken._classifier.predict = fail
            failures, others = 0, 0
            for _ in range(5):
                with contextlib.suppress(RuntimeError):
                    await best(models, "two")
                    failures -= 1
                failures += 1
                others += await best(models, "one") == "red"
            with pytest.raises(NotReadyError, match="'two' has failed"):
                broken.admit(1)
            ready = [backend.is_ready for backend in models]
            assert repository.look_after() is None
            deadline = time.monotonic() + 20
            while not models.find("two").is_ready and time.monotonic() < deadline:
                others += 0 if await best(models, "one") == "red" else 100
                await asyncio.sleep(0.01)
            return failures, others, ready, models.find("two") is not broken, await best(models, "two")

    assert asyncio.run(run()) == (5, 5, [True, False], True, "red")


def test_why_a_broken_model_cannot_be_built_anew_is_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "serve")  # whatever tests before have told Ray's loggers

    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(1, one, two) as these:
            ((repository, models),) = these.every
            models.find("two")._failures = 5
            two.unlink()
            repository.look_after()
            deadline = time.monotonic() + 20
            while "is rebuilt model" not in caplog.text and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            await repository.follow(patient=True)

    asyncio.run(run())
    _, why = caplog.text.split("is rebuilt model", 1)[1].split("\n", 1)
    assert "other.onnx" in why


def test_a_replica_whose_every_model_has_failed_is_to_be_replaced(tmp_path):
    async def run():
        async with replicas(1, own_model(tmp_path, "one")) as these:
            ((repository, models),) = these.every
            models.find("one")._classifier.predict = fail
            for _ in range(5):
                with contextlib.suppress(RuntimeError):
                    await best(models, "one")
            return repository.look_after()

    assert "batches failed" in asyncio.run(run())


def test_the_second_session_is_built_when_it_is_first_asked_for(tmp_path, monkeypatch):
    built = []
    from serve.model import engine as engine_module

    class Counted(engine_module.TensorModel):
        def __init__(self, *args, **kwargs) -> None:
            built.append(args[0].name)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(engine_module, "TensorModel", Counted)

    async def run():
        import numpy as np

        async with replicas(1, own_model(tmp_path, "one")) as these:
            ((_, models),) = these.every
            before = list(built)
            batch = np.zeros((1, 3, 8, 8), np.float32)
            asked = [models.find("one").run_tensor(batch, deadline=time.monotonic() + 30) for _ in range(4)]
            answers = await asyncio.gather(*asked, best(models, "one"))
            return before, len(answers)

    assert asyncio.run(run()) == ([], 5)
    assert built == ["one"]


def test_two_replicas_that_are_asked_at_once_lose_neither_change(tmp_path):
    async def run():
        paths = [own_model(tmp_path / name, name) for name in ("one", "two", "three")]
        async with replicas(2, *paths) as these:
            (first, models), (second, others) = these.every
            await asyncio.gather(first.unload("two"), second.unload("three"))
            return models.names, others.names

    assert asyncio.run(run()) == (["one"], ["one"])


def test_what_callers_had_loaded_and_is_gone_keeps_no_replica_from_starting(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))

    async def run():
        async with replicas(1, own_model(tmp_path / "1", "one")) as these:
            asked = b'{"configured": ["%s"], "asked": 7}' % these.config.model[0].encode()
            these.store.put("gone", asked)
            _, models = await these.add()
            return models.names, models.unavailable

    names, unavailable = asyncio.run(run())

    assert names == ["one"]
    assert "gone" in unavailable


def test_serves_user_config_sets_the_models_and_what_it_cannot_have_leaves_the_others(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "serve")  # whatever tests before have told Ray's loggers
    from serve.replica import Replica

    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(1, one) as these:
            repository, models = these.every[0]
            replica = SimpleNamespace(_repository=repository)
            names = []
            for config in (
                {"models": [str(one), str(two)]},
                {"models": [str(two), "made-up"]},
                {"models": []},
                {"model": "one"},
            ):
                await Replica.reconfigure(replica, config)
                names.append(models.names)
            return names

    assert asyncio.run(run()) == [["one", "two"], ["two"], ["two"], ["two"]]
    assert "made-up" in caplog.text
    assert caplog.text.count("user_config must be") == 2


class Slow:
    """A store whose values take a while to come, once it is told."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.seconds = 0.0

    def put(self, key: str, value: bytes) -> None:
        self._store.put(key, value)

    def all(self) -> dict[str, bytes]:
        values = self._store.all()
        seconds, self.seconds = self.seconds, 0.0
        time.sleep(seconds)
        return values

    def delete(self, key: str) -> None:
        self._store.delete(key)


def test_what_was_read_before_a_model_was_loaded_does_not_take_it_away(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(1, one, two) as these:
            these.store = store = Slow(these.store)
            repository, models = await these.add()
            await repository.unload("two")
            seen: list[list[str]] = []
            models.watch(lambda: seen.append(models.names))
            store.seconds = 0.5
            following = asyncio.create_task(repository.follow())
            await asyncio.sleep(0.1)
            await repository.load("two")
            await following
            return seen

    seen = asyncio.run(run())

    assert seen[-1] == ["one", "two"]
    assert sorted(seen, key=len) == seen  # there from one moment on


def test_a_model_that_a_replica_could_not_load_is_unloaded_through_it_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))

    async def run():
        one = own_model(tmp_path / "1", "one")
        async with replicas(1, one) as these:
            asked = b'{"configured": ["%s"], "asked": 7}' % str(one).encode()
            these.store.put("gone", asked)
            ((repository, _),) = these.every
            wrong = await repository.follow()
            await repository.unload("gone")
            return wrong, await repository.follow()

    wrong, then = asyncio.run(run())

    assert len(wrong) == 1
    assert then == {}


def logs_of(these: Replicas, folder: Path) -> ServeMetrics:
    """Have the answers of these replicas' models logged, and counted."""
    begin_log(open_storage(str(folder)))
    metrics = ServeMetrics("", "r")
    config = these.config.model_copy(update={"prediction_log": str(folder)})

    def observe(engine: Engine) -> None:
        engine.log = PredictionLog(config, engine.settled, engine.labels, partial(metrics.logged, engine.spec.name))

    these.observe = observe
    return metrics


def logged(metrics: ServeMetrics, model: str) -> float:
    labels = {"model": model, "replica": "r"}
    return metrics.registry.get_sample_value("shardlabel_prediction_log_rows_total", labels)


def test_the_answers_that_a_model_gives_while_it_is_unloaded_are_in_the_log_and_stay_counted(tmp_path):
    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(0, one, two) as these:
            metrics, these.keep_s = logs_of(these, tmp_path / "log"), 0.5
            repository, models = await these.add()
            backend = models.find("two")
            await best(models, "two")
            await repository.unload("two")
            await asyncio.sleep(0.2)
            await backend.label([RED], top_k=1, deadline=time.monotonic() + 30)  # its body was long in coming
            while logged(metrics, "two") < 2:
                await asyncio.sleep(0.05)
            await repository.load("two")
            await best(models, "two")
            await repository.unload("two")
            await asyncio.to_thread(repository.close)
            return logged(metrics, "two"), sum(
                pq.read_metadata(part).num_rows for part in (tmp_path / "log").glob("*.parquet")
            )  # fmt: skip

    assert asyncio.run(run()) == (3, 3)


def own_threads() -> set[threading.Thread]:
    """Return the threads but those of asyncio's pool, which starts them as it needs them."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def test_a_model_of_the_same_name_that_is_refused_leaves_the_others_log_alone_and_no_thread(tmp_path):
    async def run():
        one, other = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "one")
        async with replicas(0, one) as these:
            metrics = logs_of(these, tmp_path / "log")
            repository, models = await these.add()
            await best(models, "one")
            threads = own_threads()
            with pytest.raises(ConfigError, match="given twice"):
                await repository.configure([str(one), str(other)])
            await best(models, "one")
            deadline = time.monotonic() + 10
            while (more := own_threads() - threads) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(repository.close)
            return logged(metrics, "one"), more

    rows, more = asyncio.run(run())

    assert rows == 2
    assert not more


def test_a_calibration_is_of_one_model_whatever_else_is_loaded_later(tmp_path):
    one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
    place = write_calibration(tmp_path / "calibration.json", one)
    config = ServeConfig(model=str(one), precision="fp32", calibration=str(place), model_control="explicit")

    found = [settle(str(source), config, has_gpu=False).calibration for source in (one, two)]

    assert [each is not None for each in found] == [True, False]


def all_replicas(*answers: object) -> SimpleNamespace:
    """Return a handle by which all replicas answer, or a call of which fails."""

    async def results_async(**_: object) -> list[object]:
        for each in answers:
            if isinstance(each, TimeoutError):
                raise each
        return list(answers)

    return SimpleNamespace(broadcast=lambda _: SimpleNamespace(results_async=results_async))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([], {"a"}, id="alone, and not known to itself yet"),
        pytest.param(["a", "b"], {"a", "b"}, id="two"),
        pytest.param(["b", RayActorError(), RuntimeError("no")], {"a", "b"}, id="one died, one fails"),
        pytest.param([TimeoutError()], {"a"}, id="one hangs"),
    ],
)
def test_any_replica_answers_for_all_that_answer_and_always_for_itself(others, expected):
    from serve.replica import Replica

    async def metrics(name: str = "a") -> tuple[str, bytes]:
        own = ServeMetrics("m", name)
        own.request("/v1/classify", 200, 0.01, None)
        return name, own.render()

    handle = all_replicas(*(asyncio.run(metrics(one)) if isinstance(one, str) else one for one in others))

    text = asyncio.run(Replica._metrics_of_all(SimpleNamespace(_all=handle, metrics=metrics))).decode()

    found = re.findall(r'^shardlabel_requests_total{.*replica="(\w)"', text, re.MULTILINE)
    assert sorted(found) == sorted(expected)


def test_a_replica_that_died_is_no_fault_of_a_model_and_what_another_raises_stays_in_the_log(caplog):
    from serve import replica

    fault = RuntimeError("Traceback of 10.0.0.7, /home/ann/x.py")
    handle = all_replicas({}, RayActorError(), fault, {"two": "no memory"})

    wrong = asyncio.run(replica.Replica._call_all(SimpleNamespace(_all=handle)))

    assert wrong == [{}, {"": "a replica did not answer; the log says more"}, {"two": "no memory"}]
    assert "10.0.0.7" in caplog.text


def test_a_model_that_is_gone_keeps_callers_from_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))

    async def run():
        one, two = own_model(tmp_path / "1", "one"), own_model(tmp_path / "2", "two")
        async with replicas(2, one, two) as these:
            asked = b'{"configured": ["%s", "%s"], "asked": 7}' % (str(one).encode(), str(two).encode())
            these.store.put("gone", asked)
            ((repository, models), _) = these.every
            await repository.unload("two")
            before = models.names
            await repository.load("two")
            return before, models.names

    assert asyncio.run(run()) == (["one"], ["one", "two"])


def test_a_replica_that_starts_after_a_swap_has_the_new_model_though_it_was_configured_with_the_old(tmp_path):
    async def run():
        path = own_model(tmp_path, "one")
        async with replicas(1, path) as these:
            ((first, _),) = these.every
            as_deployed = [settle(str(path), these.config, has_gpu=False)]
            same = (await these.add(as_deployed))[1].find("one").spec.version
            own_model(tmp_path, "one", -10.0, version="2")
            await first.load("one")
            return same, (await these.add(as_deployed))[1].find("one").spec.version

    assert asyncio.run(run()) == ("1", "2")
