"""The console of `submit`: messages on stderr, the question at Ctrl-C, and signals."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.submit.follow import Answer, Watch


def say(text: str) -> None:
    """Write a message to stderr."""
    sys.stderr.write(f"shardlabel: {text}\n")
    sys.stderr.flush()


async def ask_user() -> Answer:
    """Ask on the terminal what to do; without a terminal, leave the job running."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return Answer.LEAVE
    sys.stderr.write("\nshardlabel: stop the job (s), leave it running (l), or go on watching (Enter)? ")
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    typed = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    answer = sys.stdin.readline()
    if not answer:
        return Answer.LEAVE
    return {"s": Answer.STOP, "l": Answer.LEAVE}.get(answer.strip().lower()[:1], Answer.GO_ON)


@contextmanager
def handle_signals(watch: Watch) -> Iterator[None]:
    """Make Ctrl-C ask what to do, and SIGTERM and SIGHUP leave the job running."""
    loop = asyncio.get_running_loop()

    def leave() -> None:
        async def at_once() -> Answer:
            return Answer.LEAVE

        watch.ask = at_once
        watch.interrupted.set()

    handlers = {signal.SIGINT: watch.interrupted.set, signal.SIGTERM: leave, signal.SIGHUP: leave}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
