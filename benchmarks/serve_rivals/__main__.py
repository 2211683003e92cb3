"""The endpoint beside other ways to serve the same model: requests per second, p50, p99, memory.

    python3 -m venv .venv-rivals && .venv-rivals/bin/python -m pip install -r benchmarks/requirements-serve.txt
    python -m benchmarks.serve_rivals [--rounds 5] [--seconds 5] [--clients 1,8,64] [--only shardlabel,fastapi]

Every server has the same int8 model and JPEGs, and per core one process or replica with one session of one thread; each is
set up as its own documentation does it. All decode and label with the project's own code, so that only the serving differs;
or, with `--labeller plain`, all but ours with Pillow, NumPy and the model's file as it is (`labeller.py`).

They take turns: in every round each is started anew, checked for the right labels, warmed up for two seconds, loaded with
each number of clients, measured (proportional set size of all its processes, under load) and ended; the order turns too.
`bare` is the bound: decoding and session in as many processes, with no server. A figure is the median of the rounds;
`spread` is (largest - smallest) / median; a ratio is the median of the rounds' own ratios, so that a machine that slows
down does so for both. A round of 5 s takes about 5 minutes; results are written after each, and `--add` goes on from there:
five times `--rounds 1 --add` is `--rounds 5`.

It prints a table; the last line is one JSON object, which is kept in benchmarks/results/ with a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import memory_mb
from benchmarks.serve_rivals.bare import measure as measure_bare
from benchmarks.serve_rivals.contenders import CORES, Contender, contenders
from benchmarks.serve_rivals.labeller import KIND_VARIABLE, KINDS, OurLabeller, PlainLabeller, make_labeller
from benchmarks.serve_rivals.load import ROOT, Bodies, read_images, run_load
from benchmarks.serve_rivals.running import running

CHECKED = 5
WARM_UP_S = 2
OURS = "shardlabel"


def one_start(contender: Contender, images: list[bytes], expected: list[list[int]], args: argparse.Namespace) -> dict:
    """Start a contender once and return its figures by number of clients."""
    with Bodies(images, contender.body) as bodies, running(contender, bodies, expected) as server:
        run_load(server.url, bodies, 8, WARM_UP_S)
        loads = {str(clients): asdict(run_load(server.url, bodies, clients, args.seconds)) for clients in args.clients}
        # Under load, but not under one that is timed: to add up a dozen processes' pages takes a while.
        memory: list[float] = []
        look = threading.Timer(WARM_UP_S / 2, lambda: memory.append(memory_mb(server.processes())))
        look.start()
        run_load(server.url, bodies, args.clients[-1], WARM_UP_S)
        look.join()
    return {"loads": loads, "memory_mb": round(memory[0], 1), "start_s": server.start_s}


def bare_start(images: list[bytes], seconds: float) -> dict:
    """Return the bound, in the same form: as many processes as cores, and one for one client."""
    one, all_cores = measure_bare(1, seconds, images), measure_bare(CORES, seconds, images)
    return {"loads": {"1": one, "all": all_cores}}


def summarise(rounds: list[dict[str, dict]]) -> dict[str, dict]:
    """Return medians and spreads of each contender."""
    summary: dict[str, dict] = {}
    for name in rounds[0]:
        starts = [each[name] for each in rounds]
        loads = {}
        for clients in starts[0]["loads"]:
            found = {}
            for figure in ("rate", "p50_ms", "p99_ms"):
                if figure in starts[0]["loads"][clients]:
                    values = [start["loads"][clients][figure] for start in starts]
                    found[figure] = round(statistics.median(values), 2)
                    found[f"{figure}_spread"] = round((max(values) - min(values)) / statistics.median(values), 3)
            found["bad"] = sum(start["loads"][clients].get("bad", 0) for start in starts)
            loads[clients] = found
        summary[name] = {"loads": loads}
        for figure in ("memory_mb", "start_s"):
            if figure in starts[0]:
                summary[name][figure] = round(statistics.median(start[figure] for start in starts), 1)
    return summary


def ratios(rounds: list[dict[str, dict]], clients: str) -> dict[str, float]:
    """Return our rate over each other's, round by round, as medians."""
    found = {}
    for name in rounds[0]:
        key = "all" if name == "bare" else clients
        if name != OURS and OURS in rounds[0]:
            pairs = [(each[OURS]["loads"][clients]["rate"], each[name]["loads"][key]["rate"]) for each in rounds]
            found[name] = round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
    return found


