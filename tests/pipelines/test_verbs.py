"""Each verb hands what was typed to its pipeline, and shows what comes back."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from ebbtide.pipelines import cli, demo, imputing, training
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.imputing import Imputed
from ebbtide.pipelines.training import TrainedModel
from ebbtide.shared.errors import Fault

WARNING = Fault("few-rows", "3 rows are too few", "a.csv", severity="warning")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("age,sex\n30,f\n?,m\n50,f\n")
    return path


class Recorder:
    """Stands in for a pipeline: takes only calls that its signature allows, and remembers the last one."""

    def __init__(self, real: Any, result: object) -> None:
        self.signature, self.result = inspect.signature(real), result
        self.given: dict[str, Any] = {}

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.given = self.signature.bind(*args, **kwargs).arguments
        return self.result


def test_impute_is_told_everything(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Imputed(Path("out"), ("a.imputed.csv",), {"filled": 1}, ("1 cell was filled.",), (WARNING,))
    spy = Recorder(imputing.impute_file, done)
    monkeypatch.setattr(imputing, "impute_file", spy)
    words = (
        "--draws 7 --all-draws 3 --statistic median --columns age --rows 99 --shard 2/3 --model M --seed 5"
    )
    words += " --device cpu --overwrite --missing ?,-9 --kinds sex=category --key sex --decimal , --no-header"
    assert main(["impute", str(table), "-o", "out", *words.split()]) == 0

    given = spy.given
    options = given.pop("domain").options
    assert callable(given.pop("progress"))
    told = given.pop("options")
    assert given == {
        "data": table,
        "out": Path("out"),
        "model": Path("M"),
        "draws": 7,
        "all_draws": 3,
        "statistic": "median",
        "seed": 5,
        "shard": (2, 3),
        "rows": 99,
        "device": "cpu",
        "overwrite": True,
    }
    assert (options.missing, dict(options.kinds), options.columns) == (
        ("?", "-9"),
        {"sex": "category"},
        ("age",),
    )
    assert (options.key, options.decimal, options.header, options.sheet) == ("sex", ",", False, None)
    assert told["missing"] == ["?", "-9"] and json.dumps(told)
    out, err = capsys.readouterr()
    assert out == "1 cell was filled.\n" and err.startswith("warning: few-rows: a.csv:")


def test_impute_for_a_program(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Imputed(Path("out"), ("a.imputed.csv",), {"filled": 1}, ("1 cell was filled.",), (WARNING,))
    monkeypatch.setattr(imputing, "impute_file", Recorder(imputing.impute_file, done))
    assert main(["impute", str(table), "-o", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True and told["verb"] == "impute" and told["summary"] == {"filled": 1}
    assert told["warnings"][0]["code"] == "few-rows"


def test_train_is_told_everything(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Recorder(training.train, TrainedModel(Path("M"), "00", {"rows": 3, "data": "a.csv"}, ()))
    monkeypatch.setattr(training, "train", spy)
    assert (
        main(["train", str(table), "-o", "M", "--rows", "9", "--resume", "--seed", "2", "--device", "cpu"])
        == 0
    )
    given = {
        name: spy.given[name] for name in ("data", "out", "rows", "resume", "seed", "device", "overwrite")
    }
    assert given == {
        "data": table,
        "out": Path("M"),
        "rows": 9,
        "resume": True,
        "seed": 2,
        "device": "cpu",
        "overwrite": False,
    }


def test_demo_is_told_where_and_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spy = Recorder(demo.demo, demo.Demo(Path("there"), {"Ebbtide": {"rmse": 0.5}}, ("It went well.",)))
    monkeypatch.setattr(demo, "demo", spy)
    assert main(["demo", "-o", "there", "--seed", "4", "--overwrite"]) == 0
    assert (spy.given["out"], spy.given["seed"], spy.given["overwrite"]) == (Path("there"), 4, True)
    assert capsys.readouterr().out == "It went well.\n"


def test_check_tells_all_and_sets_the_exit_code(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(table), "--missing", "?", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True and {fault["severity"] for fault in told["faults"]} == {"warning"}

    table.write_text("age,sex\n30,f\n40\n50,f\n60\n")
    assert main(["check", str(table), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert any(fault["severity"] == "error" for fault in told["faults"])


def test_info_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("not-a-model: ")


@pytest.mark.parametrize("verb", [command.callback.__name__ for command in cli.app.registered_commands])
def test_help_fits_one_screen(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 32 and max(map(len, lines)) <= 80
    documented = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"
    assert f"`ebbtide {verb}" in documented.read_text(encoding="utf-8")
