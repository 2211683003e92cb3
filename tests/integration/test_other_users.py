"""What other users of the machine can do to a local Ray: nothing. Without a token nobody gets in, and its files are ours."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

# Starts a Ray as `label` and `serve` do, says where it is, and ends when its input does.
OWNER = """
import json, os, sys
from pipeline.session.local import start_local_ray, stop_ray
def auth(): return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
before = auth()
start_local_ray()
import ray, ray._private.worker
class Actor:
    def pid(self): return os.getpid()
actor = ray.remote(Actor).remote()
node = ray._private.worker._global_node
print(json.dumps({"session": node.get_session_dir_path(), "gcs": node.gcs_address, "token": os.environ["RAY_AUTH_TOKEN"],
                  "pids": [ray.get(actor.pid.remote())] + [info.process.pid for infos in node.all_processes.values()
                                                           for info in infos]}), flush=True)
sys.stdin.read()
stop_ray()
print(json.dumps({"left": auth() != before}), flush=True)
"""
# Asks Ray's control service for the actors' code and for the nodes, and says what it got.
STRANGER = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
print(len(client.get_all_node_info(timeout=5)), client.internal_kv_keys(b"", namespace=b"fun", timeout=5))
"""


@dataclass(frozen=True)
class LocalRay:
    """A Ray that runs: its session folder, its address, its token, its processes, and the folder it was given."""

    session: Path
    gcs: str
    token: str
    pids: list[int]
    folder: Path


@pytest.fixture(scope="module")
def local_ray() -> Iterator[LocalRay]:
    # Not pytest's own folder: that is closed to others, and its path is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    folder.chmod(0o777)
    environment = {**os.environ, "TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        facts = json.loads(owner.stdout.readline())
        yield LocalRay(Path(facts["session"]), facts["gcs"], facts["token"], facts["pids"], folder)
        out, _ = owner.communicate("", timeout=60)
        assert json.loads(out) == {"left": False}
        assert not list(folder.iterdir()), "something stayed behind"
    finally:
        owner.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_all_that_a_local_ray_writes_lies_in_a_folder_of_its_users_own(local_ray):
    assert local_ray.session.is_relative_to(local_ray.folder)
    for entry in local_ray.folder.iterdir():
        found = entry.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o700, entry
        assert found.st_uid == os.geteuid()


@pytest.mark.skipif(not Path("/proc/net/tcp6").is_file(), reason="what a process listens on is told by Linux")
def test_a_local_ray_listens_on_loopback_alone(local_ray):
    sockets = {
        str(fd.readlink()) for pid in local_ray.pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()
    }
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                listening.append(local.partition(":")[0])

    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len(listening) >= 4
    assert set(listening) <= loopback


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can act as another user")
@pytest.mark.parametrize(
    "attempt", ["ls {session}", "cat {session}/logs/raylet.out", "touch {session}/x", "touch {session}/sockets/x"]
)
def test_another_user_can_neither_list_nor_read_nor_write_the_session(local_ray, attempt):
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    words = attempt.format(session=local_ray.session).split()

    done = subprocess.run([*nobody, *words], capture_output=True, text=True, check=False)

    assert "Permission denied" in done.stderr, done.stdout


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "another token"])
def test_nobody_gets_into_the_control_service_without_the_token_of_the_run(local_ray, token, tmp_path):
    # HOME: the token that Ray keeps there by itself, for all of a user's clusters, is not this one's.
    environment = {**os.environ, "RAY_AUTH_MODE": "token", **({"RAY_AUTH_TOKEN": token} if token else {})}
    if token is None:
        environment = {**environment, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}

    refused = _ask(local_ray, environment)
    asked = _ask(local_ray, {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": local_ray.token})

    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("1 ")
    assert refused.returncode != 0, refused.stdout
    assert "nauthenticated" in refused.stderr


def test_the_token_is_in_no_file_and_on_no_command_line(local_ray):
    token = local_ray.token.encode()

    assert len(token) >= 32
    files = [path for path in local_ray.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if token in path.read_bytes()]
    assert not [pid for pid in local_ray.pids if token in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _ask(local_ray: LocalRay, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STRANGER, local_ray.gcs]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
