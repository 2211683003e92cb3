"""Generate `kuberay.json` from KubeRay's CRD files: `python -m tools.trim_crds FOLDER`.

The three files repeat the same pod template many times, 3.3 MB in all. Only version v1 is kept, without `status` and
descriptions. Every subtree that occurs more than once is stored once and referenced.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import yaml

from cluster.validate.crds import SCHEMA_FILE

FILES = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
}
# A reference costs about 30 characters, so smaller subtrees are not shared.
LEAST_SHARED = 120
DROPPED = {"description", "default", "x-kubernetes-map-type", "x-kubernetes-list-type", "x-kubernetes-validations"}
INT_BOUNDS = {"int32": 2**31, "int64": 2**63}
# Values and bounds that only the operator checks.
MODES = ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
UPGRADES = ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]
NOT_NEGATIVE = ("backoffLimit", "ttlSecondsAfterFinished", "idleTimeoutSeconds", "minReplicas", "maxReplicas")
BOUNDS: dict[str, dict[str, int]] = {
    **{name: {"minimum": 0} for name in NOT_NEGATIVE},
    **{name: {"minimum": 1} for name in ("activeDeadlineSeconds", "intervalSeconds")},
    **{name: {"minimum": 0, "maximum": 100} for name in ("maxSurgePercent", "stepSizePercent")},
    "gatewayClassName": {"minLength": 1},
}


def tidy(node: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Return a schema with only what validation needs; int32 and int64 become bounds."""
    if isinstance(node, list):
        return [tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            kept[key] = {name: tidy(schema) | BOUNDS.get(name, {}) for name, schema in value.items()}
        elif key == "format" and value in INT_BOUNDS:
            kept.setdefault("minimum", -INT_BOUNDS[value])
            kept.setdefault("maximum", INT_BOUNDS[value] - 1)
        elif key not in DROPPED and key != "format":
            kept[key] = tidy(value)
    for rule in node.get("x-kubernetes-validations", []):
        if rule["rule"].startswith("self in ["):
            kept["enum"] = ast.literal_eval(rule["rule"].removeprefix("self in "))
    return kept


def share(kinds: dict[str, Any]) -> dict[str, Any]:
    """Return `kinds` and `$defs`; every repeated subtree of at least LEAST_SHARED characters is stored once."""
    counts: Counter[str] = Counter()
    for schema in kinds.values():
        _count(schema, counts)
    repeated = [text for text, count in counts.items() if count > 1]
    names = {text: f"s{number}" for number, text in enumerate(sorted(repeated, key=lambda text: (len(text), text)))}
    definitions = {name: _replace_children(orjson.loads(text), names) for text, name in names.items()}
    return {"kinds": {kind: _replace(schema, names) for kind, schema in kinds.items()}, "$defs": definitions}


def _text(node: Any) -> str:  # noqa: ANN401
    return orjson.dumps(node, option=orjson.OPT_SORT_KEYS).decode()


def _subschemas(node: dict[str, Any]) -> list[Any]:
    """Return the schemas directly below one: the values of `properties`, `items` and `additionalProperties`."""
    below = list(node.get("properties", {}).values())
    below += [node[key] for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)]
    return below


def _count(node: dict[str, Any], counts: Counter[str]) -> None:
    text = _text(node)
    if len(text) >= LEAST_SHARED:
        counts[text] += 1
        if counts[text] > 1:
            return  # its subtrees are shared with it
    for schema in _subschemas(node):
        _count(schema, counts)


def _replace(node: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    name = names.get(_text(node))
    return {"$ref": f"#/$defs/{name}"} if name else _replace_children(node, names)


def _replace_children(node: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    replaced = dict(node)
    if "properties" in node:
        replaced["properties"] = {key: _replace(value, names) for key, value in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            replaced[key] = _replace(node[key], names)
    return replaced


def read_kind(path: Path) -> dict[str, Any]:
    """Return the v1 schema of one CRD file, without `status`, which manifests do not set."""
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema: dict[str, Any] = tidy(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    return schema


def cron_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a RayCronJob for its jobs only; other keys are open, as the kind is still alpha."""
    template = {"schedule": {"type": "string"}, "jobTemplate": job["properties"]["spec"]}
    spec = {"type": "object", "properties": template, "required": [*template], "additionalProperties": True}
    return {**job, "properties": {**job["properties"], "spec": spec}}


def main(folder: Path) -> None:
    """Write the bundle from the CRD files in a folder."""
    kinds = {kind: read_kind(folder / name) for kind, name in FILES.items()}
    job, service = (kinds[kind]["properties"]["spec"]["properties"] for kind in ("RayJob", "RayService"))
    job["submissionMode"]["enum"] = MODES
    service["upgradeStrategy"]["properties"]["type"]["enum"] = UPGRADES
    kinds["RayCronJob"] = cron_job(kinds["RayJob"])
    bundle = share(kinds)
    source = "KubeRay, helm-chart/kuberay-operator/crds, version v1, trimmed; Apache-2.0, see LICENSE"
    text = _text({"source": source, **bundle})
    SCHEMA_FILE.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"{SCHEMA_FILE.name}: {len(text)} bytes, {len(bundle['$defs'])} shared schemas\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
