"""The command line. A verb is a thin function: what was typed goes to a pipeline, what came back is shown.

Nothing heavy is imported until a verb runs, so `ebbtide --help` answers at once. What all verbs share (seed,
device, output, errors, signals) is handled here, once: see `verb` and `attempt`.
"""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeAlias

import typer
from typer.exceptions import TyperException

from ..shared.errors import EbbtideError, Fault
from .console import Console

P = ParamSpec("P")
Device = Literal["auto", "cpu", "cuda"]
Verb: TypeAlias = Callable[Concatenate["Run", P], int | None]

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes by the shell's custom, 128 + signal: Ctrl-C and SIGTERM."""
STOPPED = {
    INTERRUPTED: Fault("interrupted", "stopped by Ctrl-C", "", "what was finished is kept"),
    TERMINATED: Fault("terminated", "stopped by SIGTERM", "", "what was finished is kept"),
}
OUT_OF_MEMORY = Fault(
    "out-of-memory", "the machine has no memory left", "", "use fewer rows or draws at a time"
)


@dataclass(frozen=True)
class Run:
    """What every verb is given besides its own options."""

    seed: int = 0
    device: Device = "auto"
    overwrite: bool = False
    console: Console = field(default_factory=Console)


def _common(
    *,
    seed: Annotated[int, typer.Option(help="Same seed, same answer.", min=0)] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU if any.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show the traceback.")] = False,
) -> Run:
    """The options that every verb takes, in the order that `--help` lists them."""
    return Run(seed, device, overwrite, Console("json" if json else "quiet" if quiet else "normal"))


COMMON = tuple(inspect.signature(_common, eval_str=True).parameters.values())

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


def verb(
    to: typer.Typer = app,
) -> Callable[[Verb[P]], Verb[P]]:
    """Register a function of (run, its own options) as a command that takes the common options as well.

    The function's docstring is its help. It returns an exit code, or None for 0.
    """

    def register(
        function: Callable[Concatenate[Run, P], int | None],
    ) -> Callable[Concatenate[Run, P], int | None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        @functools.wraps(function)
        def command(**given: Any) -> int | None:
            common = {option.name: given.pop(option.name) for option in COMMON}
            return function(_common(**common), **given)  # type: ignore[call-arg]

        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        vars(command)["__signature__"] = inspect.Signature([*keyword, *COMMON])
        to.command()(command)
        return function

    return register


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


def usage_fault(error: TyperException) -> Fault:
    """What was wrong with the words typed, with the nearest right one."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "ebbtide"
    wrong = getattr(error, "option_name", None)
    what = (error.message if wrong else error.format_message()).rstrip(".").replace("Value error, ", "")
    what = what[:1].lower() + what[1:]
    known = [name for parameter in context.command.params for name in parameter.opts] if context else []
    if context and context.parent is None and wrong in {f"--{option.name}" for option in COMMON}:
        return Fault("usage", what, path, f"it goes after the verb: {path} VERB {wrong}")
    near = difflib.get_close_matches(wrong or "", known, n=1)
    advice = f"did you mean {near[0]}? " if near and wrong not in known else ""
    return Fault("usage", what, path, f"{advice}see {path} --help")


def verb_fault(typed: str, verbs: Sequence[str]) -> Fault:
    """A verb that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(typed, verbs, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    return Fault(
        "usage", f"there is no verb {typed!r}", "ebbtide", f"{advice}the verbs are {', '.join(verbs)}"
    )


def os_fault(error: OSError) -> tuple[Fault, int]:
    """A fault of the file system, with its exit code: 2 where another path would mend it."""
    where = str(error.filename) if error.filename else ""
    what = (error.strerror or type(error).__name__).lower()
    match error:
        case FileNotFoundError():
            return Fault("file-not-found", what, where, "check the path"), 2
        case IsADirectoryError() | NotADirectoryError() | FileExistsError():
            return Fault("file-kind", what, where, "give another path"), 2
        case PermissionError():
            return Fault("file-permission", what, where, "choose a place that you may read and write"), 1
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Fault("disk-full", what, where, "free some space and run the same command again"), 1
    return Fault("system", what, where, "--debug shows where it happened"), 1


def bug_fault(error: BaseException) -> Fault:
    """An error nobody foresaw. Its text stays hidden, because it may quote a cell of somebody's data."""
    home = str(Path(__file__).resolve().parent.parent)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(home)] or list(frames)
    where = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else ""
    return Fault(
        "bug", f"unexpected {type(error).__name__}", where, "please report it; --debug shows the traceback"
    )


def explain(error: BaseException) -> tuple[Fault, int]:
    """The one line that `error` is told in, and the exit code."""
    match error:
        case TyperException():
            return usage_fault(error), 2
        case EbbtideError():
            return error.fault, error.exit_code
        case KeyboardInterrupt():
            return STOPPED[INTERRUPTED], INTERRUPTED
        case MemoryError():
            return Fault(
                "out-of-memory", "the machine has no memory left", "", "use fewer rows or draws at a time"
            ), 1
        case OSError():
            return os_fault(error)
    return bug_fault(error), 1


def attempt(work: Callable[[], object], console: Console, *, debug: bool = False) -> int:
    """Do `work`; give its exit code, and turn every way to fail into one line on stderr.

    `work` returns an exit code, or anything else for 0. With `debug` a traceback comes before the line.
    """
    try:
        outcome = work()
    except SystemExit as stop:
        outcome = stop.code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - where what nobody foresaw becomes a sentence
        if debug and not isinstance(error, TyperException):
            traceback.print_exc()
        fault, code = explain(error)
        console.fail(fault, code)
        return code
    code = outcome if isinstance(outcome, int) else 0
    if code in STOPPED:  # Typer has caught Ctrl-C by now, and SIGTERM arrives as SystemExit
        console.fail(STOPPED[code], code)
    return code


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
