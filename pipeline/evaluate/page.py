"""The page of `evaluate --output`: what was measured, with plots, in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from models.spec import ReportedAccuracy
from pipeline.evaluate.results import ClassAccuracy, Comparison, Evaluation
from pipeline.evaluate.statistics import CALIBRATION_BINS
from pipeline.evaluate.text import compared
from pipeline.html.markup import Html, chart, fill, join, row, table, text
from pipeline.quantities import count_text, rate_text

TEMPLATE = Path(__file__).parents[1] / "html" / "report.html"
CLASSES = 60
_SIDE = 240.0


def build_page(found: Evaluation | Comparison, source: str) -> str:
    """Return the page as HTML.

    Args:
        found: What was measured.
        source: SOURCE, as it was given.
    """
    if isinstance(found, Comparison):
        title = f"{found.a.name} against {found.b.name}"
        body = join((_head(title, source, found.a), _comparison(found), _classes(found.a, found.b)))
    else:
        title = f"Accuracy of {found.name}"
        body = join((_head(title, source, found), _evaluation(found), _classes(found), _confusions(found)))
    footer = "Made by shardlabel evaluate. Intervals are Wilson's, for 95 %."
    return fill(TEMPLATE.read_text(encoding="utf-8"), title=title, body=body, footer=footer)


def _head(title: str, source: str, found: Evaluation) -> Html:
    notes = [f"{count_text(found.not_decoded)} images could not be decoded and count as wrong"] * bool(
        found.not_decoded
    )
    notes += [f"{count_text(found.without_label)} samples have no class and were left out"] * bool(found.without_label)
    notes += [f"Incomplete: {what}" for what in found.incomplete[:5]]
    return fill(
        '<h1>{title}</h1><p class="soft wrap">{images} labelled images of {source}</p>{notes}',
        title=title,
        images=count_text(found.images),
        source=source,
        notes=join(fill('<p class="note">{note}</p>', note=note) for note in notes),
    )


def _evaluation(found: Evaluation) -> Html:
    low, high = found.top1_interval
    low5, high5 = found.top5_interval
    cards = (
        ("Top-1", f"{found.top1:.2f} %", f"{low:.1f} to {high:.1f}"),
        ("Top-5", f"{found.top5:.2f} %", f"{low5:.1f} to {high5:.1f}"),
        ("Calibration error", f"{found.calibration_error:.2f} %", f"mean score {found.mean_score:.1f} %"),
        ("Images per second", rate_text(found.images_per_s), f"{found.seconds:.1f} s in all"),
    )
    return join(
        (
            _cards(cards),
            fill("<h2>Beside what was reported</h2>{plot}", plot=_intervals([("measured", found)], found.reported)),
            _note(found),
            fill("<h2>Scores against what is right</h2>{plots}", plots=_calibration([found])),
        )
    )


def _comparison(found: Comparison) -> Html:
    a, b = found.a, found.b
    cards = (
        ("Same label", f"{found.agreement:.2f} %", f"of {count_text(a.images)} images"),
        ("Top-1 of B less A", f"{b.top1 - a.top1:+.2f} points", f"{a.top1:.2f} % and {b.top1:.2f} %"),
        ("McNemar's exact test", f"p = {found.mcnemar_p:.3g}", f"only A right {found.only_a}, only B {found.only_b}"),
        ("Images per second, B to A", f"{b.images_per_s / max(a.images_per_s, 1e-9):.2f} times",
         f"{a.images_per_s:.0f} and {b.images_per_s:.0f}"),
    )  # fmt: skip
    rows = (
        row(letter, one.name, f"{one.top1:.2f}", f"{one.top5:.2f}", f"{one.calibration_error:.2f}",
            f"{one.images_per_s:.0f}")
        for letter, one in (("A", a), ("B", b))
    )  # fmt: skip
    columns = ("", "way", "top-1 %", "top-5 %", "calibration error %", "images/s")
    changed = (row(text(one.key, longest=80), one.true, one.a, one.b) for one in found.changed)
    return join(
        (
            _cards(cards),
            join(fill("<p>{line}.</p>", line=line[0].upper() + line[1:]) for line in compared(found)),
            table("Both ways, on the same images", columns, rows),
            fill("<h2>Accuracy</h2>{plot}", plot=_intervals([("A", a), ("B", b)], a.reported)),
            _note(a),
            fill("<h2>Scores against what is right</h2>{plots}", plots=_calibration([a, b])),
            fill(
                "<h2>Images with another label</h2>{table}",
                table=table(f"The first {len(found.changed)}", ("key", "true class", "A", "B"), changed)
                if found.changed
                else Html("<p>None.</p>"),
            ),
        )
    )


def _note(found: Evaluation) -> Html:
    if not found.reported_note:
        return Html()
    return fill('<p class="soft">Why the reported figures differ: {note}</p>', note=found.reported_note)


def _cards(cards: Iterable[tuple[str, str, str]]) -> Html:
    card = "<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>"
    return fill(
        '<dl class="cards">{cards}</dl>',
        cards=join(fill(card, name=name, value=value, more=more) for name, value, more in cards),
    )


def _intervals(found: list[tuple[str, Evaluation]], reported: tuple[ReportedAccuracy, ...]) -> Html:
    """Draw each top-1 with its interval on one scale, and what was reported as a line of its own."""
    marks = [(name, one.top1, one.top1_interval) for name, one in found]
    marks += [(f"reported ({number})", pair.top1, (pair.top1, pair.top1)) for number, pair in enumerate(reported, 1)]
    low = min(interval[0] for _, _, interval in marks)
    high = max(interval[1] for _, _, interval in marks)
    low, high = max(0.0, low - 2), min(100.0, high + 2)
    width, height = 640.0, 34.0 * len(marks) + 6

    def x(value: float) -> str:
        return f"{130 + (width - 200) * (value - low) / (high - low):.1f}"

    lines = []
    for index, (name, value, (begin, end)) in enumerate(marks):
        y = 20 + 34 * index
        lines.append(
            fill(
                '<text x="0" y="{text_y}">{name}</text><line x1="{begin}" x2="{end}" y1="{y}" y2="{y}" class="whisker"/>'
                '<circle cx="{x}" cy="{y}" r="5" class="{kind}"/><text x="{label}" y="{text_y}">{value}</text>',
                text_y=y + 5, name=name, begin=x(begin), end=x(end), y=y, x=x(value),
                kind="mark" if begin != end else "told", label=f"{width - 58:.0f}", value=f"{value:.2f}",
            )
        )  # fmt: skip
    scale = f"from {rate_text(low)} to {rate_text(high)} %"
    sources = (row(f"({number})", pair.source) for number, pair in enumerate(reported, 1))
    return join(
        (
            _figure(
                f"Top-1, percent, with its 95 % interval; the scale runs {scale}",
                join(lines),
                width,
                height,
            ),
            table("Where the reported figures are from", (), sources, kind="pairs") if reported else Html(),
        )
    )


def _calibration(found: list[Evaluation]) -> Html:
    """Draw how often each score is right, and how many images have it."""
    parts = []
    for one in found:
        parts.append(_reliability(one))
        images = {bin["from"]: float(bin["images"]) for bin in one.calibration}
        edges = [round(index / CALIBRATION_BINS, 4) for index in range(CALIBRATION_BINS)]
        values = [(f"{edge:.2f} to {edge + 1 / CALIBRATION_BINS:.2f}", images.get(edge, 0.0)) for edge in edges]
        caption = f"Images by the score of their best label, {one.name}"
        parts.append(chart(caption, values, ("0", "0.5", "1"), ("score", "images")))
    return join(parts)


def _reliability(found: Evaluation) -> Html:
    edge, side = 34.0, _SIDE

    def point(score: float, rate: float) -> tuple[str, str]:
        return f"{edge + side * score:.1f}", f"{10 + side * (1 - rate):.1f}"

    most = max(int(bin["images"]) for bin in found.calibration)
    dots = []
    for bin in found.calibration:
        x, y = point(float(bin["mean_score"]), float(bin["right"]))
        size = 3 + 7 * (int(bin["images"]) / most) ** 0.5
        name = f"score {bin['mean_score']:.2f}: {100 * float(bin['right']):.0f} % of {bin['images']} images are right"
        dots.append(
            fill('<circle cx="{x}" cy="{y}" r="{r}" class="mark"><title>{name}</title></circle>',
                 x=x, y=y, r=f"{size:.1f}", name=name)
        )  # fmt: skip
    (x0, y0), (x1, y1) = point(0, 0), point(1, 1)
    frame = fill(
        '<rect x="{x0}" y="{y1}" width="{side}" height="{side}" class="frame"/>'
        '<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" class="ideal"/>'
        '<text x="{x0}" y="{below}">score 0</text><text x="{x1}" y="{below}" text-anchor="end">1</text>'
        '<text x="0" y="{y0}">0 %</text><text x="0" y="{top}">100</text>',
        x0=x0, y0=y0, x1=x1, y1=y1, side=side, below=f"{side + 28:.0f}", top="20",
    )  # fmt: skip
    caption = (
        f"How often a score is right, {found.name}: on the diagonal it is as often as it says, above it more often; "
        "larger dots are more images"
    )
    return _figure(caption, join((frame, *dots)), side + edge + 12, side + 36, narrow=True)


def _figure(caption: str, drawing: Html, width: float, height: float, *, narrow: bool = False) -> Html:
    style = (
        "text {fill:var(--soft);font:13px system-ui,sans-serif} .mark{fill:var(--bar)} .told{fill:none;stroke:var(--soft);"
        "stroke-width:2} .whisker{stroke:var(--bar);stroke-width:3} .frame{fill:none;stroke:var(--line)} "
        ".ideal{stroke:var(--soft);stroke-dasharray:4 4}"
    )
    return fill(
        '<figure class="chart"><figcaption>{caption}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{caption}" style="width:100%;max-width:{most}px;'
        'display:block;margin-top:.5rem"><style>{style}</style>{drawing}</svg></figure>',
        caption=caption,
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        most=f"{340 if narrow else width:.0f}",
        style=Html(style),
        drawing=drawing,
    )


def _classes(found: Evaluation, other: Evaluation | None = None) -> Html:
    """Table the classes with the lowest top-1, and how the rates spread over all classes."""
    spread = [0] * 11
    for one in found.per_class:
        spread[int(one.top1 // 10)] += 1
    names = [f"{low} to {low + 10} %" for low in range(0, 100, 10)] + ["100 %"]
    second = {one.id: one for one in other.per_class} if other else {}
    wrong = (one for one in found.per_class if one.top1 < 100 or (other and second[one.id].top1 < 100))
    worst = sorted(wrong, key=lambda one: (one.top1, -one.images, one.id))[:CLASSES]
    columns = ("class", "synset", "images", "top-1 %", "top-5 %", *(("top-1 % of B",) if other else ()))
    return join(
        (
            Html("<h2>Classes</h2>"),
            chart(
                f"Classes by their top-1, of {len(found.per_class)} in the source",
                list(zip(names, map(float, spread), strict=True)), ("0 %", "50 %", "100 %"), ("top-1", "classes"),
            ),
            table(
                f"The {len(worst)} classes with the lowest top-1 that is below 100 %", columns,
                (_class_row(one, second.get(one.id)) for one in worst),
            ),
        )
    )  # fmt: skip


def _class_row(one: ClassAccuracy, other: ClassAccuracy | None) -> Html:
    more = (f"{other.top1:.1f}",) if other else ()
    return row(
        f"{one.id} {one.name}", one.wnid or "", count_text(one.images), f"{one.top1:.1f}", f"{one.top5:.1f}", *more
    )


def _confusions(found: Evaluation) -> Html:
    if not found.confusions:
        return Html("<h2>Confused classes</h2><p>None.</p>")
    rows = (
        row(f"{one.id} {one.name}", f"{one.label_id} {one.label}", count_text(one.images)) for one in found.confusions
    )
    return fill(
        "<h2>Confused classes</h2>{table}",
        table=table(f"The {len(found.confusions)} most frequent", ("class", "labelled", "images"), rows),
    )
