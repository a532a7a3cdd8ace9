"""An encoding and a model fitted together: what `train` leaves behind and what `impute` uses."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from ...shared.artifacts import read_model_of, write_model
from ...shared.errors import Fault, InputError
from ...shared.noise import Keys, key_of
from ...shared.private import NOT_PRIVATE, PRIVACY, statement
from .codec import Coded, TableCodec
from .filling import Filling
from .generator import GeneratorSettings, TableGenerator
from .model import Filled, ModelSettings, TableModel
from .synthesis import Synthesis

if TYPE_CHECKING:
    from .private import PrivacySettings

Missing = Collection[Hashable] | Mapping[Hashable, Collection[Hashable]]
FORMAT = "ebbtide-table/2"
TELLING = ("data_sha256", "columns", "missing", "demographics")
"""What a model may say of its data, and a private one may not: all of it hangs on single rows."""
BYTES_IN_MEMORY = 64 * 2**20
"""Bytes of draws that are held at a time."""


def require_rows(frame: pd.DataFrame) -> None:
    """Raise InputError when there is nothing to learn from."""
    if frame.shape[1] == 0:
        raise InputError(
            "table-no-columns", "0 feature(s) (no columns)", "table", "give a table with columns"
        )
    if len(frame) == 0:
        raise InputError("table-no-rows", "the table has no rows", "table", "give a table with rows")


def content_keys(coded: Coded) -> np.ndarray:
    """(n,) int64 row keys from what the rows say: equal rows have equal keys, wherever they stand."""
    numbers = np.where(np.isnan(coded.numbers), np.nan, coded.numbers + 0.0)  # one NaN, and no -0.0
    rows = np.hstack([numbers, coded.codes.astype(np.float64)])
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(digest, "little") >> 1 for digest in digests), np.int64, len(rows))


def column_keys(values: pd.Series[Any], where: str = "table", first_row: int = 0) -> np.ndarray:
    """(n,) int64 row keys from a key column's text, the same in whatever order the rows come.

    Raises:
        InputError: a key is missing.
    """
    missing = values.isna().to_numpy()
    if missing.any():
        first = first_row + int(missing.argmax()) + 1
        raise InputError(
            "key-missing",
            f"{missing.sum()} of {len(missing)} keys are missing, the first at row {first}",
            f"{where}, column {values.name}",
            "choose a key column without blanks, or leave --key away to key rows by their position",
        )
    return np.fromiter((key_of(text) for text in values.astype(str)), np.int64, len(values))


def require_unique(keys: np.ndarray, where: str) -> None:
    """Raise InputError, with count and rows, when two rows have one key: they would share their draws."""
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    if again.any():
        rows = ", ".join(str(row + 1) for row in np.flatnonzero(again)[:5]) + ", ..." * int(again.sum() > 5)
        raise InputError(
            "key-duplicate",
            f"{again.sum()} rows repeat a key that an earlier row has (rows {rows})",
            where,
            "a key must name one row; leave --key away to key rows by their position",
        )


def require_columns(codec: TableCodec, columns: Sequence[str]) -> Sequence[str]:
    """`columns`, after making sure that each can be filled.

    Raises:
        InputError: a column that does not exist, or that is carried through unmodelled.
    """
    known = {column.name: column for column in codec.columns_}
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else ""
            raise InputError("column-unknown", f"there is no column {name!r}", "columns", advice)
        if not known[name].modelled:
            raise InputError(
                "column-not-modelled",
                f"column {name!r} is {known[name].kind} or has no observed cell, and cannot be filled",
                "columns",
                "leave it away, or give its kind",
            )
    return columns


def nothing(part: Coded, draws: int) -> Filled:
    """The answer for no rows at all."""
    numbers, codes = np.zeros((draws, *part.numbers.shape)), np.zeros((draws, *part.codes.shape), np.int32)
    return Filled(
        numbers=numbers,
        codes=codes,
        mean=part.numbers,
        median=part.numbers,
        probability=np.ones(part.codes.shape),
        mode=part.codes,
    )


@dataclass(frozen=True)
class FittedTable:
    """A table's encoding and its model.

    Args:
        codec: the encoding, learnt from observed cells alone.
        model: fills the missing part of encoded rows; None when it was not trained to.
        about: JSON-able facts: what it was trained on, when, by which version.
        generator: draws new rows; None when it was not trained to.
    """

    codec: TableCodec
    model: TableModel | None
    about: dict[str, Any] = field(default_factory=dict)
    generator: TableGenerator | None = None

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        *,
        missing: Missing = (),
        kinds: Mapping[Hashable, str] | None = None,
        decimal: str | None = None,
        settings: ModelSettings | None = None,
        verbs: Collection[str] = ("impute",),
        generator: GeneratorSettings | None = None,
        constraints: Sequence[str] = (),
        private: PrivacySettings | None = None,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Callable[[str, float], None] | None = None,
    ) -> Self:
        """Learn from the rows of `frame`.

        Args:
            missing: codes that mean "missing" besides the empty cell, for all columns or by column.
            kinds: column -> kind, where the recognised one is not right.
            decimal: the decimal sign of numbers held as text, where it is known.
            settings: of the model that imputes.
            verbs: what it shall serve: "impute", "generate" or both.
            generator: settings of the model that generates.
            constraints: what must hold in every generated row; see `rules`.
            private: differential privacy, for a model that generates alone; it keeps no checkpoints, and its
                columns are as declared (`kinds` and `decimal` are not looked at).
            folder: where to keep checkpoints, so that a killed training resumes.
            device: auto, cpu or cuda.
            progress: called with the stage and its fraction done.

        Raises:
            InputError: no rows or columns; a value that its column cannot hold.
        """
        require_rows(frame)
        if private is not None:
            return cls._fit_privately(frame, private, missing, verbs, constraints, seed, about, progress)
        settings = settings or ModelSettings()
        codec = TableCodec(missing, kinds=dict(kinds or {}), decimal=decimal).fit(frame)
        coded = codec.encode(frame)
        tell = progress or (lambda stage, fraction: None)
        share = 0.5 if len(verbs) > 1 else 1.0
        model = drawing = None
        facts: dict[str, Any] = {"rows": len(frame), "seed": seed}
        if "generate" in verbs:
            drawing = TableGenerator.fit(
                coded,
                [column for column in codec.columns_ if column.modelled],
                generator,
                rules=constraints,
                seed=seed,
                folder=folder and folder / "generate",
                resume=resume,
                device=device,
                progress=lambda label, fraction: tell(label, share * fraction),
            )
            facts |= {"generator": asdict(drawing.settings), "rules": drawing.rules.lines}
        if "impute" in verbs:
            model = TableModel.fit(
                coded,
                codec.cardinalities,
                settings,
                seed=seed,
                folder=folder and folder / "impute",
                resume=resume,
                device=device,
                progress=lambda label, fraction: tell(label, 1 - share + share * fraction),
            )
            facts["settings"] = asdict(settings)
        return cls(codec, model, {**facts, PRIVACY: NOT_PRIVATE, **(about or {})}, drawing)

    @classmethod
    def _fit_privately(
        cls,
        frame: pd.DataFrame,
        private: PrivacySettings,
        missing: Missing,
        verbs: Collection[str],
        constraints: Sequence[str],
        seed: int,
        about: Mapping[str, Any] | None,
        progress: Callable[[str, float], None] | None,
    ) -> Self:
        if tuple(verbs) != ("generate",):
            what = "only a model that generates can be trained with differential privacy"
            raise InputError("private-verb", what, "--epsilon", "add --only generate")
        from .private import fit_privately

        codec, drawing, spent = fit_privately(
            frame, private, missing=missing, rules=constraints, seed=seed, progress=progress
        )
        facts = {"generator": asdict(drawing.settings), "rules": drawing.rules.lines, PRIVACY: spent}
        told = {name: value for name, value in (about or {}).items() if name not in TELLING}
        if "card" in told:
            told["card"] = {key: value for key, value in told["card"].items() if key not in TELLING}
        return cls(codec, None, {"rows": len(frame), "seed": seed, **facts, **told}, drawing)

    def fill(
        self,
        frame: pd.DataFrame,
        items: np.ndarray | None = None,
        *,
        seed: int = 0,
        draws: int = 20,
        columns: Sequence[str] | None = None,
        first_row: int = 0,
    ) -> Filling:
        """Draw the missing cells of all rows.

        Args:
            items: (n,) int64 row keys; None takes them from the rows' content.
            draws: how many.
            columns: fill only these.
            first_row: position of the first row in its file, for the row numbers of errors.

        Raises:
            InputError: columns that differ from those of training, cells that do not fit their column.
        """
        if self.model is None:
            raise InputError(
                "cannot-impute",
                "this model generates, and does not fill in",
                "model",
                "train with --only impute",
            )
        if draws < 1:
            raise InputError("draws", "at least one draw is needed", "draws")
        coded = self.codec.encode(frame, first_row=first_row)
        where = self.codec.where(frame)
        if columns is not None:
            wanted = set(require_columns(self.codec, columns))
            where &= np.array([str(label) in wanted for label in frame.columns], dtype=bool)
        rows = np.flatnonzero(where.any(1))
        items = content_keys(coded) if items is None else items
        part = Coded(coded.numbers[rows], coded.codes[rows])
        filled = (
            self.model.fill(part, items[rows], seed=seed, draws=draws) if len(rows) else nothing(part, draws)
        )
        chosen = torch.from_numpy(items[rows].astype(np.int64))
        keys = Keys(seed, chosen, torch.zeros_like(chosen))
        return Filling(frame, where, self.codec, coded, rows, keys, filled)

    def fill_in_pieces(
        self,
        frame: pd.DataFrame,
        items: np.ndarray | None,
        *,
        draws: int = 20,
        first_row: int = 0,
        **options: Any,
    ) -> Iterator[Filling]:
        """The same in consecutive pieces whose draws fit in memory; at least one piece."""
        size = self._rows_at_a_time(draws)
        for start in range(0, max(len(frame), 1), size):
            keys = None if items is None else items[start : start + size]
            piece = frame.iloc[start : start + size]
            yield self.fill(piece, keys, draws=draws, first_row=first_row + start, **options)

    def synthesis(
        self,
        *,
        seed: int = 0,
        condition: Mapping[str, str] | None = None,
        constraints: Sequence[str] = (),
        complete: bool = False,
    ) -> Synthesis:
        """A wish for new rows, ready to be granted.

        Raises:
            InputError: `cannot-generate`; a wish that cannot be read or granted.
        """
        if self.generator is None:
            raise InputError(
                "cannot-generate", "this model fills in, and does not generate", "model", "train it anew"
            )
        return Synthesis.of(
            self.codec,
            self.generator,
            seed=seed,
            condition=condition,
            constraints=constraints,
            complete=complete,
        )

    def generate(
        self,
        count: int,
        seed: int = 0,
        condition: Mapping[str, object] | None = None,
        *,
        constraints: Sequence[str] = (),
        complete: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> pd.DataFrame:
        """New rows, with the columns and dtypes of the training table; nobody's own.

        Args:
            count: how many.
            seed: row i depends on (seed, i) and the wish alone.
            condition: column -> "70", "60..80", "60..", "F", "F|M" or "*": holds in every row.
            constraints: what else holds in every row: "start<=end", "age>=18", "total=fare+tip".
            complete: no missing cells.
            progress: told the fraction done.

        Raises:
            InputError: `cannot-generate`; a wish that cannot be read or granted.
        """
        words = {str(name): str(value) for name, value in (condition or {}).items()}
        wish = self.synthesis(seed=seed, condition=words, constraints=constraints, complete=complete)
        return wish.table(count, progress)

    def pieces(self, rows: int, draws: int) -> int:
        """How many pieces `fill_in_pieces` gives."""
        return max(1, math.ceil(rows / self._rows_at_a_time(draws)))

    def _rows_at_a_time(self, draws: int) -> int:
        return max(256, BYTES_IN_MEMORY // (8 * draws * max(1, len(self.codec.columns_))))

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the model folder: safetensors, JSON and a sha256 manifest; no code."""
        facts, tensors = self._state()
        write_model(Path(folder), facts, tensors, overwrite=overwrite)

    def _state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        facts: dict[str, Any] = {"format": FORMAT, "codec": self.codec.to_dict(), "about": self.about}
        tensors: dict[str, torch.Tensor] = {}
        for name, part in (("model", self.model), ("generator", self.generator)):
            if part is not None:
                facts[name], held = part.state()
                prefix = "" if name == "model" else f"{name}."
                tensors |= {prefix + key: tensor for key, tensor in held.items()}
        return facts, tensors

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model folder.

        Raises:
            InputError: not such a folder, damaged, or of a version that this one does not read.
        """
        return cls(*_parts_of(*read_model_of(FORMAT, folder)))

    def __getstate__(self) -> dict[str, Any]:
        facts, tensors = self._state()
        return {"facts": facts, "tensors": {name: tensor.numpy() for name, tensor in tensors.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in state["tensors"].items()}
        names = ("codec", "model", "about", "generator")
        for name, part in zip(names, _parts_of(state["facts"], tensors), strict=True):
            object.__setattr__(self, name, part)

    @property
    def guidance(self) -> float:
        """Conditions hold in every row as they are."""
        return 1.0

    @property
    def can(self) -> tuple[str, ...]:
        held = {"impute": self.model, "generate": self.generator}
        return tuple(verb for verb, part in held.items() if part is not None)

    @property
    def description(self) -> list[str]:
        """Lines for `info`: the columns."""
        columns = self.codec.columns_
        width = max((len(column.name) for column in columns), default=0)
        lines = [f"privacy     differential privacy: {statement(self.about)}"]
        lines += [
            f"columns     {len(columns)}, {sum(column.modelled for column in columns)} of them modelled"
        ]
        for column in columns:
            levels = f", {column.cardinality} levels" if column.cardinality else ""
            carried = "" if column.modelled else ", carried through unmodelled"
            lines.append(f"  {column.name:<{width}}  {column.kind}{levels}{carried}")
        return lines

    @property
    def warnings(self) -> list[Fault]:
        """What the user should know about what it was trained on."""
        found = []
        rows = int(self.about.get("rows", 0))
        if rows < 50:
            found.append(
                Fault(
                    "few-rows",
                    f"trained on {rows} rows: it can only memorise them, and intervals mean little",
                    "training",
                    "use more rows",
                    "warning",
                )
            )
        for name in self.empty_names:
            what = "no cell is observed, so none is filled"
            found.append(Fault("column-empty", what, f"column {name!r}", "", "warning"))
        return found

    @property
    def empty_names(self) -> tuple[str, ...]:
        """The columns that had no observed cell in training."""
        return tuple(column.name for column in self.codec.columns_ if column.observed == 0)


def _parts_of(
    facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[TableCodec, TableModel | None, dict[str, Any], TableGenerator | None]:
    """What `_state` wrote, as the arguments of `FittedTable`."""
    codec = TableCodec.from_dict(facts["codec"])
    mine = {k.removeprefix("generator."): v for k, v in tensors.items() if k.startswith("generator.")}
    rest = {k: v for k, v in tensors.items() if not k.startswith("generator.")}
    model = TableModel.from_state(facts["model"], rest) if "model" in facts else None
    columns = [column for column in codec.columns_ if column.modelled]
    drawing = TableGenerator.from_state(columns, facts["generator"], mine) if "generator" in facts else None
    return codec, model, dict(facts["about"]), drawing
