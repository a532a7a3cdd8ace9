"""What a person and a program are shown: time left, plain lines, one JSON document."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ebbtide.pipelines.console import BarProgress, Console, LineProgress, Progress, TimeLeft, duration, plain
from ebbtide.shared.errors import Fault


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    "seconds, words",
    [(-1, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.9, "1 h 0 min"), (7170, "2 h 0 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_time_left_follows_the_pace_of_the_work() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    clock.seconds = 100
    left.update("step 1", 0.2)
    assert left.left is None
    clock.seconds = 110
    left.update("step 2", 0.4)  # other words, the same work: a fifth in 10 s, three fifths to go
    assert left.left == pytest.approx(30)
    left.update("fill", 0.0)  # it fell: something new
    assert left.left is None
    clock.seconds = 112
    left.update("fill", 0.5)
    assert left.left == pytest.approx(2)
    left.update("fill", 7.0)
    assert left.left == 0


def test_lines_are_few_and_say_what_is_left() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, clock) as progress:
        for second in range(1001):
            clock.seconds = second
            progress(f"fit, loss {1000 - second}", second / 1000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "fit, loss 997: 0 %, 16 min 37 s left"
    assert lines[-1] == "fit, loss 0: done in 16 min 40 s"
    assert 15 <= len(lines) <= 25


def test_quick_work_is_not_worth_a_line() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, clock) as progress:
        for step in range(11):
            clock.seconds = step / 5
            progress("read", step / 10)
    assert stream.getvalue() == ""


def test_what_stopped_half_way_is_not_called_done() -> None:
    clock, stream = Clock(), io.StringIO()
    with pytest.raises(KeyboardInterrupt), LineProgress(stream, clock) as progress:
        progress("fit", 0.0)
        clock.seconds = 30
        progress("fit", 0.5)
        raise KeyboardInterrupt
    assert stream.getvalue() == "fit: 50 %, 30 s left\n"


def test_a_bar_shows_the_stage_and_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock, stream = Clock(), io.StringIO()
    with BarProgress(stream, clock) as progress:
        progress("fit [the model]", 0.0)
        clock.seconds = 60
        progress("fit [the model]", 0.5)
        assert progress.bar is not None
        progress.bar.refresh()
    assert "fit [the model]" in stream.getvalue() and "1 min 0 s left" in stream.getvalue()
    assert progress.bar is None


@pytest.mark.parametrize("mode", ["quiet", "json"])
def test_silence_when_asked_for(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(mode)  # type: ignore[arg-type]
    console.say("a remark")
    with console.progress() as progress:
        progress("fit", 0.5)
    assert type(progress) is Progress
    assert capsys.readouterr() == ("", "")


def test_json_is_one_strict_document(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Facts:
        rmse: float
        file: Path

    facts = {
        "facts": Facts(math.nan, Path("a.csv")),
        "array": np.arange(3, dtype=np.int32),
        "scalar": np.float32(0.5),
        "bool": np.bool_(True),
        "tensor": torch.tensor([1.0, math.inf]),
        "set": {1},
        3: None,
    }
    Console("json").result(facts, "for a person")
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "facts": {"rmse": None, "file": "a.csv"},
        "array": [0, 1, 2],
        "scalar": 0.5,
        "bool": True,
        "tensor": [1.0, None],
        "set": [1],
        "3": None,
    }


def test_a_person_reads_lines_even_with_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Console("quiet").result({"rows": 3}, "3 rows")
    assert capsys.readouterr().out == "3 rows\n"


def test_numpy_floats_are_plain_floats() -> None:
    assert type(plain(np.float64(0.5))) is float and plain(np.float64("nan")) is None


def test_a_failure_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    Console("json").fail(Fault("file-kind", "not a\ntable\x1b[31m", "odd\nname.csv", "give another"), 2)
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "\x1b" not in err
    assert json.loads(out)["error"]["where"] == "odd\nname.csv"
    assert json.loads(out)["exit_code"] == 2
