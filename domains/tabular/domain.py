"""Tables as a domain: what the pipelines ask of any data, answered for rows and columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...shared.errors import Fault, InputError
from ...shared.noise import key_of
from .. import Planned, Progress, Request, Survey, Unit, Wish
from ..documents import spoken
from . import plans
from .checking import check_table
from .codec import TableCodec
from .fitted import FittedTable, Missing, column_keys, require_unique
from .generator import GeneratorSettings
from .model import ModelSettings
from .outcome import Outcome, assemble, summary, tell
from .preview import preview
from .publishing import publish, save
from .reading import SUFFIXES, TableSource, join, open_table
from .synthesis import Synthesis

if TYPE_CHECKING:
    from .private import PrivacySettings

VERBS = ("impute", "generate")
"""What a model of a table can serve."""
ROWS_AT_LEAST, CELLS_AT_A_TIME = 500, 200_000
"""Rows and cells in a unit of work: what an interruption loses at most."""


@dataclass(frozen=True)
class TableOptions:
    """What the user said about a table. None means: as seen in the file.

    Args:
        missing: codes that mean "missing" besides the empty cell, for all columns or by column.
        kinds: column -> kind, where the recognised one is not right.
        columns: fill only these.
        key: a column that names the rows; without one a row is known by its position.
        header, delimiter, encoding, decimal, sheet: how the file is written.
        settings: of the model that imputes.
        generator: of the model that generates.
        only: train for one verb alone, "impute" or "generate"; None is both.
        constraints: what must hold in every generated row; see `rules`.
        private: train with differential privacy; needs `only` "generate".
    """

    missing: Missing = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    key: str | None = None
    header: bool | None = None
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    sheet: str | None = None
    settings: ModelSettings | None = None
    generator: GeneratorSettings | None = None
    only: str | None = None
    constraints: tuple[str, ...] = ()
    private: PrivacySettings | None = None

    @property
    def verbs(self) -> tuple[str, ...]:
        """What a model is trained to serve."""
        return VERBS if self.only is None else (self.only,)


@dataclass(frozen=True)
class TableSurvey(Survey):
    """A table seen once from end to end.

    Args:
        source: the opened table.
        keys: (n,) int64 row keys when a key column was named.
    """

    source: TableSource | None = None
    keys: np.ndarray | None = None


@dataclass(frozen=True)
class TabularDomain:
    """Tables, with what the user said about them."""

    options: TableOptions = TableOptions()
    name: str = "tabular"
    things: str = "rows"
    made_at_once: int = 16_384

    @staticmethod
    def sniff(path: Path) -> bool:
        """Whether the path looks like a table: a file with the suffix of one."""
        return path.is_file() and path.suffix.lower() in SUFFIXES

    def open(self, path: Path) -> TableSource:
        """The table as a source of frames; see `open_table`."""
        o = self.options
        return open_table(
            path,
            delimiter=o.delimiter,
            encoding=o.encoding,
            header=o.header,
            decimal=o.decimal,
            sheet=o.sheet,
        )

    def check(self, path: Path) -> list[Fault]:
        """Every fault of the table, errors before warnings."""
        return check_table(partial(self.open, path), self.options.missing, self.kinds(), self.options.key)

    def kinds(self) -> dict[Any, str]:
        """The kinds that were given; a key column is an id unless it was called something else."""
        key = {self.options.key: "id"} if self.options.key else {}
        return {**key, **self.options.kinds}

    def survey(self, path: Path, progress: Progress | None = None) -> TableSurvey:
        """Count the rows, checking the length of each, and read the keys.

        Raises:
            InputError: not a table; no rows; a damaged row; a key that is missing or repeated.
        """
        source = self.open(path)
        if self.options.key is not None and self.options.key not in source.columns:
            what = f"there is no column {self.options.key!r}"
            raise InputError("key-unknown", what, str(path), "name one of the table's columns")
        per_unit = max(ROWS_AT_LEAST, CELLS_AT_A_TIME // max(1, len(source.columns)))
        if source.format == "excel":
            per_unit = max(per_unit, 1 << 20)  # a sheet is read from its beginning each time
        keys = self._keys(source, per_unit)
        rows = source.n_rows if keys is None else len(keys)
        if rows == 0:
            raise InputError("table-no-rows", "the table has no rows", str(path), "give a table with rows")
        facts = {
            "format": source.format,
            "columns": list(source.columns),
            "bytes": path.stat().st_size,
            "row_key": self.options.key or "position in the file",
        }
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return TableSurvey(rows, digest, per_unit, facts, source.notes, (), source, keys)

    def _keys(self, source: TableSource, per_unit: int) -> np.ndarray | None:
        key = self.options.key
        if key is None:
            return None
        where = str(source.path)
        found = [column_keys(frame[key], where, int(frame.index[0])) for frame in source.chunks(per_unit)]
        keys = np.concatenate(found) if found else np.empty(0, np.int64)
        require_unique(keys, f"{where}, column {key!r}")
        return keys

    def sample(
        self, path: Path, survey: Survey, limit: int, seed: int, progress: Progress | None = None
    ) -> pd.DataFrame:
        """At most `limit` rows to learn from.

        Without a key in file order, chosen by position; with a key chosen and ordered by the keys, so that a
        shuffled table teaches the same.
        """
        source, keys = opened(survey)
        if keys is None:
            return source.sample(limit, seed)
        # Keys are hashes, hence uniform: with a salt, the smallest of them are a random choice.
        chosen = keys[np.argsort(keys ^ key_of("sample", seed), kind="stable")[:limit]]
        pieces = []
        for frame in source.chunks(survey.per_unit):
            mine = keys[frame.index[0] : frame.index[0] + len(frame)]
            pieces.append(frame[np.isin(mine, chosen)])
        rows = pd.concat(pieces)
        return rows.iloc[np.argsort(keys[rows.index], kind="stable")]

    def units(self, path: Path, survey: Survey, first: int, last: int) -> Iterator[Unit[pd.DataFrame]]:
        """Rows first ... last - 1, `survey.per_unit` at a time; their index is their position."""
        source, _ = opened(survey)
        for frame in regular(source.chunks(survey.per_unit, first, last), survey.per_unit):
            yield Unit(int(frame.index[0]), len(frame), frame)

    def fit(
        self,
        raw: pd.DataFrame,
        *,
        seed: int,
        about: Mapping[str, Any],
        survey: Survey | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
        verbs: Sequence[str] | None = None,
    ) -> FittedTable:
        """Learn the encoding and the models from the observed cells of `raw`."""
        return FittedTable.fit(
            raw,
            missing=self.options.missing,
            kinds=self.kinds(),
            decimal=opened(survey)[0].decimal if survey is not None else self.options.decimal,
            settings=self.options.settings,
            verbs=tuple(verbs or self.options.verbs),
            generator=self.options.generator,
            constraints=self.options.constraints,
            private=self.options.private,
            seed=seed,
            about=about,
            folder=folder,
            resume=resume,
            device=device,
            progress=progress,
        )

    @property
    def plan_keys(self) -> tuple[str, ...]:
        return plans.KEYS

    def plan(
        self,
        path: Path,
        survey: Survey,
        sample: pd.DataFrame,
        seed: int,
        progress: Progress | None = None,
    ) -> Planned:
        """Kinds, the model, and what a short probe says of them."""
        tell = progress or (lambda stage, fraction: None)
        decimal = opened(survey)[0].decimal
        codec = TableCodec(self.options.missing, kinds=self.kinds(), decimal=decimal).fit(sample)
        settings = self.options.settings or ModelSettings()
        tell("a short probe", 0.0)
        coded, estimate = codec.encode(sample), {"minutes": 0.0, "memory_mb": 0.0, "disk_mb": 0.0}
        if "impute" in self.options.verbs:
            estimate = plans.probe(coded, codec.cardinalities, settings, survey.items, seed)
        if "generate" in self.options.verbs:
            more = plans.probe_generator(coded, codec, self.options.generator or GeneratorSettings(), seed)
            memory = max(estimate["memory_mb"], more["memory_mb"])
            estimate = {key: round(estimate[key] + more[key], 2) for key in estimate} | {"memory_mb": memory}
        tell("a short probe", 1.0)
        kinds = {column.name: column.kind for column in codec.columns_}
        generator = self.options.generator or GeneratorSettings()
        options = replace(self.options, kinds=kinds, settings=settings, generator=generator)
        gone = [int(count) for count in codec.empty(sample).sum(0)]
        modelled = sum(column.modelled for column in codec.columns_)
        seen = (
            f"{path.name}: {survey.items:,} rows, {len(codec.columns_)} columns, {modelled} of them modelled."
        )
        return Planned(TabularDomain(options), plans.written(options, codec, gone), estimate, (seen,))

    def follow(self, found: Mapping[str, Any], where: Path) -> TabularDomain:
        """With the options of a plan; those that were said stay."""
        planned = plans.read(found, where)
        said = spoken(self.options)
        if "kinds" in said:
            said["kinds"] = {**planned["kinds"], **self.options.kinds}
        return TabularDomain(TableOptions(**{**planned, **said}))

    def load(self, folder: Path) -> FittedTable:
        """Read a model folder.

        Raises:
            InputError: missing codes or kinds were given that differ from those it was trained with.
        """
        fitted = FittedTable.load(folder)
        held = fitted.codec.missing
        trained = {} if isinstance(held, Mapping) else {str(code) for code in held}
        if self.options.missing and {str(code) for code in self.options.missing} != trained:
            raise _differs("missing codes", "--missing", folder)
        kinds = {column.name: column.kind for column in fitted.codec.columns_}
        if any(kinds.get(name) != kind.partition(":")[0] for name, kind in self.options.kinds.items()):
            raise _differs("kinds", "--kinds", folder)
        return fitted

    def fill(
        self, fitted: FittedTable, survey: Survey, unit: Unit[pd.DataFrame], request: Request, folder: Path
    ) -> dict[str, Any]:
        """Fill the rows of one unit; what was drawn goes into `folder`, the counts are given back."""
        _, keys = opened(survey)
        items = unit.raw.index.to_numpy(np.int64) if keys is None else keys[unit.raw.index]
        pieces = fitted.fill_in_pieces(
            unit.raw,
            items,
            draws=request.draws,
            seed=request.seed,
            columns=self.options.columns,
            first_row=unit.start,
        )
        outcome = Outcome.join([Outcome.of(piece, request) for piece in pieces])
        outcome.save(folder)
        return outcome.counts

    def assemble(
        self,
        path: Path,
        fitted: FittedTable,
        survey: Survey,
        parts: Mapping[int, Path],
        end: int,
        out: Path,
        request: Request,
        progress: Progress | None = None,
    ) -> list[str]:
        """Write the completed table and what is beside it, from the table and the parts."""
        source, _ = opened(survey)
        units = self.units(path, survey, min(parts), end)
        return assemble(source, fitted, units, parts, out, request, self.options.columns, progress)

    def preview(self, path: Path, fitted: FittedTable, parts: Sequence[Path], picture: Path) -> None:
        """Observed beside filled values of every column, as a PNG."""
        preview(fitted, parts, picture)

    def generate(
        self,
        fitted: FittedTable,
        wish: Wish,
        first: int,
        last: int,
        folder: Path,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Rows first ... last - 1."""
        items = np.arange(first, last)
        save(
            _synthesis(fitted, wish).rows(items, progress=partial(progress or _silent, "rows")), items, folder
        )
        return {"first": first, "rows": last - first}

    def publish(
        self,
        fitted: FittedTable,
        wish: Wish,
        parts: Sequence[Path],
        out: Path,
        facts: Mapping[str, Any],
    ) -> list[str]:
        """The table in one file, CSV unless it is large or was asked for otherwise, and a picture of it."""
        return publish(_synthesis(fitted, wish), wish, parts, out, facts)

    def summary(self, counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The counts of all units in one."""
        return summary(counts)

    def tell(self, counted: Mapping[str, Any]) -> list[str]:
        """The summary in plain words."""
        return tell(counted)


def _silent(label: str, fraction: float) -> None:
    """Nobody is told."""


def _synthesis(fitted: FittedTable, wish: Wish) -> Synthesis:
    return fitted.synthesis(
        seed=wish.seed, condition=wish.condition, constraints=wish.constraints, complete=wish.complete
    )


def _differs(what: str, option: str, folder: Path) -> InputError:
    return InputError(
        "model-options",
        f"other {what} than the model was trained with",
        str(folder),
        f"leave {option} away (the model remembers it), or train a new model",
    )


def regular(frames: Iterator[pd.DataFrame], rows: int) -> Iterator[pd.DataFrame]:
    """The same rows in frames of exactly `rows`, but for the last: readers give what they find convenient."""
    held: list[pd.DataFrame] = []
    for frame in frames:
        held.append(frame)
        while sum(map(len, held)) >= rows:
            whole = join(held)
            yield whole.iloc[:rows]
            held = [whole.iloc[rows:]] if len(whole) > rows else []
    if held:
        yield join(held)


def opened(survey: Survey) -> tuple[TableSource, np.ndarray | None]:
    """The table and the keys that a survey of a table found."""
    if not isinstance(survey, TableSurvey) or survey.source is None:
        raise TypeError("expected the survey of a table")
    return survey.source, survey.keys
