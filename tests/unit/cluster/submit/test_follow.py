"""Following a job, with a cluster that is made up: lost connections, logs that begin anew, stops that are not heard."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.submit import follow as follow_module
from cluster.submit.follow import Answer, JobLog, Outcome, Watch
from cluster.submit.jobs_client import Job, JobsUnreachableError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "POLL_S", 0.01)


def job(status: str) -> Job:
    return Job(status, "", None, {}, None)


@dataclass
class MadeUpCluster:
    """Answers questions about the one job with what `answers` holds, the last one for ever."""

    answers: list[Job | Exception | None]
    text: str = "noise\nRunning # attempt 1\nfirst\nsecond\n"
    stops_heard: list[bool] = field(default_factory=list)
    connections: int = 0

    async def job(self, name: str) -> Job | None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def log(self, name: str) -> str:
        return self.text

    async def tail(self, name: str) -> AsyncIterator[str]:
        self.connections += 1
        yield self.text[: 40 + self.connections]
        raise JobsUnreachableError("cut")

    async def stop(self, name: str) -> bool:
        heard = self.stops_heard.pop(0)
        if heard:
            self.answers = [job("STOPPED")]
        return heard


def follow(
    cluster: MadeUpCluster, *, deadline: float | None = None, answer: Answer | None = None
) -> tuple[str, str, str]:
    """Follow the job; return the outcome, what was shown, and what was said."""
    said: list[str] = []
    out = io.StringIO()

    async def ask() -> Answer:
        assert answer is not None
        return answer

    async def run() -> Outcome:
        watch = Watch(cluster, "name", JobLog("# attempt 1"), said.append, ask, deadline, out)  # type: ignore[arg-type]
        if answer is not None:
            watch.interrupted.set()
        outcome, _ = await asyncio.wait_for(watch.follow(), 20)
        return outcome

    return asyncio.run(run()), out.getvalue(), "\n".join(said)


def test_a_log_over_many_cut_connections_is_shown_once_and_whole():
    cluster = MadeUpCluster([*[job("RUNNING")] * 20, job("SUCCEEDED")])

    outcome, shown, _ = follow(cluster)

    assert outcome is Outcome.OVER
    assert cluster.connections > 1
    assert shown == "first\nsecond\n"


def test_a_lost_connection_is_said_once_and_outlived():
    lost = JobsUnreachableError("refused")

    outcome, _, said = follow(MadeUpCluster([job("RUNNING"), lost, lost, lost, job("RUNNING"), job("FAILED")]))

    assert outcome is Outcome.OVER
    assert said.count("the connection is lost") == 1
    assert said.count("reconnected") == 1


def test_a_cluster_that_is_gone_for_good_is_an_error(monkeypatch):
    monkeypatch.setattr(follow_module, "LOST_S", 0.1)

    with pytest.raises(follow_module.ClusterError, match=r"has not answered for 0\.1 s"):
        follow(MadeUpCluster([job("RUNNING"), JobsUnreachableError("refused")]))


def test_a_job_that_the_cluster_has_forgotten_is_no_success():
    assert follow(MadeUpCluster([job("RUNNING"), None]))[0] is Outcome.FORGOTTEN


def test_a_job_whose_time_is_up_is_asked_to_stop_until_that_is_heard():
    cluster = MadeUpCluster([job("RUNNING")], stops_heard=[False, False, True])

    outcome, _, said = follow(cluster, deadline=time.monotonic())

    assert outcome is Outcome.TIMED_OUT
    assert cluster.stops_heard == []
    assert said.count("the time is up") == 1


def test_a_job_that_ends_by_itself_as_the_time_is_up_has_succeeded():
    assert follow(MadeUpCluster([job("SUCCEEDED")]), deadline=time.monotonic())[0] is Outcome.OVER


def test_a_job_that_cannot_be_stopped_does_not_hold_the_command(monkeypatch):
    monkeypatch.setattr(follow_module, "STOP_WAIT_S", 0.1)
    cluster = MadeUpCluster([JobsUnreachableError("refused")], stops_heard=[False] * 1000)

    assert follow(cluster, deadline=time.monotonic())[0] is Outcome.TIMED_OUT


@pytest.mark.parametrize(
    ("answer", "outcome"), [(Answer.LEAVE, Outcome.LEFT), (Answer.STOP, Outcome.OVER), (Answer.GO_ON, Outcome.OVER)]
)
def test_what_a_user_wants_is_done(answer, outcome):
    answers: list[Job | Exception | None] = [job("RUNNING"), job("RUNNING"), job("SUCCEEDED")]
    cluster = MadeUpCluster(answers, stops_heard=[True])

    found, _, _ = follow(cluster, answer=answer)

    assert found is outcome
    assert (cluster.stops_heard == []) == (answer is Answer.STOP)


@given(
    lines=st.lists(st.text(alphabet="ab# 1", max_size=5), max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    size=st.integers(1, 7),
)
def test_a_log_is_shown_exactly_from_its_mark_on_however_it_is_cut(lines, cuts, size):
    wanted = "".join(f"{line}\n" for line in lines)
    whole = f"an older job\nRunning old # attempt 0\nold\nRunning new # attempt 2\n{wanted}"
    log = JobLog("# attempt 2")
    shown = ""

    for end in [*cuts, len(whole)]:
        log.reconnect()
        for start in range(0, min(end, len(whole)), size):
            shown += log.add(whole[start : min(start + size, end)])

    assert shown == wanted
