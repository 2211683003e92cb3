"""The validator as a whole: files, documents, messages, and the schemas that it goes by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from tests.support.manifests import documents, faults_of, write

ROOT = Path(__file__).parents[4]


def run(*words):
    return CliRunner().invoke(build_app(), ["cluster", *map(str, words)])


def test_the_committed_files_have_no_fault():
    files = [
        *(ROOT / "cluster" / f"{name}.yaml" for name in ("rayjob", "rayservice", "ray-up")),
        ROOT / "serve/config.yaml",
    ]

    done = run("validate", *files)

    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == len(files)


def test_faults_exit_2_with_file_line_document_path_and_reason(tmp_path):
    file = tmp_path / "job.yaml"
    text = write(documents("rayjob")).replace("backoffLimit: 2", "backoffLimits: 2")
    file.write_text(text)

    done = run("validate", file)

    line = text.splitlines().index("  backoffLimits: 2") + 1
    expected = f"{file}:{line}: RayJob shardlabel: spec.backoffLimits: "
    expected += "unknown key 'backoffLimits'; did you mean 'backoffLimit'?"
    assert done.exit_code == 2
    assert done.stdout.splitlines() == [expected]


def test_a_line_inside_a_text_is_the_files_line(tmp_path):
    text = write(documents("rayservice")).replace("route_prefix: /", "route_prefixes: /")

    (fault,) = faults_of(tmp_path, text)

    line = next(number for number, line in enumerate(text.splitlines(), 1) if "route_prefixes" in line)
    assert fault.startswith(f"{tmp_path}/manifest.yaml:{line}: ")


def test_json_says_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text("kind: RayJobb\n")

    done = run("validate", tmp_path / "a.yaml", "--json")

    found = json.loads(done.stdout)
    assert done.exit_code == 2
    assert found["ok"] is False
    assert {"file", "line", "document", "path", "reason"} == found["faults"][0].keys()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "expected a mapping, got list"),
        ("a: [1, 2\n", "is not YAML"),
        ("a: b: c\n", "is not YAML"),
        ("x: 1\n", "expected a Kubernetes manifest"),
        ("applicatons: []\nhttp_options: {}\n", "did you mean 'applications'?"),
        ("spec: {}\nmetadata: {name: a}\n", "missing key 'kind'"),
        ("applications: []\n", "expected at least one application"),
        ("scrape_configs:\n- job_name: a\n", "expected a Kubernetes manifest"),
        ("name: !!python/object:os.system {}\n", "is not YAML"),
        ("applications: &a [*a]\n", "is not YAML"),
        ("spec: 1\nspec: 2\nkind: RayJob\n", "the key 'spec' is given twice"),
        ("when: 2026-11-24\nmetadata: 2026-01-01\nkind: RayJob\n", "expected a mapping"),
        ("kind: RayJob\n1: a\n", "keys must be text, got 1"),
        ("kind: [1]\n", "unknown kind"),
        ("kind: RayJob\nmetadata: 5\nspec: 7\n", "expected a mapping, got 7"),
        (
            "kind: RayService\napiVersion: ray.io/v1\nmetadata: {name: a}\nspec: {serveConfigV2: '- a'}\n",
            "expected a mapping",
        ),
    ],
)
def test_what_is_no_manifest_is_said_in_a_line(tmp_path, text, reason):
    faults = faults_of(tmp_path, text)

    assert any(reason in fault for fault in faults), faults
    assert not any("\n" in fault for fault in faults)


def test_a_file_that_grows_by_aliases_is_refused(tmp_path):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))

    faults = faults_of(tmp_path, bomb)

    assert any("more than 200000 values" in fault for fault in faults)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")

    done = run("validate", tmp_path / "latin.yaml", tmp_path / "missing.yaml")

    assert done.exit_code == 2
    assert "latin.yaml:1: file: cannot be read" in done.stdout
    assert "missing.yaml:1: file: cannot be read" in done.stdout


def test_every_fault_of_a_file_is_told(tmp_path):
    broken = documents("rayjob")
    broken[-1]["spec"]["backoffLimit"] = -1
    broken[-1]["spec"]["rayClusterSpec"]["rayVersion"] = "2.9.0"

    faults = faults_of(tmp_path, write(broken))

    assert [word in text for word, text in zip(("backoffLimit", "rayVersion"), faults, strict=True)] == [True] * 2


def test_a_shared_volume_may_be_the_output(tmp_path):
    broken = documents("rayjob")
    spec = broken[-1]["spec"]
    spec["entrypoint"] = spec["entrypoint"].replace("s3://my-bucket/labels", "/shared/labels")
    cluster = spec["rayClusterSpec"]
    for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod["template"]["spec"]["volumes"].append({"name": "s", "persistentVolumeClaim": {"claimName": "s"}})
        pod["template"]["spec"]["containers"][0]["volumeMounts"].append({"name": "s", "mountPath": "/shared"})

    assert faults_of(tmp_path, write(broken)) == []


def test_kinds_that_are_not_checked_are_named_and_never_refused(tmp_path):
    file = tmp_path / "job.yaml"
    policy = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "tidy"}, "spec": {"podFailurePolicy": policy}}
    file.write_text(write([job, *documents("rayjob")]))

    done = run("validate", file)
    as_json = json.loads(run("validate", file, "--json").stdout)

    assert done.exit_code == 0, done.output
    assert (
        f"{file}: not checked: Job tidy; NetworkPolicy shardlabel; PodDisruptionBudget shardlabel-head; what a cluster adds"
        in done.stderr
    )
    assert f"kubectl apply --dry-run=server -f {file}" in done.stderr
    assert as_json["not_checked"][str(file)][:2] == ["Job tidy", "NetworkPolicy shardlabel"]


def test_owners_of_a_resource_are_nothing_wrong(tmp_path):
    found = documents("rayjob")
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "run", "uid": "0"}
    found[-1]["metadata"]["ownerReferences"] = [owner]

    assert faults_of(tmp_path, write(found)) == []


@pytest.mark.parametrize("timeout", ["1800", "30m", "1h30m", "1.5h", "500ms"])
def test_a_time_to_start_is_written_as_go_does(tmp_path, timeout):
    found = documents("rayservice")
    found[-1]["metadata"]["annotations"] = {"ray.io/initializing-timeout": timeout}

    assert faults_of(tmp_path, write(found)) == []


def test_braces_in_a_rule_of_deletion_are_text(tmp_path):
    found = documents("rayjob")
    rule = {"policy": "{x", "condition": {"jobStatus": "{y}"}}
    found[-1]["spec"]["deletionStrategy"] = {"deletionRules": [rule, rule]}

    assert any("{x is given twice" in fault for fault in faults_of(tmp_path, write(found)))


def test_the_jobs_of_a_raycronjob_are_checked(tmp_path):
    job = documents("rayjob")[-1]
    spec = {"schedule": "0 2 * * *", "timeZone": "Europe/Berlin", "jobTemplate": job["spec"]}
    nightly = {**job, "kind": "RayCronJob", "spec": spec}

    assert faults_of(tmp_path, write([nightly])) == []
    job["spec"] |= {"backoffLimit": -1, "submisionMode": "HTTPMode"}
    faults = faults_of(tmp_path, write([nightly]))
    assert [
        word in text
        for word, text in zip(("backoffLimit: must be", "did you mean 'submissionMode'"), faults, strict=True)
    ]


def test_code_that_comes_with_a_working_directory_is_not_looked_for(tmp_path):
    application = "applications:\n- name: a\n  import_path: fruit.deployment_graph\n"
    environment = "  runtime_env: {working_dir: 'https://example.com/code.zip'}\n"

    assert "cannot be imported" in faults_of(tmp_path, application)[0]
    assert faults_of(tmp_path, application + environment) == []


def test_no_line_of_a_module_that_a_file_names_is_run(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n"
    (tmp_path / "theirs" / "__init__.py").write_text(code)
    (tmp_path / "theirs" / "app.py").write_text(code + "app = build()\ndef add(servicer, server): ...\nlimit = 3\n")
    monkeypatch.chdir(tmp_path)
    application = "applications:\n- name: a\n  import_path: theirs.app:{}\n"
    functions = "grpc_options: {{grpc_servicer_functions: ['theirs.app:{}']}}\n"

    assert faults_of(tmp_path, application.format("app") + functions.format("add")) == []
    assert "'theirs.app' has no 'ap'; did you mean 'app'?" in faults_of(tmp_path, application.format("ap"))[0]
    assert "has 2" in faults_of(tmp_path, application.format("add"))[0]
    assert "expected a function" in faults_of(tmp_path, application.format("app") + functions.format("limit"))[0]
    assert not ran.exists()


@pytest.mark.parametrize("target", ["rayjob", "rayservice", "ray-up"])
def test_render_prints_what_validate_takes(target, tmp_path):
    done = run("render", target, "--set", "name=pets", "--output", tmp_path / "m.yaml")

    assert done.exit_code == 0, done.output
    assert run("validate", tmp_path / "m.yaml").exit_code == 0


def test_list_settings_names_every_key():
    done = run("render", "--list-settings")

    assert done.exit_code == 0
    assert "gpu.max=4" in done.stdout
    assert "Maximum number of workers." in done.stdout
