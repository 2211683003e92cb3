"""Write docs/options.md from the commands' own options: `python -m tools.options_page`; a test holds them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from cluster.cli import build_app

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
COMMANDS = ("label", "relabel", "serve", "evaluate")


def build_page() -> str:
    """Return the page: a table for each command, in the order of its help."""
    app: Any = typer.main.get_command(build_app())
    lines = ["# Options", "", "What `--help` says, made by `python -m tools.options_page`."]
    for name in COMMANDS:
        lines += ["", f"## shardlabel {name}", "", "| | |", "|---|---|"]
        for param in app.commands[name].params:
            if param.param_type_name == "argument":
                several = "..." if param.nargs == -1 else ""
                lines.append(f"| `{param.name.upper()}{several}` | {param.help} |")
            elif not param.hidden:
                names = ", ".join(f"`{one}`" for one in (*param.opts, *param.secondary_opts))
                default = "" if isinstance(param.default, bool | None) else f" [default: {param.default}]"
                lines.append(f"| {names} | {param.help}{default} |")
    return "\n".join((*lines, ""))


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
