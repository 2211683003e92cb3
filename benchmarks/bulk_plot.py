"""Draw the results of `benchmarks.bulk`: rates and memory of each tool, a panel per mode, beside the results as PNG.

python -m benchmarks.bulk_plot results/FILE.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

from benchmarks.bulk_summary import summarise
from benchmarks.bulk_tools import ABOUT

TITLES = {
    "decode": "Decode-bound (inference costs nothing)",
    "int8": "EfficientNet-Lite0, int8",
    "fp32": "ResNet18-v2 graph, fp32",
    "resnet-int8": "ResNet18-v2 graph, int8",
}
STEADY, END_TO_END, OURS = "#9dbfd8", "#2b6a99", "#c8501e"


def draw(results: dict, path: Path) -> None:
    """Write the plot.

    Args:
        results: As `benchmarks.bulk` keeps them.
        path: Of the PNG.
    """
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    summary = summarise(results)
    tools = list(dict.fromkeys(tool for by_tool in summary.values() for tool in by_tool))
    figure, axes = plt.subplots(
        1, len(summary) + 1, figsize=(3 + 3.4 * (len(summary) + 1), 1.6 + 0.55 * len(tools)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (mode, by_tool) in zip(axes[0], summary.items(), strict=False):
        for row, tool in enumerate(tools):
            figures = by_tool.get(tool, {})
            _bar(axis, row - 0.2, figures.get("steady"), STEADY)
            _bar(axis, row + 0.2, figures.get("end_to_end"), OURS if tool == "ours" else END_TO_END)
        images = next(iter(by_tool.values()))["images"]
        axis.set_title(f"{TITLES.get(mode, mode)}\n{images:,} images", fontsize=10)
        axis.set_xlabel("images/s")
    for row, tool in enumerate(tools):
        peaks = [by_tool[tool]["peak_memory_mb"] for by_tool in summary.values() if tool in by_tool]
        _bar(axes[0][-1], row, max((p for p in peaks if p), key=lambda p: p["median"], default=None), "#8a8f94", 0.5)
    axes[0][-1].set_title("Peak memory of all processes\n(PSS, the largest of the modes)", fontsize=10)
    axes[0][-1].set_xlabel("MB")
    axes[0][0].set_yticks(range(len(tools)), [f"{tool}\n{_wrapped(ABOUT.get(tool, ''))}" for tool in tools], fontsize=8)
    axes[0][0].invert_yaxis()
    machine = results["machine"]
    figure.suptitle(
        f"Bulk labelling on {machine['cores']} cores ({machine['cpu']}), {results['date']}: "
        "median, least and most; light: steady, dark: from start to exit", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bar(axis: object, at: float, figure: dict | None, colour: str, height: float = 0.38) -> None:
    if figure is None:
        return
    middle = figure["median"]
    reach = [[middle - figure["min"]], [figure["max"] - middle]]
    axis.barh(at, middle, height, color=colour, xerr=reach, error_kw={"lw": 0.8, "ecolor": "#444"})
    axis.text(figure["max"], at, f" {middle:.0f}", va="center", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.16)


def _wrapped(text: str) -> str:
    head, comma, tail = text.partition(", ")
    return f"{head},\n{tail}" if comma else head


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
