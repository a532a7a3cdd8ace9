"""`ebbtide card PATH`: a table's card as a draft; a card checked, and made into README and Croissant file."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..domains.documents import read_yaml
from ..shared.errors import Fault, InputError
from ..shared.files import refuse_existing, replace_atomically
from .card_pages import MADE, croissant, draft, index, readme, schema
from .manifest import sha256_of, write_json
from .options import TableWords, domain_for
from .schemas import blank, faults_of

if TYPE_CHECKING:
    from ..domains.tabular import TabularDomain
    from ..domains.tabular.codec import TableCodec
    from ..domains.tabular.reading import TableSource

CARD, README, CROISSANT = "card.yaml", "README.md", "croissant.json"
KEPT = "<!-- what follows is not made from card.yaml and stays -->"


@dataclass(frozen=True)
class Carded:
    """What came of it.

    Args:
        faults: what must be mended in the cards that were checked.
        written: files that were made.
        lines: the same for a person.
    """

    faults: tuple[Fault, ...]
    written: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """2 when a card has faults."""
        return 2 if self.faults else 0

    @property
    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"faults": [asdict(fault) for fault in self.faults], "written": list(self.written)}


def card(
    path: Path | str,
    *,
    table: TableWords | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> Carded:
    """Draft a card of a table; or check a card, or every card of a folder, and make what is made of it.

    Args:
        path: a table (a draft `card.yaml` is written beside it); a card, or the folder that holds it
            (README.md and croissant.json are made); or a folder of such folders (an index is made as well).
        table: what the user said about the table.
        out: where the draft goes.
        overwrite: replace a card, or a README that was not made of one.

    Raises:
        InputError: nothing there, not plain YAML, or something is in the way.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("file-not-found", "there is no such file", str(path), "check the path")
    if path.is_file() and path.suffix.lower() not in (".yaml", ".yml"):
        from .evaluating import require_tables

        domain = require_tables(domain_for(path, table)[0], path)
        return drafted(path, domain, Path(out or path.parent / CARD), overwrite)
    if out is not None:
        what = "README.md and croissant.json go beside the card"
        raise InputError("card-output", what, str(out), "leave -o away")
    if path.is_file():
        return regenerated([path], overwrite)
    if (path / CARD).is_file():
        return regenerated([path / CARD], overwrite)
    found = sorted(path.glob(f"*/{CARD}"))
    if not found:
        raise InputError("no-card", f"there is no {CARD} here", str(path), "give a table to draft one")
    return regenerated(found, overwrite, path)


# -------------------------------------------------------------------------------------------------- drafts


def drafted(path: Path, domain: TabularDomain, out: Path, overwrite: bool) -> Carded:
    """A card of a table with all that can be counted, and blanks for the rest."""
    refuse_existing(out, overwrite)
    known = counted(path, domain)
    known["files"][0]["path"] = relative(path, out.parent)
    with replace_atomically(out) as partial:
        partial.write_text(draft(known, domain="tabular"), encoding="utf-8")
    left = [fault.where.removeprefix(f"{out}, ") for fault in checked(out)[1] if fault.code == "card-blank"]
    lines = (
        f"Wrote {out}: {known['rows']:,} rows, {len(known['columns'])} columns counted.",
        f"Still blank: {'; '.join(left)}.",
        f"Fill them in, or write unknown, then: ebbtide card {out}",
    )
    return Carded((), (str(out),), lines)


def counted(path: Path, domain: TabularDomain) -> dict[str, Any]:
    """What can be counted of a table: rows, columns, missing cells; names and kinds, never a value.

    Raises:
        InputError: the table cannot be read.
    """
    survey = domain.survey(path)
    codec, missing = described(path, domain)
    columns = {}
    for column in codec.columns_:
        columns[column.name] = {"kind": column.kind, "missing": missing[column.name]}
        if column.is_category:
            columns[column.name]["levels"] = column.distinct
        if column.kind == "id":
            columns[column.name]["role"] = "id"
    name = "".join(c if c.isalnum() or c in "_.-" else "-" for c in path.stem.lower()).lstrip("-_.")
    return {
        "name": name or "data",
        "version": "1.0.0",
        "files": [{"path": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}],
        "rows": survey.items,
        "columns": columns,
    }


def described(path: Path, domain: TabularDomain) -> tuple[Any, dict[str, int]]:
    """The recognised columns of a table, and how many cells each lacks, counted over all of it."""
    from ..domains.tabular.codec import TableCodec

    source = domain.open(path)
    sample = source.sample(50_000)
    codec = TableCodec(domain.options.missing, kinds=domain.kinds(), decimal=source.decimal).fit(sample)
    return codec, missing_cells(source, codec)[1]


def missing_cells(source: TableSource, codec: TableCodec) -> tuple[int, dict[str, int]]:
    """Rows of a table, and how many cells each column of the codec lacks, counted over all of it."""
    import numpy as np

    labels = [column.label for column in codec.columns_]
    rows, gone = 0, np.zeros(len(labels), dtype=np.int64)
    for frame in source.chunks():
        rows += len(frame)
        gone += codec.empty(frame[labels]).sum(0)
    return rows, {column.name: int(n) for column, n in zip(codec.columns_, gone, strict=True)}


