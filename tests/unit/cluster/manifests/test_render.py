from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.manifests.pods import drain_command
from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration, list_settings
from cluster.validate.entrypoint import parse_entrypoint
from models.errors import ConfigError
from tests.support.manifests import faults_of

ROOT = Path(__file__).parents[4]
COMMITTED = {"rayjob": "rayjob.yaml", "rayservice": "rayservice.yaml", "ray-up": "ray-up.yaml"}
VARIANTS = {
    "cpu": ["device=cpu", "cpu.min=2"],
    "no policy": ["network_policy=false"],
    "another namespace": ["namespace=vision", "name=pets"],
    "secrets": ["storage_secret=s3", "auth_secret=ray-token", "image.pull_secret=registry", "service.api_keys_secret=keys"],
    "a volume for models": ["cache_claim=models", "model=efficientnet-lite0", "model_mirror=https://mirror.example.com/m"],
    "spot required": ["gpu.spot=require", "cpu.spot=no", "gpu.node_selector=pool=a100,zone=b"],
    "submitted by HTTP": ["job.submission=HTTPMode", "job.deadline_s=3600", "job.env="],
    "beside the head": ["job.submission=SidecarMode", "job.retries=0"],
    "calibrated": ["service.calibration=s3://bucket/calibration.json", "job.options=--calibration,s3://bucket/c.json"],
    "Redis": ["service.redis_address=redis:6379", "service.redis_secret=redis"],
    "many replicas": ["service.min_replicas=3", "service.max_replicas=12", "gpu.max=6", "gpu.gpus=2", "gpu.cpus=15"],
    "Kueue": ["queue.scheduler=kueue", "queue.name=vision", "queue.priority=low"],
    "Kueue, of one size": ["queue.scheduler=kueue", "queue.name=vision", "autoscaling=false"],
    "Volcano": ["queue.scheduler=volcano", "queue.name=vision", "queue.priority=low"],
    "YuniKorn": ["queue.scheduler=yunikorn", "queue.name=root.vision"],
    "nightly": ["job.schedule=0 2 * * 1-5", "job.start_deadline_s=1800", "name=nightly"],
    "spot first": ["gpu.spot=first", "cpu.spot=first", "service.spot=first"],
    "impatient": ["job.start_deadline_s=1800", "job.deadline_s=7200", "service.start_deadline_s=1800"],
    "step by step": ["service.upgrade.gateway_class=istio", "service.upgrade.step_percent=25"],
    "a folder of the node": ["cache_host_path=/var/lib/shardlabel"],
    "no budget": ["disruption_budget=false", "service.spread=false", "service.min_replicas=3"],
    "options of serve": ["service.options=top_k=3,deadline_s=45.5,decode=exact,access_log=/tmp/access.log", "device=cpu"],
    "several sources": ["job.source=s3://b/a-{0,1}.tar,s3://b/c/*.tar", "job.options=--top-k,3,--decode,exact"],
}  # fmt: skip


def documents(target, *words):
    return list(yaml.safe_load_all(render(Target(target), build_configuration(list(words)))))


