"""The shell of the command line: what every verb shares. The verbs have tests of their own."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated

import pytest
import typer

from ebbtide.pipelines import cli
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.console import Console
from ebbtide.pipelines.shell import Run, attempt, verb
from ebbtide.shared.errors import EbbtideError, InputError


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    "error, code, line",
    [
        (
            InputError("csv-row-length", "3 cells, not 4", "a.csv, row 7", "mend it"),
            2,
            "csv-row-length: a.csv, row 7:",
        ),
        (EbbtideError("loss-not-finite", "the loss is NaN"), 1, "loss-not-finite: the loss is NaN"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv"),
            2,
            "file-not-found: a.csv: no such",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), 2, "file-kind: a: is a directory"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.csv"),
            1,
            "file-permission: a.csv: permission",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "disk-full: no space left"),
        (MemoryError(), 1, "out-of-memory:"),
        (KeyboardInterrupt(), 130, "interrupted:"),
        (SystemExit(143), 143, "terminated:"),
        (KeyError("secret"), 1, "bug: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempt(raising(error), Console()) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_a_bug_never_quotes_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    attempt(raising(ValueError("could not convert string to float: 'Jane Doe'")), Console())
    err = capsys.readouterr().err
    assert "Jane" not in err and "ValueError" in err and "--debug" in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    attempt(raising(InputError("code", "what")), Console(), debug=True)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1] == "code: what"


@pytest.mark.parametrize("outcome, code", [(None, 0), (0, 0), (2, 2), ("text", 0)])
def test_a_verb_returns_its_exit_code(outcome: object, code: int) -> None:
    assert attempt(lambda: outcome, Console()) == code


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `ebbtide`, with the two verbs below in place of the real ones."""
    app = typer.Typer(rich_markup_mode=None, suggest_commands=False)
    app.callback()(cli.root)

    @verb(app)
    def impute(data: str, run: Run, *, draws: Annotated[int, typer.Option(help="How many.")] = 20) -> None:
        """Fill in."""
        run.console.result(
            {"seed": run.seed, "device": run.device, "over": run.overwrite, "draws": draws}, data
        )

    @verb(app)
    def info(run: Run) -> int:
        """Say nothing, and fail."""
        return 1

    monkeypatch.setattr(cli, "app", app)
    return lambda *words: main(words)


def test_a_verb_is_given_its_own_options_and_the_common_ones(
    typed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        typed("impute", "a.csv", "--draws", "3", "--seed", "7", "--device", "cpu", "--overwrite", "--json")
        == 0
    )
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "seed": 7,
        "device": "cpu",
        "over": True,
        "draws": 3,
    }
    assert typed("info") == 1


def test_help_of_a_verb_fits_a_screen(typed: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("impute", "--help") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 24
    for option in ("--draws", "--seed", "--device", "--json", "--quiet", "--debug", "--overwrite"):
        assert option in out


@pytest.mark.parametrize(
    "words, said",
    [
        (["impte", "a.csv"], "did you mean impute?"),
        (["zzz"], "the verbs are impute, info"),
        (["impute", "a.csv", "--sed", "3"], "did you mean --seed?"),
        (["impute", "a.csv", "--draw", "3"], "did you mean --draws?"),
        (["--seed", "3", "impute", "a.csv"], "it goes after the verb"),
        (["impute"], "missing argument"),
        (["impute", "a.csv", "--device", "gpu"], "'cuda'"),
        (["impute", "a.csv", "--seed", "x"], "--seed"),
    ],
)
def test_a_slip_of_the_pen_is_told_in_one_line(
    typed: Callable[..., int], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1 and err.startswith("usage: ebbtide")


def test_no_words_get_help_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: ebbtide" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ebbtide ")


SLEEPER = """
import sys, time
from ebbtide.pipelines import cli
from ebbtide.pipelines.shell import Run, verb
@verb(cli.app)
def sleep(run: Run) -> None:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("put away", flush=True)
@verb(cli.app)
def wake(run: Run) -> None:
    pass
sys.exit(cli.main(["sleep"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_puts_its_things_away(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background deaf to SIGINT, and its children after it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == "put away\n" and err.count("\n") == 1