def relative(path: Path, folder: Path) -> str:
    """The path as seen from the card, with forward slashes."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


# --------------------------------------------------------------------------------------------------- check


def load(path: Path) -> dict[str, Any]:
    """A card as plain data; dates become text.

    Raises:
        InputError: not plain YAML, or not keys with values.
    """
    found = read_yaml(path, "card", "mend it, or start from a template")
    return {str(key): _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, dt.date) else value


def checked(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """A card, and every fault of it: against the schema, and against the files that it names."""
    found = load(path)
    faults = faults_of(found, schema(), str(path))
    return found, faults or list(file_faults(found, path))


def file_faults(card: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    """Files that lack, that are not the ones described, and columns that are counted otherwise."""
    for file in card["files"]:
        place = path.parent / file["path"]
        where = f"{path}, files, {file['path']}"
        if Path(file["path"]).is_absolute() or ".." in Path(file["path"]).parts:
            what = "the path leaves the card's folder"
            yield Fault("card-file", what, where, "keep the card beside its files")
        elif not place.is_file():
            yield Fault("card-file", "there is no such file", where, "correct the path")
        elif place.stat().st_size != file["bytes"] or sha256_of(place) != file["sha256"]:
            now = f"bytes: {place.stat().st_size} and sha256: {sha256_of(place)}"
            remedy = f"if the new file is right, write {now}"
            yield Fault("card-stale", "this is another file than the card describes", where, remedy)
        elif card["domain"] == "tabular" and file is card["files"][0]:
            yield from table_faults(card, place, str(path))


def table_faults(card: Mapping[str, Any], place: Path, where: str) -> Iterator[Fault]:
    """Counts of the card that are not those of the table; kinds are the person's to say."""
    from ..domains.tabular import TableOptions, TabularDomain

    if not TabularDomain.sniff(place):
        return
    codes = card["missing"].get("codes", ())
    domain = TabularDomain(TableOptions(missing=tuple(codes)))
    if (rows := domain.survey(place).items) != card["rows"]:
        yield Fault("card-stale", f"the table has {rows} rows", f"{where}, rows", f"write {rows}")
    _, missing = described(place, domain)
    lacking = [name for name in missing if name not in card["columns"]]
    extra = [name for name in card["columns"] if name not in missing]
    if lacking or extra:
        told = [f"the table also has {', '.join(lacking)}"] if lacking else []
        told += [f"the table has no {', '.join(extra)}"] if extra else []
        yield Fault("card-stale", " and ".join(told), f"{where}, columns", "correct the names")
        return
    for name, count in missing.items():
        if count != card["columns"][name]["missing"]:
            at = f"{where}, columns, {name}, missing"
            yield Fault("card-stale", f"the column lacks {count} cells", at, f"write {count}")


# ---------------------------------------------------------------------------------------------------- made


def regenerated(paths: list[Path], overwrite: bool, root: Path | None = None) -> Carded:
    """Check cards; of those without a fault make README and Croissant file, and of all an index."""
    faults: list[Fault] = []
    written: list[str] = []
    good: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        found, wrong = checked(path)
        faults += wrong
        if not wrong:
            written += publish(path.parent, found, overwrite=overwrite)
            good.append((path.parent.name, found))
    if root is not None and not faults:
        written.append(_write_made(root / README, index(good), overwrite))
    told = [f"error: {fault}" for fault in faults] + [f"Wrote {file}" for file in written]
    return Carded(tuple(faults), tuple(written), tuple(told))


def publish(
    folder: Path, card: Mapping[str, Any], *, beneath: str = "", overwrite: bool = False
) -> list[str]:
    """Write what is made of a card that has no fault, and the card itself where there is none yet.

    Args:
        folder: where the data is; gets card.yaml, README.md and croissant.json.
        card: plain data; must fit the schema.
        beneath: text that README.md ends with, and keeps when it is made again.
        overwrite: replace a README that was not made of a card.

    Raises:
        InputError: the first fault of the card, or a README that was not made of a card.
    """
    faults = faults_of(dict(card), schema(), CARD)
    if faults:
        raise InputError(faults[0].code, faults[0].what, faults[0].where, faults[0].remedy)
    card = {key: value for key, value in card.items() if not blank(value)}
    written = []
    if not (folder / CARD).exists():
        with replace_atomically(folder / CARD) as partial:
            text = yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True, width=100)
            partial.write_text(text, encoding="utf-8")
        written.append(str(folder / CARD))
    written.append(_write_made(folder / README, readme(card), overwrite, beneath))
    if (folder / CROISSANT).exists() and not overwrite:
        _refuse_foreign(folder / CROISSANT, '"@context"')
    write_json(folder / CROISSANT, croissant(card))
    return [*written, str(folder / CROISSANT)]


def _write_made(path: Path, text: str, overwrite: bool, beneath: str = "") -> str:
    """Write a page; one that people wrote is left alone, and so is what stands below KEPT in ours."""
    if path.exists() and not overwrite:
        _refuse_foreign(path, MADE)
    if not beneath and path.exists():
        beneath = path.read_text(encoding="utf-8", errors="replace").partition(KEPT)[2]
    if beneath.strip():
        text += f"\n{KEPT}\n\n{beneath.strip()}\n"
    with replace_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return str(path)


def _refuse_foreign(path: Path, mark: str) -> None:
    if mark not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError("output-exists", "this was not made of a card", str(path), "pass --overwrite")


def templates() -> dict[str, str]:
    """Name -> text of the blank cards that are shipped in data_cards/templates."""
    return {
        "tabular": draft({}, domain="tabular"),
        "image": draft({}, domain="image"),
        "mri": draft({}, domain="mri"),
        "synthetic": draft({}, domain="tabular", kind="synthetic"),
    }
