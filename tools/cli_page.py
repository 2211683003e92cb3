"""Write docs/cli.md, every command with its options, as typer makes such a page of the code: `make cli-page`."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from cluster.cli import build_app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def build_page() -> str:
    """Return the page; a test compares it with what docs/cli.md holds."""
    command = typer.main.get_command(build_app())
    ctx = typer.Context(command, **command.context_settings)
    text = get_docs_for_click(obj=command, ctx=ctx, name="shardlabel", title="Commands and options")
    # Markdown takes an indented line for code only behind an empty one.
    return re.sub(r"^(Examples?:)\n", r"\1\n\n", text, flags=re.MULTILINE).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
