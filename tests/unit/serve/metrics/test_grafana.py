"""The dashboard: every query asks for a metric that exists, by labels that it has, and every panel has its place."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.metrics import ServeMetrics
from serve.model.batcher import Item

ROOT = Path(__file__).parents[4]
DASHBOARD = json.loads((ROOT / "serve" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
# Only there with --prediction-log and a baseline.
OF_THE_PREDICTION_LOG = {
    "shardlabel_label_drift": {"model"},
    "shardlabel_prediction_log_dropped_total": {"reason"},
}
METRIC = re.compile(r"\b((?:shardlabel|ray)_[a-z0-9_]+)(?:\{([^}]*)\})?")


@cache
def exposed() -> dict[str, set[str]]:
    """Return the labels of each series that the endpoint gives once everything has happened."""
    metrics = ServeMetrics("m", "r")
    metrics.show_models([SimpleNamespace(spec=SimpleNamespace(name="m"), queued=3, drift=None)])
    metrics.request("/v1/classify", 503, 0.1, "overloaded")
    ran = Item(b"", 0.0, since=1.0, taken=1.1, decoded_at=1.2, run_at=1.2, done_at=1.3, batch=2)
    metrics.batch([ran, Item(b"", 0.0, dropped=("deadline", "decode"))], "m")
    found: dict[str, set[str]] = {}
    for line in metrics.render().decode().splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
            found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels or ""))
    return OF_THE_PREDICTION_LOG | found


@cache
def names_in_ray() -> str:
    """Return the source of Ray Serve, where its metrics are named."""
    folder = Path(find_spec("ray").origin).parent / "serve" / "_private"
    return "".join(path.read_text() for path in folder.glob("*.py"))


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_asks_for_what_there_is(title, query):
    found = METRIC.findall(query)
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}

    assert found
    for name, matchers in found:
        matched = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))
        if name.startswith("ray_"):
            bare = re.sub(r"_bucket$", "", name.removeprefix("ray_"))
            assert f'"{bare}"' in names_in_ray()
        else:
            assert name in exposed()
            assert matched | grouped <= exposed()[name]


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_brackets_are_closed_and_counters_are_rated(title, query):
    for opened, closed in ("()", "[]", "{}"):
        assert query.count(opened) == query.count(closed)
    for name, _ in METRIC.findall(query):
        # One that counts in a new series for each replica is shown as it is: `rate` never sees a series' first step.
        if re.search(r"_(total|bucket|sum|count)$", name) and name != "ray_serve_health_check_failures_total":
            assert re.search(rf"(?:rate|increase)\({name}", query)


def test_the_legend_names_labels_that_the_query_keeps():
    for panel in PANELS:
        for target in panel["targets"]:
            kept = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def test_every_panel_says_what_it_shows_and_in_which_unit():
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["type"] == "heatmap" or panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]

    assert len(set(ids)) == len(ids)
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for a, b in combinations(places, 2):
        apart = [a[p] + a[size] <= b[p] or b[p] + b[size] <= a[p] for p, size in (("x", "w"), ("y", "h"))]
        assert any(apart)


def test_every_metric_of_the_endpoint_is_on_the_dashboard():
    shown = {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for _, query in QUERIES for name, _ in METRIC.findall(query)
    }

    assert {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in exposed()} <= shown
