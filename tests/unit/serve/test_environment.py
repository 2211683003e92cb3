"""One table of what Ray Serve is told: the command, the manifests and the docs have the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from serve.config import ServeConfig, ServeOptions
from serve.environment import GRPC_SERVICER, of_every_node, of_haproxy

ROOT = Path(__file__).parents[3]
# What differs between a laptop and a cluster, and has to.
OF_THE_MACHINE = {"RAY_SERVE_HAPROXY_BINARY_PATH"}


def told(*words: str) -> list[dict[str, str]]:
    """Return the environment of each container of the endpoint's manifest."""
    *_, service = yaml.safe_load_all(render(Target.RAYSERVICE, build_configuration(list(words))))
    cluster = service["spec"]["rayClusterConfig"]
    return [
        {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
    ]


def table() -> dict[str, str]:
    config = ServeConfig()
    return of_every_node(config) | of_haproxy(config, "shardlabel-haproxy")


def test_every_container_of_the_manifest_is_told_what_the_command_tells_its_own(monkeypatch, tmp_path):
    from serve.local import launch

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(launch, "_set_here", set())
    launch._set_environment(ServeOptions(), tmp_path)
    shared = {name: value for name, value in os.environ.items() if name in table()}

    assert shared.keys() == table().keys()
    for container in told():
        for name in shared.keys() - OF_THE_MACHINE:
            assert container[name] == shared[name], name


def test_a_message_may_have_what_a_request_may_and_no_more():
    limits = {container["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] for container in told()}

    assert limits == {str(64 * 2**20)}
    large = ServeConfig(max_request_bytes=2**28, max_body_memory=2**30)
    assert of_every_node(large)["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] == str(2**28 + 2**20)


def test_the_docs_list_the_table():
    text = (ROOT / "docs" / "serving.md").read_text()
    listed = dict(re.findall(r'(RAY_\w+)=("[^"]*"|\S+)', " ".join(re.findall(r"(?m)^    export (.*)$", text))))

    assert {name: value.strip('"') for name, value in listed.items()} == {
        **table(),
        "RAY_SERVE_HAPROXY_BINARY_PATH": "$(command",
    }


def test_proxies_import_the_servicer_and_no_model():
    for text in ((ROOT / "serve" / "config.yaml").read_text(), render(Target.RAYSERVICE, build_configuration([]))):
        assert re.findall(r"- (\S+:add_to_server)", text) == [GRPC_SERVICER]
    module = GRPC_SERVICER.partition(":")[0]
    code = (
        f"import sys, {module}, serve.local.grpc_listener; print({{'numpy', 'onnxruntime', 'PIL'}} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "set()"
