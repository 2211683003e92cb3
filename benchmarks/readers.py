"""Read DEST with DuckDB, pandas and pyarrow while a run writes it: each must only ever see whole units.

    python -m benchmarks.readers --shards 60 --samples 200        (needs the extra `bench`)

Every read counts rows by shard; a count that is not the shard's own is a part of a unit, or a unit twice. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset

from tests.support.tiny_model import build_tiny_model, colour_shards


def by_duckdb(dest: Path) -> dict[str, int]:
    """Count rows by shard through a glob."""
    query = f"select shard, count(*) from read_parquet('{dest}/*.parquet') group by shard"
    return dict(duckdb.sql(query).fetchall())


def by_pandas(dest: Path) -> dict[str, int]:
    """Count rows by shard of the folder."""
    return dict(Counter(pd.read_parquet(dest, columns=["shard"])["shard"]))


def by_pyarrow(dest: Path) -> dict[str, int]:
    """Count rows by shard of the folder as a dataset."""
    return dict(Counter(pyarrow.dataset.dataset(dest).to_table(columns=["shard"])["shard"].to_pylist()))


READERS: dict[str, Callable[[Path], dict[str, int]]] = {
    "duckdb": by_duckdb,
    "pandas": by_pandas,
    "pyarrow.dataset": by_pyarrow,
}


def main() -> None:
    """Label in one process, read in this one, print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--samples", type=int, default=200, help="in each shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, dest = Path(name), Path(name) / "labels"
        model = build_tiny_model(folder)
        colour_shards(folder / "in", shards=options.shards, samples=options.samples)
        command = [sys.executable, "-m", "cluster.cli", "label", str(folder / "in"), "--output", str(dest),
                   "--model", str(model), "--top-k", "3", "--progress", "none"]  # fmt: skip
        environment = {**os.environ, "SHARDLABEL_HOME": str(folder / "home")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        seen = {name: {"reads": 0, "units": set(), "partial": 0} for name in READERS}
        while run.poll() is None:
            if not any(dest.glob("*.parquet")):
                continue
            for name, read in READERS.items():
                rows = read(dest)
                seen[name]["reads"] += 1
                seen[name]["units"].add(len(rows))
                seen[name]["partial"] += sum(count != options.samples for count in rows.values())
        final = {name: sum(read(dest).values()) for name, read in READERS.items()}
    print(
        json.dumps(
            {
                "exit": run.returncode,
                "rows": options.shards * options.samples,
                **{
                    name: {
                        "reads_while_writing": found["reads"],
                        "numbers_of_units_seen": len(found["units"]),
                        "partial_units_seen": found["partial"],
                        "rows_at_the_end": final[name],
                    }
                    for name, found in seen.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
