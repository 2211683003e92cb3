"""How fast shards are read from an S3 server: our streams (obstore), and pyarrow's filesystem, in turns.

    python -m benchmarks.reading --gigabytes 1 --rounds 5

The server is the tests' own (moto, one Python process), and is the slower end: both get the same bytes from it, so that
seconds compare, and CPU seconds of the reading process say what each client costs. `pyarrow` reads each object as one
input stream in pieces of 4 MiB, as ours does; `pyarrow-ahead` has the next piece read by a thread meanwhile, as ours has.
Requests are counted once, by a proxy in front of the server. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pyarrow.fs

from pipeline.storage.storage import open_storage
from pipeline.storage.streams import REMOTE_PIECE_BYTES, RetryingStream, one_ahead
from tests.support.object_server import BUCKET, ObjectServer
from tests.support.s3_server import FaultProxy, running_proxy, running_s3

# As many as a hundred photographs have: the server copies the whole object for each range that it answers.
SHARD_BYTES = 10**7


def by_us(names: list[str]) -> int:
    """Read objects as a run reads shards; return the bytes."""
    size, storage = 0, open_storage(f"s3://{BUCKET}/shards")
    for name in names:
        with RetryingStream(storage, name) as stream:
            while piece := stream.read(REMOTE_PIECE_BYTES):
                size += len(piece)
    return size


def pyarrow_pieces(names: list[str]) -> Iterator[bytes]:
    """Read objects as pyarrow's input streams."""
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=endpoint, scheme="http", region=os.environ["AWS_REGION"],
    )  # fmt: skip
    for name in names:
        with filesystem.open_input_stream(f"{BUCKET}/shards/{name}") as stream:
            while piece := stream.read(REMOTE_PIECE_BYTES):
                yield piece


READERS: dict[str, Callable[[list[str]], int]] = {
    "shardlabel": by_us,
    "pyarrow": lambda names: sum(map(len, pyarrow_pieces(names))),
    "pyarrow-ahead": lambda names: sum(map(len, one_ahead(pyarrow_pieces(names)))),
}


def timed(read: Callable[[list[str]], int], names: list[str], at_a_time: int) -> tuple[float, float, int]:
    """Return seconds, CPU seconds of this process, and bytes of reading objects, so many at a time."""
    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(at_a_time) as threads:
        size = sum(threads.map(read, [names[i::at_a_time] for i in range(at_a_time)]))
    return time.perf_counter() - began, time.process_time() - cpu, size


def requests_of(read: Callable[[list[str]], int], proxy: FaultProxy, names: list[str]) -> dict[str, int]:
    """Count the requests of reading objects once."""
    proxy.forget()
    with mock.patch.dict(os.environ, proxy.environment()):
        read(names)
    return {method: proxy.count(method) for method in ("GET", "HEAD") if proxy.count(method)}


def measure(server: ObjectServer, names: list[str], rounds: int, at_a_time: int) -> dict[str, dict]:
    """Read with each in turns, the order turned round each time."""
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in READERS}
    for number in range(rounds):
        for name in list(READERS)[:: 1 if number % 2 else -1]:
            runs[name].append(timed(READERS[name], names, at_a_time))
    with running_proxy(server) as proxy:
        counted = {name: requests_of(read, proxy, names) for name, read in READERS.items()}
    return {
        name: {
            "mb_per_s": [round(size / seconds / 1e6, 1) for seconds, _, size in of],
            "median_mb_per_s": round(statistics.median(size / seconds / 1e6 for seconds, _, size in of), 1),
            "median_cpu_s_per_gb": round(statistics.median(cpu / size * 1e9 for _, cpu, size in of), 3),
            "requests": counted[name],
        }
        for name, of in runs.items()
    }


def main() -> None:
    """Fill a bucket, read it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-a-time", type=int, default=1, help="objects")
    options = parser.parse_args()
    shards = max(1, round(options.gigabytes * 1e9 / SHARD_BYTES))
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder) / "s3") as server:
        os.environ |= server.environment()
        names = [f"{number:05d}.tar" for number in range(shards)]
        content = os.urandom(SHARD_BYTES)
        for name in names:
            server.put(f"shards/{name}", content)
        result = measure(server, names, options.rounds, options.at_a_time)
    print(json.dumps({"gigabytes": shards * SHARD_BYTES / 1e9, "at_a_time": options.at_a_time, **result}))


if __name__ == "__main__":
    main()
