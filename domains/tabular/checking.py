"""What is wrong with a table, all of it at once, before any work is done on it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...shared.errors import Fault, InputError
from . import cells, columns
from .codec import TableCodec
from .columns import Column
from .encoding import encode_numbers
from .kinds import ID_WORDS, PERSON_WORDS
from .reading import TableSource, open_table
from .recognition import recognise
from .writers import FORMULA

ROWS_LOOKED_AT = 100_000
"""Rows that columns are recognised from; the rest is read too, and must fit."""
ROWS_HASHED = 2_000_000
"""Rows among which equal ones are looked for."""
FEW_ROWS = 50
NAMES = frozenset(["name", "names", "birthdate", "dob", "birthday"]) | PERSON_WORDS
"""Header words of columns that may tell who a person is."""


def check(source: TableSource | str | Path, **options: Any) -> list[Fault]:
    """Every fault of a table, errors first; `options` are those of `open_table` and `check_table`."""
    own = {k: options.pop(k) for k in ("missing", "kinds", "key") if k in options}
    opened = source if isinstance(source, TableSource) else None
    return check_table(lambda: opened or open_table(str(source), **options), **own)


def check_table(
    source_of: Callable[[], TableSource],
    missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = (),
    kinds: Mapping[Any, str] | None = None,
    key: str | None = None,
) -> list[Fault]:
    """Every fault of a table, errors first.

    Args:
        source_of: opens the table; it may raise InputError.
        missing, kinds, key: what the user said; see `TableCodec`; `key` is the column that names the rows.
    """
    try:
        source = source_of()
    except InputError as error:
        return [error.fault]
    where = str(source.path)
    faults = wrong_lengths(source)
    try:
        rows = source.n_rows if not faults else 0
    except InputError as error:
        faults.append(error.fault)
    if faults:
        return faults
    if rows == 0:
        return [Fault("table-no-rows", "the table has no rows", where, "give a table with rows")]
    sample = source.sample(ROWS_LOOKED_AT)
    codec = TableCodec(missing, kinds=kinds, decimal=source.decimal)
    found, faults = recognised(sample, codec, where)
    if not faults and rows > len(sample):
        faults += beyond_sample(source, codec.fit(sample))
    if key is not None:
        faults += key_faults(source, key)
    faults += [warning("assumed", note, where) for note in source.notes]
    faults += table_warnings(source, sample, where)
    for column, label in zip(found, sample.columns, strict=False):
        if column is not None:
            faults += [
                warning(c, what, f"{where}, column {column.name!r}", remedy)
                for c, what, remedy in column_warnings(column, sample[label], codec)
            ]
    return sorted(faults, key=lambda fault: fault.severity != "error")


def warning(code: str, what: str, where: str, remedy: str = "") -> Fault:
    """A fault that does not stop the work."""
    return Fault(code, what, where, remedy, "warning")


def wrong_lengths(source: TableSource) -> list[Fault]:
    """All rows of a text table that have a cell too few or too many, as one fault."""
    dialect = source.dialect
    if dialect is None:
        return []
    wrong: list[int] = []
    with source.path.open(encoding=dialect.encoding, newline="", errors="replace") as lines:
        found: Iterable[list[str]] = (
            (line.split() for line in lines)
            if dialect.blanks
            else csv.reader((line.replace("\0", "") for line in lines), delimiter=dialect.delimiter)
        )
        rows = (row for row in found if row)
        if dialect.header is not None:
            next(rows, None)
        try:
            wrong = [number for number, row in enumerate(rows, 1) if len(row) != dialect.width]
        except csv.Error:
            return []  # counting the rows will name it
    if not wrong:
        return []
    listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return [
        Fault(
            "row-length",
            f"{len(wrong)} rows do not have {dialect.width} cells",
            f"{source.path}, rows {listed}",
            "a cell is missing or one too many (a delimiter inside a cell needs quotes): mend the rows",
        )
    ]


def recognised(frame: pd.DataFrame, codec: TableCodec, where: str) -> tuple[list[Column | None], list[Fault]]:
    """What each column is, None where it has a fault; and the faults."""
    found: list[Column | None] = []
    faults = []
    for label in codec.kinds:
        if label not in frame.columns:
            what = f"a kind is given for column {str(label)!r}, which the table does not have"
            faults.append(Fault("column-unknown", what, where))
    for label in frame.columns:
        try:
            found.append(
                recognise(
                    frame[label],
                    label,
                    codes=codec.codes_of(label),
                    kind=codec.kinds.get(label),
                    max_levels=codec.max_levels,
                    decimal=codec.decimal,
                )
            )
        except InputError as error:
            found.append(None)
            fault = error.fault
            faults.append(Fault(fault.code, fault.what, f"{where}, {fault.where}", fault.remedy))
    return found, faults


def beyond_sample(source: TableSource, codec: TableCodec) -> list[Fault]:
    """The first cells of a large table that do not fit what its sample said, if any."""
    for frame in source.chunks():
        try:
            codec.encode(frame, first_row=int(frame.index[0]))
        except InputError as error:
            return [error.fault]
    return []


def key_faults(source: TableSource, key: str) -> list[Fault]:
    """A key column that does not exist, has blanks or repeats."""
    where = str(source.path)
    if key not in source.columns:
        return [Fault("key-unknown", f"there is no column {key!r}", where, "name one of the table's columns")]
    parts = [frame[key] for frame in source.chunks()]
    empty = np.concatenate([p.isna().to_numpy(dtype=bool) for p in parts])
    again = pd.Index(np.concatenate([pd.util.hash_array(_texts(p)) for p in parts])).duplicated() & ~empty
    found = []
    for code, what, bad in (
        ("key-missing", "keys are missing", empty),
        ("key-repeated", "keys stand again", again),
    ):
        if bad.any():
            place = f"{where}, column {key!r}, {columns.rows_of(bad)}"
            found.append(Fault(code, what, place, "a key names one row: choose another, or none"))
    return found


def _texts(series: pd.Series[Any]) -> np.ndarray:
    return series.astype(object).astype(str).to_numpy(dtype=object)


def table_warnings(source: TableSource, sample: pd.DataFrame, where: str) -> list[Fault]:
    """What a user should know of the table as a whole."""
    found = []
    if source.n_rows < FEW_ROWS:
        what = f"{source.n_rows} rows are too few to learn from: a model can only memorise them"
        found.append(warning("few-rows", what, where, "results on so few rows are not releasable"))
    if source.dialect is not None and source.dialect.header is not None:
        numbers = [
            k for k, name in enumerate(source.dialect.header, 1) if cells.NUMBER.fullmatch(name.strip())
        ]
        if numbers:
            what = f"{len(numbers)} column names are numbers: the first row may be data"
            found.append(
                warning("header-numbers", what, f"{where}, header", "if it is, say so (--no-header)")
            )
    again, rows = equal_rows(source)
    if again:
        what = f"{again:,} of {rows:,} rows are the same as an earlier one"
        found.append(
            warning("equal-rows", what, where, "if the rows were resampled, keep copies out of the test set")
        )
    size = sample.memory_usage(deep=True).sum() / max(1, len(sample)) * source.n_rows
    if size > 0.5 * memory_bytes():
        what = f"the table would take about {size / 2**30:,.1f} GiB in memory"
        found.append(
            warning("larger-than-memory", what, where, "it is read in pieces, and learned from a sample")
        )
    return found


def memory_bytes() -> float:
    """The machine's memory; infinite where it cannot be asked."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return float("inf")
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


