"""Load on one URL: a number of clients that each send the next image as soon as they have the last one's answer.

    python -m benchmarks.serve_rivals.load http://127.0.0.1:8000/v1/classify --clients 64 --seconds 10

wrk makes the load where it is installed (apt-get install wrk), since it takes the least from the server on a machine that
both share; `--tool own` is a client in this process, on httptools. Closed loop: a slower server is asked less often, so the
rate is its capacity at so many clients, and the percentiles are of that. `rate` counts answers with status 200 alone.

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httptools

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT.parent / "shared" / "data" / "imagenet-sample"
PHOTOS = ROOT / "models" / "samples" / "photos.tar"
BOUNDARY = "shardlabel-benchmark"

WRK_SCRIPT = """
local bodies = {}
for path in io.lines("%(listing)s") do
  local file = io.open(path, "rb"); bodies[#bodies + 1] = file:read("*a"); file:close()
end
local requests, next_one = {}, math.random(0, 1000)
function init(args)
  for i, body in ipairs(bodies) do requests[i] = wrk.format("POST", nil, {["Content-Type"] = "%(content_type)s"}, body) end
end
function request() next_one = next_one %% #requests + 1; return requests[next_one] end
function done(summary, latency)
  io.write(string.format('\\n{"requests": %%d, "bad": %%d, "seconds": %%f, "p50": %%f, "p99": %%f}\\n', summary.requests,
    summary.errors.status + summary.errors.timeout + summary.errors.read + summary.errors.connect,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load came to.

    Attributes:
        rate: Answers with status 200 per second.
        p50_ms: Median time to an answer.
        p99_ms: 99th percentile.
        answers: All answers.
        bad: Answers with another status, and none at all.
        tool: What made the load.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    answers: int
    bad: int
    tool: str


def read_images(limit: int) -> list[bytes]:
    """Return JPEGs: of the sample data where they are, else the bundled photographs again and again."""
    tars = sorted(SAMPLES.glob("*.tar")) or [PHOTOS]
    images: list[bytes] = []
    for path in tars:
        with tarfile.open(path) as tar:
            images += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    return images[:limit]


def as_body(image: bytes, kind: str) -> tuple[bytes, str]:
    """Return a request's body and its content type; kind is raw, base64 (LitServe's JSON) or form."""
    if kind == "raw":
        return image, "image/jpeg"
    if kind == "base64":
        return json.dumps({"image_data": base64.b64encode(image).decode()}).encode(), "application/json"
    about = 'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg'
    head = f"--{BOUNDARY}\r\n{about}\r\n\r\n"
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


class Bodies:
    """Requests' bodies, in files too, for wrk. Use as a context manager."""

    def __init__(self, images: list[bytes], kind: str) -> None:
        pairs = [as_body(image, kind) for image in images]
        self.contents = [content for content, _ in pairs]
        self.content_type = pairs[0][1]
        self._folder = tempfile.TemporaryDirectory()
        self.script = Path(self._folder.name) / "load.lua"

    def __enter__(self) -> Bodies:
        folder = Path(self._folder.name)
        paths = [folder / f"{number}.body" for number in range(len(self.contents))]
        for path, content in zip(paths, self.contents, strict=True):
            path.write_bytes(content)
        listing = folder / "listing"
        listing.write_text("\n".join(map(str, paths)) + "\n")
        self.script.write_text(WRK_SCRIPT % {"listing": listing, "content_type": self.content_type})
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def run_load(url: str, bodies: Bodies, clients: int, seconds: float, tool: str = "auto") -> Load:
    """Send requests for some seconds."""
    if tool == "auto":
        tool = "wrk" if shutil.which("wrk") else "own"
    return _wrk(url, bodies, clients, seconds) if tool == "wrk" else asyncio.run(_own(url, bodies, clients, seconds))


def _wrk(url: str, bodies: Bodies, clients: int, seconds: float) -> Load:
    command = ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{max(1, round(seconds))}s",
               "--timeout", "60s", "--script", str(bodies.script), url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    good = said["requests"] - said["bad"]
    return Load(
        rate=round(good / said["seconds"], 2), p50_ms=round(said["p50"], 2), p99_ms=round(said["p99"], 2),
        answers=said["requests"], bad=said["bad"], tool="wrk",
    )  # fmt: skip


class _Client(asyncio.Protocol):
    """One connection, which sends the next request as soon as the last one was answered."""

    def __init__(self, requests: list[bytes], first: int, until: float, times: list[tuple[float, int]]) -> None:
        self._requests, self._next, self._until, self._times = requests, first, until, times
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._began = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self._times.append((now - self._began, self._parser.get_status_code()))
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self._until:
            self._times.append((float("nan"), 0))
        self.done.set_result(None)


async def _own(url: str, bodies: Bodies, clients: int, seconds: float) -> Load:
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    requests = [
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {bodies.content_type}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
        for content in bodies.contents
    ]
    times: list[tuple[float, int]] = []
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = [
        await loop.create_connection(
            lambda n=n: _Client(requests, n * 7, began + seconds, times), parts.hostname, parts.port
        )
        for n in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in made))
    took = time.perf_counter() - began
    answered = sorted(1000 * each for each, status in times if status)
    good = sum(status == 200 for _, status in times)
    cuts = statistics.quantiles(answered, n=100) if len(answered) > 1 else [float("nan")] * 99
    return Load(round(good / took, 2), round(cuts[49], 2), round(cuts[98], 2), len(times), len(times) - good, "own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--body", choices=["raw", "base64", "form"], default="raw")
    parser.add_argument("--images", type=int, default=200, help="how many of the sample images (200)")
    parser.add_argument("--tool", choices=["auto", "wrk", "own"], default="auto")
    args = parser.parse_args()
    with Bodies(read_images(args.images), args.body) as bodies:
        print(json.dumps(asdict(run_load(args.url, bodies, args.clients, args.seconds, args.tool))))


if __name__ == "__main__":
    main()
