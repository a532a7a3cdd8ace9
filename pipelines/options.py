"""What is typed on the command line about a data set, turned into the domain that answers for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shared.errors import InputError

if TYPE_CHECKING:
    from ..domains.tabular import TabularDomain


def domain_for(
    data: Path | str,
    *,
    missing: str | None = None,
    kinds: Sequence[str] = (),
    columns: str | None = None,
    key: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    sheet: str | None = None,
) -> tuple[TabularDomain, dict[str, Any]]:
    """The domain of a data set with what the user said about it, and that as plain JSON for the manifest.

    Args:
        data: a table (CSV, TSV, Parquet, Excel).
        missing: codes separated by commas: "?,-999".
        kinds: "column=kind", each.
        columns: names separated by commas: fill only these.
        key: a column that names the rows.
        header, delimiter, encoding, decimal, sheet: how the file is written; None: as seen in it.

    Raises:
        InputError: there is nothing at `data`, or nothing that a domain reads; words that cannot be read.
    """
    from ..domains.tabular import TableOptions, TabularDomain

    path = Path(data)
    if not path.exists():
        raise InputError("file-not-found", "there is no such file", str(path), "check the path")
    if path.is_dir():
        raise InputError(
            "no-domain", "a folder is not a table", str(path), "give a CSV, TSV, Parquet or Excel file"
        )
    told: dict[str, Any] = {
        "missing": parse_missing(missing),
        "kinds": parse_kinds(kinds),
        "columns": parse_list(columns),
        "key": key,
        "header": header,
        "delimiter": delimiter,
        "encoding": encoding,
        "decimal": decimal,
        "sheet": sheet,
    }
    options = {**told, "missing": tuple(told["missing"])}
    options["columns"] = None if told["columns"] is None else tuple(told["columns"])
    return TabularDomain(TableOptions(**options)), told


def parse_list(text: str | None) -> list[str] | None:
    """Words separated by commas; None for None.

    Example:
        >>> parse_list("age, sex")
        ['age', 'sex']
    """
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def parse_missing(text: str | None) -> list[str]:
    """Missing codes separated by commas.

    Example:
        >>> parse_missing("?,-999")
        ['?', '-999']
    """
    return parse_list(text) or []


def parse_kinds(pairs: Sequence[str]) -> dict[str, str]:
    """Pairs "column=kind", several in one text separated by commas.

    Example:
        >>> parse_kinds(["zip=category,day=datetime:%d/%m/%Y", "a=b=integer"])
        {'zip': 'category', 'day': 'datetime:%d/%m/%Y', 'a=b': 'integer'}
    """
    found = {}
    for pair in (part for text in pairs for part in text.split(",")):
        name, sign, kind = pair.rpartition("=")
        if not sign or not name.strip():
            raise InputError("kinds", f"{pair!r} is not column=kind", "--kinds", "write --kinds zip=category")
        found[name.strip()] = kind.strip()
    return found


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """A shard i/n, i from 1; None for None.

    Example:
        >>> parse_shard("2/7")
        (2, 7)
    """
    if text is None:
        return None
    if not (found := re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)):
        raise InputError(
            "shard", f"{text!r} is not i/n", "--shard", "write 2/7 for the second of seven parts"
        )
    return int(found[1]), int(found[2])
