"""What is read of Ray's private parts: right in the Ray that is there, and "unknown" in one that differs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.patches import looks_patches


def process(code: int | None) -> SimpleNamespace:
    return SimpleNamespace(process=SimpleNamespace(poll=lambda: code))


def test_the_providers_are_those_that_ray_up_knows():
    assert {"aws", "gcp", "kuberay", "local"} <= set(looks_patches.node_providers())


def test_a_process_of_ray_that_died_is_named():
    alive = SimpleNamespace(all_processes={"gcs_server": [process(None)], "raylet": [process(None)]})
    dead = SimpleNamespace(
        all_processes={"gcs_server": [process(None)], "raylet": [process(-9)], "reaper": [process(0)]}
    )

    assert looks_patches.dead_process(alive) is None
    assert looks_patches.dead_process(dead) == "raylet"


@pytest.mark.parametrize(
    ("place", "look", "unknown"),
    [
        ("ray.autoscaler._private.providers._NODE_PROVIDERS", looks_patches.node_providers, ()),
        ("ray._private.worker._global_node", looks_patches.local_node, None),
        ("ray._private.state.state", looks_patches.most_resources, {}),
        ("ray.serve.context._get_global_client", looks_patches.serve_options, None),
    ],
)
def test_what_another_ray_does_not_tell_is_unknown(monkeypatch, place, look, unknown):
    monkeypatch.delattr(place)

    assert look() == unknown