def table(summary: dict[str, dict], titles: dict[str, str], clients: list[str]) -> str:
    """Return the figures as text."""
    head = "".join(f"{f'{c} client(s): /s':>16}{'p50':>8}{'p99':>8}" for c in clients)
    lines = [f"{'':40}{head}{'MB':>8}{'start s':>9}"]
    for name, figures in summary.items():
        if name == "bare":
            continue
        cells = "".join(
            f"{load['rate']:>10.1f} ±{load['rate_spread'] / 2:>4.0%}{load['p50_ms']:>8.1f}{load['p99_ms']:>8.1f}"
            for load in (figures["loads"][c] for c in clients)
        )
        lines.append(f"{titles[name]:40}{cells}{figures['memory_mb']:>8.0f}{figures['start_s']:>9.1f}")
    if "bare" in summary:
        one, both = summary["bare"]["loads"]["1"], summary["bare"]["loads"]["all"]
        lines.append(f"bare: {both['rate']:.1f} images/s in {CORES} processes; one: p50 {one['p50_ms']:.1f} ms")
    return "\n".join(lines)


def _labels(labeller: OurLabeller | PlainLabeller, images: list[bytes]) -> list[list[int]]:
    return [labeller.label([labeller.decode(data)])[0]["label_ids"] for data in images[:CHECKED]]


def one_round(number: int, chosen: list[Contender], images: list[bytes], args: argparse.Namespace) -> dict[str, dict]:
    """Let everyone have a turn; whose comes first changes from round to round."""
    theirs = _labels(make_labeller(), images)
    ours = _labels(make_labeller("ours"), images)
    turns: list[Contender | None] = [*chosen, None]
    found = {}
    for contender in turns[number % len(turns) :] + turns[: number % len(turns)]:
        name = contender.name if contender else "bare"
        expected = ours if name == OURS else theirs
        found[name] = one_start(contender, images, expected, args) if contender else bare_start(images, args.seconds)
        print(f"round {number + 1} {name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return {name: found[name] for name in (*(contender.name for contender in chosen), "bare")}


def result_of(rounds: list[dict[str, dict]], chosen: list[Contender], args: argparse.Namespace) -> dict:
    """Return all that is kept."""
    return {
        "benchmark": "serve_rivals", "date": datetime.now(UTC).date().isoformat(), "cores": CORES,
        "labeller": args.labeller,
        "rounds": len(rounds), "seconds": args.seconds, "images": args.images, "summary": summarise(rounds),
        "ratios": ratios(rounds, str(args.clients[-1])), "titles": {c.name: c.title for c in chosen}, "all": rounds,
    }  # fmt: skip


def earlier_rounds(path: Path, chosen: list[Contender], args: argparse.Namespace) -> list[dict[str, dict]]:
    """Return the rounds of a file that is added to.

    Raises:
        SystemExit: They were of other contenders, clients, images or seconds.
    """
    if not path.exists():
        return []
    kept = json.loads(path.read_text())
    then = (set(kept["titles"]), kept["seconds"], kept["images"], set(kept["all"][0][chosen[0].name]["loads"]))
    now = ({c.name for c in chosen}, args.seconds, args.images, {str(n) for n in args.clients})
    if then != now:
        raise SystemExit(f"{path} holds rounds of {then}, and these are of {now}: give another --output")
    return kept["all"]


def main() -> None:
    """Read the options, take turns, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each (5)")
    parser.add_argument("--seconds", type=float, default=5, help="of each load (5)")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--only", help="names, with commas: " + ", ".join(c.name for c in contenders(Path())))
    parser.add_argument("--images", type=int, default=200, help="different JPEGs (200)")
    parser.add_argument("--rivals", type=Path, default=ROOT / ".venv-rivals" / "bin", help="their environment's bin")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument(
        "--labeller", choices=KINDS, default=KINDS[0], help="what the others decode and label with (ours)"
    )
    parser.add_argument("--add", action="store_true", help="to today's rounds that are there")
    args = parser.parse_args()
    chosen = [c for c in contenders(args.rivals) if args.only is None or c.name in args.only.split(",")]
    images = read_images(args.images)
    os.environ[KIND_VARIABLE] = args.labeller
    kind = "" if args.labeller == KINDS[0] else f"-{args.labeller}"
    path = args.output / f"{datetime.now(UTC).date().isoformat()}-serve-rivals{kind}-{CORES}-cores.json"
    rounds = earlier_rounds(path, chosen, args) if args.add else []
    for _ in range(args.rounds):
        rounds.append(one_round(len(rounds), chosen, images, args))
        # After each: whoever is cut off goes on with --add.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result_of(rounds, chosen, args), indent=1) + "\n")

    result = result_of(rounds, chosen, args)
    print(table(result["summary"], result["titles"], [str(n) for n in args.clients]))
    against = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
    print(f"ours over theirs at {args.clients[-1]} clients: {against}")
    plot = [str(args.rivals / "python"), "-m", "benchmarks.serve_rivals.plot", str(path), str(path.with_suffix(".png"))]
    subprocess.run(plot, cwd=ROOT, check=False)
    print(json.dumps({key: value for key, value in result.items() if key != "all"}))


if __name__ == "__main__":
    main()
