"""The Ray Serve deployment: ingress, decoder and models in one process, so that a request makes one hop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig

from models.catalog import load_labels
from models.errors import ConfigError
from models.inference.classifier import Device, Provider
from pipeline.dest.prediction_log import begin_log
from pipeline.patches.kv_patches import RayStore
from pipeline.storage.storage import open_storage
from pipeline.storage.uris import without_secrets
from serve import tracing
from serve.config import DEPLOYMENT_NAME, SHARED_REPLICAS, Plan, ServeConfig, plan_replica
from serve.environment import message_bytes
from serve.http.access_log import AccessLog
from serve.http.application import Application
from serve.http.bodies import BodyMemory
from serve.http.in_flight import Extras
from serve.http.keys import ApiKeys
from serve.local import grpc_listener
from serve.metrics import ServeMetrics, merged
from serve.model.drift import Baseline, Drift, read_baseline
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.prediction_log import PredictionLog
from serve.model.repository import Repository
from serve.model.settled import Settled, settle
from serve.oip.grpc.ingress import Methods
from serve.routes import build_asgi

logger = logging.getLogger(__name__)

# Beyond the longest deadline: whoever is being served when a replica is told to go is served.
SHUTDOWN_GRACE_S = 5.0
FOLLOW_S = 600.0  # for all replicas to load a model, downloaded by each node
TELL_S = 3.0  # for all replicas to tell their metrics: what Prometheus waits is 10 s unless it is told


class Replica(Methods):
    """One replica. Serve builds it in a process of its own; `__init__` takes seconds, and ends when it is ready."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ServeConfig, settled: Sequence[Settled], plan: Plan, baseline: Baseline | None = None
    ) -> None:
        # By default each replica's numerical libraries take all CPUs.
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(variable, str(plan.cpus))
        grpc_listener.guard(message_bytes(config))
        context = ray_serve.get_replica_context()
        self._name = name = context.replica_id.unique_id
        self._application = context.app_name
        self.config, self._plan, self._baseline = config, plan, baseline
        self.models = Models()
        is_explicit = config.model_control == "explicit"
        self._repository = Repository(
            self.models,
            settle=partial(settle, config=config, has_gpu=plan.gpus > 0),
            build=self._build,
            store=RayStore(f"shardlabel-models-{context.app_name}") if is_explicit else None,
            call_all=self._call_all,
            keep_s=config.deadline_s + SHUTDOWN_GRACE_S,
        )
        self._metrics = ServeMetrics("" if is_explicit or len(settled) > 1 else settled[0].spec.name, name)
        self.models.watch(lambda: self._metrics.show_models(self.models))
        await self._repository.configure(config.model, settled)
        self.extras = Extras(
            metrics=self._metrics,
            render_metrics=self._metrics_of_all,
            keys=None if config.api_keys_file is None else ApiKeys(config.api_keys_file),
            access_log=None if config.access_log == "off" else AccessLog(config.access_log),
            memory=BodyMemory(config.max_body_memory),
            control=self._repository if is_explicit else None,
        )
        self.start_grpc()
        tracing.start(name)
        logger.info("ready models=%s plan=%s", ",".join(self.models.names), plan)

    def __serve_build_asgi_app__(self) -> Application:
        """Return what Serve calls for each HTTP request."""
        return build_asgi(self.models, self.config, self.extras)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Have the models of Serve's `user_config`: `{"models": ["A", "B"]}`, in place of those of `args`.

        What cannot be loaded is told by the log and the repository's index: of an error here Serve makes a deployment that
        has failed, and that answers for none of its models any more.
        """
        names = user_config.get("models")
        if set(user_config) != {"models"} or not isinstance(names, list) or not names:
            logger.error('user_config must be {"models": [NAME, ...]}, got %.200s; nothing is changed', user_config)
            return
        try:
            await self._repository.configure([str(name) for name in names])
        except ConfigError as err:
            logger.warning("user_config: what can be loaded is there, and not %s", err)

    async def follow(self) -> dict[str, str]:
        """Have the models that callers have asked another replica for; see `serve.model.repository.Repository.follow`."""
        return await self._repository.follow()

    async def metrics(self) -> tuple[str, bytes]:
        """Return this replica's name, and its own series in Prometheus' text format."""
        return self._name, self._metrics.render()

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica."""
        if (fault := self._repository.look_after()) is not None:
            raise RuntimeError(f"replica is to be replaced: {fault}")

    def _build(self, settled: Settled) -> Engine:
        report = partial(self._metrics.batch, model=settled.spec.name)
        engine = Engine(settled, self.config, self._plan, report)
        if self.config.prediction_log is not None:
            count = partial(self._metrics.logged, settled.spec.name)
            engine.log = PredictionLog(self.config, settled, engine.labels, count)
        if self._baseline is not None and self._baseline.fits(engine.labels):
            engine.drift = Drift(self._baseline, len(engine.labels))
        return engine

    @cached_property
    def _all(self) -> ray_serve.handle.DeploymentHandle:
        """All replicas, this one too. One handle for good: each has a thread."""
        return ray_serve.get_deployment_handle(DEPLOYMENT_NAME, self._application)

    async def _metrics_of_all(self) -> bytes:
        """Return the series of all replicas, or of those that tell them in time."""
        told = {}
        try:
            answers = await self._all.broadcast("metrics").results_async(timeout_s=TELL_S, return_exceptions=True)
            told = dict(each for each in answers if not isinstance(each, Exception))
        except Exception as err:  # noqa: BLE001 (our own series are worth more than an error)
            logger.warning("metrics of the other replicas cannot be had: %s", err)
        return merged((told | dict([await self.metrics()])).values())

    async def _call_all(self) -> list[dict[str, str]]:
        """Have every replica follow, this one too; return what each says went wrong."""
        wrong: list[dict[str, str]] = []
        for each in await self._all.broadcast("follow").results_async(timeout_s=FOLLOW_S, return_exceptions=True):
            if not isinstance(each, Exception):
                wrong.append(each)
            elif not isinstance(each, RayActorError):  # of one that has died: its successor reads what is wanted
                # Its text may name machines and files: callers see what is returned.
                logger.error("a replica did not follow", exc_info=each)
                wrong.append({"": "a replica did not answer; the log says more"})
        return wrong

    async def __del__(self) -> None:
        # First what takes no time: Serve waits for seconds, and the others may wait for storage or a collector.
        if self.extras.access_log is not None:
            await asyncio.to_thread(self.extras.access_log.close)
        await asyncio.to_thread(self._repository.close)
        await asyncio.to_thread(tracing.stop)


