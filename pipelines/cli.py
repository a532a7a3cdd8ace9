"""The command line. A verb is a thin function: what was typed goes to a pipeline, what came back is shown.

Nothing heavy is imported until a verb runs, so `ebbtide --help` answers at once. What all verbs share is in
`shell`, what they show with in `console`.
"""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from .console import Console
from .shell import TERMINATED, attempt, verb_fault

app = typer.Typer(
    name="ebbtide",
    help="Generate and complete data by reverse diffusion.",
    epilog="`ebbtide VERB --help` explains one verb. Exit codes: 0 done, 1 failed, 2 bad input.",
    subcommand_metavar="VERB ...",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    suggest_commands=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ebbtide import __version__

        print(f"ebbtide {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Generate and complete data by reverse diffusion."""


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally` and `with`, so that locks are freed and partial work is put away."""
    raise SystemExit(TERMINATED)


def main(argv: Sequence[str] | None = None) -> int:
    """The `ebbtide` command. Returns the exit code: 0 done, 1 failed, 2 bad input."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug, console = "--debug" in words, Console("json" if "--json" in words else "normal")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # meant for programmers; faults that users can mend are told as such
    signal.signal(signal.SIGTERM, _terminate)
    group = typer.main.get_group(app)
    if not words[0].startswith("-") and words[0] not in group.commands:
        console.fail(verb_fault(words[0], list(group.commands)), 2)
        return 2
    command = functools.partial(group.main, words, prog_name="ebbtide", standalone_mode=False)
    return attempt(command, console, debug=debug)
