"""Show where the Parquet files of a DEST are, and the first rows: `python -m tools.preview DEST`."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

ROWS = 12


def main(folder: Path) -> None:
    """Print the first rows of the folder's first Parquet file."""
    console = Console()
    parts = sorted(folder.glob("part-*.parquet"))
    table = Table(title=f"{folder}/{parts[0].name}" + (f" and {len(parts) - 1} more" if parts[1:] else ""))
    for name in ("key", "label", "score", "size", "status"):
        table.add_column(name, justify="right" if name == "score" else "left")
    rows = pq.read_table(parts[0], columns=["key", "label", "score", "width", "height", "status"])
    for row in rows.slice(0, ROWS).to_pylist():
        score = "" if row["score"] is None else f"{row['score']:.3f}"
        size = "" if row["width"] is None else f"{row['width']} x {row['height']}"
        table.add_row(row["key"], row["label"] or "", score, size, row["status"])
    console.print(table)
    console.print(f"all rows: pyarrow.parquet.read_table({str(folder)!r})", highlight=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
