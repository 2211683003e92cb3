"""A TCP proxy whose connections can be cut or stalled, and restored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class TcpProxy:
    """Pass bytes on to a port of this machine. `url` is for clients; `bytes_up` counts the bytes they sent."""

    upstream_port: int
    port: int = 0
    bytes_up: int = 0
    is_cut: bool = False
    is_silent: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset open connections, and refuse new ones."""
        self.is_cut = True
        self._loop.call_soon_threadsafe(self._reset)

    def mend(self) -> None:
        """Pass bytes on again, on new connections."""
        self.is_cut = self.is_silent = False
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.is_cut:
                writer.transport.abort()
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            self._writers.add(up_writer)
            await asyncio.gather(self._pass(reader, up_writer, up=True), self._pass(up_reader, writer, up=False))
            self._writers.discard(up_writer)
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with suppress(OSError):
            while content := await reader.read(65536):
                while self.is_silent:
                    await asyncio.sleep(0.05)
                self.bytes_up += len(content) if up else 0
                writer.write(content)
                await writer.drain()
        with suppress(OSError):
            writer.close()


@contextmanager
def running_tcp_proxy(upstream_port: int) -> Iterator[TcpProxy]:
    """Run a proxy until the block ends."""
    proxy = TcpProxy(upstream_port)
    ready = threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        ready.set()
        await asyncio.Event().wait()

    def work() -> None:
        asyncio.set_event_loop(proxy._loop)
        with suppress(asyncio.CancelledError):
            task = proxy._loop.create_task(run())
            proxy.task = task  # type: ignore[attr-defined]
            proxy._loop.run_until_complete(task)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._reset)
        proxy._loop.call_soon_threadsafe(proxy.task.cancel)  # type: ignore[attr-defined]
        thread.join(5)
