"""What a resume on S3 costs: bytes read and seconds, with 0, 50, 90 and 100 % of the units done.

    python -m benchmarks.resume [--shards 100] [--samples 200]

Source and DEST are in a real S3 server (moto's) on this machine; a proxy in front of it counts what goes through. A run
is brought to the state of one that died by taking commit records away. With `--faults 0.2` the share of calls is instead
answered by 503, 500 or a reset, and the output is compared with an undisturbed run's. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.support.chaos import digests
from tests.support.s3_server import BUCKET, FaultProxy, S3Server, running_proxy, running_s3, share_of_faults
from tests.support.tiny_model import build_tiny_model, colour_shards


def label(proxy: FaultProxy, model: Path, dest: str, home: Path) -> tuple[float, int, dict]:
    """Run the command against the proxy; return seconds, exit code and summary."""
    command = [sys.executable, "-m", "cluster.cli", "label", f"s3://{BUCKET}/in/*.tar", "--output", f"s3://{BUCKET}/{dest}",
               "--model", str(model), "--top-k", "3", "--json", "--progress", "none"]  # fmt: skip
    environment = {**os.environ, **proxy.environment(), "SHARDLABEL_HOME": str(home)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    proxy.forget()
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    sys.stderr.write(done.stderr[-500:])
    summary = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    return seconds, done.returncode, summary


def forget_units(server: S3Server, commits: str, first: int) -> None:
    """Take away the records of all units from `first` on."""
    for path in server.fetch(commits).glob("*.jsonl"):
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["unit"] < first]
        server.put(f"{commits}/{path.name}", "".join(line + "\n" for line in lines).encode())


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--samples", type=int, default=200, help="in each shard")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls that fail")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        shards = colour_shards(Path(folder) / "s3" / BUCKET / "in", shards=options.shards, samples=options.samples)
        server = stack.enter_context(running_s3(Path(folder) / "s3"))
        proxy = stack.enter_context(running_proxy(server))
        home = Path(folder) / "home"
        model = build_tiny_model(Path(folder))
        total = sum(path.stat().st_size for path in shards)
        rows = []
        if options.faults:
            label(proxy, model, "whole", home)
            proxy.rule = share_of_faults(options.faults, seed=1)
            seconds, code, _ = label(proxy, model, "faulty", home)
            fates = [answered.fault for answered in proxy.calls]
            equal = digests(server.fetch("faulty")) == digests(server.fetch("whole"))
            rows.append({"faults": options.faults, "exit": code, "seconds": round(seconds, 1), "same_output": equal,
                         "calls": len(fates), "failed_calls": sum(fate is not None for fate in fates)})  # fmt: skip
        else:
            for share in (0.0, 0.5, 0.9, 1.0):
                if share:
                    forget_units(server, "out/_shardlabel/commits", round(share * options.shards))
                seconds, code, summary = label(proxy, model, "out", home)
                read = sum(n for name, n in proxy.bytes_by_object().items() if name.startswith("in/"))
                rows.append({"done": share, "exit": code, "units_now": summary.get("units_now"),
                             "input_bytes_read_share": round(read / total, 4), "seconds": round(seconds, 1),
                             "gets": proxy.count("GET"), "listings": proxy.count("GET", listing=True),
                             "heads": proxy.count("HEAD"), "puts": proxy.count("PUT")})  # fmt: skip
        print(json.dumps({"shards": options.shards, "input_bytes": total, "runs": rows}))


if __name__ == "__main__":
    main()
