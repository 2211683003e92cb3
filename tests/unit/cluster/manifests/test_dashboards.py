"""Dashboards and scraping: every query asks for metrics that exist."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import ray
import yaml

from pipeline.session.metrics import COUNTERS, GAUGES, scraped_names
from tools.render_dashboard import dashboard

FOLDER = Path(__file__).parents[4] / "cluster"
NAME = re.compile(r"\b(?:ray|shardlabel)_[a-zA-Z0-9_]+")


@cache
def names_in_ray() -> frozenset[str]:
    """Return every name that the installed Ray's agents and dashboards use for a metric, as scraped."""
    package = Path(ray.__file__).parent
    agent = (package / "dashboard/modules/reporter/reporter_agent.py").read_text()
    names = {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"([a-z_]+)"', agent)}
    for file in (package / "dashboard/modules/metrics/dashboards").glob("*_panels.py"):
        names |= set(re.findall(r"\bray_[a-z_]+", file.read_text()))
    return frozenset(names)


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def test_the_committed_dashboard_is_the_generated_one():
    assert json.loads((FOLDER / "grafana-bulk.json").read_text()) == dashboard()


def test_every_query_names_metrics_that_exist():
    known = set(scraped_names()) | names_in_ray()
    asked = {name for query in queries() for name in NAME.findall(query)}

    assert len(asked) > 10
    assert asked <= known


def test_every_metric_of_a_run_is_shown():
    asked = {name for query in queries() for name in NAME.findall(query)}

    assert set(scraped_names()) <= asked


def test_queries_use_labels_that_the_metrics_have():
    labels = {f"ray_{name}_total": labels for name, (labels, _) in COUNTERS.items()}
    labels |= {f"ray_{name}": labels for name, (labels, _) in GAUGES.items()}
    for query in queries():
        for name, selector in re.findall(r"(ray_shardlabel_\w+)\{([^}]*)\}", query):
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
            assert used <= {"job", *labels[name]}, query
        for grouped in re.findall(r"by \((\w+)\) \(rate\((ray_shardlabel_\w+)", query):
            assert grouped[0] in ("job", *labels[grouped[1]]), query


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_scraping_keeps_the_label_that_the_dashboard_chooses_by():
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())

    for job in config["scrape_configs"]:
        if job["job_name"].startswith("ray"):
            assert job["honor_labels"] is True, job["job_name"]


def test_ray_writes_the_file_that_prometheus_reads():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())

    (files,) = config["scrape_configs"][0]["file_sd_configs"]
    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
