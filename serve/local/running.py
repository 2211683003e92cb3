"""An endpoint that runs: where it listens, whether it is well, and how it ends."""

from __future__ import annotations

import contextlib
import csv
import signal
import socket
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import psutil

from models.errors import ClusterError
from pipeline.patches.kv_patches import RayStore
from pipeline.patches.looks_patches import dead_process, local_node
from pipeline.session.local import stop_ray
from serve import tracing
from serve.config import APP_NAME, ServeOptions
from serve.local.haproxy import TLS_BUNDLE
from serve.local.tls import checked


class Endpoint:
    """An endpoint that runs. `close` drains it and leaves nothing behind but the folder, which has HAProxy's files."""

    def __init__(self, options: ServeOptions, folder: Path) -> None:
        self.options = options  # the Ray of an address is not ours
        self.folder = folder
        self._stamps = self._stamps_now()  # of the certificate and the key that HAProxy has

    def close(self) -> None:
        """Stop taking requests, finish those that are being served, and stop.

        Raises:
            ClusterError: The application on a cluster could not be deleted; all else is ended.
        """
        import ray
        from ray import serve as ray_serve

        is_local = self.options.address is None
        if haproxy := self._haproxy():
            self.drain_haproxy()
            # The access log is written four times a second.
            time.sleep(0.3)
        try:
            if ray.is_initialized():  # Serve would start a Ray, to tell it to stop
                if is_local and not haproxy:
                    # Serve's own proxy has to be drained; behind HAProxy everything was served, and Ray ends whole.
                    ray_serve.shutdown()
                elif not is_local or self.options.prediction_log is not None or tracing.is_wanted():
                    # On a cluster nothing else: others may have applications there. Here replicas write their last rows.
                    ray_serve.delete(APP_NAME)
                if not is_local:
                    RayStore(f"shardlabel-models-{APP_NAME}").clear()
        except Exception as err:  # Ray raises bare ones here
            if not is_local:
                why = " ".join(str(err).split())[:300]
                raise ClusterError(
                    f"the application {APP_NAME} may still run on the Ray cluster at {self.options.address}: it could not "
                    f"be deleted ({why}); `serve status` shows it, and ray.serve.delete({APP_NAME!r}) ends it"
                ) from err
        finally:
            stop_ray()
            psutil.wait_procs(haproxy, timeout=5.0)

    def sentence(self) -> str:
        """Say in a line where it is."""
        grpc = f", gRPC on port {self.options.grpc_port}" if self.options.grpc_port else ""
        if self.options.address:
            return f"ready: on the Ray cluster at {self.options.address}, port {self.options.port} of its nodes{grpc}"
        return f"ready: {self.options.url} (a page to try it; POST /v1/classify; GET /docs){grpc}; Ctrl-C stops it"

    def fault(self) -> str | None:
        """Say why it cannot go on; None while it can."""
        node = None if self.options.address else local_node()
        name = None if node is None else dead_process(node)
        return None if name is None else f"Ray's {name} died; run the same command again"

    def renew_certificate(self) -> bool:
        """Give HAProxy the certificate where it was renewed in its files; tell whether it was.

        Raises:
            ConfigError, OSError: The new one cannot be used; the old one stays. Not said again before it changes.
            ClusterError: HAProxy does not take it.
        """
        cert, key, stamps = self.options.tls_cert, self.options.tls_key, self._stamps_now()
        if not cert or not key or stamps == self._stamps:
            return False
        self._stamps = stamps
        # An empty line ends what is sent.
        lines = "\n".join(line for line in checked(cert, key).splitlines() if line.strip())
        for path in self.folder.glob("*/admin.sock"):
            name = path.parent / TLS_BUNDLE
            with contextlib.suppress(OSError), _console(path) as ask:  # one that ends just now needs none
                answer = ask(f"set ssl cert {name} <<\n{lines}\n") + ask(f"commit ssl cert {name}")
                if "Success!" not in answer:
                    raise ClusterError(f"HAProxy does not take the new certificate: {' '.join(answer.split())[:300]}")
        return True

    def _stamps_now(self) -> list[int]:
        # Not what they hold: the key stays where it is. A file that is away, since it is being replaced, is a change too.
        paths = filter(None, (self.options.tls_cert, self.options.tls_key))
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]

    def drain_haproxy(self) -> None:
        """Let HAProxy close its ports, and each client's connection behind its next answer; wait for the last answer."""
        deadline = time.monotonic() + self.options.deadline_s + 5.0
        for path in self.folder.glob("*/admin.sock"):
            with contextlib.suppress(OSError, psutil.Error), _console(path) as ask:
                for process in self._haproxy():
                    process.send_signal(signal.SIGUSR1)
                quiet = 0
                while quiet < 3 and time.monotonic() < deadline:
                    time.sleep(0.05)
                    # Of the backends alone, as CSV. It does not end by itself: clients may keep idle connections.
                    rows = csv.DictReader(ask("show stat -1 2 -1").splitlines())
                    quiet = 0 if any(int(row["scur"] or 0) for row in rows) else quiet + 1

    def _haproxy(self) -> list[psutil.Process]:
        """Return the processes of HAProxy: those whose configuration is in our folder."""
        processes = psutil.process_iter(["cmdline"])
        return [each for each in processes if str(self.folder) in " ".join(each.info["cmdline"] or ())]


@contextlib.contextmanager
def _console(path: Path) -> Iterator[Callable[[str], str]]:
    """Hold HAProxy's admin socket, on one connection: a HAProxy that stops takes no new ones."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5.0)
        connection.connect(str(path))
        stream = connection.makefile("rw", errors="replace")

        def ask(command: str) -> str:
            """Send a command, and return its answer, which an empty line ends."""
            stream.write(f"{command}\n")
            stream.flush()
            return "".join(takewhile(str.strip, stream))

        ask("prompt")
        yield ask
