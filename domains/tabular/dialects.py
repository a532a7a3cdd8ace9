"""How a text table is written: encoding, delimiter, quotes, line ends, header. Never guessed at."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...shared.errors import InputError
from . import cells

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_BYTES = 1 << 18
SAMPLE_ROWS = 1000
SCANNED_BYTES = 1 << 26
"""How much of a file is read to tell its encoding; the rest is checked as it is read."""
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
UNDEFINED_1252 = bytes((0x81, 0x8D, 0x8F, 0x90, 0x9D))


@dataclass(frozen=True)
class Dialect:
    """How a text table is written, so that it can be read without loss and written alike.

    Args:
        delimiter: one character; " " with `blanks` stands for any run of blanks.
        encoding: a Python codec.
        header: the cells of the header row; None when there is none.
        width: cells in a row.
        decimal: "." or "," when the numbers say so; None when they do not.
        newline: what ends a line; `last_newline`: whether the last line has one.
        quoted: per column, whether every cell is in quotes; `header_quoted`: the header's cells.
        bare_quotes: whether quotes inside cells stand without quotes around the cell.
        blanks: cells are separated by runs of blanks.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    header: tuple[str, ...] | None = None
    width: int = 1
    decimal: str | None = None
    newline: str = "\n"
    last_newline: bool = True
    quoted: tuple[bool, ...] = ()
    header_quoted: bool = False
    bare_quotes: bool = False
    blanks: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: the header, or column_1, column_2, ... where there is none."""
        names = self.header or ("",) * self.width
        fallback = "unnamed" if self.header else "column"
        return tuple(name if name.strip() else f"{fallback}_{k}" for k, name in enumerate(names, 1))


def sniff(
    path: Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    decimal: str | None = None,
) -> tuple[Dialect, tuple[str, ...]]:
    """The dialect of a text table, and sentences on what was assumed.

    Args:
        delimiter, encoding, decimal: given by the user, else seen in the file. "blanks" is a delimiter too.
        header: whether the first row names the columns; None: yes, unless it looks like data (refused).

    Raises:
        InputError: an empty file, NUL bytes, duplicate headers, anything that cannot be told.
    """
    where = str(path)
    notes: list[str] = []
    encoding = encoding or _encoding(path, notes)
    text, whole = _head(path, encoding)
    if not text.strip():
        raise InputError("empty-file", "the file has no rows", where)
    delimiter = {"blanks": " ", "tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
    delimiter = delimiter or _delimiter(text, whole, path, notes)
    blanks = delimiter == " "
    rows = [r for r in _rows(text, delimiter, whole) if r]
    if not rows:
        raise InputError("empty-file", "the file has no rows", where)
    width = Counter(map(len, rows)).most_common(1)[0][0]
    first = rows[0]
    if first[0].startswith("sep=") and not any(first[1:]):
        remedy = "remove that line and name the delimiter (--delimiter)"
        raise InputError(
            "sep-line", "the first line is a note to Excel (sep=), not a header", f"{where}, line 1", remedy
        )
    if header is None and _looks_like_data(first, rows[1:]):
        raise InputError(
            "header-unclear",
            "the first row looks like data, not like a header",
            f"{where}, row 1",
            "say whether there is a header (--header or --no-header; header=True or False)",
        )
    if header is not False:
        refuse_duplicate_names(first, where)
        width = len(first)
        rows = rows[1:]
    decimal = decimal or _decimal(rows, delimiter)
    if decimal == ",":
        notes.append("numbers were read with a decimal comma")
    quoted, header_quoted, bare = _quotes(text, delimiter, width, header is not False)
    return Dialect(
        delimiter,
        encoding,
        tuple(first) if header is not False else None,
        width,
        decimal,
        _newline(text),
        _ends_with_newline(path, encoding),
        quoted,
        header_quoted,
        bare,
        blanks,
    ), tuple(notes)


def refuse_duplicate_names(names: Sequence[str], where: str) -> None:
    """InputError when two columns have one name."""
    twice = [name for name, count in Counter(n for n in names if n.strip()).items() if count > 1]
    if twice:
        places = ", ".join(str(k) for k, name in enumerate(names, 1) if name == twice[0])
        raise InputError(
            "duplicate-header",
            f"{len(twice)} column names stand more than once, the first in columns {places}",
            f"{where}, header",
            "rename them, or say that there is no header (--no-header; header=False)",
        )


def _encoding(path: Path, notes: list[str]) -> str:
    """ "utf-8" when the file is; Windows-1252 when it is Western European text; else refused."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    high, seen, good = b"", 0, True
    with path.open("rb") as file:
        while seen < SCANNED_BYTES and (block := file.read(1 << 20)):
            for mark, name in BOMS:
                if not seen and block.startswith(mark):
                    return name
            if b"\0" in block:
                raise InputError(
                    "nul-byte",
                    "the file holds NUL bytes",
                    f"{path}, byte {seen + block.index(0) + 1}",
                    "the file is damaged or UTF-16: name the encoding (--encoding utf-16)",
                )
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                good = False
                decoder.reset()
            high += b" ".join(re.findall(rb"[\x80-\xff]+", block)) + b" "
            seen += len(block)
    if good:
        return "utf-8"
    if not _western(high):
        raise InputError(
            "encoding-unclear",
            "the file is not UTF-8, and its encoding cannot be told",
            str(path),
            "name it (--encoding latin-1, cp1251, shift-jis, ...)",
        )
    notes.append("the file is not UTF-8 and was read as Windows-1252 (Western European)")
    return "cp1252"


