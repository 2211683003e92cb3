"""The report of a relabelling."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.quantities import bytes_text, many_text, rate_text, share_text
from pipeline.summary import RunReport


@dataclass(frozen=True, slots=True)
class RelabelReport(RunReport):
    """The report of a relabelling. Unlike in a `RunReport`, `images_per_s` counts only the rows that were labelled again.

    Attributes:
        old: OLD.
        where: The condition; None for all rows.
        relabelled_now: Rows that this run labelled again, in `relabelled_units_now` units.
        copied_now: Rows that this run copied.
        source_bytes: Size of SOURCE, of which `bytes_read` were read.
    """

    old: str = ""
    where: str | None = None
    relabelled_now: int = 0
    relabelled_units_now: int = 0
    copied_now: int = 0
    source_bytes: int = 0

    def sentences(self) -> str:
        """Return the report for a person."""
        # Not super(): a dataclass with slots is a new class.
        lines = RunReport.sentences(self).split("\n")
        if self.status == "done" and self.units_now:
            of = "" if self.where is None else f" for which {self.where}"
            if self.relabelled_now:
                first = (
                    f"relabelled {many_text(self.relabelled_now, 'image')}{of} in {self.seconds:.1f} s "
                    f"({rate_text(self.images_per_s)} images/s) with {self.model} {self.precision}"
                )
            else:
                first = f"no row had to be labelled{of}"
            lines[0] = f"{first}, copied {many_text(self.copied_now, 'row')} of {self.old}"
            read, whole = bytes_text(self.bytes_read), bytes_text(self.source_bytes)
            lines.insert(1, f"read {read} of {whole} of SOURCE ({share_text(self.bytes_read, self.source_bytes)})")
        return "\n".join(lines)
