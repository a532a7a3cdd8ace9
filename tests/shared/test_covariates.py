"""Named facts become numbers and back, and what is asked of them is understood or refused."""

from __future__ import annotations

import math

import pytest
import torch

from ebbtide.shared.covariates import Covariates, parse_wish
from ebbtide.shared.errors import InputError
from ebbtide.shared.noise import Keys

ROWS = [{"age": float(20 + i), "sex": "F" if i % 4 else "M", "site": None} for i in range(40)]


@pytest.fixture
def facts() -> Covariates:
    return Covariates.fit(ROWS, ["age", "sex"])


def test_numbers_are_standardised_and_levels_indicated(facts: Covariates) -> None:
    coded = facts.encode(ROWS)
    assert coded is not None and coded.shape == (40, 3)
    assert coded[:, 0].mean().abs() < 1e-6 and coded[:, 0].std(correction=0) == pytest.approx(1)
    assert coded[0, 1:].tolist() == [-1.0, 1.0] and coded[1, 1:].tolist() == [1.0, -1.0]


def test_unknown_is_nan_and_so_is_a_level_never_seen(facts: Covariates) -> None:
    coded = facts.encode([{"age": None, "sex": "X"}, {}])
    assert coded is not None and coded.isnan().all()


def test_saved_facts_encode_alike(facts: Covariates) -> None:
    again = Covariates.from_state(facts.state())
    assert again == facts
    assert torch.equal(again.encode(ROWS), facts.encode(ROWS))  # type: ignore[arg-type]


def test_values_ranges_and_the_law_of_training(facts: Covariates) -> None:
    keys = Keys.range(0, 2000)
    rows = facts.asked(parse_wish("age=30..40, sex=f"), keys)
    ages = torch.tensor([row["age"] for row in rows])
    assert ages.min() >= 30 and ages.max() <= 40 and ages.mean() == pytest.approx(35, abs=0.3)
    assert {row["sex"] for row in rows} == {"F"}
    rows = facts.asked(parse_wish("age=*,sex=*"), keys)
    share = sum(row["sex"] == "M" for row in rows) / len(rows)
    assert share == pytest.approx(0.25, abs=0.04)
    ages = torch.tensor([row["age"] for row in rows])
    assert ages.mean() == pytest.approx(39.5, abs=1) and ages.std() == pytest.approx(11.5, abs=1)


def test_what_was_not_asked_for_stays_unknown(facts: Covariates) -> None:
    assert facts.asked({"sex": "M"}, Keys.range(0, 1)) == [{"sex": "M"}]


def test_the_place_in_a_range_does_not_depend_on_company(facts: Covariates) -> None:
    some, all_ = (facts.asked({"age": "0..1"}, Keys.range(3, n)) for n in (2, 9))
    assert some == all_[:2]


@pytest.mark.parametrize(
    "wish, code, said",
    [
        ({"agee": "3"}, "condition-unknown", "did you mean age?"),
        ({"sex": "x"}, "condition-value", "choose one of F, M"),
        ({"age": "old"}, "condition-value", "age=60..80"),
    ],
)
def test_wishes_that_cannot_be_granted(facts: Covariates, wish: dict[str, str], code: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        facts.asked(wish, Keys.range(0, 1))
    assert error.value.fault.code == code and said in str(error.value.fault)


@pytest.mark.parametrize("names, code", [(["agee"], "covariate-unknown"), (["site"], "covariate-empty")])
def test_facts_that_cannot_be_learned(names: list[str], code: str) -> None:
    with pytest.raises(InputError) as error:
        Covariates.fit(ROWS, names)
    assert error.value.fault.code == code


@pytest.mark.parametrize(
    "age, warned",
    [("95", True), ("-3", True), ("60..95", True), ("1..70", True), ("60..80", False), ("*", False)],
)
def test_what_lies_beyond_the_training_is_said_without_anybodys_value(age: str, warned: bool) -> None:
    facts = Covariates.fit([{"age": 50.5 + i, "sex": "FM"[i % 2]} for i in range(41)], ["age", "sex"])
    faults = facts.unlike({"age": age, "sex": "F"})
    assert [fault.code for fault in faults] == ["condition-beyond"] * warned
    assert all(fault.severity == "warning" and "52.5 to 88.5" in fault.what for fault in faults)
    assert not any("50.5" in str(fault) or "90.5" in str(fault) for fault in faults)


def test_ids_are_no_covariates() -> None:
    with pytest.raises(InputError) as error:
        Covariates.fit([{"name": f"patient {i}"} for i in range(60)], ["name"])
    assert error.value.fault.code == "covariate-levels" and "patient" not in str(error.value.fault)


def test_a_constant_number_does_not_divide_by_zero() -> None:
    coded = Covariates.fit([{"field": 3.0}] * 4, ["field"]).encode([{"field": 3.0}])
    assert coded is not None and coded.item() == 0 and math.isfinite(coded.item())


@pytest.mark.parametrize("text", ["age", "age=", "=3"])
def test_words_that_are_no_wish(text: str) -> None:
    with pytest.raises(InputError):
        parse_wish(text)
