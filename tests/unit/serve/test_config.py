"""Settings: what is derived from what, and what cannot be together."""

from __future__ import annotations

import pytest

from models.errors import ConfigError
from pipeline.options import build_settings
from serve.config import ServeConfig, plan_replica


def test_strings_of_serve_run_become_what_they_stand_for():
    config = ServeConfig.model_validate({"batch_size": "8", "deadline_s": "2.5", "device": "CPU", "decode": "exact"})

    assert (config.batch_size, config.deadline_s, config.device, config.decode) == (8, 2.5, "cpu", "exact")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batchsize": 4}, "batchsize"),
        ({"precision": "fp8"}, "--precision"),
        ({"device": "tpu"}, "--device"),
        ({"deadline_s": 0}, "--deadline-s"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"max_queue": 10}, "max_images"),
        ({"max_queue": 100, "batch_size": 200}, "batch"),
        ({"max_batch_delay_ms": 2000, "deadline_s": 2}, "deadline"),
    ],
)
def test_settings_that_cannot_be_are_one_line_that_says_which(options, words):
    with pytest.raises(ConfigError) as caught:
        build_settings(ServeConfig, options)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("batch_size", [None, 1, 16, 500])
def test_serves_own_limits_never_answer_before_ours_and_batches_can_fill(on_gpu, batch_size):
    plan = plan_replica(ServeConfig(batch_size=batch_size), on_gpu=on_gpu, cpus=4)

    assert plan.max_queue >= plan.batch_size
    assert plan.max_ongoing > plan.max_queue + plan.batch_size * plan.workers
    assert (plan.batch_size if on_gpu else 1) < plan.target_ongoing < plan.max_ongoing


def test_a_cpu_replica_decodes_where_it_infers_and_a_gpu_replica_beside():
    cpu = plan_replica(ServeConfig(replica_cpus=3), on_gpu=False, cpus=8)
    gpu = plan_replica(ServeConfig(), on_gpu=True, cpus=16)

    assert (cpu.workers, cpu.decoders, cpu.gpus) == (3, 0, 0)
    assert (gpu.workers, gpu.decoders, gpu.gpus) == (1, 8, 1)


def test_replicas_that_share_a_gpu_share_the_cpus_that_decode_for_it():
    half = plan_replica(ServeConfig(gpus_per_replica=0.5), on_gpu=True, cpus=8)

    assert (half.gpus, half.cpus) == (0.5, 4)
    assert scaled(8, 1, on_gpu=True, is_fixed=True, gpus_per_replica=0.5) == (2, False)
    assert scaled(20, 1, on_gpu=True, is_fixed=True, gpus_per_replica=0.1, replica_cpus=1)[0] == 10
    with pytest.raises(ConfigError, match="runs on the CPU"):
        plan_replica(ServeConfig(gpus_per_replica=0.5), on_gpu=False, cpus=8)


def scaled(cpus: int, gpus: int = 0, *, is_fixed: bool = False, on_gpu: bool = False, **settings) -> tuple[int, bool]:
    """Return the most replicas, and whether new ones start before old ones end in an update."""
    from serve.replica import scaling

    config = ServeConfig(**settings)
    plan = plan_replica(config, on_gpu=on_gpu, cpus=max(cpus, 1))
    options = scaling(config, plan, cpus, gpus, is_fixed=is_fixed)
    scales = options.get("autoscaling_config")
    return (options["num_replicas"] if scales is None else scales.max_replicas), options["max_surge_percent"] > 0


@pytest.mark.parametrize(("most", "cpus", "surges"), [(2, 2, False), (2, 3, True), (1, 0, False)])
def test_new_replicas_start_before_old_ones_end_only_where_there_is_room(most, cpus, surges):
    assert scaled(cpus, max_replicas=most) == (most, surges)


def test_more_replicas_than_fit_are_refused_and_the_default_is_what_fits():
    assert scaled(8, is_fixed=True, replica_cpus=2) == (4, False)
    assert scaled(8, is_fixed=True, replica_cpus=2, max_replicas=3) == (3, True)
    with pytest.raises(ConfigError, match="do not fit"):
        scaled(8, is_fixed=True, replica_cpus=2, min_replicas=5)


@pytest.mark.parametrize(("cpus", "most"), [(100, 8), (5, 4), (1, 1)])
def test_of_a_shared_cluster_a_part_is_taken_and_room_is_left_for_an_update(cpus, most):
    assert scaled(cpus) == (most, cpus > 1)
    assert scaled(cpus, max_replicas=50)[0] == 50


def test_what_autoscaling_aims_at_and_waits_for_can_be_told():
    from serve.replica import scaling

    config = ServeConfig(target_ongoing_requests=5, upscale_delay_s=1, downscale_delay_s=7, max_replicas=4)
    plan = plan_replica(config, on_gpu=False, cpus=4)
    aims = scaling(config, plan, 4, 0, is_fixed=True)["autoscaling_config"]

    assert (aims.target_ongoing_requests, aims.upscale_delay_s, aims.downscale_delay_s) == (5, 1, 7)


def test_a_cluster_may_grow_to_what_it_has_no_room_for_yet():
    assert scaled(0, on_gpu=True, min_replicas=3) == (3, False)
    assert scaled(0, on_gpu=True) == (1, False)


def test_the_file_for_serve_deploy_has_no_key_that_serve_would_take_in_silence():
    import importlib
    from pathlib import Path

    import yaml
    from ray.serve.schema import ServeDeploySchema

    given = yaml.safe_load((Path(__file__).parents[3] / "serve" / "config.yaml").read_text())
    taken = ServeDeploySchema.model_validate(given).model_dump()

    def unknown(given, taken, where=""):
        for key, value in given.items():
            if key not in taken:
                yield f"{where}{key}"
            elif isinstance(value, dict) and isinstance(taken[key], dict) and key != "args":
                yield from unknown(value, taken[key], f"{where}{key}.")

    (application,) = given["applications"]
    assert not [*unknown(given, taken), *unknown(application, taken["applications"][0])]
    ServeConfig.model_validate(application["args"])
    for path in (application["import_path"], *given["grpc_options"]["grpc_servicer_functions"]):
        module, _, name = path.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
