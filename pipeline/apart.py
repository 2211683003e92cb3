"""`pipeline.run`: the job in a process of its own, so that nothing that happens to its Ray ends the caller's.

Ray's client ends its process where Ray's own processes die, or hangs in native code where they do not come up.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING

from models import errors
from models.errors import ClusterError, ShardlabelError
from models.parent import end_with_parent

if TYPE_CHECKING:
    from pipeline.config import LabelConfig
    from pipeline.summary import RunReport

_CHILD = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from pipeline.apart import main; main()"


def run(config: LabelConfig) -> RunReport:
    """Label every image of SOURCE that DEST does not hold yet; what the command does.

    Where this process has a Ray already, the job runs on it, here. Otherwise it runs in a process of its own, which joins
    the cluster of `config.address` or starts a local Ray. Ctrl-C reaches it either way: one finishes what is in flight.

    Args:
        config: Settings.

    Returns:
        What was done; `status` is done, failed or interrupted.

    Raises:
        ConfigError: Settings that cannot be used, or that differ from those DEST was begun with.
        SourceError: SOURCE or DEST cannot be used, or SOURCE changed since DEST was begun.
        ModelError: The model cannot be had or used.
        StorageError: Planning failed on storage.
        ClusterError: Ray did not come up, or went away; the same call goes on where this one stopped.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        from pipeline.job import run as run_here

        return run_here(config)
    ours, theirs = os.pipe()
    # Out of this one's process group: a terminal's Ctrl-C comes once, from here.
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(theirs)],
        stdin=subprocess.PIPE, pass_fds=[theirs], start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    # Not buffered: what was read when Ctrl-C comes would be lost.
    with os.fdopen(ours, "rb", buffering=0) as answers:
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as settings:  # it died already, as is told below
                settings.write(pickle.dumps(sys.path) + pickle.dumps(config))
            return _answer(child, answers)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


def _answer(child: subprocess.Popen[bytes], answers: FileIO) -> RunReport:
    content = b""
    while True:
        try:
            while piece := answers.read(2**16):
                content += piece
            child.wait()
            break
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
    if not content:
        raise ClusterError(f"the run's process ended with {child.returncode} and no report; run the same call again")
    report, kind, text = pickle.loads(content)
    if kind is not None:
        err: ShardlabelError = getattr(errors, kind)(text)
        raise err
    found: RunReport = report
    return found


def main() -> None:
    """Run what stands on standard input, and write the report to the pipe that is named."""
    answers = int(sys.argv[1])
    end_with_parent(signal.SIGTERM)  # which finishes what is in flight
    config = pickle.load(sys.stdin.buffer)
    from pipeline.job import run as run_here

    answer: tuple[RunReport | None, str | None, str]
    try:
        answer = (run_here(config), None, "")
    except ShardlabelError as err:
        answer = (None, type(err).__name__, str(err))
    except KeyboardInterrupt:
        sys.exit(130)
    with os.fdopen(answers, "wb") as file:
        pickle.dump(answer, file)
