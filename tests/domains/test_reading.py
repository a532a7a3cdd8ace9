"""Tables are read as they are; what cannot be told is refused, with its place."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebbtide.domains.tabular.reading import keyed_choice, open_table
from ebbtide.shared.errors import InputError


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def write(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def cells(path: Path, **options: Any) -> list[list[Any]]:
    frame = open_table(path, **options).read()
    return frame.astype(object).where(frame.notna(), None).to_numpy().tolist()


def test_cells_stay_text_and_empty_ones_are_missing(put: Any) -> None:
    path = put('a,b\n007,1.50\n,"x,\n""y"""\nNA,  \n')
    assert cells(path) == [["007", "1.50"], [None, 'x,\n"y"'], ["NA", "  "]]
    assert open_table(path).n_rows == 3


@pytest.mark.parametrize(
    ("text", "delimiter", "decimal"),
    [
        ("a,b\n1,2\n", ",", None),
        ("a;b\n1,5;2,25\n3,1;4\n", ";", ","),
        ("a;b\n1,234;2.5\n", ";", "."),
        ("a\tb c\n1\tx y\n", "\t", None),
        ("a|b\n1|2,5\n", "|", ","),
        ("1,5;2,5\n3,5;4,5\n", ";", ","),
        ("1.5 2.5\n3.5  4.5\n", " ", "."),
        ("name\nAnna\nBob\n", ",", None),
    ],
)
def test_delimiter_and_decimal_are_seen(put: Any, text: str, delimiter: str, decimal: str | None) -> None:
    header = not text[0].isdigit()
    dialect = open_table(put(text, "t.txt"), header=header).dialect
    assert dialect is not None and (dialect.delimiter, dialect.decimal) == (delimiter, decimal)


def test_what_was_assumed_is_said(put: Any) -> None:
    notes = " ".join(open_table(put("ä;b\n1,5;2\n".encode("cp1252")), encoding=None).notes)
    assert "Windows-1252" in notes and "semicolons" in notes and "decimal comma" in notes
    assert open_table(put("a,b\n1,2\n")).notes == ()


