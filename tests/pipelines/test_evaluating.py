"""`ebbtide evaluate`: what the report says, what may be shared of it, and what it never says."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular import TableOptions, TabularDomain
from ebbtide.domains.tabular.fitted import FittedTable
from ebbtide.domains.tabular.generator import GeneratorSettings
from ebbtide.domains.tabular.measures.pictures import memorisation
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.evaluating import evaluate, memorisation_facts
from ebbtide.pipelines.report import NEVER, _blind_words, _fidelity_verdict, percent, rounded
from ebbtide.pipelines.report import page as rendered
from ebbtide.shared.errors import InputError


def people(n: int, seed: int) -> pd.DataFrame:
    """Numbers with many digits, so that a value that leaks into a report can be found by searching for it."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n)
    return pd.DataFrame(
        {
            "patient_id": [f"P-{seed}{k:06d}" for k in range(n)],
            "pressure": np.round(120 + 15 * base + 5 * rng.standard_normal(n), 5),
            "marker": np.round(np.exp(base + 0.5 * rng.standard_normal(n)), 6),
            "visit": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), unit="D"),
            "ward": rng.choice(["north", "south", "east"], n, p=[0.6, 0.3, 0.1]),
            "outcome": np.where(base + rng.standard_normal(n) > 0, "ill", "well"),
        }
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    real = people(300, 1)
    real.loc[7, "ward"] = "solitary-ward-7"  # a level that one person has
    real.to_csv(folder / "real.csv", index=False)
    people(250, 2).drop(columns="patient_id").to_csv(folder / "strangers.csv", index=False)
    real.sample(250, replace=True, random_state=0).to_csv(folder / "copies.csv", index=False)
    people(200, 3).to_csv(folder / "held.csv", index=False)
    return folder


@cache
def report(files: Path, kind: str, *, holdout: bool = True) -> tuple[Path, dict[str, Any]]:
    out = files / f"{kind}-{holdout}"
    held = files / "held.csv" if holdout else None
    done = evaluate(
        files / "real.csv", files / f"{kind}.csv", out, domain=TabularDomain(), holdout=held, overwrite=True
    )
    return out, done.facts


def page(out: Path, name: str) -> str:
    return (out / f"report_{name}.html").read_text(encoding="utf-8")


def test_strangers_are_no_leak_at_this_power(files: Path) -> None:
    out, facts = report(files, "strangers")
    words = " ".join(facts["verdict"]["privacy"]["words"])
    assert facts["privacy"]["leaks"] == []
    assert re.search(r"No leak found by these 6 attacks \(\d+ tests\) at this power", words)
    assert "smallest leaks that would have been seen" in words
    assert words.split(".")[0] in page(out, "share")


def test_copies_are_called_a_leak_though_they_look_perfect(files: Path) -> None:
    out, facts = report(files, "copies")
    assert facts["verdict"]["privacy"]["level"] == "bad"
    assert facts["privacy"]["copies"]["near_training"]["share"] > 0.95
    assert facts["fidelity"]["measures"]["single columns"]["values"][0] > 0.9
    assert "gives away people" in page(out, "share")


def test_privacy_is_not_assessed_without_held_out_people(files: Path) -> None:
    out, facts = report(files, "copies", holdout=False)
    assert facts["privacy"] is None
    assert "Privacy cannot be assessed without held-out people" in page(out, "share")
    assert "one half of the real rows" in facts["reference"]
    assert "smoke alarm" not in page(out, "share").lower()


@pytest.mark.parametrize("kind", ["strangers", "copies"])
@pytest.mark.parametrize("holdout", [True, False])
def test_no_page_promises_what_no_test_can_show(files: Path, kind: str, holdout: bool) -> None:
    out, _ = report(files, kind, holdout=holdout)
    for name in ("share", "internal"):
        text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page(out, name)).lower()
        assert not [word for word in NEVER if word in text]


def test_what_is_shared_holds_no_value_of_a_person(files: Path) -> None:
    real = pd.read_csv(files / "real.csv", dtype=str)
    values = {v for name in ("patient_id", "pressure", "marker", "visit") for v in real[name].dropna()}
    values |= {repr(float(v)) for name in ("pressure", "marker") for v in real[name]}
    for kind in ("strangers", "copies"):
        out, _ = report(files, kind)
        for text in (page(out, "share"), (out / "report.json").read_text()):
            plain = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
            found = {v for v in values if len(v) > 5 and v in plain}
            assert not found
            assert "solitary-ward-7" not in plain


