"""What a run says of the cluster that it joins."""

from __future__ import annotations

import pytest

from models.errors import ClusterError, ConfigError
from pipeline.session import local
from pipeline.session.connect import connect


def test_a_dashboard_is_no_address_of_a_driver():
    with pytest.raises(ConfigError, match=r"is a cluster's dashboard: .*shardlabel submit --address http://head:8265"):
        connect("http://head:8265")


def test_a_time_to_start_that_is_none_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("SHARDLABEL_RAY_START_S", "soon")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("it was started"))

    with pytest.raises(ConfigError, match=r"SHARDLABEL_RAY_START_S: expected seconds, got 'soon'"):
        connect(None)


@pytest.mark.parametrize(
    "place", ["ray._private.utils.get_entrypoint_name", "ray._private.ray_constants.ENABLE_RAY_CLUSTER"]
)
def test_a_ray_that_cannot_be_closed_to_others_is_not_started(monkeypatch, place):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("it was started"))
    monkeypatch.setattr(local, "until_left", type(local.until_left)())
    monkeypatch.setattr("pipeline.session.connect.until_left", local.until_left)
    monkeypatch.delattr(place)

    with pytest.raises(ClusterError, match=f"is needed for safety .*{place} is missing"):
        connect(None)
