"""The parts of the report's page that show single rows: samples with their pictures, and images without a label."""

from __future__ import annotations

import base64

from pipeline.html.markup import Html, fill, join, row, spaced, table, text
from pipeline.quantities import count_text, share_text
from pipeline.report.contact_sheet import Group
from pipeline.report.findings import Findings
from pipeline.report.scan import LabelledRow

# Problems with SOURCE that the page names.
NAMED = 20
# Characters of a key below a picture: two lines of it.
KEY_LENGTH = 32


def samples_section(found: Findings) -> Html:
    """Return the contact sheet, and what kept pictures from it."""
    sheet = found.sheet
    titles = {
        Group.ACROSS: "Across the run",
        Group.LOWEST: "Lowest scores",
        Group.BAD: "Not labelled",
    }
    groups = [
        fill(
            '<h3>{title}</h3><ul class="sheet">{tiles}</ul>',
            title=titles[group],
            tiles=join(_tile(one, sheet.thumbnails.get((one.shard, one.key))) for one in rows),
        )
        for group, rows in sheet.groups.items()
        if rows
    ]
    return fill(
        '<h2>Samples</h2><p class="soft">Cut as the model sees them. Samples and lowest scores are taken from the '
        "first 32 MiB of each unit’s input.</p>{problems}{groups}",
        problems=join(fill('<p class="note">{problem}</p>', problem=problem) for problem in sheet.problems[:NAMED]),
        groups=join(groups) or fill('<p class="soft">No images yet.</p>'),
    )


def _tile(one: LabelledRow, thumbnail: bytes | None) -> Html:
    if one.label is None:
        picture = fill(
            '<div class="blank" title="{whole}"><b>{status}</b>{error}</div>',
            status=one.status,
            error=text(one.error or "", longest=60),
            whole=one.error or "",
        )
        caption = Html()
    else:
        picture = fill('<div class="blank">no picture</div>')
        caption = fill("{label} <b>{score}</b>", label=text(one.label, longest=60), score=_score(one.score))
    if thumbnail is not None:
        picture = fill(
            '<img src="data:image/jpeg;base64,{data}" width="128" height="128" alt="{alt}">',
            data=Html(base64.b64encode(thumbnail).decode("ascii")),
            alt=text(f"Sample {one.key}, labelled {one.label}", longest=160),
        )
    return fill(
        '<li><figure>{picture}<figcaption>{caption}<span class="key" title="{whole}">{key}</span></figcaption>'
        "</figure></li>",
        picture=picture,
        caption=caption,
        # The end of a long key is what tells it from the others.
        key=one.key if len(one.key) <= KEY_LENGTH else f"…{one.key[1 - KEY_LENGTH :]}",
        whole=f"{one.shard}: {one.key}",
    )


def errors_section(found: Findings) -> Html:
    """Return the counts of each status other than ok, with examples."""
    totals = found.units.totals
    if not totals.errors:
        return fill("<h2>Images without a label</h2><p>None{yet}.</p>", yet="" if found.finished else " so far")
    kinds = sorted(totals.errors.items(), key=lambda item: (-item[1], item[0]))
    overview = table(
        "Images without a label by status",
        ("status", "images", "share of all"),
        (row(status, count_text(count), share_text(count, totals.rows)) for status, count in kinds),
    )
    examples = [
        table(
            f"{status}: the first {len(found.examples[status])} of {count_text(count)}",
            ("key and shard", "error"),
            (row(_place(one), one.error or "") for one in some),
            kind="examples",
        )
        for status, count in kinds
        if (some := found.examples.get(status))
    ]
    return fill("<h2>Images without a label</h2>{overview}{examples}", overview=overview, examples=spaced(examples))


def _place(one: LabelledRow) -> Html:
    return fill(
        '{key}<span class="key">{shard}</span>', key=text(one.key, longest=120), shard=text(one.shard, longest=120)
    )


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
