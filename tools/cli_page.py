"""Generate docs/cli.md, every command with its options, by typer: `make cli-page`."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from cluster.cli import build_app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def build_page() -> str:
    """Return the page as Markdown; a test compares it with docs/cli.md."""
    command = typer.main.get_command(build_app())
    ctx = typer.Context(command, **command.context_settings)
    text = get_docs_for_click(obj=command, ctx=ctx, name="shardlabel", title="Commands and options")
    # In Markdown, an indented block is code only after an empty line.
    return re.sub(r"^(Examples?:)\n", r"\1\n\n", text, flags=re.MULTILINE).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
