"""All that is to be measured on a GPU, one after the other, kept in one file.

    python -m benchmarks.gpu 'shards/*.tar' [--images 100000] [--model resnet18-v2] [--tiny]

Decoding, the session, parity, a profile, and `label` end to end; a part that fails says why, and the others go on. The
figures go to `benchmarks/results/<date>-<GPU>.json`, part by part, so that a run that is cut short leaves what it has.
`--tiny` does all of it on the CPU and a simulated GPU in a minute: to see that the scripts run, for no figure. The
last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import gpu_decode, gpu_end_to_end, gpu_parity, gpu_profile, gpu_session
from benchmarks.gpu_common import encoded_images
from models.session import gpu_name

RESULTS = Path(__file__).parent / "results"


class Figures:
    """What was measured so far, on disk after every part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, dict] = {}

    def add(self, name: str, work: Callable[[list[str]], dict], arguments: list[str]) -> dict:
        """Measure a part and keep it; one that fails is kept as its failure."""
        sys.stderr.write(f"== {name}: {' '.join(arguments)}\n")
        started = time.perf_counter()
        try:
            part = work(arguments)
        except (Exception, SystemExit) as err:  # noqa: BLE001 (the other parts are worth having)
            traceback.print_exc()
            part = {"failed": f"{type(err).__name__}: {err}"[:500]}
        part["seconds"] = round(time.perf_counter() - started, 1)
        self.parts[name] = part
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.whole(), indent=1) + "\n")
        return part

    def whole(self) -> dict:
        """Return everything, with what it was measured on."""
        machine = {"gpu": gpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        return {
            "benchmark": "gpu",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine,
            "parts": self.parts,
        }


def run(options: argparse.Namespace) -> dict:
    """Measure everything."""
    where = ["--provider", "cpu" if options.tiny else "cuda"]
    model = ["--model", options.model]
    small = ["--seconds", "0.2"] if options.tiny else []
    warm = ["--warm-up", "0.1"] if options.tiny else []
    figures = Figures(Path(options.output or RESULTS / f"{datetime.now(UTC).date().isoformat()}-{gpu_name()}.json"))
    tars = options.tars
    decode = figures.add("decode", gpu_decode.main, [*tars, *model, *small])
    batches = ["--batches", "4"] if options.tiny else []
    session = figures.add("session", gpu_session.main, [*where, *model, *batches, *small, *warm])
    parity = ["--limit", "8", "--batch", "4"] if options.tiny else []
    figures.add("parity", gpu_parity.main, [*tars, *where, *model, *parity])
    profile = ["--batch", "4", "--repeats", "2"] if options.tiny else []
    figures.add("profile", gpu_profile.main, [*where, *model, *profile, *small, *warm])
    for precision in ("fp16", "fp32"):
        device = "simulated:2000" if options.tiny else "cuda"
        rates = {"--decode-rate": decode.get("all_images_per_s"), "--session-rate": session_rate(session, precision)}
        known = [str(word) for name, rate in rates.items() if rate for word in (name, rate)]
        repeat = max(1, options.images // len(encoded_images(tars, options.images)))
        arguments = [
            *tars,
            *model,
            "--device",
            device,
            "--repeat",
            str(repeat),
            f"--label-option=--precision={precision}",
        ]
        figures.add(f"end_to_end_{precision}", gpu_end_to_end.main, [*arguments, *known])
        if options.tiny:
            break
    return figures.whole()


def session_rate(session: dict, arithmetic: str) -> float | None:
    """Return the best rate of an arithmetic that `gpu_session` measured."""
    rows = [row for row in session.get("rows", []) if row["arithmetic"] == arithmetic]
    return max((max(row.get("bound", 0), row.get("graphs", 0)) for row in rows), default=None) or None


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", help="shards of JPEGs, repeated until there are enough")
    parser.add_argument("--model", default="resnet18-v2")
    parser.add_argument("--images", type=int, default=100_000, help="that `label` labels end to end")
    parser.add_argument("--output", help="where the figures go")
    parser.add_argument("--tiny", action="store_true", help="on the CPU and a simulated GPU, in a minute")
    options = parser.parse_args(arguments)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    result = run(options)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