def _western(runs: bytes) -> bool:
    """Whether runs of bytes beyond ASCII look like the accents of Western Europe: short, and not UTF-8."""
    total = len(runs.replace(b" ", b""))
    long = sum(map(len, re.findall(rb"[\x80-\xff]{3,}", runs)))
    utf8 = sum(map(len, re.findall(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}", runs)))
    undefined = any(byte in UNDEFINED_1252 for byte in runs)
    return not undefined and long <= 0.2 * total and utf8 <= 0.5 * total


def _head(path: Path, encoding: str) -> tuple[str, bool]:
    """The beginning of the file as text with its own line ends, and whether that is all of it."""
    with path.open("r", encoding=encoding, newline="") as file:
        try:
            text = file.read(SAMPLE_BYTES)
            return text, not file.read(1)
        except (UnicodeDecodeError, UnicodeError) as error:
            raise InputError(
                "encoding-wrong", f"the file is not {encoding}", str(path), "name the encoding (--encoding)"
            ) from error
        except LookupError as error:
            raise InputError("encoding-unknown", f"there is no encoding {encoding!r}", str(path)) from error


def _rows(text: str, delimiter: str, whole: bool) -> list[list[str]]:
    """The first rows; the last one is left out where the text was cut."""
    if delimiter == " ":
        rows = [line.split() for line in text.splitlines()[: SAMPLE_ROWS + 1]]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            rows = list(islice(reader, SAMPLE_ROWS + 1))
        except csv.Error:
            return []
    return rows if whole and len(rows) <= SAMPLE_ROWS else rows[:-1]


def _delimiter(text: str, whole: bool, path: Path, notes: list[str]) -> str:
    """The character that splits (nearly) all rows into the same number of cells, more than one."""
    split = {d: [r for r in _rows(text, d, whole) if r] for d in DELIMITERS}
    share: dict[str, float] = {}
    for d, rows in split.items():
        counts = Counter(map(len, rows))
        most = max((n for n in counts if n > 1), key=lambda n: counts[n], default=0)
        share[d] = counts[most] / len(rows) if most and len(rows[0]) > 1 else 0.0
    likely = [d for d in DELIMITERS if share[d] >= 0.5]
    good = likely if len(likely) == 1 else [d for d in DELIMITERS if share[d] >= 0.8]
    if len(good) > 1 and "," in good:
        # 1,5;2,5 is split evenly by both: a comma inside cells that are numbers is a decimal comma
        others = [d for d in good if d != ","]
        parts = [c.strip() for r in split[others[0]][1:] for c in r if "," in c]
        if parts and all(cells.COMMA_NUMBER.fullmatch(c) for c in parts):
            good = others
    if len(good) > 1:
        best = max(share[d] for d in good)
        good = [d for d in good if share[d] > best - 0.1]
    if len(good) == 1:
        if good[0] != ",":
            notes.append(f"cells were separated by {_named(good[0])}")
        return good[0]
    lines = [line for line in text.splitlines() if line.strip()][:SAMPLE_ROWS]
    even, numbers = _by_blanks(lines, whole)
    if not good and even >= 0.8 and numbers:
        notes.append("cells were separated by blanks")
        return " "
    if not good and not (even and numbers) and not any(d in line for line in lines for d in DELIMITERS):
        return "," if path.suffix.lower() not in (".tsv", ".tab") else "\t"
    if path.suffix.lower() in (".tsv", ".tab") and "\t" in text:
        return "\t"
    raise InputError(
        "delimiter-unclear",
        "the character that separates cells cannot be told",
        str(path),
        'name it (--delimiter ",", ";", tab, blanks)',
    )


def _named(delimiter: str) -> str:
    return {";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "blanks", ",": "commas"}.get(
        delimiter, delimiter
    )


def _by_blanks(lines: list[str], whole: bool) -> tuple[float, bool]:
    """Share of rows that blanks split into the same number of cells, and whether most are numbers."""
    rows = [line.split() for line in (lines if whole else lines[:-1])]
    if not rows or '"' in "".join(lines):
        return 0.0, False
    width, count = Counter(map(len, rows)).most_common(1)[0]
    flat = [c for r in rows[1:] or rows for c in r]
    numbers = sum(bool(cells.NUMBER.fullmatch(c)) for c in flat)
    return (count / len(rows) if width > 1 else 0.0), numbers >= 0.5 * len(flat)


def _looks_like_data(first: list[str], rest: list[list[str]]) -> bool:
    """Whether most cells of the first row are numbers, like those below; a count or years may be names."""
    width = len(first)
    below = [r for r in rest if len(r) == width]
    number = [
        bool(cells.NUMBER.fullmatch(c.strip()) or cells.COMMA_NUMBER.fullmatch(c.strip())) for c in first
    ]
    if not below or sum(number) < 0.5 * width:
        return False
    named = [c.strip() for c, n in zip(first, number, strict=True) if n]
    if all(re.fullmatch(r"\d{1,4}", c) for c in named) and len(named) > 1:
        whole = sorted(map(int, named))
        if whole == list(range(whole[0], whole[0] + len(whole))):
            return False
    like = [k for k in range(width) if number[k] and any(cells.NUMBER.fullmatch(r[k].strip()) for r in below)]
    return len(like) >= 0.5 * width


def _decimal(rows: list[list[str]], delimiter: str) -> str | None:
    """ "," when some columns can only be numbers with decimal commas, and none has decimal points."""
    if delimiter == ",":
        return None
    signs = set()
    for column in zip(*[r for r in rows if len(r) == len(rows[0])], strict=True):
        texts = [c.strip() for c in column if c.strip()]
        if texts and any("," in t or "." in t for t in texts):
            signs.add(cells.decimal_sign(texts))
    signs.discard(None)
    return signs.pop() if len(signs) == 1 else None


def _newline(text: str) -> str:
    found = re.search(r"\r\n|\n|\r", text)
    return found.group() if found else "\n"


def _ends_with_newline(path: Path, encoding: str) -> bool:
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 4))
        tail = file.read()
    wide = encoding.startswith("utf-16") and tail.rstrip(b"\0").endswith((b"\n", b"\r"))
    return wide or tail.endswith((b"\n", b"\r"))


def _quotes(text: str, delimiter: str, width: int, header: bool) -> tuple[tuple[bool, ...], bool, bool]:
    """Columns always in quotes, whether the header is, and whether quotes stand inside bare cells."""
    if '"' not in text or delimiter == " ":
        return (False,) * width, False, False
    d = re.escape(delimiter)
    cell = re.compile(rf'("(?:[^"]|"")*"|[^{d}\r\n]*)({d}|\r\n|\n|\r|$)')
    every, some, bare = [True] * width, [False] * width, False
    header_quoted, row, column = False, 0, 0
    for found in islice(cell.finditer(text), SAMPLE_ROWS * width):
        raw, end = found.groups()
        quoted = raw.startswith('"')
        bare |= not quoted and '"' in raw
        if header and row == 0:
            header_quoted |= quoted and column == 0
        elif raw and column < width:
            every[column] &= quoted
            some[column] |= quoted
        column += 1
        if end != delimiter:
            row, column = row + 1, 0
    return tuple(e and s for e, s in zip(every, some, strict=True)), header_quoted, bare
