"""Tables go out as they came in, byte for byte where nothing was filled; half a table never appears."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide.domains.tabular.codec import TableCodec
from ebbtide.domains.tabular.reading import open_table
from ebbtide.domains.tabular.writers import FORMULA
from ebbtide.domains.tabular.writing import marks_frame, open_writer
from ebbtide.shared.errors import InputError


def copy(path: Path, out: Path, rows: int = 2, **options: Any) -> None:
    source = open_table(path, **options)
    with open_writer(out, source) as writer:
        for frame in source.chunks(rows):
            writer.write(frame)


TABLES = {
    "plain": b"a,b\n1,x\n2,y\n",
    "no newline at the end": b"a,b\n1,x\n2,y",
    "Windows": b"a,b\r\n1,x\r\n,y\r\n",
    "BOM": "é,b\n1,ß\n".encode("utf-8-sig"),
    "Latin": "grün;Maß\n1,5;x\n2,25;ä\n".encode("cp1252"),
    "UTF-16": "é\tb\n1\tx\n".encode("utf-16"),
    "tabs": b"a\tb\n1 \tx\n2 \ty\n",
    "all quoted": b'"a","b"\n"1","x"\n"2","y, z"\n',
    "one column quoted": b'a,b\n1,"x"\n2,"y"\n3,\n',
    "quotes where needed": b'a,b\n1,x\n2,"y, z"\n3,"say ""ho"""\n4,"two\nlines"\n',
    "quotes inside": b'a,b\n1,5" pipe\n2,y\n',
    "odd numbers": b"a,b\n007,1.50\n+1, 2\n1e5,.5\n",
    "formulas": b"a,b\n=1+1,x\n-2+3,@y\n",
    "one column": b'a\nx\n""\ny\n',
    "numbers as names": b"0,1\n5.5,7\n",
    "unnamed": b",a\n0,7\n",
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_text_tables_come_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "out.csv"
    path.write_bytes(TABLES[name])
    copy(path, out)
    assert out.read_bytes() == TABLES[name]


