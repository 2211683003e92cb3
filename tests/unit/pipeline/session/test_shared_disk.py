"""Local folders on a cluster of several nodes; the nodes are made up, and what they see."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import ConfigError
from pipeline.session import shared_disk
from pipeline.session.connect import Cluster
from pipeline.session.shared_disk import check_disks
from pipeline.storage.storage import Storage, open_storage

CLUSTER = Cluster(4, 0, is_ours=True, may_grow=True)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    import ray

    found = [{"NodeID": name * 8, "NodeManagerHostname": f"host-{name}", "Alive": True} for name in "abc"]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    return found


def places(folder: Path) -> tuple[Storage, Storage]:
    return open_storage(str(folder / "in")), open_storage(str(folder / "out"))


def test_a_nodes_own_disk_is_refused_on_several_nodes(nodes, tmp_path):
    source, dest = places(tmp_path)

    with pytest.raises(ConfigError, match=r"own disk, and the cluster has 3 nodes.*--shared-filesystem"):
        check_disks(CLUSTER, source, dest, is_shared=False)


def test_one_node_has_one_disk_and_a_local_ray_too(nodes, tmp_path):
    source, dest = places(tmp_path)
    for node in nodes[1:]:
        node["Alive"] = False

    check_disks(CLUSTER, source, dest, is_shared=False)
    check_disks(None, source, dest, is_shared=False)

    assert not (tmp_path / "out").exists()


def test_a_disk_that_a_node_does_not_see_is_refused_whatever_the_user_says(nodes, tmp_path, monkeypatch):
    source, dest = places(tmp_path)
    monkeypatch.setattr(shared_disk, "_blind_nodes", lambda *given: {"host-b (bbbbbbbb)": dest.describe()})

    with pytest.raises(ConfigError, match=r"1 of 3 nodes do not see .*out, the first is host-b \(bbbbbbbb\): mount"):
        check_disks(CLUSTER, source, dest, is_shared=True)

    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # what was to be seen is removed


def test_the_nodes_look_for_a_file_that_is_there_while_they_do(nodes, tmp_path, monkeypatch):
    source, dest = places(tmp_path)
    seen = []

    def look(nodes: object, source: Storage, dest: Storage, name: str) -> dict[str, str]:
        seen.append(dest.stat(name))
        return {}

    monkeypatch.setattr(shared_disk, "_blind_nodes", look)

    check_disks(CLUSTER, source, dest, is_shared=True)

    assert seen
    assert seen[0] is not None
