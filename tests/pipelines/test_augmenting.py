"""`ebbtide augment`: the real rows as they were, synthetic ones marked, card and manifest, and the proof."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular import TabularDomain
from ebbtide.pipelines.augmenting import Asked, augment
from ebbtide.pipelines.carding import card, load
from ebbtide.pipelines.cli import main
from ebbtide.shared.errors import InputError


@pytest.fixture
def table(tmp_path: Path, gaussian: object) -> Path:
    rng = np.random.default_rng(0)
    ill = rng.random(80) < 0.3
    frame = pd.DataFrame(
        {
            "patient_id": [f"P{k:05d}" for k in range(80)],
            "dose": [f"{x:.2f}" for x in rng.standard_normal(80) + ill],
            "ward": np.where(rng.random(80) < 0.5, "north", "south"),
            "outcome": np.where(ill, "ill", "well"),
        }
    )
    frame.loc[3, "dose"] = None
    frame.to_csv(tmp_path / "trial.csv", index=False, sep=";")
    return tmp_path / "trial.csv"


def made(table: Path, *more: str) -> tuple[Path, pd.DataFrame]:
    out = table.parent / "out"
    assert (
        main(["augment", str(table), "-o", str(out), "--vary", "0.5", "--quiet", "--overwrite", *more]) == 0
    )
    return out, pd.read_csv(out / "trial.augmented.csv", sep=";", dtype=str)


def test_the_real_rows_stand_first_and_as_they_were(table: Path) -> None:
    out, frame = made(table, "--no-proof")
    real = table.read_text().splitlines()
    written = (out / "trial.augmented.csv").read_text().splitlines()
    assert [line.rpartition(";")[0] for line in written[1:81]] == real[1:]  # digits and blanks too
    assert frame["synthetic"].tolist() == ["0"] * 80 + ["1"] * (len(frame) - 80)
    added = frame[frame["synthetic"] == "1"]
    assert added["patient_id"].isna().all()  # nobody's id is repeated
    assert len(frame) == 800  # a small table grows tenfold
    assert len(added.drop(columns="outcome").drop_duplicates()) < 200  # each row stands there several times


def test_classes_are_balanced(table: Path) -> None:
    _, frame = made(table, "--balance", "outcome", "--no-proof", "--factor", "1")
    counts = frame["outcome"].value_counts()
    assert counts["well"] == counts["ill"]
    assert (frame.loc[frame["synthetic"] == "1", "outcome"] == "ill").all()
    _, frame = made(table, "--balance", "outcome", "--no-proof")
    more = frame["outcome"].value_counts()
    assert more["well"] == more["ill"] == 10 * counts["well"]


def test_the_proof_is_printed_drawn_and_kept(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = made(table, "--balance", "outcome", "--factor", "2")
    said = capsys.readouterr().out
    assert "predicting outcome on real rows that nobody saw, 5 splits" in said
    assert "beside nothing added" in said and "beside the best classical way" in said
    proof = json.loads((out / "proof.json").read_text())
    assert set(proof["scores"]) == {"nothing added", "class weights", "SMOTE", "Ebbtide"}
    assert set(proof["gain_over"]["SMOTE"]) == {"all models", "boosted trees", "linear model", "forest"}
    low, mean, high = (proof["gain_over"]["nothing added"]["all models"][k] for k in ("low", "mean", "high"))
    assert low <= mean <= high and proof["verdict"]["title"] in said
    assert (out / "proof.png").read_bytes()[:4] == b"\x89PNG"


def test_card_and_manifest_say_what_it_is(table: Path) -> None:
    out, frame = made(table, "--no-proof", "--factor", "1.5")
    assert card(out).faults == ()
    found = load(out / "card.yaml")
    assert found["kind"] == "augmented" and found["rows"] == len(frame)
    assert f"{len(frame) - 80} synthetic" in found["description"]
    manifest = json.loads((out / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["real"] == 80 and counts["synthetic"] == len(frame) - 80
    dropped = counts["near_copies_dropped"] + counts["implausible_dropped"]
    assert found["synthesis"]["rejected"] == dropped
    assert 0 < counts["different"] <= min(counts["synthetic"], counts["drawn"] - dropped)
    assert manifest["options"]["vary"] == 0.5 and "never for testing" in manifest["note"]


def test_the_same_seed_gives_the_same_table(table: Path) -> None:
    first = (made(table, "--no-proof")[0] / "trial.augmented.csv").read_bytes()
    assert (made(table, "--no-proof")[0] / "trial.augmented.csv").read_bytes() == first
    assert (made(table, "--no-proof", "--seed", "1")[0] / "trial.augmented.csv").read_bytes() != first


def test_parquet_keeps_its_types(table: Path) -> None:
    frame = pd.DataFrame(
        {"n": np.arange(60), "x": np.random.default_rng(1).random(60), "c": ["a", "b", "b"] * 20}
    )
    path = table.with_name("t.parquet")
    frame.to_parquet(path)
    out = table.parent / "p"
    augment(path, out, domain=TabularDomain(), asked=Asked(vary=0.5, target="c", repeats=0))
    whole = pd.read_parquet(out / "t.augmented.parquet")
    pd.testing.assert_frame_equal(whole.iloc[:60].drop(columns="synthetic").astype(frame.dtypes), frame)
    assert whole["synthetic"].sum() == len(whole) - 60 > 20


@pytest.mark.parametrize(
    "asked, code",
    [
        (Asked(vary=0.5, factor=1), "nothing-to-add"),
        (Asked(vary=1.5), "strength"),
        (Asked(vary=0.5, factor=1000), "factor"),
        (Asked(vary=0.5, balance="dose"), "not-balanceable"),
        (Asked(vary=0.5, balance="outcom"), "target-unknown"),
    ],
)
def test_wishes_that_cannot_be_are_told(table: Path, asked: Asked, code: str) -> None:
    with pytest.raises(InputError, match=code):
        augment(table, table.parent / "out", domain=TabularDomain(), asked=asked)
    assert sorted(path.name for path in table.parent.iterdir()) == ["trial.csv"]


def test_an_augmented_table_is_not_augmented_again(table: Path) -> None:
    out, _ = made(table, "--no-proof")
    with pytest.raises(InputError, match="column-taken"):
        augment(
            out / "trial.augmented.csv", table.parent / "x", domain=TabularDomain(), asked=Asked(vary=0.5)
        )


def test_few_rows_prove_nothing(table: Path) -> None:
    small = table.with_name("small.csv")
    small.write_text("\n".join(table.read_text().splitlines()[:30]))
    with pytest.raises(InputError, match=r"too-few-rows.*--no-proof"):
        augment(small, table.parent / "x", domain=TabularDomain(), asked=Asked(vary=0.5, target="outcome"))


def test_a_model_that_fills_in_alone_varies_rows_and_draws_none(table: Path) -> None:
    model = table.parent / "model"
    assert main(["train", str(table), "-o", str(model), "--only", "impute", "--quiet"]) == 0
    with pytest.raises(InputError, match=r"cannot-generate.*--vary"):
        augment(table, table.parent / "x", domain=TabularDomain(), asked=Asked(), model=model)
    done = augment(
        table, table.parent / "x", domain=TabularDomain(), asked=Asked(vary=0.3, repeats=0), model=model
    )
    assert done.counts["synthetic"] > 0
