"""What the command line shows: results on stdout, everything else on stderr, and how far the work has come.

A person reads sentences; a program that passed `--json` reads exactly one JSON document on stdout. Nothing
heavy is imported here, and Rich only when there is a terminal to draw on.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from ..shared.errors import Fault

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Mode = Literal["normal", "quiet", "json"]


def duration(seconds: float) -> str:
    """A span of time in the two largest units that matter.

    Example:
        >>> duration(4.2), duration(200), duration(4000)
        ('4 s', '3 min 20 s', '1 h 7 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def plain(value: object) -> Any:
    """`value` in the types that JSON has; NaN and infinity, which it lacks, become null.

    Dataclasses become objects, paths text, numpy and torch scalars and arrays numbers and lists.

    Example:
        >>> from pathlib import Path
        >>> plain({"file": Path("a.csv"), "rmse": float("nan"), "rows": (1, 2)})
        {'file': 'a.csv', 'rmse': None, 'rows': [1, 2]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    tolist: Callable[[], object] | None = getattr(value, "tolist", None)
    return plain(tolist()) if tolist is not None else str(value)


class TimeLeft:
    """Estimates the seconds left of a piece of work from its own pace so far.

    The words for what is being done may change at every call; new work begins when the fraction falls.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.stage = ""
        self._begin(0.0)

    def _begin(self, fraction: float) -> None:
        self.first, self.fraction, self.started = fraction, fraction, self.now()

    def update(self, stage: str, fraction: float) -> None:
        """Note what is being done and how far the work is, 0 to 1."""
        fraction = min(max(fraction, 0.0), 1.0)
        if not self.stage or fraction < self.fraction:
            self._begin(fraction)
        self.stage, self.fraction = stage, fraction

    @property
    def elapsed(self) -> float:
        return self.now() - self.started

    @property
    def left(self) -> float | None:
        """Seconds until fraction 1 at the pace so far; None while that is anybody's guess."""
        gained = self.fraction - self.first
        if gained <= 0 or self.elapsed < 1:
            return None
        return self.elapsed * (1 - self.fraction) / gained

    def __str__(self) -> str:
        return "" if self.left is None else f"{duration(self.left)} left"


class Progress(AbstractContextManager["Progress"]):
    """How far the work has come: call it with what is being done and the fraction done, 0 to 1. Silent here.

    Every function of Ebbtide that works for more than a few seconds takes one as `progress`; any callable
    of (str, float) does. The words may change at every call; a fraction that falls begins new work.
    """

    def __call__(self, stage: str, fraction: float) -> None:
        return None

    def close(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LineProgress(Progress):
    """Plain lines for logs and pipes: none for quick work, then ever fewer, at least one a minute."""

    quiet_for = 3.0
    longest_silence = 60.0

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = TimeLeft(now)
        self.next_line = self.quiet_for
        self.spoken = False

    def __call__(self, stage: str, fraction: float) -> None:
        if fraction < self.clock.fraction:
            self.close()
        self.clock.update(stage, fraction)
        if self.clock.fraction < 1 and self.clock.elapsed >= self.next_line:
            left = f", {self.clock}" if self.clock.left is not None else ""
            self._write(f"{stage}: {math.floor(100 * self.clock.fraction)} %{left}")
            self.next_line = self.clock.elapsed + min(max(self.clock.elapsed, 7.0), self.longest_silence)
            self.spoken = True

    def close(self) -> None:
        """Say that the work is done, if it was ever mentioned and did come to its end."""
        if self.spoken and self.clock.fraction >= 1:
            self._write(f"{self.clock.stage}: done in {duration(self.clock.elapsed)}")
        self.spoken = False
        self.next_line = self.quiet_for

    def _write(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()


class BarProgress(Progress):
    """A bar on a terminal, with the time left; it is wiped when the work is done."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = TimeLeft(now)
        self.bar: RichProgress | None = None

    def __call__(self, stage: str, fraction: float) -> None:
        if self.bar is None:
            self.bar = self._start()
            self.task = self.bar.add_task(stage, total=1.0, left="")
        self.clock.update(stage, fraction)
        self.bar.update(self.task, description=stage, completed=self.clock.fraction, left=str(self.clock))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _start(self) -> RichProgress:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[left]}"),
        )
        bar = RichProgress(
            *columns, console=RichConsole(file=self.stream), transient=True, redirect_stdout=False
        )
        bar.start()
        return bar


@dataclass(frozen=True)
class Console:
    """Where words go. Results are for stdout; progress, warnings and errors for stderr.

    Args:
        mode: "normal"; "quiet" keeps results, warnings and errors; "json" puts one JSON document on stdout.
    """

    mode: Mode = "normal"

    def say(self, *lines: str) -> None:
        """Tell a person what was done. Not with `--quiet`, and not with `--json`, which has its own words."""
        if self.mode == "normal":
            print(*lines, sep="\n", flush=True)

    def result(self, facts: Mapping[str, object], *lines: str) -> None:
        """What was asked for: `lines` for a person (with `--quiet` too), `facts` for a program."""
        if self.mode == "json":
            self._document({"ok": True, **facts})
        elif lines:
            print(*lines, sep="\n", flush=True)

    def warn(self, *faults: Fault) -> None:
        """Tell of faults that do not stop the work."""
        for fault in faults:
            print(f"warning: {one_line(str(fault))}", file=sys.stderr, flush=True)

    def fail(self, fault: Fault, exit_code: int) -> None:
        """Tell why the work stopped, in one line; a program gets the parts of the fault as well."""
        print(one_line(str(fault)), file=sys.stderr, flush=True)
        if self.mode == "json":
            self._document({"ok": False, "exit_code": exit_code, "error": fault})

    def progress(self) -> Progress:
        """The fitting progress display, to be used in a `with` statement and passed on as `progress`."""
        if self.mode != "normal":
            return Progress()
        if sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb":
            return BarProgress(sys.stderr)
        return LineProgress(sys.stderr)

    def _document(self, facts: Mapping[str, object]) -> None:
        print(json.dumps(plain(facts), indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def one_line(text: str) -> str:
    """`text` without line breaks and control characters: an error is one line, whatever it quotes.

    Example:
        >>> one_line("no such file: a\\nb")
        'no such file: a b'
    """
    return "".join(char if char.isprintable() else " " for char in text).strip()
