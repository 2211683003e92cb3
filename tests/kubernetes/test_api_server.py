"""A real API server, strictly, over all that is rendered, and over every broken manifest beside the other two verdicts."""

from __future__ import annotations

import pytest
import yaml

from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from tests.kubernetes.control_plane import KINDS, SHARED_CRDS
from tests.kubernetes.programs import BIN, operators_verdicts
from tests.kubernetes.test_rules import RAY, broken, without_newer
from tests.support.broken_manifests import BROKEN
from tests.support.manifests import faults_of, write
from tests.support.refused_manifests import REFUSED, SINCE_1_7
from tests.unit.cluster.manifests.test_render import VARIANTS

CORPUS = {name: case for name, case in (BROKEN | REFUSED | SINCE_1_7).items() if case[0] in RAY}


def refusal(api, manifest):
    """Return what the API server says against a manifest; empty where it takes it."""
    if not isinstance(manifest.get("apiVersion"), str) or manifest.get("kind") not in KINDS:
        return "no such kind"
    try:
        done = api.create(manifest, dry_run=True)
    except (KeyError, ValueError):
        return "no such version"
    return "" if done.ok else done.json()["message"]


@pytest.mark.parametrize("target", RAY)
def test_what_is_rendered_is_taken(api, target):
    refused = {}
    for variant, words in {"defaults": [], **VARIANTS}.items():
        for document in yaml.safe_load_all(render(Target(target), build_configuration(words))):
            done = api.create(document if SHARED_CRDS.is_dir() else without_newer(document), dry_run=True)
            if not done.ok:
                refused[f"{variant}: {document['kind']}"] = done.json()["message"]

    assert refused == {}


def test_nothing_that_the_api_server_refuses_passes(api, tmp_path):
    manifests = {name: broken(name, CORPUS) for name in CORPUS}
    said = operators_verdicts([found[-1] for found in manifests.values()])
    rows, missed = [], []
    for (name, found), operator in zip(manifests.items(), said, strict=True):
        server, faults = refusal(api, found[-1]), faults_of(tmp_path, write(found))
        ours = faults[0].partition(": ")[2].partition(": ")[2] if faults else ""
        rows.append(
            [
                name,
                *(text.replace("|", "/").replace("\n", " ")[:160] or "takes it" for text in (operator, server, ours)),
            ]
        )
        if server and not faults:
            missed.append(f"{name}: {server}")
    header = ["| manifest | KubeRay's operator | API server | cluster validate |", "|---|---|---|---|"]
    table = [*header, *(f"| {' | '.join(row)} |" for row in rows)]
    (BIN.parent / "verdicts.md").write_text("\n".join(table) + "\n")

    assert missed == []