def equal_rows(source: TableSource) -> tuple[int, int]:
    """How many of the first rows equal an earlier one, and among how many was looked."""
    hashes: list[np.ndarray] = []
    for frame in source.chunks(stop=ROWS_HASHED):
        total = np.zeros(len(frame), dtype=np.uint64)
        for j in range(frame.shape[1]):
            total = total * np.uint64(0x9E3779B97F4A7C15) + pd.util.hash_array(_texts(frame.iloc[:, j]))
        hashes.append(total)
    every = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)
    return len(every) - len(np.unique(every)), len(every)


# ------------------------------------------------------------------------------------------------- columns

Found = Iterator[tuple[str, str, str]]
"""(code, what, remedy) of warnings."""


def column_warnings(column: Column, series: pd.Series[Any], codec: TableCodec) -> Found:
    """What a user should look at in one column."""
    if column.observed == 0:
        yield "column-empty", "no cell is observed: it is kept and never filled", ""
        return
    gone = columns.missing(series, codec.codes_of(column.label))
    yield from ((code, what, f"say what it is: --kinds {column.name}=...") for code, what in column.notes)
    yield from _missing_codes(column, series, gone)
    yield from _text_cells(series, gone)
    if column.is_number and column.kind in ("number", "integer"):
        yield from _numbers(column, encode_numbers(series, gone, column, 0)[~gone])
    if column.pooled:
        what = f"{column.distinct:,} levels: the rarest share one, and are filled by their shares"
        yield "many-levels", what, "if it is an id or free text, say so (--kinds)"
    if column.is_category and column.distinct > 1 and max(column.counts) >= 0.99 * column.observed:
        yield "near-constant", f"{max(column.counts) / column.observed:.1%} of its cells are equal", ""
    yield from _identity(column, int(gone.sum()), column.label in codec.kinds)


