"""`pipeline.run`: the job in a child process, so that a failure of its Ray cannot end the caller's process.

When Ray's own processes die, Ray's client exits its process; when they do not start, it hangs in native code.
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
    """Label every image of SOURCE that DEST does not hold yet, as the command does.

    If this process has initialised Ray, the job runs here, on that Ray. Otherwise it runs in a child process, which
    joins the cluster at `config.address` or starts a local Ray. In both cases one Ctrl-C finishes what is in flight.

    Args:
        config: Settings.

    Returns:
        The report of the run; `status` is done, failed, stopped or interrupted.

    Raises:
        ConfigError: Settings are invalid, or differ from those that DEST was started with.
        SourceError: SOURCE or DEST cannot be used, or SOURCE has changed since DEST was started.
        ModelError: The model cannot be fetched or used.
        StorageError: Storage failed during planning.
        ClusterError: Ray did not start, or was lost; the same call resumes the run.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        from pipeline.job import run as run_here

        return run_here(config)
    ours, theirs = os.pipe()
    # In a session of its own, so that a terminal's Ctrl-C reaches it only once, through this process.
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(theirs)],
        stdin=subprocess.PIPE, pass_fds=[theirs], start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    # Unbuffered: Ctrl-C would lose what a buffer has read.
    with os.fdopen(ours, "rb", buffering=0) as answers:
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as settings:  # the child has died, which `_answer` reports
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
        raise ClusterError(f"the run's process ended with {child.returncode} and no report; make the same call again")
    report, kind, text = pickle.loads(content)
    if kind is not None:
        err: ShardlabelError = getattr(errors, kind)(text)
        raise err
    found: RunReport = report
    return found


def main() -> None:
    """Run the config on standard input, and write the report to the pipe whose number is the argument."""
    answers = int(sys.argv[1])
    end_with_parent(signal.SIGTERM)  # SIGTERM finishes what is in flight
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
