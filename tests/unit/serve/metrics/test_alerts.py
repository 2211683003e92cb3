"""The alerts: Prometheus' own tool evaluates them on made-up series; each fires, and each does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[4]
ALERTS = ROOT / "serve" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_rules():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(ALERTS))


@needs_promtool
def test_promtool_accepts_what_is_scraped_with_the_rules_beside_it(tmp_path):
    shutil.copy(ALERTS, tmp_path)
    config = yaml.safe_load((ROOT / "cluster" / "prometheus.yaml").read_text())
    # Debian's Prometheus is built without Kubernetes.
    config["scrape_configs"] = [job for job in config["scrape_configs"] if "kubernetes_sd_configs" not in job]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))

    assert f"{len(RULES)} rules found" in promtool("check", "config", str(tmp_path / "prometheus.yaml"))


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_else(tmp_path):
    rules = yaml.safe_load(ALERTS.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]  # promtool would want their text too
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    # As text: to Python's YAML 0x60, sixty times a zero, is a number.
    (tmp_path / "cases.yaml").write_text(CASES.read_text().replace("../../../../serve/", ""))

    promtool("test", "rules", str(tmp_path / "cases.yaml"))


def test_each_alert_has_a_case_where_it_fires_and_one_where_it_does_not():
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}

    assert {rule["alert"] for rule in RULES} == fires
    assert fires - silent == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "action"} <= rule["annotations"].keys()
    assert rule["for"]
    assert rule["alert"] in (ROOT / "docs" / "operating.md").read_text()


def test_the_bounds_that_are_settings_are_those_of_the_defaults():
    from serve.config import ServeConfig, plan_replica

    bounds = {
        rule["alert"]: float(re.search(r"> ([\d.]+)$", rule["expr"])[1]) for rule in RULES if "> " in rule["expr"][-8:]
    }

    assert bounds["ShardlabelSlow"] == ServeConfig().deadline_s / 2
    assert bounds["ShardlabelQueueNearlyFull"] == int(0.8 * plan_replica(ServeConfig(), on_gpu=False, cpus=1).max_queue)
