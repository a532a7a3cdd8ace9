"""What columns are taken for, from their cells, dtypes and headers."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular import cells
from ebbtide.domains.tabular.columns import Column, missing, pool, rows_of
from ebbtide.domains.tabular.recognition import recognise
from ebbtide.shared.errors import InputError

N = 60
G = np.random.default_rng(0)
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "tau"]


def kind(values: Any, label: Any = "x", **options: Any) -> str:
    return recognise(pd.Series(values), label, **options).kind


def sentence(i: int) -> str:
    return f"patient {i} came back with {WORDS[i % 7]} pain and {WORDS[i % 5]} cough"


TEXTS: dict[str, tuple[list[Any], str, str]] = {
    "decimals": ([f"{v:.2f}" for v in G.normal(size=N)], "x", "number"),
    "whole": ([str(v) for v in G.integers(0, 90, N)], "x", "integer"),
    "exponents": (["1e5", "2.5E-3", "-4"] * 20, "x", "number"),
    "decimal commas": (["1,5", "2,25", "3"] * 20, "x", "number"),
    "thousands or decimals": (["1,234", "2,345"] * 30, "x", "text"),
    "zeros and ones": (["0", "1"] * 30, "x", "boolean"),
    "ones and twos": (["1", "2"] * 30, "x", "category"),
    "true and false": (["True", "False"] * 30, "x", "boolean"),
    "yes and no": (["yes", "no"] * 30, "x", "boolean"),
    "leading zeros, many": ([f"{v:05d}" for v in range(N)], "x", "id"),
    "leading zeros, few": (["01", "02", "10"] * 20, "x", "category"),
    "hashes": ([hashlib.md5(bytes([i])).hexdigest() for i in range(N)], "x", "id"),
    "uuids, repeated": ([str(uuid.UUID(int=i % 4)) for i in range(N)], "x", "id"),
    "e-mail": (["a@b.org", "c@d.com"] * 30, "x", "id"),
    "phone by header": (["030 123", "030 456"] * 30, "HomePhone", "id"),
    "numbers called id": ([str(v) for v in range(N)], "PatientID", "id"),
    "repeated numbers called id": ([str(v // 2) for v in range(N)], "patient_id", "id"),
    "numbers called other": ([str(v) for v in range(N)], "days", "integer"),
    "names": ([f"name{i}" for i in range(N)], "x", "id"),
    "levels": (WORDS * 9, "x", "category"),
    "sentences": ([sentence(i) for i in range(N)], "x", "text"),
    "days": (["2020-01-31", "2021-12-01"] * 30, "x", "datetime"),
    "German days": (["31.01.2020", "1.12.2021"] * 30, "x", "datetime"),
    "moments": (["2020-01-31T10:00:00Z", "2021-12-01T23:59:59Z"] * 30, "x", "datetime"),
    "day or month": (["01/02/2020", "03/04/2021"] * 30, "x", "text"),
    "clock": (["1:30:00", "12:00:05"] * 30, "x", "duration"),
    "pandas spans": (["1 days 02:00:00", "0 days 00:30:00"] * 30, "x", "duration"),
    "beyond 2^53": (["9007199254740993", "9007199254740995"] * 30, "x", "id"),
    "grades": (["1", "2", "3+", "4"] * 15, "x", "category"),
    "blank": ([None] * N, "x", "text"),
}


@pytest.mark.parametrize("name", sorted(TEXTS))
@pytest.mark.parametrize("dtype", ["object", "str"])
def test_kinds_of_text(name: str, dtype: str) -> None:
    values, label, expected = TEXTS[name]
    assert kind(pd.Series(values, dtype=dtype), label) == expected


NATIVE: dict[str, tuple[Any, str]] = {
    "floats": (G.normal(size=N), "number"),
    "whole floats with gaps": (np.where(G.random(N) < 0.5, np.nan, G.integers(0, 9, N)), "integer"),
    "all missing": (np.full(N, np.nan), "number"),
    "constant": (np.full(N, 2.5), "number"),
    "bool": ([True, False] * 30, "boolean"),
    "nullable boolean": (pd.array([True, None] * 30, dtype="boolean"), "boolean"),
    "two whole numbers": ([4, 7] * 30, "category"),
    "two whole numbers, few rows": ([4, 700], "integer"),
    "Int64": (pd.array([1, None, 5, 7] * 15, dtype="Int64"), "integer"),
    "category": (pd.Categorical(["a", "b"] * 30), "category"),
    "category of names": (pd.Categorical([f"n{i}" for i in range(N)]), "id"),
    "ordered": (pd.Categorical(["a", "b"] * 30, ["b", "a"], ordered=True), "ordered"),
    "datetime": (pd.date_range("2020", periods=N), "datetime"),
    "with a zone": (pd.date_range("2020", periods=N, tz="Asia/Tokyo"), "datetime"),
    "timedelta": (pd.timedelta_range("1h", periods=N), "duration"),
    "period": (pd.period_range("2020", periods=N, freq="D"), "text"),
}


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_kinds_of_dtypes(name: str) -> None:
    assert kind(*NATIVE[name][:1]) == NATIVE[name][1]


def test_facts_of_numbers() -> None:
    column = recognise(pd.Series(["1.50", "22.5", "-3"]), "x")
    assert (column.low, column.high, column.decimals, column.distinct) == (-3.0, 22.5, 2, 3)
    assert recognise(pd.Series([0.1, 0.25, np.nan]), "x").decimals == 2
    assert recognise(pd.Series(np.array([0.1, 0.7], np.float32)), "x").decimals == 1
    assert recognise(pd.Series([1 / 3, 0.5]), "x").decimals is None


def test_ordered_and_boolean_levels_keep_their_order() -> None:
    assert recognise(pd.Series(["yes", "no"] * 9), "x").levels == ("no", "yes")
    assert recognise(pd.Series(["10", "9", "low"]), "x", kind="ordered").levels == ("9", "10", "low")
    ordered = pd.Categorical(["b", "c"], ["c", "b", "a"], ordered=True)
    assert recognise(pd.Series(ordered), "x").levels == ("c", "b")  # only what was observed, in its order


def test_kinds_can_be_overridden_and_are_checked() -> None:
    assert kind([1, 2, 3] * 9, kind="category") == "category"
    assert kind(["01/02/2020", "03/04/2021"], kind="datetime:%d/%m/%Y") == "datetime"
    assert (
        recognise(pd.Series(["01/02/2020", "03/04/2021"]), "x", kind="datetime:%d/%m/%Y").low == 1580515200.0
    )
    assert kind(["1,234", "2,345"], decimal=",") == "number"
    for values, wanted in (
        ([1.5, 2], "integer"),
        (["a", "b"], "number"),
        ([1, 2, 3], "boolean"),
        ([1], "datetime"),
    ):
        with pytest.raises(InputError):
            kind(values, kind=wanted)
    with pytest.raises(InputError, match="unknown-kind"):
        kind([1], kind="numeric")


def test_notes_say_what_could_not_be_told() -> None:
    assert recognise(pd.Series(["01/02/2020", "03/04/2021"]), "x").notes[0][0] == "ambiguous-dates"
    assert recognise(pd.Series(["1,234", "2,345"]), "x").notes[0][0] == "ambiguous-comma"
    assert recognise(pd.Series([None, None]), "x").notes[0][0] == "all-missing"


def test_missing_cells() -> None:
    assert missing(pd.Series([None, "", "NA", "nan"], dtype=object)).tolist() == [True, False, False, False]
    assert missing(pd.Series([" ? ", "??", "x"]), ("?",)).tolist() == [True, False, False]
    assert missing(pd.Series([-999, 1, 0]), ("-999",)).tolist() == [True, False, False]
    assert missing(pd.Series([-999.0, None, "-999", True], dtype=object), (-999,)).tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert missing(pd.Series(pd.Categorical(["?", "a"])), ("?",)).tolist() == [True, False]
    assert missing(pd.Series([pd.NaT, pd.Timestamp(0)])).tolist() == [True, False]


def test_pool_keeps_the_commonest_in_a_fixed_order() -> None:
    made = pool(["a", "b", "c", "d", "e"], [1, 5, 3, 3, 2], 2)
    assert made["levels"] == ("b", "c") and made["pooled"] == ("d", "e") and made["pooled_counts"] == (3, 2)
    assert pool(["e", "d", "c", "b", "a"], [2, 3, 3, 5, 1], 2) == made


def test_rows_are_counted_from_one_and_at_most_five_are_listed() -> None:
    bad = np.array([False, True] * 7)
    assert rows_of(bad) == "rows 2, 4, 6, 8, 10, ... (7 in all)"
    assert rows_of(bad[:2], 10) == "row 12 (1 in all)"


def test_a_column_survives_json() -> None:
    column = recognise(pd.Series([("a", 1), b"x", 2.5, "s"] * 5), ("label", 2))
    assert Column.from_dict(column.to_dict()) == column


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("1.5", ".", 1.5),
        (" -2 ", ".", -2),
        ("1,5", ",", 1.5),
        ("1,5", ".", np.nan),
        ("nan", ".", np.nan),
        ("inf", ".", np.nan),
        ("1_0", ".", np.nan),
        ("", ".", np.nan),
        ("1e-3", ".", 1e-3),
        ("1.5", ",", np.nan),
        (".5", ".", 0.5),
        ("--1", ".", np.nan),
    ],
)
def test_text_that_is_a_number(text: str, decimal: str, value: float) -> None:
    for others in ([], ["x"]):  # alone by the quick way, beside a word by the slow one
        np.testing.assert_equal(cells.to_numbers(pd.Series([text, *others], dtype=object), decimal)[0], value)
