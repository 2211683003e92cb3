"""MLPerf-style load on the endpoint, by MLCommons' own generator: Offline, SingleStream, and Server with Poisson arrivals.

    shardlabel serve --model efficientnet-lite0 --port 8000 &
    .venv-rivals/bin/python -m benchmarks.serve_mlperf http://127.0.0.1:8000/v1/classify [--bound-ms 100] [--seconds 10]

What bounds it: Offline is the endpoint's capacity with as many requests in flight as its queue takes; SingleStream (90th
percentile) is one request at a time; Server is the highest rate of independent arrivals of which 99 % are answered within
the bound, found by halving between nothing and the Offline rate. MLPerf's own bound for ResNet-50 is 15 ms, which a GPU
meets and two CPU cores do not (one image takes about 8 ms here): so say which bound was used. Each run is `--seconds`
long and the search does `--steps` runs, so that all takes (3 + steps) x seconds. These are not verified MLPerf results.

A run counts if its p99 is within the bound and every answer was 200; `valid` is the generator's own verdict, which also
wants enough queries to be sure of the percentile: for that, `--seconds 60`. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import array
import http.client
import json
import queue
import re
import tempfile
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import mlperf_loadgen as loadgen

from benchmarks.serve_rivals.load import read_images

# MLPerf's seeds of this generator's version, so that arrivals are the same in every run.
SEEDS = (2085463073848966840, 2747215439041700203, 16159082839903944936)


class Endpoint:
    """The system under test: connections that take samples from one line."""

    def __init__(self, url: str, images: list[bytes], connections: int) -> None:
        self._parts = urlsplit(url)
        self._images = images
        self._line: queue.SimpleQueue = queue.SimpleQueue()
        self.statuses: Counter = Counter()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(connections)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: list) -> None:
        """Take samples of the generator, which waits for nothing."""
        for sample in samples:
            self._line.put(sample)

    def close(self) -> None:
        for _ in self._threads:
            self._line.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        connection = http.client.HTTPConnection(self._parts.hostname, self._parts.port, timeout=60)
        while (sample := self._line.get()) is not None:
            try:
                connection.request("POST", self._parts.path, self._images[sample.index], {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                body = answer.read()
                self.statuses[answer.status] += 1
            except (OSError, http.client.HTTPException) as err:
                connection.close()
                body = b"x"
                self.statuses[type(err).__name__] += 1
            # The generator reads the buffer before the call returns.
            content = array.array("B", body)
            address, length = content.buffer_info()
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, address, length)])
        connection.close()


def run(url: str, images: list[bytes], scenario: str, args: argparse.Namespace, rate: float = 0.0) -> dict:
    """Let the generator do one run, and return what its summary says."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = settings.max_duration_ms = int(1000 * args.seconds)
    settings.min_query_count = 1
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = SEEDS
    settings.offline_expected_qps = args.expected
    settings.single_stream_expected_latency_ns = 10_000_000
    settings.server_target_qps = rate or args.expected
    settings.server_target_latency_ns = int(args.bound_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    endpoint = Endpoint(url, images, 1 if scenario == "SingleStream" else args.connections)
    system = loadgen.ConstructSUT(endpoint.issue, lambda: None)
    library = loadgen.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        log = loadgen.LogSettings()
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        loadgen.StartTestWithLogSettings(system, library, settings, log, "")
        summary = Path(folder, "mlperf_log_summary.txt").read_text()
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    endpoint.close()
    return _read(summary, scenario) | {"statuses": {str(k): n for k, n in endpoint.statuses.items()}}


def _read(summary: str, scenario: str) -> dict:
    """Return the figures of a summary."""
    numbers = {key.strip(): value.strip() for key, value in re.findall(r"^([^:\n]+): (.*)$", summary, re.MULTILINE)}
    figures = {
        "valid": numbers["Result is"] == "VALID",
        "p50_ms": float(numbers["50.00 percentile latency (ns)"]) / 1e6,
        "p90_ms": float(numbers["90.00 percentile latency (ns)"]) / 1e6,
        "p99_ms": float(numbers["99.00 percentile latency (ns)"]) / 1e6,
    }
    name = {"Offline": "Samples per second", "Server": "Completed samples per second"}.get(scenario)
    if name is not None:
        figures["per_s"] = float(numbers[name])
    return {key: value if key == "valid" else round(value, 2) for key, value in figures.items()}


def search(url: str, images: list[bytes], args: argparse.Namespace, most: float) -> tuple[dict | None, list[dict]]:
    """Return the valid run of the highest rate, and all runs, halving between 0 and `most`."""
    low, high, best, tried = 0.0, most, None, []
    for _ in range(args.steps):
        rate = (low + high) / 2 if tried else 0.8 * most
        figures = run(url, images, "Server", args, rate) | {"asked_per_s": round(rate, 1)}
        tried.append(figures)
        print(json.dumps(figures), flush=True)
        if figures["p99_ms"] <= args.bound_ms and set(figures["statuses"]) == {"200"}:
            low, best = rate, figures
        else:
            high = rate
    return best, tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--bound-ms", type=float, default=100, help="of the Server scenario's p99 (100)")
    parser.add_argument("--seconds", type=float, default=10, help="of each run (10)")
    parser.add_argument("--steps", type=int, default=5, help="runs of the search (5)")
    parser.add_argument("--expected", type=float, default=150, help="images/s, to size the Offline query (150)")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    images = read_images(args.images)
    result: dict = {"benchmark": "serve_mlperf", "bound_ms": args.bound_ms, "seconds": args.seconds}
    run(args.url, images, "SingleStream", argparse.Namespace(**{**vars(args), "seconds": min(2, args.seconds)}))
    for scenario in ("Offline", "SingleStream"):
        result[scenario] = run(args.url, images, scenario, args)
        print(scenario, json.dumps(result[scenario]), flush=True)
    result["Server"], result["search"] = search(args.url, images, args, result["Offline"]["per_s"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
