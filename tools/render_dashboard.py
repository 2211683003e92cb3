"""Generate the Grafana dashboard of bulk runs: `python -m tools.render_dashboard > cluster/grafana-bulk.json`.

Every query uses metrics and labels that `pipeline.session.metrics` or Ray exports; a test checks each name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

RUN = '{job=~"$job"}'
WIDTH = 24
HEIGHT = 7


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title.
        queries: PromQL by legend.
        unit: Grafana's name of the unit.
        width: Width in columns, of 24.
        kind: Grafana's panel type.
        help: Its description.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    width: int = 12
    kind: str = "timeseries"
    help: str = ""


RUN_PANELS = (
    Panel("Images/s", {"": f"sum(ray_shardlabel_images_per_second{RUN})"}, width=6, kind="stat"),
    Panel(
        "Units done",
        {
            "": f"sum(ray_shardlabel_units_done{RUN}) / sum(ray_shardlabel_units_done{RUN} + ray_shardlabel_units_left{RUN})"
        },
        "percentunit",
        6,
        "gauge",
    ),
    Panel(
        "Time left",
        {"": f"sum(ray_shardlabel_units_left{RUN}) / clamp_min(sum(deriv(ray_shardlabel_units_done{RUN}[10m])), 1e-9)"},
        "s",
        6,
        "stat",
        "Units left, divided by the rate over the last ten minutes.",
    ),
    Panel(
        "Images that could not be labelled",
        {
            "": f'sum(ray_shardlabel_images_total{{job=~"$job", status!="ok"}})'
            f" / clamp_min(sum(ray_shardlabel_images_total{RUN}), 1)"
        },
        "percentunit",
        6,
        "stat",
        "Share of all images. Each is a row with a status; the run continues.",
    ),
    Panel(
        "Images/s by status",
        {"{{status}}": f"sum by (status) (rate(ray_shardlabel_images_total{RUN}[$__rate_interval]))"},
    ),
    Panel(
        "Processes busy, by stage",
        {"{{stage}}": f"sum by (stage) (rate(ray_shardlabel_stage_seconds_total{RUN}[$__rate_interval]))"},
        help="Seconds per second. The largest bounds a run: read: storage or network; decode: CPUs; label: the model.",
    ),
    Panel(
        "Bytes/s",
        {
            "read": f"sum(rate(ray_shardlabel_read_bytes_total{RUN}[$__rate_interval]))",
            "written": f"sum(rate(ray_shardlabel_written_bytes_total{RUN}[$__rate_interval]))",
        },
        "Bps",
    ),
    Panel(
        "Retries",
        {
            "units": f"sum(increase(ray_shardlabel_unit_retries_total{RUN}[$__rate_interval]))",
            "storage": f"sum(increase(ray_shardlabel_storage_retries_total{RUN}[$__rate_interval]))",
        },
        help="Units: a process died, or its node was reclaimed. Storage: a transient error was retried.",
    ),
)
CLUSTER_PANELS = (
    Panel("Nodes", {"{{node_type}}": "sum by (node_type) (ray_cluster_active_nodes)"}),
    Panel("CPUs", {"{{instance}}": "ray_node_cpu_utilization"}, "percent"),
    Panel("GPUs", {"{{instance}} {{GpuIndex}}": "ray_node_gpus_utilization"}, "percent"),
    Panel("GPU memory", {"{{instance}} {{GpuIndex}}": "ray_node_gram_used * 1024 * 1024"}, "bytes"),
    Panel("Memory", {"{{instance}}": "ray_node_mem_used / ray_node_mem_total"}, "percentunit"),
    Panel("Object store", {"{{Location}}": "sum by (Location) (ray_object_store_memory)"}, "bytes"),
    Panel("Network in", {"{{instance}}": "ray_node_network_receive_speed"}, "Bps"),
    Panel("Tasks", {"{{State}}": 'sum by (State) (ray_tasks{State=~"RUNNING|PENDING_NODE_ASSIGNMENT|FAILED"})'}),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON format."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, group in (("Run", RUN_PANELS), ("Cluster", CLUSTER_PANELS)):
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, top, WIDTH, 1), "panels": []}
        )
        top = _lay_out(panels, group, top + 1)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "shardlabel: bulk runs",
        "uid": "shardlabel-bulk",
        "tags": ["shardlabel", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _job()]},
        "panels": panels,
    }


def _lay_out(panels: list[dict[str, Any]], group: tuple[Panel, ...], top: int) -> int:
    left = 0
    for panel in group:
        if left + panel.width > WIDTH:
            left, top = 0, top + HEIGHT
        panels.append(_panel(panel, _place(left, top, panel.width, HEIGHT)))
        left += panel.width
    return top + HEIGHT


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    bounds = {"min": 0, "max": 1} if panel.kind == "gauge" else {"min": 0}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **bounds}, "overrides": []},
        "targets": [
            {"datasource": source, "refId": chr(ord("A") + number), "expr": query, "legendFormat": legend or "__auto"}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _job() -> dict[str, Any]:
    return {
        "name": "job",
        "label": "Run",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": {"query": "label_values(ray_shardlabel_units_done, job)", "refId": "job"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def main() -> None:
    """Print the dashboard."""
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