def test_every_published_figure_is_rounded(files: Path) -> None:
    def figures(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [f for v in value.values() for f in figures(v)]
        if isinstance(value, list):
            return [f for v in value for f in figures(v)]
        return [value] if isinstance(value, float) else []

    out, _ = report(files, "copies")
    found = figures(json.loads((out / "report.json").read_text()))
    assert len(found) > 100 and all(round(f, 3) == f for f in found)


def test_only_the_internal_page_points_at_rows_and_says_so(files: Path) -> None:
    out, _ = report(files, "copies")
    assert "INTERNAL" in page(out, "internal") and "Nearest pairs" in page(out, "internal")
    assert "Nearest pairs" not in page(out, "share")
    row, real = re.findall(r"<td>(\d+)</td><td>(\d+)</td><td>0.000</td>", page(out, "internal"))[0]
    copied, original = pd.read_csv(files / "copies.csv"), pd.read_csv(files / "real.csv")
    assert copied.iloc[int(row) - 1].equals(original.iloc[int(real) - 1])


def test_a_page_needs_nothing_else(files: Path) -> None:
    out, _ = report(files, "strangers")
    text = page(out, "share")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    for part in ("Fidelity", "Utility", "Privacy", "Method"):
        assert re.search(rf"<h2 id=\"{part.lower()}\">{part}", text)


def test_a_page_tells_when_copying_began(files: Path) -> None:
    settings = GeneratorSettings(steps=30, width=16, depth=1)
    fitted = FittedTable.fit(people(120, 1), verbs=("generate",), generator=settings, seed=0)
    told = memorisation_facts(fitted)
    assert told is not None and fitted.generator is not None
    facts = report(files, "strangers")[1] | {"memorisation": told}
    blank = dict.fromkeys(("distributions", "embedding", "maps", "attacks"), b"")
    text = " ".join(rendered(facts, {**blank, "memorisation": memorisation(**told)}).split())
    kept = next(row for row in told["curve"] if row["step"] == told["kept"])
    assert f"it drew {kept['drawn']:g} rows, and near copies of 100 training rows were looked for" in text
    assert f"At the step that was kept {percent(kept['copies'])} [" in text and "of 20 held-out rows" in text
    # A model from before copies were looked for has the losses alone.
    old = {
        **told,
        "curve": [{k: v for k, v in row.items() if "auc" in k or k in OLD} for row in told["curve"]],
    }
    text = rendered({**facts, "memorisation": old}, {**blank, "memorisation": memorisation(**old)})
    assert "Was the training learnt by heart?" in text and "rows drawn were near copies" not in text


OLD = ("step", "members", "others", "rows")


def test_the_same_seed_gives_the_same_bytes(files: Path, tmp_path: Path) -> None:
    out, _ = report(files, "strangers")
    args = [str(files / "real.csv"), str(files / "strangers.csv"), "--holdout", str(files / "held.csv")]
    assert main(["evaluate", *args, "-o", str(tmp_path / "again"), "--quiet"]) == 0
    for name in ("report_share.html", "report_internal.html", "report.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_figures_stand_beside_those_of_held_out_people(files: Path) -> None:
    _, facts = report(files, "strangers")
    for name, found in facts["fidelity"]["measures"].items():
        assert None not in found["values"], name
    assert facts["utility"]["targets"][0]["target"] == "outcome"
    made, real = facts["utility"]["targets"][0]["values"]
    assert real > 0.6 and made > 0.6


def test_rows_are_thinned_to_what_was_asked_for(files: Path, tmp_path: Path) -> None:
    done = evaluate(
        files / "real.csv", files / "strangers.csv", tmp_path / "r", domain=TabularDomain(), rows=120
    )
    assert done.facts["rows"] == {"real": 120, "synthetic": 120}
    assert done.facts["about"]["rows_in_file"] == {"real": 300, "synthetic": 250}


def test_a_key_column_is_an_id_that_the_synthetic_table_may_lack(files: Path, tmp_path: Path) -> None:
    domain = TabularDomain(TableOptions(key="patient_id"))
    done = evaluate(files / "real.csv", files / "strangers.csv", tmp_path / "r", domain=domain, target="ward")
    assert "patient_id" in done.facts["about"]["left_out"]
    assert done.facts["utility"]["chosen"] == "as asked for"


@pytest.mark.parametrize(
    "change, code", [({"target": "nothing"}, "target-unknown"), ({"holdout": "real.csv"}, "holdout-in-real")]
)
def test_bad_wishes_are_told(files: Path, tmp_path: Path, change: dict[str, str], code: str) -> None:
    words = {k: files / v if k == "holdout" else v for k, v in change.items()}
    with pytest.raises(InputError, match=code):
        evaluate(files / "real.csv", files / "strangers.csv", tmp_path / "r", domain=TabularDomain(), **words)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(files: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not-a-report"):
        evaluate(
            files / "real.csv", files / "strangers.csv", tmp_path, domain=TabularDomain(), overwrite=True
        )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_command_line_tells_what_differs(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people(50, 4).drop(columns="marker").to_csv(tmp_path / "short.csv", index=False)
    code = main(["evaluate", str(files / "real.csv"), str(tmp_path / "short.csv"), "-o", str(tmp_path / "r")])
    said = capsys.readouterr().err.strip()
    assert code == 2 and said.count("\n") == 0
    assert said.startswith("columns-differ:") and "short.csv" in said and "'marker'" in said


@pytest.mark.parametrize("share, words", [(0.2, "nearly blind"), (0.9, "misses some copies")])
def test_a_detector_that_misses_what_was_planted_says_so(share: float, words: str) -> None:
    planted = {"exact": {"share": 1.0}, "jittered": {"share": share}, "swapped": {"share": 0.1}}
    said = _blind_words({"detector_sees": False, "planted": planted})[0]
    assert words in said and f"{100 * share:.1f} %" in said
    assert _blind_words({"detector_sees": True, "planted": planted}) == []


def test_figures_that_are_none_are_null() -> None:
    assert rounded(float("nan")) is None and rounded(0.12345) == 0.123 and str(rounded(-0.0001)) == "0.0"


@pytest.mark.parametrize("auc, level", [(0.55, "good"), (0.8, "look"), (0.95, "bad")])
def test_likeness_is_judged_by_how_well_it_is_told_apart(auc: float, level: str) -> None:
    measures = {
        "single columns": {"values": [0.97, 0.98]},
        "pairs of columns": {"values": [0.95, 0.96]},
        "classifier, boosted trees: AUC": {"values": [auc, 0.5]},
    }
    assert _fidelity_verdict(measures, "held-out people")["level"] == level