def _identity(column: Column, gone: int, told: bool) -> Found:
    """Ids and free text, and columns whose header says that they name a person."""
    words = columns.tokens(column.name)
    if column.kind in ("id", "text") and not told:
        what = f"taken for {'an id' if column.kind == 'id' else 'free text'}: carried through, never modelled"
        what += f"; its {gone:,} missing cells stay missing" if gone else ""
        yield "not-modelled", what, f"if it is not, say what it is: --kinds {column.name}=category"
    elif column.modelled and (words & NAMES or words & ID_WORDS):
        yield (
            "personal-data",
            "the header speaks of a person or an id, and the column is modelled",
            (f"if it does, leave it out: --kinds {column.name}=id"),
        )


def _text_cells(series: pd.Series[Any], gone: np.ndarray) -> Found:
    """Cells of blanks alone, and text that a spreadsheet would run."""
    if columns.storage_of(series)[0] != "text":
        return
    texts = series[~gone].astype(object)
    blank = texts.str.strip() == ""
    if blank.any():
        yield (
            "blank-cells",
            f"{int(blank.sum()):,} cells hold nothing but blanks",
            "empty them if they are missing",
        )
    signs = texts.str.startswith(("=", "+", "-", "@", "\t", "\r"))
    formulas = sum(bool(FORMULA.match(t)) for t in texts[signs])
    if formulas:
        yield (
            "formula-text",
            f"{formulas:,} cells begin like a spreadsheet formula; they are kept as they are",
            ("open the result as text, not by double click"),
        )


def _missing_codes(column: Column, series: pd.Series[Any], gone: np.ndarray) -> Found:
    """Text that often stands for missing, and has not been named as a code for it."""
    if columns.storage_of(series)[0] not in ("text", "category", "object"):
        return
    texts = series[~gone].astype(object).astype(str).str.strip()
    odd = texts[texts.str.lower().isin(cells.MISSING_CODES) & ~texts.str.fullmatch(r"[-+]?\d+")]
    for code, count in odd.value_counts().head(3).items():
        yield (
            "missing-code",
            f"{count:,} cells hold {code!r}, which often stands for missing; they are kept",
            (f'if it does, name it: --missing "{code}"'),
        )


def _numbers(column: Column, values: np.ndarray) -> Found:
    """Codes and zeros among numbers, columns that hardly vary, and whole numbers that may be ids."""
    values = values[~np.isnan(values)]
    if column.low == column.high:
        yield "constant", "all observed cells are equal", ""
        return
    distinct, counts = np.unique(values, return_counts=True)
    if counts.max() >= 0.99 * len(values):
        yield "near-constant", f"{counts.max() / len(values):.1%} of its cells are equal", ""
    if distinct[0] in (-9, -99, -999, -9999) and (distinct[1:] >= 0).all():
        yield (
            "missing-code",
            f"{counts[0]:,} cells hold {distinct[0]:.0f} and none else is below 0",
            (f'if it stands for missing, name it: --missing "{distinct[0]:.0f}"'),
        )
    rest = values[values != 0]
    zeros = len(values) - len(rest)
    several = 3 <= zeros < 0.6 * len(values) and len(distinct) > 20
    if several and distinct[0] == 0 and distinct[1] > 0.1 * np.median(rest):
        yield (
            "zeros",
            f"{zeros:,} cells are 0, far below all others: perhaps they stand for missing",
            "if they do, name 0 as this column's missing code",
        )
    if column.kind == "integer" and len(values) >= FEW_ROWS and len(distinct) >= 0.9 * len(values):
        if len(distinct) == len(values) and distinct[-1] - distinct[0] == len(values) - 1:
            yield (
                "row-numbers",
                "consecutive whole numbers, none twice: perhaps row numbers",
                (f"if they are, leave them out: --kinds {column.name}=id"),
            )
        elif distinct[0] >= 10_000:
            yield (
                "perhaps-id",
                "nearly all cells are different large whole numbers: perhaps an id",
                (f"if it is, leave it out: --kinds {column.name}=id"),
            )
