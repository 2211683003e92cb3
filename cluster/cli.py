"""The console command `shardlabel`: collects the folders' commands, and turns errors into one line and an exit code.

It is in `cluster` because only `cluster` may import every other folder.
"""

from __future__ import annotations

import atexit
import gc
import logging
import sys
from typing import Any

import typer
from typer.core import TyperGroup

import cluster.commands
import cluster.doctor
import cluster.submit.cli
import models.cli
import pipeline.cli
import pipeline.quantize.cli
import pipeline.review.cli
import serve.cli
from models.errors import ShardlabelError
from pipeline.help_page import WIDTH, use_help_pages
from pipeline.storage.uris import without_secrets

logger = logging.getLogger(__name__)

EXIT_BUG = 1
EXIT_INTERRUPTED = 130
_VERBOSE = ("--verbose", "-v")


class _Root(TyperGroup):
    """The root command, whose `--verbose` may also follow a sub-command, where users type it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own type has no public name)
        """Move `--verbose` to the front; behind `--` are no options."""
        ends = args.index("--") if "--" in args else len(args)
        args = [*sorted(args[:ends], key=lambda word: word not in _VERBOSE), *args[ends:]]
        return super().parse_args(ctx, args)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shardlabel {version('shardlabel')}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the whole command line."""
    app = typer.Typer(
        name="shardlabel",
        cls=_Root,
        help="Label images with an ONNX classifier: in bulk on Ray Data, online on Ray Serve.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
    )

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
        verbose: bool = typer.Option(
            False, *_VERBOSE, help="Also log what is retried and why; may follow the command."
        ),
    ) -> None:
        logging.basicConfig(
            level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s %(message)s"
        )

    pipeline.cli.register(app)
    pipeline.review.cli.register(app)
    serve.cli.register(app)
    pipeline.quantize.cli.register(models.cli.register(app))
    cluster.commands.register(app)
    cluster.submit.cli.register(app)
    cluster.doctor.register(app)
    use_help_pages(app)
    return app


def main() -> None:
    """Run the console command; never returns."""
    # As it ends, Python would search all objects for cycles, Ray's 200,000 too: half a second.
    atexit.register(gc.freeze)
    try:
        build_app()()
    except ShardlabelError as err:
        sys.stderr.write(f"shardlabel: error: {without_secrets(str(err))}\n")
        sys.exit(err.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("shardlabel: interrupted; run the same command again to resume\n")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
