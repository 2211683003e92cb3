"""HTML that is safe by its type: what is not `Html` is escaped where it enters the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from pipeline.quantities import rate_text

# Characters that HTML does not allow, and those that turn the direction of the text around them.
_BAD = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160), 65534, 65535), "�")
_BAD |= dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), "�")


class Html(str):
    """Text that is HTML already: made of literals, and by the functions of this module."""

    __slots__ = ()


def text(value: object, *, longest: int = 300) -> Html:
    """Return a value as HTML text, cut where it is very long. Safe in attributes with quotes too."""
    if isinstance(value, Html):
        return value
    words = str(value)
    if len(words) > longest:
        words = f"{words[: longest - 1]}…"
    return Html(escape(words.translate(_BAD), quote=True))


def fill(template: str, /, **values: object) -> Html:
    """Put values into the {names} of a template; those that are not Html are escaped.

    >>> fill("<p>{key}</p>", key="<b>")
    '<p>&lt;b&gt;</p>'
    """
    return Html(template.format_map({name: text(value) for name, value in values.items()}))


def join(parts: Iterable[Html]) -> Html:
    """Put pieces of HTML behind each other."""
    return Html("".join(parts))


def row(*cells: object, head: bool = False) -> Html:
    """Return a table row; the first cell names the row. Numbers stand on the right.

    Args:
        *cells: Their contents.
        head: Whether it is the row of the columns' names.
    """
    if head:
        return fill("<tr>{cells}</tr>", cells=join(fill('<th scope="col">{cell}</th>', cell=cell) for cell in cells))
    first, *rest = cells
    name = fill('<th scope="row">{cell}</th>', cell=first)
    return fill("<tr>{name}{cells}</tr>", name=name, cells=join(fill("<td>{cell}</td>", cell=cell) for cell in rest))


def table(caption: str, columns: Iterable[object], rows: Iterable[Html], *, kind: str = "") -> Html:
    """Return a table, in a box that scrolls where the screen is narrow.

    Args:
        caption: What it shows.
        columns: Names of the columns; none for a table of names and values.
        rows: Made by `row`.
        kind: Its class in the style sheet.
    """
    names = tuple(columns)
    return fill(
        '<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="{kind}">'
        "<caption>{caption}</caption>{head}<tbody>{rows}</tbody></table></div>",
        caption=caption,
        kind=kind,
        head=fill("<thead>{names}</thead>", names=row(*names, head=True)) if names else Html(),
        rows=join(rows),
    )


def spaced(parts: Iterable[Html]) -> Html:
    """Put blocks below each other, with room between them."""
    return join(fill('<div style="margin-top:1.25rem">{part}</div>', part=part) for part in parts)


def chart(caption: str, values: Sequence[tuple[str, float]], ends: Sequence[str], names: tuple[str, str]) -> Html:
    """Return columns with their axis, and the same numbers as a table that can be unfolded.

    Args:
        caption: What it shows.
        values: Name and height of each column.
        ends: What stands below them, at equal distances.
        names: Of the table's two columns.
    """
    most = max(value for _, value in values) or 1
    peak = max(values, key=lambda one: one[1])
    column = '<i style="height:{height}%" title="{name}: {value}"></i>'
    return fill(
        '<figure class="chart"><figcaption>{caption}; the highest column is {most}</figcaption>'
        '<div class="columns" role="img" aria-label="{caption}; most at {peak}: {most}">{columns}</div>'
        '<div class="axis" aria-hidden="true">{ends}</div>'
        "<details><summary>As numbers</summary>{table}</details></figure>",
        caption=caption,
        most=rate_text(most),
        peak=peak[0],
        columns=join(
            fill(column, height=f"{100 * value / most:.2f}", name=name, value=rate_text(value))
            for name, value in values
        ),
        ends=join(fill("<span>{end}</span>", end=end) for end in ends),
        table=table(caption, names, (row(name, rate_text(value)) for name, value in values)),
    )
