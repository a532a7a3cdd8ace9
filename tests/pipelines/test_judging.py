"""`ebbtide evaluate TRUTH COMPLETED`: what was filled in beside the truth, and the scores' own laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular import TabularDomain
from ebbtide.domains.tabular.measures.imputed import crps, energy_score, inside
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.evaluating import evaluate
from ebbtide.pipelines.judging import is_completed
from ebbtide.shared.errors import InputError


def truth(n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(n)
    return pd.DataFrame(
        {
            "a": np.round(a, 3),
            "b": np.round(10 + 3 * (0.8 * a + 0.6 * rng.standard_normal(n)), 3),
            "k": np.where(rng.random(n) < 0.7, "u", "v"),
        }
    )


@pytest.fixture
def folder(tmp_path: Path, gaussian: object) -> Path:
    """Truth, holes in it, and what was filled in: 60 of b, 30 of k; a is known everywhere."""
    whole = truth()
    whole.to_csv(tmp_path / "truth.csv", index=False)
    holes = whole.copy()
    rows = np.random.default_rng(1).permutation(len(whole))
    holes.loc[rows[:60], "b"] = np.nan
    holes.loc[rows[100:130], "k"] = None
    holes.to_csv(tmp_path / "holes.csv", index=False)
    words = ["--draws", "20", "--all-draws", "20", "--quiet"]
    assert main(["impute", str(tmp_path / "holes.csv"), "-o", str(tmp_path / "done"), *words]) == 0
    return tmp_path


def test_a_completed_table_is_known_by_its_manifest(folder: Path) -> None:
    assert is_completed(folder / "done") and not is_completed(folder)


def test_errors_are_those_of_the_hidden_cells(folder: Path) -> None:
    out = folder / "report"
    args = [str(folder / "truth.csv"), str(folder / "done"), "-o", str(out), "--quiet"]
    assert main(["evaluate", *args]) == 0
    facts = json.loads((out / "report.json").read_text())
    figures = {f["name"]: f for part in facts["figures"].values() for f in part}
    whole, done = pd.read_csv(folder / "truth.csv"), pd.read_csv(folder / "done" / "holes.imputed.csv")
    holes = pd.read_csv(folder / "holes.csv")
    gone = holes["b"].isna()
    error = (done["b"] - whole["b"])[gone] / holes["b"].std(ddof=0)
    assert figures["RMSE"]["synthetic"] == pytest.approx(np.sqrt((error**2).mean()), rel=0.01)
    assert figures["RMSE"]["reference"] == pytest.approx(1, abs=0.25)
    assert 0.45 < figures["RMSE"]["synthetic"] < 0.8  # 0.6 is what b has beyond a
    right = (done["k"] == whole["k"])[holes["k"].isna()].mean()
    assert figures["accuracy"]["synthetic"] == pytest.approx(right, abs=0.005)
    assert 0.78 <= figures["coverage"]["synthetic"] <= 1 and figures["coverage"]["best"] == 0.9
    assert figures["CRPS"]["synthetic"] < 0.6 * figures["CRPS"]["reference"]
    assert figures["bias of pooled estimates"]["synthetic"] < 1.5
    assert facts["measured"]["cells judged"] == {"numbers": 60, "categories": 30}
    assert facts["verdict"]["error"]["title"] == "Nearer to the truth than a blind guess"
    page = (out / "report_share.html").read_text()
    assert "how near is it to the truth?" in page and "<th>filled in</th>" in page


def test_without_kept_draws_the_spread_speaks_for_intervals(folder: Path) -> None:
    args = ["impute", str(folder / "holes.csv"), "-o", str(folder / "few"), "--draws", "20", "--quiet"]
    assert main(args) == 0
    done = evaluate(folder / "truth.csv", folder / "few", folder / "r", domain=TabularDomain())
    names = [f["name"] for part in done.facts["figures"].values() for f in part]
    assert "coverage" in names and "overconfidence" in names and "CRPS" not in names
    assert "all-draws 20" in " ".join(done.facts["verdict"]["estimates"]["words"])


@pytest.mark.parametrize("change, code", [("rows", "rows-differ"), ("columns", "columns-differ")])
def test_another_table_is_no_truth(folder: Path, change: str, code: str) -> None:
    whole = truth()
    other = whole.iloc[:-1] if change == "rows" else whole.drop(columns="k")
    other.to_csv(folder / "other.csv", index=False)
    with pytest.raises(InputError, match=code):
        evaluate(folder / "other.csv", folder / "done", folder / "r", domain=TabularDomain())


def test_holes_are_no_truth(folder: Path) -> None:
    with pytest.raises(InputError, match="nothing-to-judge"):
        evaluate(folder / "holes.csv", folder / "done", folder / "r", domain=TabularDomain())


def test_crps_of_a_normal_is_the_closed_form() -> None:
    # Gneiting & Raftery (2007), eq. 21: at its centre a standard normal scores 2 phi(0) - 1 / sqrt(pi).
    draws = np.random.default_rng(0).standard_normal((4000, 3))
    exact = 2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi)
    assert crps(draws, np.zeros(3)) == pytest.approx(exact, abs=0.02)
    assert crps(draws[:1], np.ones(3)) == pytest.approx(np.abs(draws[0] - 1))
    by_pairs = np.abs(draws[:50, None] - draws[None, :50]).sum((0, 1)) / (50 * 49)
    slow = np.abs(draws[:50] - 0.3).mean(0) - by_pairs / 2
    assert crps(draws[:50], np.full(3, 0.3)) == pytest.approx(slow)


def test_the_energy_score_sees_whether_cells_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    truth_, draws = rng.standard_normal(400), rng.standard_normal((40, 400))
    both = np.stack([truth_, truth_], 1)
    at = np.ones((400, 2), bool)
    together = np.stack([draws, draws], 2)
    apart = np.stack([draws, rng.standard_normal((40, 400))], 2)
    assert energy_score(together, both, at) < energy_score(apart, both, at)
    assert energy_score(together[..., :1], both[:, :1], at[:, :1]) == pytest.approx(
        crps(draws, truth_).mean(), abs=0.01
    )
    hidden = at.copy()
    hidden[:, 1] = False
    assert energy_score(together, both, hidden) == energy_score(together[..., :1], both[:, :1], at[:, :1])


def test_bounds_are_in_their_interval() -> None:
    assert inside(np.zeros(3), np.ones(3), np.array([0.0, 1.0, 1.1])).tolist() == [True, True, False]
