"""What all verbs of the command line share, handled once: common options, errors in one line, exit codes.

A verb is a function of a `Run`, of groups of options and of its own options; `verb` makes a command of it.
`attempt` runs it and explains every way to fail.
"""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.exceptions import TyperException

from ..shared.errors import EbbtideError, Fault
from .console import Console

Device = Literal["auto", "cpu", "cuda"]
Verb = Callable[..., int | None]
V = TypeVar("V", bound=Verb)
G = TypeVar("G")

GROUPS: dict[object, Callable[..., Any]] = {}
"""What a verb's parameter of some type is made from: a function whose parameters are options."""

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


def group(factory: Callable[..., G]) -> Callable[..., G]:
    """Declare a group of options: a verb with a parameter of the type that `factory` returns takes them."""
    GROUPS[inspect.signature(factory, eval_str=True).return_annotation] = factory
    return factory


@group
def _common(
    *,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Same seed, same answer.")] = 0,
    device: Annotated[Device, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show the traceback.")] = False,
) -> Run:
    """The options that every verb takes, in the order that `--help` lists them."""
    return Run(seed, device, overwrite, Console("json" if json else "quiet" if quiet else "normal"))


def _options(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(factory, eval_str=True).parameters.values())


def verb(to: typer.Typer) -> Callable[[V], V]:
    """Register a function of a `Run`, other groups and its own options as a command of its name.

    The function's docstring is its help. It returns an exit code, or None for 0.
    """

    def register(function: V) -> V:
        parameters = _options(function)
        own = [option for option in parameters if option.annotation not in GROUPS]
        groups = {
            option.name: GROUPS[option.annotation] for option in parameters if option.annotation in GROUPS
        }

        @functools.wraps(function)
        def command(**given: Any) -> int | None:
            made = {
                name: factory(**{option.name: given.pop(option.name) for option in _options(factory)})
                for name, factory in groups.items()
            }
            return function(**given, **made)

        last = sorted(groups.values(), key=lambda factory: factory is _common)
        shared = [option for factory in last for option in _options(factory)]
        keyword = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in [*own, *shared]]
        vars(command)["__signature__"] = inspect.Signature(keyword)
        to.command(epilog=_beside(keyword))(command)
        return function

    return register


def _beside(options: Sequence[inspect.Parameter]) -> str | None:
    """A line that names the options that `--help` has no room for: those marked as hidden."""
    names = []
    for option in options:
        for extra in getattr(option.annotation, "__metadata__", ()):
            if getattr(extra, "hidden", False):
                names.append("--" + option.name.replace("_", "-"))
    return f"Also, seldom needed: {', '.join(names)}." if names else None


def usage_fault(error: TyperException) -> Fault:
    """What was wrong with the words typed, with the nearest right one."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "ebbtide"
    wrong = getattr(error, "option_name", None)
    what = (error.message if wrong else error.format_message()).rstrip(".").replace("Value error, ", "")
    what = what[:1].lower() + what[1:]
    known = [name for parameter in context.command.params for name in parameter.opts] if context else []
    if context and context.parent is None and wrong in {f"--{option.name}" for option in _options(_common)}:
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
