"""Prometheus's own file, as far as a scrape needs: its keys, and jobs whose names differ."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.validate.documents import Document, Fault
from cluster.validate.schema import Schema, check

# What Prometheus 3 documents; the discovery of targets is left open.
TOP = ("global", "rule_files", "scrape_config_files", "scrape_configs", "alerting", "remote_write", "remote_read",
       "storage", "tracing", "otlp", "runtime")  # fmt: skip
JOB = (
    "scrape_timeout", "scrape_interval", "scrape_protocols", "metrics_path", "honor_labels", "honor_timestamps",
    "track_timestamps_staleness", "scheme", "params", "basic_auth", "authorization", "oauth2", "follow_redirects",
    "enable_http2", "tls_config", "proxy_url", "proxy_from_environment", "no_proxy", "proxy_connect_header",
    "http_headers", "relabel_configs", "metric_relabel_configs", "body_size_limit", "sample_limit", "label_limit",
    "label_name_length_limit", "label_value_length_limit", "target_limit", "keep_dropped_targets",
    "fallback_scrape_protocol", "native_histogram_bucket_limit", "native_histogram_min_bucket_factor",
    "scrape_classic_histograms", "always_scrape_classic_histograms", "enable_compression", "scrape_class",
)  # fmt: skip
DISCOVERIES = ("static", "file", "http", "dns", "kubernetes", "ec2", "gce", "azure", "consul", "openstack", "docker")
SCHEMA: Schema = {
    "type": "object",
    "required": ["scrape_configs"],
    "properties": {
        **{name: {} for name in TOP},
        "scrape_configs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["job_name"],
                "properties": {
                    "job_name": {"type": "string", "minLength": 1},
                    **{name: {} for name in JOB},
                    **{f"{kind}_sd_configs": {"type": "array"} for kind in DISCOVERIES if kind != "static"},
                    "static_configs": {"type": "array"},
                },
            },
        },
    },
}


def check_prometheus(document: Document) -> Iterator[Fault]:
    """Yield unknown keys and jobs of the same name."""
    for path, reason in check(document.value, SCHEMA):
        yield document.fault(path, reason)
    jobs = document.get("scrape_configs")
    seen: set[str] = set()
    for number, job in enumerate(jobs if isinstance(jobs, list) else []):
        name = job.get("job_name") if isinstance(job, dict) else None
        if isinstance(name, str) and name in seen:
            yield document.fault(("scrape_configs", number, "job_name"), f"two jobs are called {name!r}")
        seen.add(str(name))
