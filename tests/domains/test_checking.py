"""`check` lists every fault of a table at once, with its place, and never a cell's content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ebbtide.domains.tabular import checking
from ebbtide.domains.tabular.checking import check
from ebbtide.shared.errors import Fault

G = np.random.default_rng(0)
N = 120


def found(tmp_path: Path, frame: pd.DataFrame | str, **options: Any) -> list[Fault]:
    path = tmp_path / "t.csv"
    if isinstance(frame, str):
        path.write_text(frame)
    else:
        frame.to_csv(path, index=False)
    return check(path, **options)


def codes(faults: list[Fault], severity: str = "warning") -> set[str]:
    return {f.code for f in faults if f.severity == severity}


def clean(**more: Any) -> pd.DataFrame:
    return pd.DataFrame({"x": G.normal(size=N).round(6), "c": G.choice(["a", "b"], N), **more})


def place(faults: list[Fault], code: str) -> str:
    return next(f.where for f in faults if f.code == code)


def test_a_clean_table_has_no_faults(tmp_path: Path) -> None:
    assert found(tmp_path, clean()) == []


def test_every_error_is_listed_at_once_with_rows_as_in_the_file(tmp_path: Path) -> None:
    a = [str(v) for v in range(N)]
    a[4] = a[70] = "secret"
    b = np.arange(N) * 1.5
    b[9] = np.inf
    faults = found(tmp_path, clean(a=a, b=b).astype(object).replace(np.inf, "1e999"))
    assert codes(faults, "error") == {"text-in-number-column", "infinity"}
    assert "column 'a', rows 5, 71 (2 in all)" in place(faults, "text-in-number-column")
    assert "column 'b', row 10 (1 in all)" in place(faults, "infinity")
    assert not any("secret" in str(f) for f in faults)
    assert [f.severity for f in faults] == sorted(f.severity for f in faults)  # errors first


def test_rows_beyond_the_sample_are_looked_at_too(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checking, "ROWS_LOOKED_AT", 30)
    x = [f"{v:.2f}" for v in G.normal(size=N)]
    chosen = checking.open_table  # the sample is the same whatever the content
    (tmp_path / "probe.csv").write_text("x\n" + "\n".join(x))
    inside = set(chosen(tmp_path / "probe.csv").sample(30).index)
    out = next(i for i in range(N) if i not in inside)
    within = max(inside)
    for row in (out, within):
        bad = list(x)
        bad[row] = "odd"
        faults = found(tmp_path, pd.DataFrame({"x": bad, "y": x}))
        assert f"row {row + 1} (1 in all)" in place(faults, "text-in-number-column")


def test_all_ragged_rows_are_counted(tmp_path: Path) -> None:
    faults = found(tmp_path, "a,b\n1,2\n3\n4,5\n6,7,8\n" + "1,2\n" * 20)
    assert codes(faults, "error") == {"row-length"} and "rows 2, 4" in place(faults, "row-length")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    assert codes(found(tmp_path, "a,b,a\n1,2,x\n"), "error") == {"duplicate-header"}
    assert codes(found(tmp_path, "1.5,2\n3.5,4\n"), "error") == {"header-unclear"}
    assert codes(found(tmp_path, "a,b\n"), "error") == {"table-no-rows"}
    assert codes(check(tmp_path / "none.csv"), "error") == {"no-table"}


def test_codes_for_missing_are_suggested_not_assumed(tmp_path: Path) -> None:
    table = clean(country=["NA", "DE", "FR"] * 40, lab=["-999", "4", "5", "6.5"] * 30)
    glucose = G.integers(60, 180, N)
    glucose[:6] = 0
    table["glucose"] = glucose
    faults = found(tmp_path, table)
    assert codes(faults) == {"missing-code", "zeros"} and not codes(faults, "error")
    assert {f.where.split("column ")[1] for f in faults if f.code == "missing-code"} == {"'country'", "'lab'"}
    named = {"country": ("NA",), "lab": (-999,), "glucose": (0,)}
    assert found(tmp_path, table, missing=named) == []


def test_columns_that_deserve_a_look(tmp_path: Path) -> None:
    faults = found(
        tmp_path,
        clean(
            empty=[None] * N,
            same=[3.5] * N,
            nearly=[0.5] + [1.5] * (N - 1),
            mrn=[f"m{k}" for k in range(N)],
            name=["Ann", "Bob"] * 60,
            phone=G.integers(10**6, 10**9, N),
            hospital=G.permutation(10**6)[:N] + 10**5,
            order=G.permutation(N),
            when=["01/02/2020", "03/04/2020"] * 60,
            formula=["=A1", "b"] * 60,
            blanks=["  ", "b"] * 60,
        ),
    )
    assert {(f.code, f.where.rpartition("column ")[2].strip("'")) for f in faults} == {
        ("column-empty", "empty"), ("constant", "same"), ("near-constant", "nearly"),
        ("not-modelled", "mrn"),
        ("not-modelled", "phone"), ("personal-data", "name"), ("perhaps-id", "hospital"),
        ("row-numbers", "order"), ("ambiguous-dates", "when"), ("not-modelled", "when"),
        ("formula-text", "formula"), ("blank-cells", "blanks"),
    }  # fmt: skip


def test_thousands_of_levels(tmp_path: Path) -> None:
    table = pd.DataFrame({"c": [f"w{k % 400}" for k in range(1200)], "x": G.normal(size=1200)})
    assert codes(found(tmp_path, table)) == {"many-levels"}


def test_few_and_equal_rows_and_tables_beyond_memory(tmp_path: Path, monkeypatch: Any) -> None:
    assert codes(found(tmp_path, clean()[:8])) == {"few-rows"}
    faults = found(tmp_path, pd.concat([clean(), clean()[:7], clean()]).iloc[[*range(N), *range(7)]])
    assert codes(faults) == {"equal-rows"} and "7 of 127 rows" in faults[0].what
    monkeypatch.setattr(checking, "memory_bytes", lambda: 1000.0)
    assert codes(found(tmp_path, clean())) == {"larger-than-memory"}


def test_keys(tmp_path: Path) -> None:
    table = clean(k=[*range(N - 2), 5, None])
    assert codes(found(tmp_path, table, key="k"), "error") == {"key-missing", "key-repeated"}
    assert codes(found(tmp_path, table, key="z"), "error") == {"key-unknown"}
    assert codes(found(tmp_path, table, kinds={"z": "id"}), "error") == {"column-unknown"}
