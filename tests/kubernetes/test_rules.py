"""KubeRay's own rules, in Go, over all that is rendered, and over a broken manifest a rule: cluster validate agrees."""

from __future__ import annotations

import pytest
import yaml

from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from tests.kubernetes.programs import operators_verdicts
from tests.support.broken_manifests import BROKEN
from tests.support.manifests import documents, faults_of, write
from tests.support.refused_manifests import REFUSED, SINCE_1_7
from tests.unit.cluster.manifests.test_render import VARIANTS

RAY = ("rayjob", "rayservice")
# Kubernetes' API server says these, by the resource definition; see test_api_server.py.
OF_THE_SCHEMA = {"managed by nobody known"}
# Keys that came after the operator that can be built here.
NEWER = {"priority"}


def without_newer(document):
    """Drop the keys that this operator does not know yet."""
    spec = document.get("spec", {}).get("jobTemplate", document.get("spec", {}))
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or {}
    for group in cluster.get("workerGroupSpecs", []):
        for key in NEWER:
            group.pop(key, None)
    return document


def broken(name, corpus):
    target, change, *_ = corpus[name]
    found = documents(target)
    change(found)
    return found


@pytest.mark.parametrize("target", RAY)
def test_what_is_rendered_passes(target):
    variants = {"defaults": [], **VARIANTS}
    texts = [render(Target(target), build_configuration(words)) for words in variants.values()]

    said = operators_verdicts([without_newer(list(yaml.safe_load_all(text))[-1]) for text in texts])

    assert dict(zip(variants, said, strict=True)) == dict.fromkeys(variants, "")


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - OF_THE_SCHEMA))
def test_the_operator_refuses_what_validate_does(name, tmp_path):
    found = broken(name, REFUSED)

    (verdict,) = operators_verdicts([without_newer(found[-1])])
    faults = faults_of(tmp_path, write(found))

    assert verdict, "the operator takes it"
    assert faults


def test_nothing_that_the_operator_refuses_passes(tmp_path):
    corpus = {name: case for name, case in (BROKEN | REFUSED | SINCE_1_7).items() if case[0] in RAY}
    manifests = {name: broken(name, corpus) for name in corpus}

    said = operators_verdicts([found[-1] for found in manifests.values()])
    missed = [
        f"{name}: {verdict}"
        for (name, found), verdict in zip(manifests.items(), said, strict=True)
        if verdict and not faults_of(tmp_path, write(found))
    ]

    assert len(manifests) > 100
    assert missed == []
