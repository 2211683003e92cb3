"""What KubeRay makes of a rendered manifest, run up to Ray: a stand-in for `ray` writes down what it is told."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
import yaml

from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from tests.support.kuberay_pods import PodCommand, head_pod, submitter, worker_pod

TOKEN = {"token": "t", "secrets": {"AWS_REGION": "eu-central-1"}}


def spec_of(target, *words):
    return list(yaml.safe_load_all(render(target, build_configuration(list(words)))))[-1]["spec"]


def told(command: PodCommand, folder, argv=None) -> list[list[str]]:
    """Run a pod's command with a `ray` that knows no job and does nothing; return the words of each call."""
    ray = folder / "ray"
    ray.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" >> {folder}/calls; echo >> {folder}/calls\n[ "$2" != status ]\n')
    ray.chmod(0o755)
    env = {**command.env, "PATH": f"{folder}:/usr/bin:/bin"}
    subprocess.run(argv or command.argv, check=True, env=env, capture_output=True, timeout=30)
    return [call.rstrip("\0").split("\0") for call in (folder / "calls").read_text().splitlines()]


def test_the_entrypoint_reaches_the_job_as_it_was_rendered(tmp_path):
    job = spec_of(Target.RAYJOB, "job.source=s3://b/x-{00..09}.tar", "job.env=A=it's b,B=2")

    _, submit, logs = told(submitter(job, "id-1", "10.0.0.1", token="t"), tmp_path)

    options, entrypoint = submit[: submit.index("--")], submit[submit.index("--") + 1 :]
    assert entrypoint == shlex.split(job["entrypoint"])
    assert json.loads(options[options.index("--runtime-env-json") + 1]) == {"env_vars": {"A": "it's b", "B": "2"}}
    assert logs[-1] == "id-1"


@pytest.mark.parametrize("target", [Target.RAYJOB, Target.RAYSERVICE])
def test_ray_knows_every_option_that_its_nodes_are_started_with(target, tmp_path):
    from ray.scripts.scripts import cli

    known = {name for option in cli.commands["start"].params for name in option.opts}
    spec = spec_of(target)
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    pods = [head_pod(cluster, **TOKEN, serves=False)]
    pods += [worker_pod(group, "10.0.0.1", **TOKEN, serves=False) for group in cluster["workerGroupSpecs"]]

    calls = [call for number, pod in enumerate(pods) for call in told(pod, folder(tmp_path, number))]

    assert len(calls) == len(pods)
    for call in calls:
        assert call[0] == "start"
        assert {word.partition("=")[0] for word in call[1:]} <= known
    assert "--head" in calls[0]
    assert "--num-cpus=0" in calls[0]
    assert f"--memory={26 * 2**30}" in calls[1]
    assert "--address=10.0.0.1:6379" in calls[1]


def folder(above, number):
    made = above / str(number)
    made.mkdir()
    return made
