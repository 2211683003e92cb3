"""The Ray Serve deployment: ingress, decoder and model in one process, so that a request makes one hop."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig

from models.calibration import Calibration
from models.catalog import load_labels, load_spec
from models.errors import ConfigError
from models.inference.classifier import Device, DeviceChoice, Provider, choose
from models.spec import ModelSpec
from models.store.locate import locate
from pipeline.dest.prediction_log import begin_log
from pipeline.operators.model_ref import settle_calibration
from pipeline.storage.storage import open_storage
from serve import tracing
from serve.config import SHARED_REPLICAS, Plan, ServeConfig, plan_replica
from serve.environment import message_bytes
from serve.http.access_log import AccessLog
from serve.http.application import Application, Extras
from serve.http.bodies import BodyMemory
from serve.http.keys import ApiKeys
from serve.local import grpc_listener
from serve.metrics.all_replicas import MetricsShare, RayStore
from serve.metrics.replica_metrics import ServeMetrics
from serve.model.backend import Backend
from serve.model.drift import Baseline, fitting_baseline
from serve.model.engine import Engine
from serve.observers import Observers
from serve.oip.grpc.ingress import Methods
from serve.routes import build_asgi

logger = logging.getLogger(__name__)

APP_NAME = "shardlabel"
DEPLOYMENT_NAME = "Classifier"

# Serve's defaults are for models that take seconds to answer; see also the delays in serve.config.
LOOK_BACK_S = 3.0
METRICS_INTERVAL_S = 1.0
SURGE_PERCENT = 20
HEALTH_CHECK_PERIOD_S = 2.0
# Beyond the longest deadline: whoever is being served when a replica is told to go is served.
SHUTDOWN_GRACE_S = 5.0


class Replica(Methods):
    """One replica. Serve builds it in a process of its own; `__init__` takes seconds, and ends when it is ready."""

    backend: Backend

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: ServeConfig,
        spec: ModelSpec,
        choice: DeviceChoice,
        plan: Plan,
        calibration: Calibration | None,
        baseline: Baseline | None = None,
    ) -> None:
        _pin_threads(plan.cpus)
        grpc_listener.guard(message_bytes(config))
        self.config = config
        context = ray_serve.get_replica_context()
        name = context.replica_id.unique_id
        self._engine = await asyncio.to_thread(
            Engine,
            spec,
            precision=choice.precision,
            provider=choice.provider,
            mode=config.decode,
            limits=config.image_limits(),
            plan=plan,
            calibration=calibration,
        )
        self._metrics = ServeMetrics(spec.name, name, lambda: self._engine.queued)
        self._observers = Observers(config, name, baseline)
        self._metrics.registry.register(self._observers)
        self.backend = self._observers.on(self._engine, choice)
        self._share = MetricsShare(RayStore(context.app_name), name, self._metrics.render)
        self._access_log = None if config.access_log == "off" else AccessLog(config.access_log)
        self._memory = BodyMemory(config.max_body_memory)
        self.start_grpc(self._engine.admit)
        tracing.start(name)
        self._engine.start(self._metrics.batch, delay_s=config.max_batch_delay_ms / 1000)
        logger.info("ready model=%s precision=%s plan=%s", spec.name, choice.precision, plan)

    def __serve_build_asgi_app__(self) -> Application:
        """Return what Serve calls for each HTTP request."""
        keys = None if self.config.api_keys_file is None else ApiKeys(self.config.api_keys_file)
        return build_asgi(
            self.backend,
            self.config,
            Extras(
                metrics=self._metrics,
                render_metrics=lambda: asyncio.to_thread(self._share.render_all),
                admit=self._engine.admit,
                keys=keys,
                access_log=self._access_log,
                memory=self._memory,
            ),
        )

    def check_health(self) -> None:
        """Tell Serve whether to keep this replica."""
        fault = self._engine.fault()
        if fault is not None:
            raise RuntimeError(f"replica is to be replaced: {fault}")

    async def __del__(self) -> None:
        self._engine.close()
        await asyncio.to_thread(self._observers.close)
        await asyncio.to_thread(self._share.close)
        await asyncio.to_thread(tracing.stop)
        if self._access_log is not None:
            await asyncio.to_thread(self._access_log.close)


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
    cpus, gpus = _resources()
    # A replica's working folder is not ours.
    spec = load_spec(str(Path(config.model).absolute()) if config.model.endswith(".onnx") else config.model)
    # On a cluster that may grow, a GPU that was asked for may still come.
    may_come = not is_fixed and config.device in (Device.CUDA, Device.TENSORRT)
    choice = choose(spec, config.device, config.precision, has_gpu=gpus > 0 or may_come)
    locate(spec, choice.precision)
    calibration = settle_calibration(config.calibration, spec, choice, config.decode)
    if config.api_keys_file is not None:
        ApiKeys(config.api_keys_file)
    if config.prediction_log is not None:
        begin_log(open_storage(config.prediction_log))
    baseline = None if config.baseline is None else fitting_baseline(config.baseline, load_labels(spec))
    plan = plan_replica(config, on_gpu=choice.provider is not Provider.CPU, cpus=int(cpus))
    most = max_replicas(config, plan, cpus, gpus, is_fixed=is_fixed)
    deployment = ray_serve.deployment(
        name=DEPLOYMENT_NAME,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        max_ongoing_requests=plan.max_ongoing,
        max_queued_requests=-1,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=config.deadline_s + SHUTDOWN_GRACE_S,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=surge_percent(plan, most, cpus, gpus),
        **_replicas(config, plan, most),
    )(ray_serve.ingress()(Replica))
    return deployment.bind(config, spec, choice, plan, calibration, baseline)


def max_replicas(config: ServeConfig, plan: Plan, cpus: float, gpus: float, *, is_fixed: bool) -> int:
    """Return the most replicas: as configured, else as many as fit or a shared cluster can live with; not below the least.

    Raises:
        ConfigError: The least do not fit a fixed Ray.
    """
    fits = int(cpus // plan.cpus)
    if plan.gpus:
        fits = min(fits, int(gpus // plan.gpus))
    least = max(1, config.min_replicas)
    if fits < least and is_fixed:
        raise ConfigError(
            f"{least} replicas of {plan.cpus} CPUs and {plan.gpus} GPUs each do not fit: Ray has {cpus:g} CPUs and "
            f"{gpus:g} GPUs; lower --min-replicas or --replica-cpus"
        )
    # On a cluster that others use too, with room for one more: a rolling update that has none takes an old replica away
    # before the new one has started, also where that cannot start.
    return config.max_replicas or max(fits if is_fixed else min(fits - 1, SHARED_REPLICAS), least)


def surge_percent(plan: Plan, most: int, cpus: float, gpus: float) -> int:
    """Return Serve's setting for starting new replicas before old ones stop, in a rolling update.

    Only where one more than the most fits: Serve would wait for the room without end.
    """
    has_room = (most + 1) * plan.cpus <= cpus and (most + 1) * plan.gpus <= gpus
    return SURGE_PERCENT if has_room else 0


def _replicas(config: ServeConfig, plan: Plan, most: int) -> dict[str, Any]:
    if config.min_replicas == most:
        return {"num_replicas": most}
    with warnings.catch_warnings():
        # The variables that are to replace this field are read at import: too late for `serve deploy`.
        warnings.filterwarnings("ignore", message=".*metrics_interval_s", category=DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=most,
            target_ongoing_requests=plan.target_ongoing,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
        )
    return {"autoscaling_config": scaling}


def _resources() -> tuple[float, float]:
    """Return the CPUs and GPUs of the cluster that this process is connected to; (0, 0) where it is to none."""
    if not ray.is_initialized():
        return 0.0, 0.0
    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def _pin_threads(cpus: int) -> None:
    """Keep numerical libraries to the replica's own CPUs: by default each replica takes them all."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(cpus))
