"""From what was found in a DEST to one HTML page that needs nothing else: no script, no font, no connection."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files

import numpy as np

from pipeline.html.markup import Html, chart, fill, join, row, spaced, table, text
from pipeline.quantities import bytes_text, count_text, duration_text, many_text, rate_text, share_text
from pipeline.report.findings import Findings
from pipeline.report.page_rows import errors_section, samples_section
from pipeline.report.scan import SCORE_BINS

TOP_LABELS = 30
TIME_BINS = 40
DURATION_BINS = 20
# Incomplete shards and unreadable files that the page names.
NAMED = 50


def render(found: Findings) -> str:
    """Return the page."""
    sections = (_head, _cards, samples_section, errors_section, _labels, _scores, _throughput, _shards, _sizes, _run)
    footer = fill(
        "Made by shardlabel {version} on {now}.",
        version=version("shardlabel"),
        now=_time(datetime.now(UTC).timestamp()),
    )
    template = files("pipeline.html").joinpath("report.html").read_text(encoding="utf-8")
    return fill(
        template,
        title=f"{found.dest} · shardlabel",
        body=join(section(found) for section in sections),
        footer=footer,
    )


def _head(found: Findings) -> Html:
    plan, totals = found.plan, found.units.totals
    badge = '<span class="badge good">finished</span>'
    why: object = Html()
    if not found.finished:
        badge = '<span class="badge">unfinished</span>'
        failure = found.summary.get("failure")
        why = fill(
            '<p class="note">{done} of {units} units are finished{failure}. The same <code>label</code> command '
            "does the rest.</p>",
            done=count_text(totals.units),
            units=count_text(plan.units),
            failure=f"; the last run failed: {failure}" if failure else "",
        )
    return fill(
        '<h1>Labels of <span class="wrap">{source}</span></h1>'
        '<p>{badge} <span class="soft">{model} {precision}, decode {decode}, in <span class="wrap">{dest}</span>'
        "</span></p>{why}",
        source=plan.settings.get("source", "?"),
        badge=Html(badge),
        model=plan.settings.get("model", "?"),
        precision=plan.settings.get("precision", ""),
        decode=plan.settings.get("decode", "?"),
        dest=found.dest,
        why=why,
    )


def _cards(found: Findings) -> Html:
    totals, plan = found.units.totals, found.plan
    bad = totals.rows - totals.ok
    rates = found.units.rates()
    classes = len(found.counts.labels)
    cards = [
        ("Images", count_text(totals.rows), f"{count_text(totals.units)} of {many_text(plan.units, 'unit')} done"),
        ("Labelled", count_text(totals.ok), share_text(totals.ok, totals.rows)),
        ("Not labelled", count_text(bad), share_text(bad, totals.rows)),
        ("Labels that occur", count_text(classes), f"top-{plan.settings.get('top-k', '?')} are kept per image"),
        ("Incomplete shards", count_text(totals.incomplete), f"of {count_text(plan.shards)}"),
        ("Images per second", rate_text(np.median(rates)) if len(rates) else "–", "median over units, one worker"),
    ]
    one = "<div><dt>{name}</dt><dd>{value} <small>{small}</small></dd></div>"
    return fill(
        '<dl class="cards">{cards}</dl>',
        cards=join(fill(one, name=name, value=value, small=small) for name, value, small in cards),
    )


def _labels(found: Findings) -> Html:
    labels = sorted(found.counts.labels.items(), key=lambda item: (-item[1][1], item[0]))
    if not labels:
        return Html()
    most = labels[0][1][1]
    total = sum(count for _, (_, count) in labels)
    # Some models have two classes of one name: they stay apart, told by their number.
    names = [name for _, (name, _) in labels]
    rows = [
        row(
            text(f"{name} ({label_id})" if names.count(name) > 1 else name, longest=120),
            count_text(count),
            share_text(count, total),
            fill('<span class="bar" style="width:{width}%"></span>', width=f"{100 * count / most:.2f}"),
        )
        for label_id, (name, count) in labels[:TOP_LABELS]
    ]
    caption = f"The {len(rows)} most frequent best labels" if len(labels) > len(rows) else "Best labels by frequency"
    return fill(
        "<h2>Labels</h2><p>{classes} occur as the best label of an image.</p>{table}",
        classes=many_text(len(labels), "class", "classes"),
        table=table(caption, ("label", "images", "share", "against the first"), rows, kind="labels"),
    )


def _scores(found: Findings) -> Html:
    bins = found.counts.scores.tolist()
    if not sum(bins):
        return Html()
    edges = [index / SCORE_BINS for index in range(SCORE_BINS + 1)]
    low = sum(bins[: SCORE_BINS // 2])
    return fill(
        "<h2>Scores</h2><p>{low} of the labelled images have a best score under 0.5.</p>{chart}",
        low=share_text(low, sum(bins)),
        chart=chart(
            "Images by the score of their best label",
            [(f"{a:.2f} to {b:.2f}", n) for a, b, n in zip(edges, edges[1:], bins, strict=False)],
            ("0", "0.25", "0.5", "0.75", "1"),
            ("score", "images"),
        ),
    )


def _throughput(found: Findings) -> Html:
    units = found.units
    seconds = units.seconds[units.done]
    if not len(seconds):
        return Html()
    charts = []
    over_time = units.images_over_time(TIME_BINS)
    if over_time is not None:
        images, edges = over_time
        values = [(_time(a), n / (b - a)) for a, b, n in zip(edges, edges[1:], images, strict=False)]
        ends = (_time(edges[0]), _time(edges[-1]))
        charts.append(
            chart("Images per second over the run, by the times of the part files", values, ends, ("from", "images/s"))
        )
    if len(seconds) > 1:
        counts, edges = np.histogram(seconds, bins=DURATION_BINS, range=(0, max(float(seconds.max()), 1e-3)))
        spans = zip(edges, edges[1:], counts.tolist(), strict=False)
        values = [(f"{duration_text(a)} to {duration_text(b)}", n) for a, b, n in spans]
        marks = ("0", duration_text(edges[-1] / 2), duration_text(edges[-1]))
        charts.append(chart("Units by the time they took", values, marks, ("seconds", "units")))
    return fill(
        "<h2>Throughput</h2>{table}{charts}",
        table=table("Time spent", (), (row(*pair) for pair in _time_pairs(found)), kind="pairs"),
        charts=join(charts),
    )


def _time_pairs(found: Findings) -> Iterable[tuple[str, str]]:
    units, last = found.units, found.summary
    seconds = units.seconds[units.done]
    yield "Work in all", f"{duration_text(float(seconds.sum()))}, summed over units"
    middle, late = np.percentile(seconds, [50, 95])
    yield (
        "A unit",
        f"median {duration_text(middle)}, 95 % under {duration_text(late)}, longest {duration_text(seconds.max())}",
    )
    rates = units.rates()
    if len(rates):
        low, middle, high = np.percentile(rates, [5, 50, 95])
        yield (
            "Images per second of a unit",
            f"median {rate_text(middle)}; 90 % of units from {rate_text(low)} to {rate_text(high)}",
        )
    if last.get("images_now") and last.get("seconds"):
        images, took = float(last["images_now"]), float(last["seconds"])
        yield (
            "Last run, with start-up",
            f"{many_text(images, 'image')} in {duration_text(took)}: {rate_text(images / took)} images per second",
        )


def _shards(found: Findings) -> Html:
    totals, skipped, unreadable = found.units.totals, found.units.skipped, found.counts.unreadable
    parts = []
    if totals.incomplete:
        rows = [row(text(name, longest=120), what) for name, what in list(totals.incomplete_named.items())[:NAMED]]
        caption = f"Shards of which something is missing ({len(rows)} of {count_text(totals.incomplete)})"
        parts.append(table(caption, ("shard", "what"), rows))
    if skipped:
        rows = [row(kind, count_text(count)) for kind, count in sorted(skipped.items())]
        parts.append(table("Members of shards that gave no row", ("kind", "members"), rows))
    if unreadable:
        rows = [row(name, why) for name, why in sorted(unreadable.items())[:NAMED]]
        caption = f"Part files that cannot be read, and are not counted in labels and scores ({len(unreadable)})"
        parts.append(table(caption, ("file", "why"), rows))
    whole = fill("<p>{all} finished shards were read whole.</p>", all="All" if totals.units else "No")
    return fill("<h2>Shards</h2>{parts}", parts=spaced(parts) if parts else whole)


def _sizes(found: Findings) -> Html:
    totals, plan = found.units.totals, found.plan
    per_image = max(1, totals.rows)
    pairs = [
        (
            "Input in the plan",
            f"{bytes_text(plan.bytes)} in {many_text(plan.shards, 'shard')}, {many_text(plan.units, 'unit')}",
        ),
        ("Input read", f"{bytes_text(totals.bytes_read)}, {bytes_text(totals.bytes_read / per_image)} per image"),
        ("Output", f"{bytes_text(totals.output_bytes)}, {bytes_text(totals.output_bytes / per_image)} per image"),
    ]
    return fill("<h2>Sizes</h2>{table}", table=table("Bytes in and out", (), (row(*p) for p in pairs), kind="pairs"))


def _run(found: Findings) -> Html:
    settings = {name: value for name, value in found.plan.settings.items() if value not in (None, [], False)}
    names = {"artifact": "artifact SHA-256", "preprocessing": "preprocessing id"}
    pairs = [(names.get(name, name), _setting(value)) for name, value in settings.items()]
    versions = ", ".join(sorted(found.counts.versions)) or "unknown"
    pairs += [("destination", found.dest), ("labelled by shardlabel", versions)]
    state = "finished" if found.finished else f"{found.units.totals.units} of {found.plan.units} units finished"
    pairs.insert(0, ("state", state))
    return fill(
        "<h2>The run</h2>{table}",
        table=table("What was asked for", (), (row(*pair) for pair in pairs), kind="pairs"),
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _setting(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
