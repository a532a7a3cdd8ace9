"""Generated tables: laws, missing cells, conditions and rules that hold in every row, seeds, forms."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular.binning import Bins, Grid
from ebbtide.domains.tabular.codec import TableCodec
from ebbtide.domains.tabular.fitted import FittedTable
from ebbtide.domains.tabular.generator import GeneratorSettings, TableGenerator
from ebbtide.shared.errors import EbbtideError, InputError
from ebbtide.shared.noise import Keys

ROWS = 1500


def table() -> pd.DataFrame:
    """Patients: income follows sex and age, a stay ends after it begins, total = food + rent."""
    rng = np.random.default_rng(5)
    sex = rng.choice(["F", "M"], ROWS, p=[0.6, 0.4])
    age = rng.integers(18, 90, ROWS)
    dose = 25 * rng.integers(40, 200, ROWS)
    begin = pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 60 * 24 * 60, ROWS), unit="min")
    food, rent = (
        np.round(rng.exponential(50, ROWS), 2),
        np.where(rng.random(ROWS) < 0.5, 0.0, 5.0 * rng.integers(60, 100, ROWS)),
    )
    city = rng.choice(["Oslo", "Bergen", "Lyon", "Nice"], ROWS)
    return pd.DataFrame(
        {
            "id": [f"P{k:05d}" for k in rng.permutation(ROWS)],
            "sex": pd.Categorical(sex),
            "age": age,
            "weight": np.where(
                rng.random(ROWS) < 0.2, np.nan, np.round(60 + 15 * (sex == "M") + rng.normal(0, 5, ROWS), 1)
            ),
            "dose": dose,
            "rich": age + 20 * (sex == "M") > 60,
            "begin": begin,
            "end": begin + pd.to_timedelta(rng.integers(5, 600, ROWS), unit="min"),
            "food": food,
            "rent": rent,
            "total": np.round(food + rent, 2),
            "city": city,
            "country": np.where(np.isin(city, ["Oslo", "Bergen"]), "Norway", "France"),
            "note": [f"seen on ward {k} and sent home with letter {k * 7}" for k in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    return table()


@pytest.fixture(scope="module")
def fitted(real: pd.DataFrame) -> FittedTable:
    settings = GeneratorSettings(width=96, depth=2, steps=220, batch_size=256, learning_rate=4e-3)
    return FittedTable.fit(real, verbs=("generate",), generator=settings, constraints=["together(city,sex)"])


@pytest.fixture(scope="module")
def rows(fitted: FittedTable) -> pd.DataFrame:
    return fitted.generate(1500, seed=1)


def share(values: pd.Series) -> pd.Series:
    return values.value_counts(normalize=True)


def test_columns_dtypes_and_forms_are_those_of_the_table(real: pd.DataFrame, rows: pd.DataFrame) -> None:
    assert list(rows.columns) == list(real.columns)
    assert rows.dtypes.astype(str).tolist() == real.dtypes.astype(str).tolist()
    assert (rows["dose"] % 25 == 0).all()  # the training values were multiples of 25
    assert (rows["weight"].dropna().round(1) == rows["weight"].dropna()).all()
    assert rows["age"].between(18, 89).all() and rows["begin"].dt.second.eq(0).all()


def test_ids_are_new_and_unique_and_free_text_is_empty(real: pd.DataFrame, rows: pd.DataFrame) -> None:
    assert rows["id"].is_unique and not rows["id"].isin(real["id"]).any()
    assert rows["note"].isna().all()


def test_columns_have_their_laws_and_hang_together(real: pd.DataFrame, rows: pd.DataFrame) -> None:
    for name in ("sex", "city", "rich"):
        assert (share(real[name]) - share(rows[name])).abs().sum() / 2 < 0.05, name
    for name in ("age", "food", "dose"):
        apart = [np.quantile(frame[name], np.linspace(0.1, 0.9, 9)) for frame in (real, rows)]
        assert np.abs(apart[0] - apart[1]).max() < 0.12 * real[name].std() * 2, name
    gap = rows.groupby("sex", observed=True)["weight"].mean()
    assert gap["M"] - gap["F"] == pytest.approx(15, abs=6)  # a short training
    expected = rows["age"] + 20 * (rows["sex"] == "M") > 60
    assert (expected == rows["rich"]).mean() > 0.8


def test_missing_cells_are_as_frequent_as_in_training_or_none(
    fitted: FittedTable, rows: pd.DataFrame
) -> None:
    assert rows["weight"].isna().mean() == pytest.approx(0.2, abs=0.05)
    complete = fitted.generate(300, complete=True).drop(columns="note")
    assert not complete.isna().any().any()


def test_a_row_depends_on_seed_and_place_alone(fitted: FittedTable, rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(fitted.generate(30, seed=1), rows.iloc[:30])
    wish = fitted.synthesis(seed=1)
    items = np.array([700, 3, 1400])
    pd.testing.assert_frame_equal(wish.frame(wish.rows(items), items), rows.iloc[items])
    assert not fitted.generate(30, seed=2).equals(rows.iloc[:30])


@pytest.mark.parametrize(
    "condition, holds",
    [
        ({"sex": "M"}, lambda f: f["sex"] == "M"),
        ({"city": "Oslo|nice"}, lambda f: f["city"].isin(["Oslo", "Nice"])),
        ({"age": "60..70", "weight": "70.."}, lambda f: f["age"].between(60, 70) & (f["weight"] >= 70)),
        ({"age": 41}, lambda f: f["age"] == 41),
        ({"dose": "..1210"}, lambda f: f["dose"] <= 1200),
        (
            {"end": "2021-03-10..2021-03-12 06:30"},
            lambda f: f["end"].between("2021-03-10", "2021-03-12 06:30"),
        ),
        ({"country": "Norway", "age": "*"}, lambda f: f["city"].isin(["Oslo", "Bergen"])),
    ],
)
def test_a_condition_holds_in_every_row(
    fitted: FittedTable, condition: dict[str, object], holds: object
) -> None:
    made = fitted.generate(300, condition=condition)
    assert holds(made).all()  # type: ignore[operator]
    assert (made["begin"] <= made["end"]).all()


def test_ranges_of_two_columns_are_met_in_their_joint_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exact law of x and y = f(x): what x has to do with the range of y is not forgotten."""
    joint = np.array([[0.28, 0.01, 0.01], [0.03, 0.13, 0.14], [0.2, 0.1, 0.1]])
    x, y = np.divmod(np.repeat(np.arange(9), (joint.ravel() * 1000).round().astype(int)), 3)
    frame = pd.DataFrame({"x": x.astype(float), "y": y.astype(float)})
    codec = TableCodec(kinds={"x": "number", "y": "number"}).fit(frame)
    model = TableGenerator.untrained(codec.encode(frame), codec.columns_, GeneratorSettings(width=8))

    def law(levels: np.ndarray, hidden: np.ndarray, place: int) -> np.ndarray:
        rows = joint if place == 1 else joint.T
        known = rows[levels[:, 1 - place]]
        known = np.where(hidden[:, 1 - place, None], rows.sum(0), known)
        return known / known.sum(1, keepdims=True)

    monkeypatch.setattr(model, "law", law)
    rows = 6000
    made = model.draw(Keys.range(0, rows), model.demand({"x": "0..1", "y": "1..2"})).numbers
    truth = joint[:2, 1:] / joint[:2, 1:].sum()
    counts = np.histogram2d(made[:, 0], made[:, 1], bins=[[-0.5, 0.5, 1.5], [0.5, 1.5, 2.5]])[0]
    assert counts.sum() == rows
    # 4.5 standard errors, and a hundredth for the candidates being sixteen and not endless.
    assert (np.abs(counts / rows - truth) < 4.5 * np.sqrt(truth * (1 - truth) / rows) + 0.01).all()


