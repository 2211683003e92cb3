from __future__ import annotations

import pytest

from models.errors import ConfigError
from models.inference.classifier import DeviceChoice, Provider
from models.spec import Precision
from pipeline.config import LabelConfig
from pipeline.session.connect import Cluster
from pipeline.session.pools import Pools, plan_pools

ON_CPU = DeviceChoice(Provider.CPU, Precision.FP32, "")
ON_GPU = DeviceChoice(Provider.CUDA, Precision.FP32, "")


def plan(choice: DeviceChoice, cpus: float, gpus: float = 0, pending: int = 1000, **options) -> Pools:
    config = LabelConfig(source=("x",), output="y", **options)
    return plan_pools(config, choice, Cluster(cpus, gpus, is_ours=True), pending=pending)


def test_without_a_gpu_each_cpu_has_an_actor_that_does_all():
    assert plan(ON_CPU, 8) == Pools((8, 8), 1, 0, decoders=0, batch_size=16)


def test_no_more_fused_actors_than_units():
    assert plan(ON_CPU, 8, pending=3).actors == (3, 3)


def test_with_gpus_every_cpu_decodes_and_each_gpu_has_an_actor():
    assert plan(ON_GPU, 32, 4) == Pools((4, 4), 0, 1, decoders=32, batch_size=256, gpu_share=1)


def test_no_more_decoders_than_units():
    assert plan(ON_GPU, 32, 4, pending=3).decoders == 3


def test_several_actors_share_a_gpu():
    pools = plan(ON_GPU, 16, 2, gpus_per_actor=0.5)

    assert (pools.actors, pools.actor_gpus, pools.gpu_share) == ((4, 4), 0.5, 0.5)


def test_fused_actors_share_the_gpus_there_are():
    pools = plan(ON_GPU, 6, 1, shape="fused")

    assert (pools.actors, pools.decoders) == ((6, 6), 0)
    assert pools.actors[0] * pools.actor_gpus <= 1


@pytest.mark.parametrize(
    ("choice", "options", "message"),
    [
        pytest.param(ON_CPU, {"actors": "9"}, r"9 actors need 9 CPUs, and Ray has 8; give fewer", id="cpus"),
        pytest.param(
            ON_CPU, {"actors": "7", "preprocess_cpus": 2}, r"7 actors and 2 decoders need 9 CPUs", id="decoders"
        ),
        pytest.param(ON_GPU, {"preprocess_cpus": 9}, r"^9 decoders need 9 CPUs, and Ray has 8", id="gpu-decoders"),
        pytest.param(ON_GPU, {"actors": "3"}, r"3 actors need 3 GPUs, and Ray has 2", id="gpus"),
        pytest.param(ON_CPU, {"gpus_per_actor": 0.5}, r"--gpus-per-actor is for a GPU", id="no-gpu"),
    ],
)
def test_pools_that_can_never_be_scheduled_are_refused(choice, options, message):
    with pytest.raises(ConfigError, match=message):
        plan(choice, 8, 2, **options)


def test_what_was_chosen_is_a_sentence():
    cluster = Cluster(16, 1, is_ours=True)

    said = plan(ON_GPU, 16, 1, gpus_per_actor=0.5).describe(cluster)

    assert said == "16 decoders feed 2 actors with 0.5 of a GPU each, of 16 CPUs and 1 GPUs; batches of 256"


@pytest.mark.parametrize(
    ("options", "bounds"),
    [({}, ((3, 3), 500)), ({"actors": "2:6"}, ((2, 6), 0))],
    ids=["chosen", "asked-for"],
)
def test_a_pool_on_a_cluster_begins_with_what_is_free_and_follows_it(options, bounds):
    cluster = Cluster(8, 0, is_ours=True, free_cpus=3, may_grow=True)

    pools = plan_pools(LabelConfig(source=("x",), output="y", **options), ON_CPU, cluster, pending=500)

    assert (pools.actors, pools.growth) == bounds
    assert ("more as it grows" in pools.describe(cluster)) == (not options)


def test_a_pool_on_a_full_cluster_waits_for_one_cpu():
    cluster = Cluster(8, 0, is_ours=True, free_cpus=0, may_grow=True)

    assert plan_pools(LabelConfig(source=("x",), output="y"), ON_CPU, cluster, pending=500).actors == (1, 1)
