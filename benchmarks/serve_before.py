"""The endpoint of this checkout beside that of another one (an earlier commit), both up at once, loaded in turns.

    git worktree add ../before COMMIT    # and `make install` in it
    python -m benchmarks.serve_before ../before [--pairs 20] [--seconds 4] [--clients 64] [--more OPTIONS] [--set NAME=VALUE]

Whole rounds of `benchmarks.serve_rivals` lie minutes apart, in which a shared machine changes by more than two commits
differ. Here the loads of a pair follow each other at once, the order turns from pair to pair (AB, BA), and the server that
has no load idles beside the other in both cases. The figure is the median of the pairs' ratios, with their quartiles.
With `.` as the other checkout, `--more '--prediction-log FOLDER'` says what an option costs, and `--set` what a variable
does.

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.serve_rivals.contenders import contenders
from benchmarks.serve_rivals.load import Bodies, read_images, run_load
from benchmarks.serve_rivals.running import running

WARM_UP_S = 4


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="root of the other checkout, with its environment in .venv")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=4, help="of each load (4)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--more", default="", help="options of the command that only this checkout gets")
    parser.add_argument(
        "--set", action="append", default=[], help="NAME=VALUE in the environment of this checkout alone"
    )
    args = parser.parse_args()
    now = contenders(Path())[0]
    root = args.before.resolve()
    command = ("env", f"--chdir={root}", str(root / ".venv" / "bin" / "shardlabel"), *now.command[1:])
    before = replace(now, command=command, environment={"PYTHONPATH": str(root)})
    told = now.environment | dict(pair.split("=", 1) for pair in args.set)
    now = replace(now, command=(*now.command, *shlex.split(args.more)), environment=told)

    with (
        Bodies(read_images(200), now.body) as bodies,
        running(before, bodies, []) as theirs,
        running(now, bodies, []) as ours,
    ):
        for server in (ours, theirs):
            run_load(server.url, bodies, args.clients, WARM_UP_S)
        pairs = []
        for number in range(args.pairs):
            order = (ours, theirs) if number % 2 else (theirs, ours)
            rate = {server.url: run_load(server.url, bodies, args.clients, args.seconds).rate for server in order}
            pairs.append((rate[ours.url], rate[theirs.url]))
            print(f"pair {number + 1}: {pairs[-1][0]:.1f} and before {pairs[-1][1]:.1f} requests/s", file=sys.stderr)
    cuts = statistics.quantiles([after / earlier for after, earlier in pairs], n=4)
    found = {
        "ratio": round(cuts[1], 4), "quartiles": [round(cuts[0], 4), round(cuts[2], 4)], "pairs": args.pairs,
        "requests_per_s": [round(statistics.median(side), 1) for side in zip(*pairs, strict=True)],
    }  # fmt: skip
    print(json.dumps({"benchmark": "serve_before", **found}))


if __name__ == "__main__":
    main()
