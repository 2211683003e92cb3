"""The schemas that the validator goes by, and manifests that nobody would write: no traceback, and no rule passed over."""

from __future__ import annotations

import copy
import json
import random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.validate.crds import SCHEMA_FILE, kuberay_schemas
from cluster.validate.documents import Document
from cluster.validate.files import check_document
from cluster.validate.ray_up import ray_up_schema
from cluster.validate.schema import StrictValidator
from cluster.validate.serve_config import serve_schema
from tests.support.manifests import documents, faults_of


def test_the_schemas_are_small_and_licensed():
    assert SCHEMA_FILE.stat().st_size < 100_000
    assert "Apache License" in (SCHEMA_FILE.parent / "LICENSE").read_text()
    assert "KubeRay" in kuberay_schemas()["source"]


# What says nothing, where the parts of a bundle lie, and three properties of Ray's file that stand astray.
NO_RULES = {
    *("description", "title", "default", "$defs", "definitions", "$schema", "$id"),
    *("kinds", "source"),
    *("agent", "dashboard", "alarm"),
}


def keywords(schema):
    """Yield every keyword that a schema uses, at any depth."""
    if not isinstance(schema, dict):
        return
    yield from schema
    for table in ("properties", "patternProperties", "$defs", "definitions", "kinds"):
        for below in schema.get(table, {}).values():
            yield from keywords(below)
    for name in ("items", "additionalProperties", "if", "then"):
        yield from keywords(schema.get(name))
    for name in ("anyOf", "allOf"):
        for below in schema.get(name, []):
            yield from keywords(below)


@pytest.mark.parametrize("schema", [kuberay_schemas, ray_up_schema, serve_schema])
def test_no_rule_of_a_schema_is_passed_over(schema):
    of_ours = {"then", "nullable", "x-kubernetes-int-or-string"}

    assert set(keywords(schema())) <= StrictValidator.VALIDATORS.keys() | of_ours | NO_RULES


def places(value, path=()):
    yield path
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(below, (*path, key))


ODD_VALUES = (
    None,
    True,
    0,
    -1,
    2**40,
    1.5,
    "",
    "x",
    "5Gi",
    "a: b",
    [],
    {},
    ["x"],
    {"x": 1},
    [{}],
    [None],
    [[]],
    {"name": 5},
)


# No hypothesis here: shrinking a manifest takes minutes, and the seed says enough.
@pytest.mark.parametrize("seed", range(150))
def test_a_random_change_is_checked_without_a_traceback(seed):
    chance = random.Random(seed)
    found = documents(chance.choice(["rayjob", "rayservice", "ray-up"]))
    for _ in range(chance.randint(1, 3)):
        document = chance.choice(found)
        path = chance.choice([path for path in places(document) if path])
        holder = document
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = copy.deepcopy(chance.choice(ODD_VALUES))

    for document in found:
        for fault in check_document(Document("file", "document", document)):
            assert "\n" not in str(fault)


SERVE_TEXTS = [
    "5", "[]", "applications: 5", "applications: [5]", "applications: [{args: 5, import_path: serve.app:build_app}]",
    "applications: [{deployments: 5}]",
    "applications: [{deployments: [{ray_actor_options: 5, name: [], num_replicas: x}]}]",
    "applications: [{import_path: 'serve.app:build_app', args: {min_replicas: 9}, deployments: [{name: {}}]}]",
    "applications: [{import_path: os.path:join, args: {a: 1}}]", "applications: [{import_path: ':'}]",
    "grpc_options: 5", "grpc_options: {grpc_servicer_functions: [5, {}, 'os:nothing', 'os:sep']}",
    "http_options: {port: x, host: 5}",
]  # fmt: skip


@pytest.mark.parametrize("text", SERVE_TEXTS)
def test_an_odd_configuration_of_serve_is_checked_without_a_traceback(text):
    found = documents("rayservice")
    found[-1]["spec"]["serveConfigV2"] = text

    faults = list(check_document(Document("file", "document", found[-1])))

    assert faults


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
