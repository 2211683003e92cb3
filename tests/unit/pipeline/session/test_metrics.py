"""Names of metrics and jobs, as dashboards use them."""

from __future__ import annotations

import re

import pytest

from pipeline.session.metrics import COUNTERS, GAUGES, job_name, scraped_names


def test_names_are_what_prometheus_takes_and_begin_alike():
    assert all(re.fullmatch(r"ray_shardlabel_[a-z_]+", name) for name in scraped_names())
    assert len(scraped_names()) == len(COUNTERS) + len(GAUGES)
    assert "ray_shardlabel_images_total" in scraped_names()


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "local"),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "nightly"}}'}, "nightly"),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": null}'}, "local"),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "no json"}, "local"),
    ],
)
def test_a_job_is_known_by_its_submission_id(environment, name):
    assert job_name(environment) == name
