"""What many runs come to: medians with their spread, and ratios formed within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

RATES = ("steady", "end_to_end", "to_last_label")
# Images/s per vCPU of the best published run of this job: Daft 0.6.2 on 8 g6.xlarge, of 4 vCPUs each.
PUBLISHED_PER_VCPU = 95


def middle(values: Sequence[float]) -> dict | None:
    """Return median, least and most; None of nothing."""
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values), "runs": len(values)}


def summarise(results: dict) -> dict:
    """Return, by mode and tool, each figure's middle, and each rate's ratio to bare and of ours to it.

    `of_bare` is the tool / bare; `ours_to` is ours / the tool. A ratio is formed of two runs of one round.
    """
    summary: dict[str, dict] = {}
    for run in results["runs"]:
        by_tool = summary.setdefault(run["mode"], {})
        by_tool.setdefault(run["tool"], []).append(run)
    return {
        mode: {tool: _figures(runs, by_tool) for tool, runs in by_tool.items()} for mode, by_tool in summary.items()
    }


def _figures(runs: list[dict], by_tool: dict[str, list[dict]]) -> dict:
    good = [run for run in runs if "wrong" not in run]
    figures: dict = {"images": runs[0]["images"], "failed": len(runs) - len(good)}
    for name in (*RATES, "cpu_seconds", "peak_memory_mb", "first_labels_s", "seconds"):
        figures[name] = middle([run[name] for run in good if run.get(name) is not None])
    for rate in RATES:
        figures[f"{rate}_of_bare"] = middle(_ratios(good, by_tool.get("bare", []), rate))
        figures[f"{rate}_ours_to"] = middle(_ratios(by_tool.get("ours", []), good, rate))
    return figures


def _ratios(ours: list[dict], theirs: list[dict], rate: str) -> list[float]:
    by_round = {run["round"]: run[rate] for run in theirs if run.get(rate)}
    return [round(run[rate] / by_round[run["round"]], 3) for run in ours if run.get(rate) and run["round"] in by_round]


def table(results: dict) -> str:
    """Return the summary as text."""
    cores = results["machine"]["cores"]
    lines = []
    for mode, by_tool in summarise(results).items():
        images = next(iter(by_tool.values()))["images"]
        lines.append(
            f"\n{mode}, {images} images: images/s, median (least to most)\n{'tool':16}{'steady':>20}{'of bare':>9}"
            f"{'ours to':>9}{'end to end':>20}{'of bare':>9}{'ours to':>9}{'/vCPU':>7}{'CPU s':>7}{'MB':>7}{'runs':>6}"
        )
        for tool, f in by_tool.items():
            per_core = "" if f["end_to_end"] is None else f"{f['end_to_end']['median'] / cores:.0f}"
            lines.append(
                f"{tool:16}{_range(f['steady']):>20}{_ratio(f['steady_of_bare']):>9}{_ratio(f['steady_ours_to']):>9}"
                f"{_range(f['end_to_end']):>20}{_ratio(f['end_to_end_of_bare']):>9}"
                f"{_ratio(f['end_to_end_ours_to']):>9}{per_core:>7}{_single(f['cpu_seconds']):>7}"
                f"{_single(f['peak_memory_mb']):>7}{f['seconds']['runs'] if f['seconds'] else 0:>6}"
                + (f"  {f['failed']} FAILED" if f["failed"] else "")
                + (f"  of {f['images']} images" if f["images"] != images else "")
            )
    lines.append(f"\n/vCPU: end to end; the best published run of this job: {PUBLISHED_PER_VCPU}")
    return "\n".join(lines)


def _range(figure: dict | None) -> str:
    return "-" if figure is None else f"{figure['median']:.0f} ({figure['min']:.0f} to {figure['max']:.0f})"


def _ratio(figure: dict | None) -> str:
    return "-" if figure is None else f"{figure['median']:.2f}"


def _single(figure: dict | None) -> str:
    return "-" if figure is None else f"{figure['median']:.0f}"