@pytest.mark.parametrize(
    ("content", "encoding", "name"),
    [
        ("é,b\n1,2\n".encode("utf-8-sig"), "utf-8-sig", "é"),
        ("é,b\n1,2\n".encode("utf-16"), "utf-16", "é"),
        ("é,b\n1,2\n".encode("latin-1"), "cp1252", "é"),
        ("é,b\n1,2\n".encode(), "utf-8", "é"),
    ],
)
def test_encodings(put: Any, content: bytes, encoding: str, name: str) -> None:
    source = open_table(put(content))
    assert source.dialect is not None and source.dialect.encoding == encoding
    assert source.columns == (name, "b") and source.n_rows == 1


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "short row": ("a,b,c\n1,2,3\n4,5\n6,7,8\n", r"row-length: .*row 2: 2 cells where 3"),
    "long row": ("a,b\n1,2\n" + "3,4\n" * 40 + "5,6,7\n", r"row 42: 3 cells where 2"),
    "empty line": ("a,b\n1,2\n\n3,4\n", "row 2: an empty line"),
    "NUL": (b"a,b\n1,2\n\x003,4\n", "nul-byte"),
    "two delimiters": ("a,b;c\nx,y;z\nu,v;w\n", "delimiter-unclear"),
    "duplicate header": ("a,b,a\n1,2,3\n", "duplicate-header: .*columns 1, 3"),
    "no header": ("1.5,2\n2.5,3\n3.5,4\n", "header-unclear"),
    "nothing": ("", "empty-file"),
    "open quote": ('a,b\n1,"2\n3,4\n', "csv-quotes|row-length"),
    "quote inside": ('a,b\n1,"2"x\n', "csv-quotes"),
    "no delimiter": ("a\n1;2\n3|4\n5,6;7\n", "delimiter-unclear"),
    "damaged UTF-8": ("né,xà\ncafé,1\n".encode() + b"\xff,1\n", "encoding-unclear"),
    "Cyrillic": (
        "\u0438\u043c\u044f,\u0433\u043e\u0440\u043e\u0434\nx,\u043c\u043e\u0441\n".encode("cp1251"),
        "encoding-unclear",
    ),
    "names one too few, blanks": ("a b\n1 2 3\n4 5 6\n", "delimiter-unclear"),
    "a note to Excel": ("sep=;\na;b\n1;2\n3;4\n", "sep-line"),
    "zip": (b"PK\x03\x04rest", "not-a-table"),
    "gzip": (b"\x1f\x8b\x08rest", "not-a-table"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_damage_and_doubt_are_refused_with_their_place(put: Any, name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        open_table(put(content)).read()


def test_wrong_bytes_far_down_are_an_error(put: Any) -> None:
    path = put(b"a,b\n" + b"1,2\n" * 10 + b"\xe9,3\n")
    with pytest.raises(InputError, match="encoding-wrong"):
        open_table(path, encoding="utf-8").read()


def test_headers(put: Any) -> None:
    assert open_table(put("1,2\n5,7\n"), header=False).columns == ("column_1", "column_2")
    assert cells(put("1,2\n5,7\n"), header=False) == [["1", "2"], ["5", "7"]]
    assert open_table(put("0,1,2\n5.5,7,8\n")).columns == ("0", "1", "2")  # a count is a header
    assert open_table(put("where,2010,2011\nx,7,8\n")).columns == ("where", "2010", "2011")
    assert open_table(put(",a\n0,7\n")).columns == ("unnamed_1", "a")


def test_a_table_of_one_column_keeps_its_empty_cells(put: Any) -> None:
    assert cells(put("a\nx\n\ny\n")) == [["x"], [None], ["y"]]


def test_blank_lines_at_the_end_are_not_rows(put: Any) -> None:
    assert cells(put("a,b\n1,2\n\n\n")) == [["1", "2"]]


def numbered(rows: int) -> str:
    return "n,t\n" + "".join(f'{k},"line\n{k}"\n' for k in range(rows))


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_chunks_are_the_table_in_pieces(put: Any, tmp_path: Path, format: str) -> None:
    path = put(numbered(100))
    if format == "parquet":
        frame = pd.read_csv(path)
        frame["t"] = frame["t"].astype("category")
        path = tmp_path / "t.parquet"
        pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=7)
    source = open_table(path)
    whole = source.read()
    assert source.n_rows == len(whole) == 100
    for rows, start, stop in (
        (1, 0, None),
        (9, 0, None),
        (9, 13, 14),
        (30, 95, None),
        (5, 20, 61),
        (7, 100, None),
    ):
        pieces = list(source.chunks(rows, start, stop))
        assert all(len(p) <= rows for p in pieces)
        got = [(i, str(n)) for p in pieces for i, n in zip(p.index, p["n"], strict=True)]
        assert got == [(i, str(i)) for i in range(start, 100 if stop is None else stop)]
    sample = source.sample(10, seed=3)
    pd.testing.assert_frame_equal(sample, whole.loc[sample.index])
    assert len(sample) == 10 and sample.index.is_monotonic_increasing
    assert source.head(0).columns.tolist() == ["n", "t"] and len(source.head(3)) == 3


def test_every_row_has_the_same_chance_in_a_sample() -> None:
    counts = np.bincount(np.concatenate([keyed_choice(50, 10, seed) for seed in range(4000)]), minlength=50)
    z = (counts - 800) / np.sqrt(4000 * 0.2 * 0.8)
    assert np.abs(z).max() < 4.5  # 50 cells: false alarm in 1 of 3,000
    assert not np.array_equal(keyed_choice(50, 10, 0), keyed_choice(50, 10, 1))


def test_errors_count_rows_as_in_the_file(put: Any) -> None:
    path = put("a,b\n" + "1,2\n" * 70 + "3\n")
    for rows in (1, 7, 1000):
        with pytest.raises(InputError, match="row 71: 1 cells where 2"):
            list(open_table(path).chunks(rows))


def test_parquet_keeps_every_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            "big": pa.array([2**60 + 1, None], pa.int64()),
            "x": pa.array([float("nan"), None], pa.float64()),
            "when": pa.array([dt.datetime(2020, 1, 1), None], pa.timestamp("ns", "UTC")),
            "cat": pa.array(["a", None]).dictionary_encode(),
            "list": pa.array([[1], None], pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    frame = open_table(tmp_path / "t.parquet").read()
    assert frame["big"][0] == 2**60 + 1 and frame["big"].isna().tolist() == [False, True]
    assert frame["cat"].dtype == "category" and str(frame["when"].dtype) == "timestamp[ns, tz=UTC][pyarrow]"


def test_damaged_and_false_parquet(put: Any) -> None:
    with pytest.raises(InputError, match="parquet-damaged"):
        open_table(put(b"PAR1 and nothing else", "t.parquet"))
    with pytest.raises(InputError, match="not-a-table"):
        open_table(put("a,b\n1,2\n", "t.parquet"))
    with pytest.raises(InputError, match="no-table"):
        open_table("nowhere.csv")


def test_excel(tmp_path: Path, put: Any) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        [None, None],
        ["a", "b", "when"],
        [1, "x", dt.datetime(2020, 1, 1)],
        [None, None, None],
        [2.5, "=1+1", None],
        [None, None, None],
    ):
        sheet.append(row)
    sheet["B5"].data_type = "s"
    book.create_sheet("other").append(["z"])
    book.save(tmp_path / "t.xlsx")
    source = open_table(tmp_path / "t.xlsx")
    assert source.n_rows == 3 and "2 sheets" in source.notes[0]
    frame = source.read()
    assert frame["a"].tolist() == [1, None, 2.5] and frame["b"][2] == "=1+1"
    assert isinstance(frame["when"][0], dt.datetime)
    assert open_table(tmp_path / "t.xlsx", sheet="other").columns == ("z",)
    with pytest.raises(InputError, match="no-sheet"):
        open_table(tmp_path / "t.xlsx", sheet="none")
    with pytest.raises(InputError, match="excel-damaged"):
        open_table(put(b"PK\x03\x04rest", "u.xlsx"))
