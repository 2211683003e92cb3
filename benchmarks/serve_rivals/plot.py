"""Draw the results of `python -m benchmarks.serve_rivals`: rates with their spread, and the times to an answer.

.venv-rivals/bin/python -m benchmarks.serve_rivals.plot RESULTS.json PLOT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS, INK, SOFT = "#1f6f63", "#b9c4c1", "#1b1d1e", "#5d6165"


def draw(result: dict, path: Path) -> None:
    """Save one figure: a row of panels for each number of clients."""
    names = [name for name in result["titles"] if name in result["summary"]]
    clients = list(result["summary"][names[0]]["loads"])
    figure, axes = plt.subplots(
        2, len(clients), figsize=(max(4.2 * len(clients), 8.4), 0.42 * len(names) * 2 + 2.2), squeeze=False
    )
    order = names[::-1]
    colours = [OURS if name == "shardlabel" else OTHERS for name in order]
    for column, number in enumerate(clients):
        loads = [[start[name]["loads"][number] for start in result["all"]] for name in order]
        middle = [result["summary"][name]["loads"][number] for name in order]
        rates = [load["rate"] for load in middle]
        low = [m - min(each["rate"] for each in starts) for m, starts in zip(rates, loads, strict=True)]
        high = [max(each["rate"] for each in starts) - m for m, starts in zip(rates, loads, strict=True)]
        top, bottom = axes[0][column], axes[1][column]
        top.barh(order, rates, xerr=[low, high], color=colours, ecolor=SOFT, capsize=2, height=0.62)
        top.set_title(f"{number} client{'s' * (number != '1')}", color=INK, fontsize=11)
        top.set_xlabel("requests/s", color=SOFT)
        bottom.barh(order, [load["p99_ms"] for load in middle], color=colours, height=0.62, alpha=0.55)
        bottom.barh(order, [load["p50_ms"] for load in middle], color=colours, height=0.62)
        bottom.set_xlabel("ms to an answer: p50, and p99 (pale)", color=SOFT)
        for panel in (top, bottom):
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0, labelcolor=INK)
            panel.tick_params(axis="x", labelcolor=SOFT)
            panel.grid(axis="x", color="#e3e1da", linewidth=0.7)
            panel.set_axisbelow(True)
            labels = [result["titles"][name] for name in order] if column == 0 else [""] * len(order)
            panel.set_yticks(range(len(order)), labels)
        if "bare" in result["summary"] and int(number) >= result["cores"]:
            top.axvline(result["summary"]["bare"]["loads"]["all"]["rate"], color=SOFT, linestyle=":", linewidth=1)
    figure.suptitle(
        f"EfficientNet-Lite0 int8 on {result['cores']} cores, {result['date']}; medians of {result['rounds']} start(s), "
        "whiskers: all; dotted: no server",
        fontsize=10, color=SOFT,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