def cluster_of(found):
    """Return the Ray cluster of what was rendered."""
    spec = found[-1]["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


@pytest.mark.parametrize("target", COMMITTED)
def test_the_committed_manifest_is_what_the_defaults_render(target):
    rendered = render(Target(target), build_configuration([]))

    assert (ROOT / "cluster" / COMMITTED[target]).read_text() == rendered


@pytest.mark.parametrize("target", COMMITTED)
def test_the_same_settings_give_the_same_text(target):
    words = ["job.env=B=1,A=2", "gpu.node_selector=z=1,a=2"]

    assert render(Target(target), build_configuration(words)) == render(Target(target), build_configuration(words))


@pytest.mark.parametrize("target", COMMITTED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_rendered_is_valid(target, variant, tmp_path):
    text = render(Target(target), build_configuration(VARIANTS[variant]))

    # The keys lie in the pod, and the file is not here: that it is missing is no fault of the manifest.
    assert faults_of(tmp_path, text) == []


@pytest.mark.parametrize("target", ["rayjob", "rayservice"])
def test_no_container_runs_as_root_or_without_limits(target):
    cluster = cluster_of(documents(target, "gpu.max=2"))
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    unprivileged = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

    for pod in pods:
        spec = pod["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"] == {**unprivileged, "readOnlyRootFilesystem": True}
            # What Ray writes, and nothing of the image.
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert {"name": "tmp", "emptyDir": {}} in spec["volumes"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
    # KubeRay's own container, which it starts beside the head.
    assert cluster["autoscalerOptions"]["securityContext"] == unprivileged
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_the_head_keeps_off_spot_nodes_and_workers_look_for_them():
    *_, job = documents("rayjob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]

    must = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {rule["operator"] for rule in must[0]["matchExpressions"]} == {"NotIn"}
    assert "tolerations" not in head
    assert "preferredDuringSchedulingIgnoredDuringExecution" in worker["affinity"]["nodeAffinity"]
    assert any(taint["key"] == "cloud.google.com/gke-spot" for taint in worker["tolerations"])


def test_a_worker_that_is_stopped_has_time_to_finish():
    *_, job = documents("rayjob", "drain_s=40")
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]

    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "--deadline-remaining-seconds 40 || exit 0; for second in $(seq 40)" in command
    assert worker["terminationGracePeriodSeconds"] > 40
    assert {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "0"} in worker["containers"][0]["env"]


@pytest.mark.parametrize(("ray", "looks"), [("exit 0", 2), ("exit 1", 0)])
def test_the_drain_ends_with_the_raylet_or_where_it_cannot_begin(ray, looks, tmp_path):
    for name, script in (
        ("ray", ray),
        ("sleep", ":"),
        ("pgrep", f'echo x >> {tmp_path}/l; test "$(wc -l < {tmp_path}/l)" -lt 2'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    done = subprocess.run(
        ["/bin/sh", "-c", drain_command(1000)], check=False, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=30
    )

    looked = (tmp_path / "l").read_text().count("x") if (tmp_path / "l").exists() else 0
    assert (done.returncode, looked) == (0, looks)


def test_ray_has_what_the_drain_asks_of_it():
    import ray._private.ray_constants
    from ray.scripts.scripts import cli

    command = drain_command(40).split(" || ")[0]
    options = {name for option in cli.commands["drain-node"].params for name in option.opts}

    assert command.startswith("ray drain-node ")
    assert {word for word in shlex.split(command) if word.startswith("--")} <= options
    assert hasattr(ray._private.ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")


def test_a_calibration_reaches_the_endpoint():
    text = render(Target.RAYSERVICE, build_configuration(VARIANTS["calibrated"]))
    serve = yaml.safe_load(list(yaml.safe_load_all(text))[-1]["spec"]["serveConfigV2"])

    assert serve["applications"][0]["args"]["calibration"] == "s3://bucket/calibration.json"


def test_secrets_are_references():
    text = render(Target.RAYSERVICE, build_configuration(VARIANTS["secrets"]))
    *_, service = yaml.safe_load_all(text)

    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert {"name": "api-keys", "secret": {"secretName": "keys"}} in head["volumes"]


def test_ray_up_keeps_the_dashboard_on_loopback_and_asks_for_the_token():
    (config,) = documents("ray-up")

    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]


def test_the_entrypoint_is_the_run_that_was_asked_for():
    *_, job = documents("rayjob", "job.source=s3://b/x-{00..09}.tar", "job.output=s3://b/out", "job.options=--top-k,3")

    config = parse_entrypoint(job["spec"]["entrypoint"])

    assert config is not None
    assert (config.source, config.output, config.top_k) == (("s3://b/x-{00..09}.tar",), "s3://b/out", 3)
    assert config.actor_bounds() == (1, 4)


HOSTILE = [
    "a\nkind: Pod", "a: b", "- a", "&a", "*a", "!!python/object:os.system", "{a: b}", "'", '"', "`id`", "$(id)", "a;id",
    "a b", "a|b", "a>b", "\x00", "\u2028x", "#a b", "@list.txt\n", "a\\", "%TAG", "",
]  # fmt: skip


@pytest.mark.parametrize(
    "key", ["name", "namespace", "model", "job.output", "job.source", "image.repository", "image.tag", "storage_secret"]
)
def test_a_hostile_value_is_refused_or_stays_a_value(key):
    for value in HOSTILE:
        refused_or_stays(key, value)


def test_a_gpu_worker_of_more_cpus_than_a_replica_may_have_is_rendered():
    refused_or_stays("gpu.cpus", "300")


def refused_or_stays(key, value):
    try:
        config = build_configuration([f"{key}={value}"])
    except ConfigError:
        return
    stays_where_it_is(config)


@settings(max_examples=100, deadline=None)
@given(
    key=st.sampled_from([key for key, _, _ in list_settings()]),
    value=st.one_of(
        st.text(max_size=30), st.from_regex(r"[a-zA-Z0-9{}\[\]*?~^!&#:,./@%=+' \n\"$-]{0,20}", fullmatch=True)
    ),
)
def test_any_value_is_refused_or_stays_a_value(key, value):
    refused_or_stays(key, value)


@pytest.mark.parametrize("key", ["job.source", "job.output", "job.options", "model_mirror"])
def test_credentials_in_a_uri_are_not_rendered(key):
    with pytest.raises(ConfigError, match=r"must hold no credentials.*storage_secret"):
        build_configuration([f"{key}=https://KEYID:W0RD@bucket/x"])


@pytest.mark.parametrize("target", [Target.RAYJOB, Target.RAYSERVICE])
def test_the_dashboard_is_open_to_the_operator_of_one_namespace_and_to_no_other(target):
    config = build_configuration(["operator_namespace=kuberay-system"])
    policy = next(d for d in yaml.safe_load_all(render(target, config)) if d["kind"] == "NetworkPolicy")

    rules = [rule for rule in policy["spec"]["ingress"] if {"protocol": "TCP", "port": 8265} in rule.get("ports", [])]

    assert [peer for rule in rules for peer in rule["from"]] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
        }
    ]


def stays_where_it_is(config):
    """Hold that every target is YAML of the usual documents, and the entrypoint one command for a shell."""
    for target in Target:
        found = list(yaml.load_all(render(target, config), Loader=yaml.CSafeLoader))
        kinds = [document.get("kind", "ray up") for document in found]
        policy = ["NetworkPolicy"] if config.network_policy else []
        budget = ["PodDisruptionBudget"] if config.disruption_budget else []
        of_workers = budget if max(config.gpu.min, config.service.min_replicas) > 1 else []
        assert (
            kinds
            == {
                Target.RAYJOB: [*policy, *budget, "RayCronJob" if config.job.schedule else "RayJob"],
                Target.RAYSERVICE: [*policy, *of_workers, "Service", "RayService"],
                Target.RAY_UP: ["ray up"],
            }[target]
        )
        if target is Target.RAYJOB:
            entrypoint = found[-1]["spec"].get("jobTemplate", found[-1]["spec"])["entrypoint"]
            words = shlex.split(entrypoint)
            assert words[:2] == ["shardlabel", "label"]
            assert words[2 : 2 + len(config.job.source)] == list(config.job.source)
            assert not re.search(r"[`$;|<>\n\\]", entrypoint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nam=x"], "unknown setting 'nam'; did you mean 'name'?"),
        (["gpu.maxx=3"], "unknown setting 'gpu.maxx'; did you mean 'gpu.max'?"),
        (["output=s3://b/x"], "unknown setting 'output'; did you mean 'job.output'?"),
        (["workers=3"], "unknown setting 'workers'; see --list-settings"),
        (["memory=8Gi"], "did you mean 'head.memory' or 'gpu.memory' or 'cpu.memory'?"),
        (["image=a/b:c"], "setting 'image' is a group, got 'a/b:c'; set image.repository, image.tag"),
        (["gpu.min=5"], "gpu: min must not be above max, got min=5 and max=4"),
        (["gpu.min=0"], "gpu.min must be at least 1 with device=cuda, got 0"),
        (["gpu.max=many"], "gpu.max: input should be a valid integer"),
        (["name"], "--set needs key=value, got 'name'"),
        (["name.first=x"], "name"),
        (["job.env=A"], "--set job.env needs name=value,name=value, got 'A'"),
        (["queue.name=a"], "scheduler and name need each other, got scheduler=None and name=a"),
        (["queue.scheduler=yunikorn", "queue.name=a", "queue.priority=b"], "priority needs scheduler=kueue or volcano"),
        (
            ["queue.scheduler=kueue", "queue.name=a", "job.schedule=@daily"],
            "KubeRay gives the jobs of a schedule no labels",
        ),
        (["job.schedule=daily"], "job.schedule: string should match"),
        (["job.schedule=@daily", f"name={'a' * 37}"], "name must have at most 36 characters with job.schedule, got 37"),
        (["gpu.spot=first", "autoscaling=false"], "spot=first needs autoscaling=true"),
        (["service.upgrade.gateway_class=g", "autoscaling=false"], "gateway_class needs autoscaling=true"),
        (
            ["service.upgrade.max_surge_percent=5"],
            "step_percent must not be above max_surge_percent, got step_percent=10",
        ),
        (["cache_claim=a", "cache_host_path=/b"], "two places for models"),
        (["cache_host_path=/var/../etc"], "cache_host_path: string should match"),
        (["service.options=top_kk=3"], "'top_kk' is not one of access_log, baseline, batch_size"),
        (["service.options=model=x"], "'model' is not one of"),
        (["service.options=top_k=0"], "service.options: top_k: Input should be greater than or equal to 1"),
        (["device=tpu"], "device: input should be 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(words, message):
    with pytest.raises(ConfigError) as caught:
        build_configuration(words)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_set_comes_before_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("name: fromfile\ngpu:\n  max: 7\n  min: 2\n")

    config = build_configuration(["name=fromset", "gpu.max=9"], file)

    assert (config.name, config.gpu.max, config.gpu.min) == ("fromset", 9, 2)


@pytest.mark.parametrize("value", ["$(id)", "`id`", "a\nb", "\\", '"'])
def test_environment_that_the_submitters_shell_would_read_is_refused(value):
    # KubeRay passes the runtime environment to `ray job submit` between double quotes.
    with pytest.raises(ConfigError, match=r"job\.env"):
        build_configuration([f"job.env=A={value}"])


def test_every_setting_is_described():
    for key, _, about in list_settings():
        assert about, key


def test_the_endpoints_environment_is_what_ray_reads_and_the_image_has():
    import ray.serve._private.constants

    from cluster.manifests.rayservice import LAUNCHER
    from serve.config import ServeConfig
    from serve.environment import of_every_node, of_haproxy

    known = Path(ray.serve._private.constants.__file__).read_text()
    for name in of_every_node(ServeConfig()) | of_haproxy(ServeConfig(), LAUNCHER):
        assert name in known or name == "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", name
    folder, _, script = LAUNCHER.rpartition("/")
    assert f"PATH={folder}:" in (ROOT / "cluster/Dockerfile").read_text()
    assert f"{script} = " in (ROOT / "pyproject.toml").read_text()


def test_the_endpoint_starts_with_workers_for_its_least_replicas():
    *_, service = documents("rayservice", "service.min_replicas=5", "service.max_replicas=5", "gpu.gpus=2", "gpu.max=4")

    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]

    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (3, 3, 4)


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["kueue", "low"], {"kueue.x-k8s.io/queue-name": "vision", "kueue.x-k8s.io/priority-class": "low"}),
        (["volcano", "low"], {"volcano.sh/queue-name": "vision", "ray.io/priority-class-name": "low"}),
        (["yunikorn", ""], {"yunikorn.apache.org/app-id": "shardlabel", "yunikorn.apache.org/queue": "vision"}),
    ],
)
@pytest.mark.parametrize("target", ["rayjob", "rayservice"])
def test_a_queue_is_named_where_its_scheduler_looks(target, words, labels):
    scheduler, priority = words

    *others, resource = documents(
        target, f"queue.scheduler={scheduler}", "queue.name=vision", f"queue.priority={priority}"
    )

    assert resource["metadata"]["labels"] == labels
    # What waits is the cluster alone.
    assert not any(labels.keys() & other["metadata"].get("labels", {}).keys() for other in others)


@pytest.mark.parametrize(("autoscaling", "elastic"), [("true", True), ("false", False)])
def test_kueue_is_told_of_a_cluster_that_grows(autoscaling, elastic):
    *_, job = documents("rayjob", "queue.scheduler=kueue", "queue.name=vision", f"autoscaling={autoscaling}")

    assert (job["metadata"].get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true") is elastic


def test_a_cluster_that_does_not_grow_has_all_its_workers_and_nothing_of_the_autoscaler():
    cluster = cluster_of(documents("rayjob", "autoscaling=false", "gpu.max=3"))

    assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & cluster.keys()
    assert [group["replicas"] for group in cluster["workerGroupSpecs"]] == [3, 8]
    assert not any("idleTimeoutSeconds" in group for group in cluster["workerGroupSpecs"])


def test_spot_first_grows_spot_nodes_before_others_and_keeps_the_least_on_others():
    cluster = cluster_of(documents("rayjob", "gpu.spot=first", "gpu.min=2", "gpu.max=6", "cpu.spot=no"))

    spot, others, _ = cluster["workerGroupSpecs"]
    assert (spot["groupName"], spot["minReplicas"], spot["maxReplicas"]) == ("gpu-spot", 0, 6)
    assert (others["groupName"], others["minReplicas"], others["maxReplicas"]) == ("gpu", 2, 6)
    assert spot["priority"] > others.get("priority", 0)
    affinity = spot["template"]["spec"]["affinity"]["nodeAffinity"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" in affinity
    assert "affinity" not in others["template"]["spec"]


def test_ray_reads_the_priority_of_a_group():
    from ray.autoscaler._private.kuberay.autoscaling_config import PRIORITY_KEY

    spot, *_ = cluster_of(documents("rayjob", "gpu.spot=first"))["workerGroupSpecs"]

    assert spot[PRIORITY_KEY] == 10


def test_a_nightly_run_appends_to_what_is_there():
    *_, cron = documents("rayjob", "job.schedule=0 2 * * *", "job.options=--top-k,3")

    config = parse_entrypoint(cron["spec"]["jobTemplate"]["entrypoint"])

    assert (cron["kind"], cron["spec"]["schedule"]) == ("RayCronJob", "0 2 * * *")
    assert (config.append, config.top_k) == (True, 3)


def test_a_run_that_does_not_begin_and_an_endpoint_that_is_not_ready_are_given_up():
    words = ["job.start_deadline_s=60", "service.start_deadline_s=90"]
    *_, job = documents("rayjob", *words)
    *_, service = documents("rayservice", *words)

    assert job["spec"]["preRunningDeadlineSeconds"] == 60
    assert service["metadata"]["annotations"] == {"ray.io/initializing-timeout": "90"}


def test_an_endpoint_is_upgraded_step_by_step_where_a_gateway_is_named():
    *_, plain = documents("rayservice")
    *_, service = documents("rayservice", "service.upgrade.gateway_class=istio", "service.upgrade.step_percent=25")

    assert plain["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert service["spec"]["upgradeStrategy"] == {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": "istio",
            "stepSizePercent": 25,
            "intervalSeconds": 60,
            "maxSurgePercent": 100,
        },
    }


def test_options_of_serve_reach_the_endpoint_with_their_types():
    from serve.config import ServeConfig

    *_, service = documents("rayservice", "service.options=top_k=3,deadline_s=45.5,decode=exact", "device=cpu")
    args = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    head = cluster_of([service])["headGroupSpec"]["template"]["spec"]["containers"][0]

    served = ServeConfig.model_validate(args, strict=False)
    assert (args["top_k"], args["deadline_s"], args["decode"]) == (3, 45.5, "exact")
    assert (served.top_k, served.deadline_s) == (3, 45.5)
    # A request's time is told to the proxy before it too.
    assert {"name": "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", "value": "66"} in head["env"]


def test_every_option_of_serve_can_be_set():
    from serve.config import ServeConfig

    told = yaml.safe_load(
        documents("rayservice", "service.calibration=s3://b/c.json", "service.api_keys_secret=k")[-1]["spec"][
            "serveConfigV2"
        ]
    )
    settable = {key: about for key, _, about in list_settings()}["service.options"]

    for name in ServeConfig.model_fields:
        assert name in told["applications"][0]["args"] or name in settable, name


def test_a_replica_of_many_cpus_has_workers_for_the_least_replicas():
    words = ["device=cpu", "service.options=replica_cpus=4", "service.min_replicas=3"]

    (group,) = cluster_of(documents("rayservice", *words))["workerGroupSpecs"]

    # Seven CPUs hold one replica of four.
    assert group["minReplicas"] == 3
    with pytest.raises(ConfigError, match=r"replica_cpus=9 does not fit a worker of 7 CPUs"):
        documents("rayservice", "device=cpu", "service.options=replica_cpus=9")


def test_two_replicas_with_half_a_gpu_each_have_one_worker():
    words = ["service.options=gpus_per_replica=0.5", "service.min_replicas=2", "gpu.gpus=1"]

    (group,) = cluster_of(documents("rayservice", *words))["workerGroupSpecs"]

    assert group["minReplicas"] == 1


def test_an_emptied_node_waits_for_the_head_of_a_run():
    _, budget, _ = documents("rayjob", "name=pets")

    assert budget["kind"] == "PodDisruptionBudget"
    assert budget["spec"]["minAvailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/instance": "pets",
        "ray.io/node-type": "head",
    }


@pytest.mark.parametrize(("replicas", "stay"), [(1, []), (2, [1]), (5, [4])])
def test_workers_of_the_endpoint_leave_one_after_the_other(replicas, stay):
    found = documents("rayservice", f"service.min_replicas={replicas}", "service.max_replicas=8", "gpu.max=8")

    budgets = [document["spec"]["minAvailable"] for document in found if document["kind"] == "PodDisruptionBudget"]

    assert budgets == stay


def test_workers_of_the_endpoint_are_spread_and_those_of_a_run_are_not():
    def constraints(target):
        (group, *_) = cluster_of(documents(target))["workerGroupSpecs"]
        return group["template"]["spec"].get("topologySpreadConstraints", [])

    keys = [constraint["topologyKey"] for constraint in constraints("rayservice")]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert {constraint["whenUnsatisfiable"] for constraint in constraints("rayservice")} == {"ScheduleAnyway"}
    # Between zones every byte of an image would cost.
    assert constraints("rayjob") == []


def test_pods_of_a_node_share_its_folder_of_models():
    cluster = cluster_of(documents("rayjob", "cache_host_path=/var/lib/shardlabel"))

    for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = pod["template"]["spec"]
        # Kubernetes would make a folder that is not there root's.
        assert {"name": "models", "hostPath": {"path": "/var/lib/shardlabel", "type": "Directory"}} in spec["volumes"]
        assert {"name": "models", "mountPath": "/cache"} in spec["containers"][0]["volumeMounts"]