def test_what_held_in_all_training_rows_is_found_and_kept(fitted: FittedTable, rows: pd.DataFrame) -> None:
    assert fitted.generator is not None
    assert {"begin<=end", "food<=total", "rent<=total"} <= set(fitted.generator.rules.lines)
    assert (rows["begin"] <= rows["end"]).all() and (rows["food"] <= rows["total"]).all()
    country = rows["city"].map({"Oslo": "Norway", "Bergen": "Norway", "Lyon": "France", "Nice": "France"})
    assert (country == rows["country"]).all()


def test_rules_hold_in_every_row(fitted: FittedTable) -> None:
    rules = ["total = food + rent", "30<=age<50", "food<dose", "unique(age,dose)"]
    made = fitted.generate(150, constraints=rules)
    assert (made["total"] == (made["food"] + made["rent"]).round(2)).all()
    assert made["age"].between(30, 49).all() and (made["food"] < made["dose"]).all()
    assert not made.duplicated(["age", "dose"]).any()


def test_orders_follow_from_orders(fitted: FittedTable) -> None:
    made = fitted.generate(200, constraints=["age<food", "food<=dose"], complete=True)
    assert ((made["age"] < made["food"]) & (made["food"] <= made["dose"])).all()


@pytest.mark.parametrize(
    "words, code",
    [
        ({"condition": {"agee": 3}}, "condition-unknown"),
        ({"condition": {"city": "Osloo"}}, "condition-value"),
        ({"condition": {"age": "old"}}, "condition-value"),
        ({"condition": {"age": "50..40"}}, "condition-value"),
        ({"condition": {"age": "100..110"}}, "condition-empty"),
        ({"constraints": ["agee<=dose"]}, "rule-column"),
        ({"constraints": ["sex<=dose"]}, "rule-column"),
        ({"constraints": ["whatever"]}, "rule"),
        ({"constraints": ["together(age,city)"]}, "rule-untrained"),
        ({"constraints": ["unique(sex,rich)"]}, "rules-unmet"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused(
    fitted: FittedTable, words: dict[str, object], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        fitted.generate(20, **words)  # type: ignore[arg-type]
    assert caught.value.fault.code == code


def test_a_model_is_saved_and_read_back(fitted: FittedTable, rows: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    again = FittedTable.load(tmp_path / "model")
    assert again.can == ("generate",)
    pd.testing.assert_frame_equal(again.generate(20, seed=1), rows.iloc[:20])
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(fitted)).generate(20, seed=1), rows.iloc[:20])


def test_each_part_of_a_model_says_what_it_cannot_do(fitted: FittedTable, real: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="does not fill in"):
        fitted.fill(real.head())
    with pytest.raises(InputError, match="does not generate"):
        FittedTable(fitted.codec, None).generate(3)


def test_seldom_levels_are_drawn_by_their_frequency_and_can_be_asked_for() -> None:
    rng = np.random.default_rng(0)
    common = [f"c{k:03d}" for k in range(256)]
    words = np.concatenate([np.repeat(common, 6), [f"r{k}" for k in range(40)], np.repeat("twice", 2)])
    frame = pd.DataFrame({"word": rng.permutation(words), "x": rng.normal(size=len(words)).round(2)})
    fitted = FittedTable.fit(
        frame,
        verbs=("generate",),
        kinds={"word": "category"},
        generator=GeneratorSettings(width=32, steps=40),
    )
    made = fitted.generate(3000)["word"]
    assert set(made) <= set(words)
    assert made.isin(words[-42:]).mean() == pytest.approx(42 / len(words), abs=0.015)
    assert (fitted.generate(20, condition={"word": "r7"})["word"] == "r7").all()


# --------------------------------------------------------------------------------------------------- levels


def test_frequent_values_are_levels_and_the_rest_is_cut_at_quantiles() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([np.zeros(500), rng.exponential(10, 1500)])
    bins = Bins.fit(values, most=30)
    assert bins.alone.sum() == 1 and 20 <= len(bins) <= 31
    levels = bins.encode(values)
    zero = int(np.flatnonzero(bins.alone)[0])
    assert (levels == zero).sum() == 500
    again = bins.decode(levels, rng.random(len(levels)))
    assert (again[values == 0] == 0).all()
    assert np.abs(np.quantile(again, [0.5, 0.9]) - np.quantile(values, [0.5, 0.9])).max() < 0.5
    assert (bins.encode(again) == levels).mean() > 0.99


def test_few_values_stay_themselves_but_for_those_of_single_rows() -> None:
    values = np.repeat([1.0, 2, 3, 50, 70], [40, 30, 20, 1, 2])
    bins = Bins.fit(values, rare=5)
    assert bins.knots[bins.alone, 0].tolist() == [1, 2, 3]
    made = bins.decode(np.full(200, len(bins) - 1), np.linspace(0, 1, 200))
    assert made.min() == 50 and made.max() == 70 and len(np.unique(made)) > 20


def test_the_share_of_a_level_within_a_range() -> None:
    bins = Bins(np.stack([np.full(9, 5.0), np.linspace(10, 18, 9)]))
    begin, end = bins.share(np.array([5.0, 12.0, 19.0]), np.array([14.0, 13.0, 30.0]))
    assert (end - begin).tolist() == [[1, 0.5], [0, 0.125], [0, 0]]
    assert begin[1, 1] == 0.25


def test_a_grid_is_found_and_kept_to() -> None:
    grid = Grid.fit(np.array([0.3, 0.6, 0.9, 1.2, 2.1, 3.3, 4.5]), 0.1, 1)
    assert grid.step == pytest.approx(0.3)
    assert grid.near(np.array([0.7, 1.1])).tolist() == [0.6, 1.2]
    assert grid.up(np.array([0.61, 0.6])).tolist() == [0.9, 0.6]
    assert grid.down(np.array([0.89, 0.9, -np.inf])).tolist() == [0.6, 0.9, -np.inf]


def test_a_model_whose_parts_do_not_fit_is_refused(fitted: FittedTable) -> None:
    assert fitted.generator is not None
    config, tensors = fitted.generator.state()
    columns = fitted.generator.parts.columns
    for name in ("group.0", "network.bias", "bins.1"):
        damaged = {**tensors, name: tensors[name][1:] + 1000}
        if name == "bins.1":
            del damaged[name]
        with pytest.raises(EbbtideError, match="model-generator"):
            TableGenerator.from_state(columns, config, damaged)
