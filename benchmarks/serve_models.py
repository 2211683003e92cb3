"""Three models behind one endpoint: each alone, all at once, and two of them while the third fails.

    python -m benchmarks.serve_models [--seconds 6] [--rounds 3] [--clients 64]

The three are the bundled int8 model under three names, so that all cost the same. In each round `--clients` ask one model,
then the next, then a third of them each at once. `of_alone` is the sum of each model's requests/s with the others by what it
has alone: 1 where all share one core and company costs nothing, more where cores would idle, as a model has one thread.
Memory is a replica's, its own pages and a share of those that are common, with one model and with three. Then the third is
a model whose inference fails on white images, which its clients send: what the clients of the other two see is counted.
Figures are medians of the rounds. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from benchmarks.measure import memory_mb
from benchmarks.serve_load import Load, Tally, sample_images
from benchmarks.serve_replicas import replica_pids
from models.catalog import load_spec
from models.spec import Precision
from models.store.locate import locate
from serve.config import ServeOptions
from serve.local.launch import running
from serve.local.ports import free_ports
from tests.support.hostile_models import ON_WHITE

MODEL = "efficientnet-lite0"
NAMES = ("first", "second", "third")
BROKEN = "bad"
HOST = "127.0.0.1"


def under_a_name(folder: Path, name: str) -> Path:
    """Write the bundled int8 model under another name, and return its file."""
    spec = load_spec(MODEL)
    path = folder / name / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copy(locate(spec, Precision.INT8), path)
    shutil.copy(spec.folder / spec.labels, path.parent)
    entry = (spec.folder / f"{MODEL}.toml").read_text().split("[artifacts")[0]
    path.with_suffix(".toml").write_text(entry.replace(f'name = "{MODEL}"', f'name = "{name}"'))
    return path


@contextmanager
def endpoint(*models: Path) -> Iterator[int]:
    """Serve these models by one replica; yields the port."""
    (port,) = free_ports(1)
    settings = {"model": [str(path) for path in models], "port": port, "grpc_port": 0, "max_replicas": 1}
    with running(ServeOptions.model_validate(settings), lambda _: None):
        yield port


def ask(port: int, images: Mapping[str, Sequence[bytes]], clients: int, seconds: float) -> dict[str, Tally]:
    """Ask these models at once, `clients` in all, and return what those of each saw."""
    with ExitStack() as held:
        loads = {
            name: held.enter_context(Load(HOST, port, sent, clients // len(images), path=f"/v1/classify?model={name}"))
            for name, sent in images.items()
        }
        time.sleep(seconds)
    return {name: load.tally for name, load in loads.items()}


def white() -> bytes:
    """Return a white JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 255, 255)).save(buffer, "JPEG")
    return buffer.getvalue()


def in_company(models: Sequence[Path], args: argparse.Namespace) -> dict[str, object]:
    """Return each model's figures alone and with the others."""
    images = sample_images(None)
    alone: dict[str, list[Tally]] = {name: [] for name in NAMES}
    together: dict[str, list[Tally]] = {name: [] for name in NAMES}
    with endpoint(models[0]):
        memory = [memory_mb(replica_pids())]
    with endpoint(*models) as port:
        memory.append(memory_mb(replica_pids()))
        ask(port, dict.fromkeys(NAMES, images), args.clients, 2)
        for _ in range(args.rounds):
            for name in NAMES:
                alone[name].append(ask(port, {name: images}, args.clients, args.seconds)[name])
            for name, tally in ask(port, dict.fromkeys(NAMES, images), args.clients, args.seconds).items():
                together[name].append(tally)

    def rate(tally: Tally) -> float:
        return tally.statuses[200] / tally.elapsed

    shares = [
        sum(rate(together[name][number]) / rate(alone[name][number]) for name in NAMES) for number in range(args.rounds)
    ]
    return {
        "of_alone": [round(share, 3) for share in sorted(shares)],
        "models": {
            name: {
                kind: {
                    "per_s": round(statistics.median(map(rate, tallies)), 1),
                    "p99_ms": statistics.median(tally.percentile(0.99) for tally in tallies),
                    "failed": sum(tally.failed for tally in tallies),
                }
                for kind, tallies in (("alone", alone[name]), ("together", together[name]))
            }
            for name in NAMES
        },
        "replica_mb": {"one": round(memory[0]), "three": round(memory[1])},
    }


def beside_a_broken_one(models: Sequence[Path], broken: Path, args: argparse.Namespace) -> dict[str, object]:
    """Return what clients saw while inference of one model failed."""
    images = sample_images(None)
    sent = {NAMES[0]: images, NAMES[1]: images, BROKEN: [white()]}
    with endpoint(*models[:2], broken) as port:
        (before,) = replica_pids()
        seen = ask(port, sent, args.clients, 5 * args.seconds)
        same = replica_pids() == [before]
    return {
        "same_replica": same,
        **{name: {"statuses": Counter(tally.statuses), "failed": tally.failed} for name, tally in seen.items()},
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="of each load (6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [under_a_name(folder, each) for each in NAMES]
        (folder / BROKEN).mkdir()
        broken = ON_WHITE["a-gather-beyond-the-end"](folder / BROKEN)
        found = {"company": in_company(models, args), "one_broken": beside_a_broken_one(models, broken, args)}
    print(json.dumps({"benchmark": "serve_models", **found}))


if __name__ == "__main__":
    main()
