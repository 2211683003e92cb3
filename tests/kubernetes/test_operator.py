"""What KubeRay's operator makes of the rendered manifests: pods, services, the job that submits. No kubelet runs them."""

from __future__ import annotations

import copy

import pytest
import yaml

from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from tests.kubernetes.control_plane import wait_for
from tests.support.manifests import documents

NAMESPACE = "default"


def named(items, name):
    return next((one for one in items if one["metadata"]["name"] == name), None)


def pods_of(api, cluster):
    return api.list(f"v1/namespaces/{NAMESPACE}/pods", labelSelector=f"ray.io/cluster={cluster}")


def cluster_of(api, owner):
    """Return the RayCluster that a resource owns, once it is there."""

    def find():
        clusters = api.list(f"ray.io/v1/namespaces/{NAMESPACE}/rayclusters")
        return next(
            (one for one in clusters if one["metadata"].get("ownerReferences", [{}])[0].get("name") == owner), None
        )

    return wait_for(find, f"{owner} has no RayCluster; see ray-operator.log")


def of_type(pods, node_type):
    return [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == node_type]


def run(api, pod, address):
    """Say of a pod what a kubelet would."""
    container = pod["spec"]["containers"][0]["name"]
    state = {
        "name": container,
        "ready": True,
        "restartCount": 0,
        "image": "x",
        "imageID": "x",
        "state": {"running": {}},
    }
    status = {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "containerStatuses": [state],
        "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")],
    }  # fmt: skip
    path = f"api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}/status"
    done = api.call("PATCH", path, {"status": status})
    assert done.ok, done.text


def made(api, name, target):
    """Create what a target renders; return its documents, its cluster and that one's pods."""
    found = list(yaml.safe_load_all(render(Target(target), build_configuration([f"name={name}"]))))
    for document in found:
        done = api.create(document)
        assert done.ok, done.text
    cluster = cluster_of(api, name)
    least = 1 + sum(group["minReplicas"] for group in cluster["spec"]["workerGroupSpecs"])
    pods = wait_for(
        lambda: (pods := pods_of(api, cluster["metadata"]["name"])) and len(pods) >= least and pods,
        f"{name}: fewer than {least} pods; see ray-operator.log",
    )
    return found, cluster, pods


@pytest.fixture(scope="module")
def job(with_operator):
    return made(with_operator, "pets", "rayjob")


@pytest.fixture(scope="module")
def service(with_operator):
    return made(with_operator, "online", "rayservice")


@pytest.mark.parametrize("which", ["job", "service"])
def test_the_pods_are_started_with_what_the_manifest_says(which, request):
    _, cluster, pods = request.getfixturevalue(which)
    spec = cluster["spec"]
    (head,) = of_type(pods, "head")
    templates = {
        "headgroup": spec["headGroupSpec"],
        **{group["groupName"]: group for group in spec["workerGroupSpecs"]},
    }

    for pod in pods:
        wanted = templates[pod["metadata"]["labels"]["ray.io/group"]]["template"]["spec"]["containers"][0]
        container = pod["spec"]["containers"][0]
        command = " ".join([*container.get("command", []), *container.get("args", [])])
        assert "ray start" in command
        assert ("--head" in command) == (pod is head)
        assert container["resources"] == wanted["resources"]
        assert container["image"] == wanted["image"]
        assert container.get("lifecycle") == wanted.get("lifecycle")
        assert {mount["name"] for mount in wanted.get("volumeMounts", [])} <= {
            m["name"] for m in container["volumeMounts"]
        }
        assert {"livenessProbe", "readinessProbe"} <= container.keys()


@pytest.mark.parametrize("which", ["job", "service"])
def test_every_pod_asks_for_the_token_of_one_secret(which, request, with_operator):
    _, cluster, pods = request.getfixturevalue(which)
    secrets = set()
    for pod in pods:
        env = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        reference = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        secrets.add((reference["name"], reference["key"]))

    ((secret, key),) = secrets
    there = named(with_operator.list(f"v1/namespaces/{NAMESPACE}/secrets"), secret)
    assert secret == cluster["metadata"]["name"]
    assert len(there["data"][key]) > 30


