"""The validator as a whole: files, documents, messages, and the schemas that it goes by."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli import build_app
from cluster.crds import SCHEMA_FILE, kuberay_schemas
from cluster.validate_ray_up import ray_up_schema
from cluster.validate_schema import CHECKED, SAYS_NOTHING, SchemaChecker, keywords
from cluster.validate_serve import serve_schema
from tests.unit.cluster.manifests import documents, faults_of, rendered, write

ROOT = Path(__file__).parents[3]


def run(*words):
    return CliRunner().invoke(build_app(), ["cluster", *map(str, words)])


def test_the_committed_files_have_no_fault():
    files = [*sorted((ROOT / "cluster").glob("*.yaml")), ROOT / "serve/config.yaml"]

    done = run("validate", *files)

    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == len(files) >= 5


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
        ("- a\n- b\n", "expected a table of keys, got list"),
        ("a: [1, 2\n", "is not YAML"),
        ("a: b: c\n", "is not YAML"),
        ("x: 1\n", "expected a Kubernetes manifest"),
        ("applicatons: []\nhttp_options: {}\n", "did you mean 'applications'?"),
        ("spec: {}\nmetadata: {name: a}\n", "missing key 'kind'"),
        ("kind: Deployment\napiVersion: apps/v1\n", "unknown kind 'Deployment'"),
        ("applications: []\n", "expected at least one application"),
        ("scrape_configs:\n- job_nam: a\n", "did you mean 'job_name'?"),
        ("name: !!python/object:os.system {}\n", "is not YAML"),
        ("applications: &a [*a]\n", "is not YAML"),
        ("spec: 1\nspec: 2\nkind: RayJob\n", "the key 'spec' is given twice"),
        ("when: 2026-11-24\nmetadata: 2026-01-01\nkind: RayJob\n", "expected a table"),
        ("kind: RayJob\n1: a\n", "keys must be text, got 1"),
        ("kind: [1]\n", "unknown kind"),
        ("kind: RayJob\nmetadata: 5\nspec: 7\n", "expected a table, got 7"),
        (
            "kind: RayService\napiVersion: ray.io/v1\nmetadata: {name: a}\nspec: {serveConfigV2: '- a'}\n",
            "expected a table",
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
    broken[1]["spec"]["backoffLimit"] = -1
    broken[1]["spec"]["rayClusterSpec"]["rayVersion"] = "2.9.0"
    broken[0]["spec"]["podSelectors"] = {}

    faults = faults_of(tmp_path, write(broken))

    assert [
        word in text for word, text in zip(("podSelectors", "backoffLimit", "rayVersion"), faults, strict=True)
    ] == [True] * 3


def test_a_shared_volume_may_be_the_output(tmp_path):
    broken = documents("rayjob")
    spec = broken[-1]["spec"]
    spec["entrypoint"] = spec["entrypoint"].replace("s3://my-bucket/labels", "/shared/labels")
    cluster = spec["rayClusterSpec"]
    for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod["template"]["spec"]["volumes"].append({"name": "s", "persistentVolumeClaim": {"claimName": "s"}})
        pod["template"]["spec"]["containers"][0]["volumeMounts"].append({"name": "s", "mountPath": "/shared"})

    assert faults_of(tmp_path, write(broken)) == []


@pytest.mark.parametrize("target", ["rayjob", "rayservice", "ray-up"])
def test_render_prints_what_validate_takes(target, tmp_path):
    done = run("render", target, "--set", "name=pets", "--output", tmp_path / "m.yaml")

    assert done.exit_code == 0, done.output
    assert run("validate", tmp_path / "m.yaml").exit_code == 0


def test_list_settings_names_every_key():
    done = run("render", "--list-settings")

    assert done.exit_code == 0
    assert "gpu.max=4" in done.stdout
    assert "Most workers." in done.stdout


def test_the_schemas_are_small_and_licensed():
    assert SCHEMA_FILE.stat().st_size < 100_000
    assert "Apache License" in (SCHEMA_FILE.parent / "LICENSE").read_text()
    assert "KubeRay" in kuberay_schemas()["source"]


@pytest.mark.parametrize("schema", [kuberay_schemas, ray_up_schema, serve_schema])
def test_no_rule_of_a_schema_is_passed_over(schema):
    known = CHECKED | SAYS_NOTHING | {"kinds", "source"}
    # Three properties of Ray's file stand beside `properties`, where no validator looks.
    astray = {"agent", "dashboard", "alarm"}

    assert set(keywords(schema())) <= known | astray


def strictly(node):
    """Return a schema as jsonschema takes it, where no key may stand that is not listed."""
    if isinstance(node, list):
        return [strictly(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {key: strictly(value) for key, value in node.items() if key != "x-kubernetes-list-map-keys"}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict


VALIDATORS = {
    kind: jsonschema.Draft7Validator({**strictly(schema), "$defs": strictly(kuberay_schemas()["$defs"])})
    for kind, schema in kuberay_schemas()["kinds"].items()
}


def places(value, path=()):
    yield path
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(below, (*path, key))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), target=st.sampled_from(["rayjob", "rayservice"]))
def test_it_agrees_with_jsonschema_on_manifests_with_a_random_change(data, target):
    document = copy.deepcopy(rendered(target)[-1])
    path = data.draw(st.sampled_from([path for path in places(document) if path]))
    holder = document
    for part in path[:-1]:
        holder = holder[part]
    values = st.sampled_from([None, True, 0, -1, 2**40, 1.5, "", "x", "5Gi", [], {}, ["x"], {"x": 1}, [{}], [None]])
    match data.draw(st.sampled_from(["set", "drop", "add"])):
        case "set":
            holder[path[-1]] = data.draw(values)
        case "drop":
            del holder[path[-1]]
        case "add" if isinstance(holder, dict):
            holder[data.draw(st.sampled_from(["x", "name", "spec", "env", "replicas"]))] = data.draw(values)
    schema = kuberay_schemas()["kinds"].get(str(document.get("kind")))
    if schema is None:
        return

    found = [
        path
        for path, reason in SchemaChecker(kuberay_schemas()).check(document, schema)
        if "is there twice" not in reason
    ]

    assert bool(found) == (not VALIDATORS[document["kind"]].is_valid(document)), found


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda below: (
            st.lists(below, max_size=4)
            | st.dictionaries(
                st.sampled_from(["kind", "spec", "metadata", "applications", "provider", "name", "x"]), below
            )
        ),
        max_leaves=20,
    )
)
def test_any_yaml_is_checked_without_a_traceback(tmp_path_factory, value):
    text = yaml.safe_dump(value, allow_unicode=True)

    for head in (
        "",
        "kind: RayJob\nspec:\n  rayClusterSpec: ",
        "kind: RayService\nspec: ",
        "applications: ",
        "docker: ",
    ):
        indented = text if not head else head + json.dumps(value, default=str)
        faults_of(tmp_path_factory.getbasetemp(), indented)
