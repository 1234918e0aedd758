"""The command line: one thin command per verb, by theme. Importing this file imports neither torch nor any verb."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from synthorax.cli import catalogue, data, evidence, jobs, synthesis, training
from synthorax.cli.calls import print_version, told_on_stderr, with_options_of
from synthorax.cli.panels import PanelGroup
from synthorax.former_names import command_line

app = typer.Typer(
    name="synthorax", cls=PanelGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"max_content_width": 120},
    help="Synthesise rare findings on chest radiographs, and measure on real patients whether it helped. For research; not a "
         "medical device.")
for theme in (jobs, data, training, synthesis, evidence, catalogue):
    theme.add_commands(app)


@app.callback()
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=print_version)]
             = False) -> None:
    pass


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    words, notes = command_line(sys.argv[1:])
    for note in notes:
        print(f"synthorax: {note}", file=sys.stderr)
    with told_on_stderr(words):
        with_options_of(app, words)(words)