@pytest.mark.parametrize("which", ["job", "service"])
def test_the_policy_is_one_of_these_pods(which, request):
    found, _, pods = request.getfixturevalue(which)
    (policy,) = [document for document in found if document["kind"] == "NetworkPolicy"]

    selected = policy["spec"]["podSelector"]["matchLabels"]

    assert all(selected.items() <= pod["metadata"]["labels"].items() for pod in pods)


def test_the_heads_service_has_the_ports_that_the_submitter_asks(job, with_operator):
    _, cluster, pods = job
    name = cluster["metadata"]["name"]
    services = with_operator.list(f"v1/namespaces/{NAMESPACE}/services")
    head = next(
        one for one in services if one["metadata"]["name"].startswith(name) and "head" in one["metadata"]["name"]
    )

    ports = {port["name"]: port["port"] for port in head["spec"]["ports"]}
    (pod,) = of_type(pods, "head")

    assert ports["dashboard"] == 8265
    assert head["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_submitter_runs_the_entrypoint_with_the_token_once_the_pods_are_ready(job, with_operator):
    found, cluster, _ = job
    jobs = lambda: with_operator.list(f"batch/v1/namespaces/{NAMESPACE}/jobs")  # noqa: E731
    assert not [one for one in jobs() if one["metadata"]["name"] == "pets"]

    for number, pod in enumerate(pods_of(with_operator, cluster["metadata"]["name"])):
        run(with_operator, pod, f"10.1.0.{number + 1}")
    submitter = wait_for(lambda: named(jobs(), "pets"), "no job submits; see ray-operator.log")

    container = submitter["spec"]["template"]["spec"]["containers"][0]
    command = " ".join([*container["command"], *container.get("args", [])])
    env = {one["name"]: one for one in container["env"]}
    assert "ray job submit" in command
    assert found[-1]["spec"]["entrypoint"] in command
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == cluster["metadata"]["name"]
    assert "8265" in env["RAY_DASHBOARD_ADDRESS"]["value"]
    assert container["resources"] == found[-1]["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["resources"]
    assert submitter["spec"]["backoffLimit"] >= 0


def test_what_its_rules_refuse_makes_no_pod(with_operator):
    refused = copy.deepcopy(documents("rayjob")[-1])
    refused["metadata"]["name"] = "refused"
    refused["spec"] |= {"backoffLimit": 2, "submissionMode": "InteractiveMode"}
    done = with_operator.create(refused)
    assert done.ok, done.text

    def events():
        found = with_operator.list(f"v1/namespaces/{NAMESPACE}/events")
        return [
            one["message"] for one in found if one["involvedObject"]["name"] == "refused" and one["type"] == "Warning"
        ]

    (message, *_) = wait_for(events, "no event tells of it")
    assert "BackoffLimit is incompatible with InteractiveMode" in message
    clusters = with_operator.list(f"ray.io/v1/namespaces/{NAMESPACE}/rayclusters")
    assert not [one for one in clusters if one["metadata"]["name"].startswith("refused")]


def test_a_raycronjob_starts_a_job_of_what_was_rendered(with_operator):
    job = documents("rayjob")[-1]
    spec = {"schedule": "* * * * *", "jobTemplate": job["spec"]}
    done = with_operator.create({**job, "kind": "RayCronJob", "metadata": {"name": "nightly"}, "spec": spec})
    assert done.ok, done.text

    def started():
        jobs = with_operator.list(f"ray.io/v1/namespaces/{NAMESPACE}/rayjobs")
        return next((one for one in jobs if one["metadata"]["name"].startswith("nightly")), None)

    assert (
        wait_for(started, "nothing was started within two minutes")["spec"]["entrypoint"] == job["spec"]["entrypoint"]
    )