CELLS = st.text(st.sampled_from(list("a1.,;\t|\"'\n\r =é")), max_size=5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_odd_cells_are_read_as_written_and_written_as_read(
    tmp_path_factory: Any, rows: list[tuple[str, ...]], delimiter: str, quoting: Any, newline: str
) -> None:
    if "\r" in "".join(map("".join, rows)):
        quoting = csv.QUOTE_ALL  # Python 3.11 writes a lone return without the quotes it needs
    folder = tmp_path_factory.mktemp("odd")
    path, out = folder / "t.csv", folder / "out.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=newline)
        writer.writerows([["x", "y", "z"], *rows])
    source = open_table(path, delimiter=delimiter)
    frame = source.read()
    assert frame.astype(object).where(frame.notna(), "").to_numpy().tolist() == [list(r) for r in rows]
    copy(path, out, delimiter=delimiter)
    again = open_table(out, delimiter=delimiter).read()
    pd.testing.assert_frame_equal(again, frame)


def test_tables_without_header_and_with_blanks(tmp_path: Path) -> None:
    path, out = tmp_path / "t.txt", tmp_path / "out.txt"
    path.write_bytes(b"1.5 2.50\n3.5 4\n")
    copy(path, out, header=False)
    assert out.read_bytes() == path.read_bytes()
    with (
        pytest.raises(InputError, match="blank-cell"),
        open_writer(tmp_path / "x.txt", open_table(path, header=False)) as w,
    ):
        w.write(pd.DataFrame({"a": ["x y"], "b": ["z"]}))


def test_an_error_or_an_older_file_leaves_no_half_table(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    frame = pd.DataFrame({"a": [1, 2]})
    with pytest.raises(KeyError), open_writer(out) as writer:
        writer.write(frame)
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with open_writer(out) as writer:
        writer.write(frame)
        assert not out.exists()
    assert out.read_text() == "a\n1\n2\n"
    with pytest.raises(InputError, match="output-exists"), open_writer(out) as writer:
        pass
    with pytest.raises(InputError, match="unknown-format"), open_writer(tmp_path / "out.doc") as writer:
        pass


def test_formulas_we_fill_in_get_an_apostrophe_and_observed_ones_do_not(tmp_path: Path) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "out.csv"
    lines = ["c,n,s", *("=A1,-1,+", "=A1,-2,-", "@x,-1.5,+", "-x,-2,-") * 5, ",,"]
    path.write_text("\n".join(lines) + "\n")
    source = open_table(path)
    frame = source.read()
    codec = TableCodec().fit(frame)
    filled = frame.copy()
    filled.iloc[-1] = ["=A1", "-2", "+"]
    with open_writer(out, source, columns=codec.columns_) as writer:
        writer.write(filled, codec.where(frame))
    got = out.read_text().splitlines()
    assert got[:-1] == lines[:-1]  # observed: as they were
    assert got[-1] == "'=A1,-2,+"  # filled: neither numbers nor single signs are formulas
    assert writer.neutralised == 1
    with open_writer(tmp_path / "t.parquet", source, columns=codec.columns_) as writer:
        writer.write(filled, codec.where(frame))
    assert pd.read_parquet(tmp_path / "t.parquet")["c"].iloc[-1] == "=A1" and writer.neutralised == 0


def test_what_a_spreadsheet_runs() -> None:
    assert all(FORMULA.match(t) for t in ("=A1", "@f", "\tx", "\r\n", "+A1", "-2+3", "+1-", "-1e5x"))
    assert not any(FORMULA.match(t) for t in ("", "=", "@", "+", "-", "-1.5", "+1,5", "-2e-3", "a=1", "'=1"))


def arrow_table() -> pa.Table:
    n = 200_000
    table = pa.table(
        {
            "big": pa.array(np.arange(n) + 2**60),
            "x": pa.array([float("nan"), None, -0.0, 1.5] * (n // 4)),
            "small": pa.array([1, None] * (n // 2), pa.int8()),
            "when": pa.array([dt.datetime(2020, 1, 1), None] * (n // 2), pa.timestamp("ns", "Europe/Berlin")),
            "cat": pa.array(["a", "b", None, "a"] * (n // 4)).dictionary_encode(),
            "list": pa.array([[1], None] * (n // 2)),
            "none": pa.nulls(n),
        }
    )
    return table.replace_schema_metadata({"origin": "here"})


def test_parquet_keeps_schema_metadata_and_every_cell(tmp_path: Path) -> None:
    path, out = tmp_path / "t.parquet", tmp_path / "out.parquet"
    table = arrow_table()
    pq.write_table(table, path, compression="zstd", row_group_size=30_000)
    source = open_table(path)
    with open_writer(out, source, metadata={"ebbtide": "{}"}) as writer:
        for frame in source.chunks(17_000):
            writer.write(frame)
    back = pq.ParquetFile(out)
    assert (
        back.schema_arrow.metadata[b"origin"] == b"here" and back.schema_arrow.metadata[b"ebbtide"] == b"{}"
    )
    assert back.metadata.row_group(0).column(0).compression == "ZSTD"
    read = back.read()
    assert read.schema.equals(table.schema)
    for name in table.column_names:
        assert read[name].is_null().equals(table[name].is_null()), name
    x, y = (t["x"].combine_chunks().fill_null(7).to_numpy(zero_copy_only=False) for t in (table, read))
    assert x.tobytes() == y.tobytes()
    assert read.drop_columns(["x"]).equals(table.drop_columns(["x"]))
    one = tmp_path / "one.parquet"
    with open_writer(one, source, metadata={"ebbtide": "{}"}) as writer:
        for frame in source.chunks(9_999):
            writer.write(frame)
    assert one.read_bytes() == out.read_bytes()  # the pieces do not show


def test_pandas_gets_its_own_index_and_types_back(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": pd.array([1, None], "Int64"), "c": pd.Categorical(["x", "y"])}, index=[5, 5])
    frame.to_parquet(tmp_path / "t.parquet")
    copy(tmp_path / "t.parquet", tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(tmp_path / "t.parquet")
    )


def test_text_becomes_typed_in_parquet_and_excel(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = ["x,k,d,b,c,m", "1.5,1,2020-01-01,true,u,?", "2.25,,2020-01-02,false,,7", ",3,,,v,8"] + [
        "1.0,4,2020-02-01,true,u,9"
    ] * 9
    path.write_text("\n".join(rows) + "\n")
    source = open_table(path)
    codec = TableCodec(missing=("?",)).fit(source.read())
    for name in ("o.parquet", "o.xlsx"):
        if name.endswith("xlsx"):
            pytest.importorskip("openpyxl")
        with open_writer(tmp_path / name, source, columns=codec.columns_) as writer:
            for piece in source.chunks(2):
                writer.write(piece)
        frame = (
            pd.read_parquet(tmp_path / name) if name.endswith("parquet") else pd.read_excel(tmp_path / name)
        )
        assert frame["x"].dtype == "float64" and frame["k"].tolist()[2] == 3 and frame["k"].isna()[1]
        assert pd.api.types.is_datetime64_any_dtype(frame["d"].dtype) and frame["b"].isna()[2]
        assert frame["b"][0] == True and frame["m"].isna()[0]  # noqa: E712 - numpy's or pandas' True


def test_excel_text_is_text_and_numbers_are_numbers(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    out = tmp_path / "t.xlsx"
    frame = pd.DataFrame({"t": ["=1+1", None], "n": [1, 2], "w": pd.to_datetime(["2020-01-01", None])})
    with open_writer(out) as writer:
        writer.write(frame)
    sheet = openpyxl.load_workbook(out).active
    assert sheet["A2"].value == "=1+1" and sheet["A2"].data_type == "s" and sheet["B3"].value == 2
    assert sheet["C2"].value == dt.datetime(2020, 1, 1)
    with pytest.raises(InputError, match="excel-characters"), open_writer(tmp_path / "u.xlsx") as writer:
        writer.write(pd.DataFrame({"t": ["\x01"]}))
    assert not (tmp_path / "u.xlsx").exists()
    copy(out, tmp_path / "v.xlsx")
    pd.testing.assert_frame_equal(pd.read_excel(tmp_path / "v.xlsx"), pd.read_excel(out))


def test_marks_are_a_table_of_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"a";"b"\n"x";\n;"y"\n')
    source = open_table(path)
    frame = source.read()
    out = tmp_path / "mask.csv"
    with open_writer(out, source, marks=True) as writer:
        writer.write(marks_frame(frame.isna().to_numpy(), frame))
    assert out.read_text() == '"a";"b"\n0;1\n1;0\n'


def test_text_that_the_encoding_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("ä,b\n1,2\n".encode("cp1252"))
    source = open_table(path)
    with pytest.raises(InputError, match="encoding-lacks"), open_writer(tmp_path / "o.csv", source) as writer:
        writer.write(pd.DataFrame({"ä": ["日本"], "b": ["1"]}))
