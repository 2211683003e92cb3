"""Send two broken updates to a running endpoint under load: `python -m tests.support.failing_update PORT`.

Prints the results as one JSON object. Runs as its own process, since Ray Serve reads its variables when it is imported.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

from models.errors import UnknownModelError
from serve import environment
from serve.app import build_app
from serve.config import ServeConfig, ServeOptions

QUIET = {"log_level": "ERROR", "enable_access_log": False}
MODEL = "efficientnet-lite0"


def deploy(**settings: object) -> str:
    """Deploy, and return the error, or ""."""
    from ray import serve

    try:
        serve.run(build_app(ServeConfig(**settings)), name="shardlabel", route_prefix="/", logging_config=QUIET)
    except (RuntimeError, UnknownModelError) as err:
        return f"{type(err).__name__}: {err}"
    return ""


def keep_asking(port: int, seen: Counter[str], stop: threading.Event) -> None:
    while not stop.wait(0.05):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as answer:
                seen[str(answer.status)] += 1
        except (OSError, urllib.error.URLError) as err:
            seen[str(err)] += 1


def main(port: int) -> None:
    os.environ |= environment.of_every_node(ServeConfig()) | environment.of_this_machine(ServeOptions(), None)
    import ray
    from ray import serve

    ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
    seen: Counter[str] = Counter()
    stop = threading.Event()
    told = [deploy(model=MODEL)]
    asking = threading.Thread(target=keep_asking, args=(port, seen, stop))
    asking.start()
    try:
        # The first fault is found only by a replica, on its node.
        told += [deploy(model=MODEL, access_log="/nowhere/access.log"), deploy(model="no-such-model")]
        time.sleep(2)
        app = serve.status().applications["shardlabel"]
        (deployment,) = app.deployments.values()
    finally:
        stop.set()
        asking.join()
    states = {str(state): count for state, count in deployment.replica_states.items()}
    found = {"told": told, "seen": seen, "status": app.status.value, "states": states, "why": deployment.message}
    sys.stdout.write(json.dumps(found, default=str) + "\n")
    sys.stdout.flush()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
