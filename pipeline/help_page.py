"""The `--help` page of a command: examples that can be copied, and many options in groups."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand

# So many options fit on a screen without groups.
FEW_OPTIONS = 16
OTHER = "Options"
# Width on terminals that have it: options with long texts then take two lines instead of four.
WIDTH = 100


class Command(TyperCommand):
    """A command with this help page. The group of an option is its `rich_help_panel`."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's types have no public names)
        """Write the description, and the examples unchanged: a reflowed command cannot be copied."""
        text, found, examples = inspect.cleandoc(self.help or "").partition("\nExample")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text.strip())
        if found:
            formatter.write_paragraph()
            for line in f"Example{examples}".splitlines():
                if line.strip():
                    formatter.write(f"  {line}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the arguments, then the options by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        shown = [(param, record) for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        name = OTHER
        for param, record in shown:
            # Options without a group, such as --help, come last.
            if len(shown) > FEW_OPTIONS:
                name = getattr(param, "rich_help_panel", None) or name
            is_argument = param.param_type_name == "argument"
            groups.setdefault("Arguments" if is_argument else name, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def use_help_pages(app: Any) -> None:  # noqa: ANN401 (imported where it is built)
    """Give all commands of an app and its sub-apps this page; lists show the whole first line of each."""
    for command in app.registered_commands:
        command.short_help = inspect.cleandoc(command.callback.__doc__).partition("\n")[0]
        if command.cls in (None, TyperCommand):
            command.cls = Command
    for group in app.registered_groups:
        group.short_help = group.typer_instance.info.help
        use_help_pages(group.typer_instance)