def build_application(config: ServeConfig, *, is_fixed: bool = False) -> ray_serve.Application:
    """Bind the deployment to a configuration; see `serve.app.build_app`.

    Args:
        config: The settings.
        is_fixed: Whether Ray has all that it will ever have: a local one. A cluster may grow, so that what is not there
            yet is no error.

    Raises:
        ConfigError: The replicas do not fit a fixed Ray.
        ProviderUnavailableError: A GPU was asked for, and a fixed Ray has none.
    """
    # A process that is connected to no Ray, as in a test, has none.
    resources = ray.cluster_resources() if ray.is_initialized() else {}
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    # A replica's working folder is not ours.
    sources = tuple(str(Path(source).absolute()) if source.endswith(".onnx") else source for source in config.model)
    config = config.model_copy(update={"model": sources})
    # On a cluster that may grow, a GPU that was asked for may still come.
    may_come = not is_fixed and config.device in (Device.CUDA, Device.TENSORRT)
    settled = [settle(source, config, has_gpu=gpus > 0 or may_come) for source in config.model]
    if config.calibration is not None and not any(each.calibration for each in settled):
        names = ", ".join(each.spec.name for each in settled)
        raise ConfigError(
            f"--calibration {without_secrets(config.calibration)} is of none of the models {names}; give the one it is of"
        )
    if config.prediction_log is not None:
        begin_log(open_storage(config.prediction_log))
    labels = [load_labels(each.spec) for each in settled]
    baseline = None if config.baseline is None else read_baseline(config.baseline, *labels)
    on_gpu = any(each.choice.provider is not Provider.CPU for each in settled)
    plan = plan_replica(config, on_gpu=on_gpu, cpus=int(cpus))
    deployment = ray_serve.deployment(
        name=DEPLOYMENT_NAME,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        max_ongoing_requests=plan.max_ongoing,
        max_queued_requests=-1,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=config.deadline_s + SHUTDOWN_GRACE_S,
        graceful_shutdown_wait_loop_s=0.5,
        **scaling(config, plan, cpus, gpus, is_fixed=is_fixed),
    )(ray_serve.ingress()(Replica))
    return deployment.bind(config, settled, plan, baseline)


def scaling(config: ServeConfig, plan: Plan, cpus: float, gpus: float, *, is_fixed: bool) -> dict[str, Any]:
    """Return Serve's options for how many replicas there are: as configured, else as many as fit.

    Raises:
        ConfigError: The least do not fit a fixed Ray.
    """
    # As floats, 1 // 0.1 is 9.
    fits = int(min(cpus // plan.cpus, gpus / plan.gpus + 1e-9 if plan.gpus else math.inf))
    least = max(1, config.min_replicas)
    if fits < least and is_fixed:
        raise ConfigError(
            f"{least} replicas of {plan.cpus} CPUs and {plan.gpus:g} GPUs each do not fit: Ray has {cpus:g} CPUs and "
            f"{gpus:g} GPUs; lower --min-replicas, --replica-cpus or --gpus-per-replica"
        )
    # On a cluster that others use too, with room for one more: a rolling update that has none takes an old replica away
    # before the new one has started, also where that cannot start.
    most = config.max_replicas or max(fits if is_fixed else min(fits - 1, SHARED_REPLICAS), least)
    # New replicas start before old ones stop only where one more than the most fits: Serve would wait for it without end.
    surge = {"max_surge_percent": 20 if fits > most else 0}
    if config.min_replicas == most:
        return {**surge, "num_replicas": most}
    with warnings.catch_warnings():
        # The variables that are to replace this field are read at import: too late for `serve deploy`.
        warnings.filterwarnings("ignore", message=".*metrics_interval_s", category=DeprecationWarning)
        scales = AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=most,
            target_ongoing_requests=plan.target_ongoing,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            # Serve's defaults are for models that take seconds to answer.
            metrics_interval_s=1.0,
            look_back_period_s=3.0,
        )
    return {**surge, "autoscaling_config": scales}
