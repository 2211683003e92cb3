"""What all processes together may do to a host, divided among them."""

from __future__ import annotations

import pickle

import pytest

from pipeline.config import LabelConfig
from pipeline.fetch.settings import ANY_FETCH, FetchSettings, storage_options
from pipeline.session.pools import Pools
from pipeline.sources.reader import fetch_settings


def config(**options: object) -> LabelConfig:
    return LabelConfig(source="m.parquet", output="out", **options)


@pytest.mark.parametrize(("processes", "connections", "rate"), [(1, 8, 6.0), (3, 2, 2.0), (100, 1, 0.06)])
def test_limits_are_divided_among_processes_and_each_has_a_connection(processes, connections, rate):
    shared = FetchSettings(requests_per_second=6.0).shared_by(processes)

    assert (shared.connections_per_host, shared.requests_per_second) == (connections, rate)


def test_what_is_not_asked_for_stays_as_it_is():
    assert FetchSettings().shared_by(2).requests_per_second is None
    assert fetch_settings(config()) == ANY_FETCH


def test_processes_that_read_are_those_that_decode():
    assert Pools((2, 4), 1, 0, 0, 16).readers == 4
    assert Pools((1, 1), 0, 1, 7, 16).readers == 7


def test_what_the_environment_says_of_storage_goes_along_to_other_processes(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")

    settings = fetch_settings(config(uri_column="u", allow_private_hosts=True, fetch_timeout_s=3))

    assert "minio" in storage_options()["s3"]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert (settings.allow_private_hosts, settings.timeout_s) == (True, 3.0)
    assert "minio" not in repr(settings)
