"""Pods without Kubernetes: Linux namespaces, each with its own address, processes, /tmp and /dev/shm.

Needs root on Linux. All pods are attached to a bridge in the caller's network namespace. So the caller should run in its
own (`unshare --net`): then the machine's network is not touched.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.kuberay_pods import PodCommand

NETWORK = "10.77.0"
HOST = f"{NETWORK}.1"
USER = "1000"
# The project's folder in the image; without an image the running environment replaces it.
IN_IMAGE = "/opt/shardlabel"


def build_network() -> None:
    """Set up the bridge for the pods, and the loopback interface."""
    for command in (
        "ip link set lo up",
        "ip link add pods type bridge",
        f"ip address add {HOST}/24 dev pods",
        "ip link set pods up",
    ):
        subprocess.run(command.split(), check=True)


@dataclass
class Pod:
    """A running container.

    Attributes:
        name: Its name and hostname.
        number: Last part of its address.
        command: What it was started with.
        root: File system of the image, read-only for the container; None for the machine's.
        log: File with its output.
        is_stopping: Whether it is being stopped: then it is in no service.
        hook_s: Seconds that its preStop hook took.
        hook_output: Output of the hook.
    """

    name: str
    number: int
    command: PodCommand
    root: Path | None
    log: Path
    process: subprocess.Popen[bytes] | None = None
    is_stopping: bool = field(default=False)
    hook_s: float = 0.0
    hook_output: str = ""

    @property
    def address(self) -> str:
        """Return its address on the bridge."""
        return f"{NETWORK}.{self.number}"

    def start(self) -> None:
        """Start it; its init command runs first, in the same namespaces."""
        for command in (
            f"ip netns add {self._netns}",
            f"ip link add v{self.number} type veth peer name eth0 netns {self._netns}",
            f"ip link set v{self.number} master pods up",
            f"ip -n {self._netns} link set lo up",
            f"ip -n {self._netns} address add {self.address}/24 dev eth0",
            f"ip -n {self._netns} link set eth0 up",
            # The route leads nowhere, but Ray needs one to find the machine's own address.
            f"ip -n {self._netns} route add default via {HOST}",
        ):
            subprocess.run(command.split(), check=True)
        # The container's own command becomes process 1, as in a real container.
        words = f"{shlex.join(self.command.init) or ':'} && exec {shlex.join(self.command.argv)}"
        script = (
            f"{mounts(self.root)}\nexec {shlex.join(inside(self.root, self._env()))} /bin/sh -c {shlex.quote(words)}"
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self._netns, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child",
                 "/bin/bash", "-ec", f"hostname {self.name}\n{self._replaced(script)}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, command: list[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `kubectl exec` does."""
        entered = ["nsenter", "--target", str(self._first()), "--all", *(["--root", "--wd"] if self.root else [])]
        words = [*entered, *inside(self.root, self._env(), chroot=False), *(self._replaced(word) for word in command)]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout_s)

    def kill(self) -> None:
        """Kill all of it at once, as when its machine fails."""
        assert self.process is not None
        with suppress(OSError, IndexError):
            os.kill(self._first(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "netns", "del", self._netns], check=False, capture_output=True)

    def stop(self) -> float:
        """Stop it as a kubelet does: the hook, SIGTERM, and SIGKILL after the grace period; return the seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.is_stopping = True
        if self.command.pre_stop:
            with suppress(subprocess.TimeoutExpired):
                hook = self.run(self.command.pre_stop, self.command.grace_s)
                self.hook_s = time.monotonic() - began
                self.hook_output = hook.stdout + hook.stderr
        with suppress(OSError, IndexError):
            os.kill(self._first(), signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(1.0, began + self.command.grace_s - time.monotonic()))
        took = time.monotonic() - began
        self.kill()
        return took

    @property
    def is_alive(self) -> bool:
        """Tell whether its first process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def _netns(self) -> str:
        return f"pod-{os.getpid()}-{self.number}"

    def _first(self) -> int:
        """Return the outer process id of its process 1."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def _replaced(self, text: str) -> str:
        return text if self.root else text.replace(IN_IMAGE, str(Path(sysconfig.get_path("scripts")).parent))

    def _env(self) -> dict[str, str]:
        return {**self.command.env, "RAY_CLOUD_INSTANCE_ID": self.name}


def mounts(root: Path | None) -> str:
    """Return a script that mounts a container's file systems: the read-only image, and writable folders."""
    lines = ["mount --make-rprivate /"]
    if root is None:
        lines += ["mount -t tmpfs tmpfs /dev/shm"]
    else:
        lines += [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}", f"mount --rbind /dev {root}/dev"]
        lines += [f"mount -t tmpfs -o mode=1777 tmpfs {root}{folder}" for folder in ("/cache", "/dev/shm")]
        # In a real container the kubelet provides this file.
        lines += [f"mount --bind /etc/hosts {root}/etc/hosts"]
    at = root or ""
    return "\n".join([*lines, f"mount -t proc proc {at}/proc", f"mount -t tmpfs -o mode=1777 tmpfs {at}/tmp"])


def inside(root: Path | None, env: dict[str, str], *, chroot: bool = True) -> list[str]:
    """Return the prefix of a command: the image's root and user, no capabilities, only the container's environment.

    Args:
        root: The image's file system; None for the machine's, and the caller's user.
        env: Variables in addition to those of cluster/Dockerfile.
        chroot: Whether to enter the root.
    """
    env = {
        "HOME": "/home/ray" if root else "/tmp",
        "PATH": f"{IN_IMAGE}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "SHARDLABEL_HOME": "/cache",
        **env,
    }
    if root is None:
        env["SHARDLABEL_HOME"] = "/tmp/cache"
    words = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in env.items())]
    if root is None:
        return words
    user = ["--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs", "--bounding-set", "-all"]
    return [*(["chroot", str(root)] if chroot else []), "setpriv", *user, *words]


def run_in_image(root: Path, script: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a script in a container of an image, with no network but loopback.

    Args:
        root: File system of the image.
        script: Runs in the image's bash.
        timeout_s: Seconds until the container is killed.
    """
    entered = (
        f"ip link set lo up\n{mounts(root)}\nexec {shlex.join(inside(root, {}))} /bin/bash -ec {shlex.quote(script)}"
    )
    words = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "/bin/bash", "-ec", entered]
    return subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=timeout_s,
    )  # fmt: skip
