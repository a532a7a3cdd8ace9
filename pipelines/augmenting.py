"""`ebbtide augment DATA -o OUT`: the real data with synthetic data added, and whether that helps.

The proof is a downstream model, cross-validated with and without: whatever is added to a fold is made by a
model that was trained on the training rows of that fold alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..domains import Domain
from ..domains.tabular import TabularDomain
from ..domains.tabular.augmenting import Made, Target, enough, marked_source, place_of, wanted
from ..domains.tabular.codec import Coded
from ..domains.tabular.fitted import FittedTable
from ..domains.tabular.measures import downstream
from ..domains.tabular.measures.downstream import Fold, Proof
from ..domains.tabular.writing import open_writer
from ..shared.artifacts import swap_in, tool_version
from ..shared.errors import Fault, InputError
from ..shared.files import explained, locked, partial_of, refuse_existing, remove
from . import output_cards
from .generating import named
from .manifest import NAME, manifest, model_sha256, sha256_of, write_json
from .options import model_folder
from .proofs import proof_facts, proof_lines, proof_picture

Progress = Callable[[str, float], None]
MARK = "synthetic"
"""The column that tells synthetic rows (1) from real ones (0)."""
ROWS = 20_000
"""Real rows that are learnt from and varied, at most."""
GRIDS = 50_000
"""Pictures or scans that are learnt from, at most."""
NOT_KEPT = "trained for this run and not kept"
"""In place of a model's sha256."""
OURS = "Ebbtide"


@dataclass(frozen=True)
class Augmented:
    """What a run left behind.

    Args:
        folder: the output.
        files: names of what is in it.
        counts: real rows, synthetic rows, and what was dropped.
        proof: the downstream models' scores, as plain JSON; None when it was not asked for.
        lines: the same in plain words.
        warnings: what a user should know.
    """

    folder: Path
    files: tuple[str, ...]
    counts: Mapping[str, Any]
    proof: Mapping[str, Any] | None
    lines: tuple[str, ...]
    warnings: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What is asked of an augmentation.

    Args:
        balance: the column whose classes are brought to the size of the largest.
        factor: how many times as large the table, or the largest class, becomes; None leaves it to the kind
            of data.
        vary: None draws new rows; else real rows are taken and this share of their cells drawn anew.
        target: the column that downstream models predict; `balance` unless said.
        folds, repeats: of the proof; no repeats, no proof.
        seed: of everything.
    """

    balance: str | None = None
    factor: float | None = None
    vary: float | None = None
    target: str | None = None
    folds: int = 5
    repeats: int = 1
    seed: int = 0

    def checked(self) -> Asked:
        """The same. Raises InputError for what cannot be done."""
        if self.factor is not None and not 1 <= self.factor <= 100:
            raise InputError("factor", f"{self.factor:g} times as large", "--factor", "from 1 to 100")
        if self.vary is not None and not 0 < self.vary <= 1:
            raise InputError("strength", f"{self.vary:g} is not in (0, 1]", "--vary", "0.3 to 0.7 is usual")
        if self.factor == 1 and self.balance is None:
            raise InputError(
                "nothing-to-add", "once as large adds nothing", "--factor", "ask for more than 1"
            )
        return self

    def wanted(self, counts: np.ndarray) -> np.ndarray:
        """(k,) rows to add of each class of which there are `counts`."""
        return wanted(counts, balance=self.balance is not None, factor=self.factor)


def augment(
    data: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    asked: Asked,
    model: Path | str | None = None,
    holdout: Path | str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Augmented:
    """Write the real data with synthetic data added, with card and manifest, and prove what that is worth.

    Args:
        data: a table, or a folder of pictures or scans.
        out: a folder that does not exist yet.
        domain: what kind of data it is, with its options.
        asked: how many, of what, how.
        model: trained before, on these data; None trains one now. The proof trains its own, a fold at a time.
        holdout: pictures or scans that no model saw, of the same classes or labels, on which the proof is
            made; tables are cross-validated instead.
        device: auto, cpu or cuda.
        overwrite: replace `out`.
        options: what the domain was told, for the manifest.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: bad data, wishes that do not fit them, a model that cannot, output that exists.
    """
    data, out, asked = Path(data), Path(out), asked.checked()
    model = None if model is None else model_folder(model)
    tell = progress or (lambda stage, fraction: None)
    refuse_existing(out, overwrite)
    if holdout is not None and isinstance(domain, TabularDomain):
        what = "tables are cross-validated, and need no holdout"
        raise InputError("holdout-unused", what, str(holdout), "leave --holdout away")
    with locked(out), explained(out):
        partial = partial_of(out)
        remove(partial)
        partial.mkdir(parents=True)
        try:
            if isinstance(domain, TabularDomain):
                work = _Table.of(data, domain, asked, model, device, tell)
                done = work.write(partial, out, options or {})
            else:
                fill = _augment_grids(domain)
                done = fill(data, partial, out, domain, asked, model, holdout, device, options or {}, tell)
            swap_in(partial, out)
        finally:
            remove(partial)
    return done


def _augment_grids(domain: Domain[Any, Any]) -> Callable[..., Augmented]:
    """What augments pictures or scans; imported when it is used."""
    if domain.name == "mri":
        from .augmenting_scans import augment_scans

        return augment_scans
    from .augmenting_pictures import augment_pictures

    return augment_pictures


@dataclass(frozen=True)
class _Table:
    """A table being augmented."""

    data: Path
    domain: TabularDomain
    asked: Asked
    survey: Any
    frame: pd.DataFrame
    fitted: FittedTable
    digest: str
    target: Target
    chosen: str
    tell: Progress
    device: str

    @classmethod
    def of(
        cls,
        data: Path,
        domain: TabularDomain,
        asked: Asked,
        model: Path | str | None,
        device: str,
        tell: Progress,
    ) -> _Table:
        """Read and learn."""
        verb = "generate" if asked.vary is None else "impute"
        domain = TabularDomain(replace(domain.options, only=verb))
        survey: Any = domain.survey(data, tell)
        if MARK in survey.source.columns:
            what = f"there is a column {MARK!r} already"
            raise InputError("column-taken", what, str(data), "rename it, or augment the real rows alone")
        frame = domain.sample(data, survey, ROWS, asked.seed)
        if model is None:
            about = output_cards.learnt_from(data, survey)
            fitted = domain.fit(
                frame, seed=asked.seed, about=about, survey=survey, device=device, progress=tell
            )
            digest = NOT_KEPT
        else:
            fitted, digest = domain.load(Path(model)), model_sha256(Path(model))
        require_able(fitted, asked, model)
        name = asked.balance or asked.target
        place, chosen = place_of(fitted.codec, name, balance=asked.balance is not None, where=str(data))
        known = ~np.isnan(place.of(fitted.codec.encode(frame)))
        frame = frame[known]
        target = Target.of(place, fitted.codec.encode(frame))
        if asked.factor is None and not place.is_number:
            asked = replace(asked, factor=enough(target.counts, balance=asked.balance is not None))
        return cls(data, domain, asked, survey, frame, fitted, digest, target, chosen, tell, device)

    def write(self, folder: Path, out: Path, options: Mapping[str, Any]) -> Augmented:
        """Make the rows, prove them, and write everything into `folder`."""
        seed, codec = self.asked.seed, self.fitted.codec
        self.tell("making rows", 0.0)
        coded = codec.encode(self.frame)
        counts = self.asked.wanted(self.target.counts)
        made = downstream.made_by(self.fitted, self.frame, coded, self.target, counts, self.asked.vary, seed)
        proof = self.prove()
        table = f"{self.data.stem}.augmented{self.data.suffix}"
        write_table(folder / table, self.domain, self.survey, made.frame, codec.columns_)
        vary = self.asked.vary
        name, several = self.target.place.name, made.different < len(made.frame)
        repeated = f", each row several times, with {name} in the proportions seen in it" if several else ""
        how = "new rows" if vary is None else f"real rows, {100 * vary:.0f} % of their cells drawn anew"
        total = self.counts(made)
        return finish(
            folder,
            out,
            output_cards.Origin(
                out.name,
                self.domain,
                self.fitted,
                self.digest,
                self.data.name,
                output_cards.card_of(self.data),
            ),
            self.survey,
            {**options, **vars(self.asked)},
            total,
            [table],
            proof,
            note=f"Rows with {MARK} = 1 are",
            mark=f"the column {MARK} (1: synthetic)",
            card={"conditions": f"{how}; of each class of {name} as many as wanted{repeated}"},
            lines=self.lines(made, total),
            column=MARK,
        )

    def prove(self) -> Proof | None:
        """Downstream models with and without; None when no proof is asked for.

        Raises:
            InputError: too few rows.
        """
        if not self.asked.repeats:
            return None
        fewest = self.target.counts[self.target.counts > 0].min()
        if len(self.frame) < downstream.FEWEST or fewest < self.asked.folds:
            raise InputError(
                "too-few-rows",
                f"{len(self.frame)} rows, {fewest} of the rarest class, are too few for a proof",
                str(self.data),
                "pass --no-proof to do without",
            )
        return downstream.prove(
            self.frame,
            self.fitted.codec,
            self.target.place.name,
            {OURS: self.way},
            self.asked.wanted,
            balance=self.asked.balance is not None,
            folds=self.asked.folds,
            repeats=self.asked.repeats,
            seed=self.asked.seed,
            progress=self.tell,
        )

    def way(self, fold: Fold) -> Coded:
        """Rows for a fold, by a model of its training rows alone."""
        fitted = self.domain.fit(fold.frame, seed=fold.seed, about={}, survey=self.survey, device=self.device)
        coded = fitted.codec.encode(fold.frame)
        place, _ = place_of(fitted.codec, fold.target.name, balance=False, where=str(self.data))
        target = Target.of(place, coded)
        counts = self.asked.wanted(target.counts)
        if not counts.any():
            return downstream.nothing(fold)
        made = downstream.made_by(fitted, fold.frame, coded, target, counts, self.asked.vary, fold.seed)
        return fold.codec.encode(made.frame)

    def counts(self, made: Made) -> dict[str, Any]:
        """What was made, for manifest and card."""
        return {
            "real": self.survey.items,
            "synthetic": len(made.frame),
            "different": made.different,
            "drawn": made.drawn,
            "near_copies_dropped": made.copies,
            "implausible_dropped": made.implausible,
            "short": made.short,
        }

    def lines(self, made: Made, counts: Mapping[str, Any]) -> list[str]:
        """The same in plain words."""
        told = [
            f"{counts['real']:,} real rows, {counts['synthetic']:,} synthetic ones added ({MARK} = 1).",
            *self.repeated(made),
            f"Of {made.drawn:,} that were made {made.copies:,} were near copies of real rows and "
            f"{made.implausible:,} implausible; these were dropped.",
            f"Column {self.target.place.name} is predicted ({self.chosen}).",
        ]
        if made.short:
            told.append(f"{made.short:,} fewer than asked for are left: too many had to be dropped.")
        return told

    def repeated(self, made: Made) -> list[str]:
        """That rows are written several times, where they are."""
        if made.different == len(made.frame):
            return []
        name = self.target.place.name
        return [
            f"Of these {made.different:,} differ; each is written several times, with {name} in the "
            "proportions that models of the real rows see in it."
        ]


def given_or_trained(
    domain: Domain[Any, Any],
    data: Path,
    survey: Any,
    asked: Asked,
    model: Path | str | None,
    device: str,
    tell: Progress,
) -> tuple[Any, str]:
    """The model of pictures or scans that was given, or one trained now on all of them; and its sha256."""
    if model is not None:
        return domain.load(Path(model)), model_sha256(Path(model))
    raw = domain.sample(data, survey, GRIDS, asked.seed, tell)
    about = output_cards.learnt_from(data, survey)
    fitted = domain.fit(raw, seed=asked.seed, about=about, survey=survey, device=device, progress=tell)
    return fitted, NOT_KEPT


def finish(
    folder: Path,
    out: Path,
    origin: output_cards.Origin,
    survey: Any,
    options: Mapping[str, Any],
    counts: Mapping[str, Any],
    files: Sequence[str],
    proof: Proof | None,
    *,
    note: str,
    mark: str,
    card: Mapping[str, Any],
    lines: Sequence[str],
    column: str = "",
) -> Augmented:
    """Write the proof, the manifest and the card beside the augmented data.

    Args:
        folder: where they lie; `out`: what it will be called.
        survey: of the real data.
        options: what was asked; has "seed".
        counts: has "real", "synthetic" and what was dropped ("..._dropped").
        files: names of the data.
        note: which items "are SYNTHETIC: ...".
        mark, column: how they are told apart, as for `output_cards.augmented`.
        card: what its `synthesis` says beside what all have.
        lines: for a person, before those of the proof.
    """
    files = list(files)
    if proof is not None:
        proof_picture(proof, folder / "proof.png")
        write_json(folder / "proof.json", proof_facts(proof))
        files += ["proof.png", "proof.json"]
    fitted = origin.fitted
    written = manifest(
        "augment",
        data={"name": origin.data, "sha256": survey.sha256, "items": survey.items},
        model={"sha256": origin.model, **fitted.about},
        options=options,
        counts=counts,
        assumed=survey.assumed,
        warnings=fitted.warnings,
        files={name: sha256_of(folder / name) for name in files},
    )
    said = f"{note} SYNTHETIC: for training alone, never for testing. Not for diagnosis."
    write_json(folder / NAME, written | {"note": said})
    about = {
        **card,
        "seed": options["seed"],
        "rejected": sum(count for name, count in counts.items() if name.endswith("_dropped")),
        "utility": "not measured" if proof is None else " ".join(downstream.verdict(proof)[2]),
        "tool": f"ebbtide {tool_version()}",
    }
    output_cards.augmented(folder, origin, about, mark, (counts["real"], counts["synthetic"]), files, column)
    names = (*files, *output_cards.MADE_BESIDE, NAME)
    told = [*lines, *(proof_lines(proof) if proof else []), f"Wrote {named(names)} in {out}"]
    facts = None if proof is None else proof_facts(proof)
    return Augmented(out, names, counts, facts, tuple(told), tuple(fitted.warnings))


def require_able(fitted: FittedTable, asked: Asked, model: Path | str | None) -> None:
    """Raise InputError when the model cannot make rows in the way that was asked for."""
    if asked.vary is None and "generate" not in fitted.can:
        raise InputError(
            "cannot-generate",
            "this model fills in, and does not generate",
            str(model or "model"),
            "say --vary 0.5 to vary real rows with it, or train it again",
        )


def write_table(path: Path, domain: TabularDomain, survey: Any, made: pd.DataFrame, columns: Any) -> None:
    """The real rows as they were, piece by piece, then the synthetic ones, with a column that tells which."""
    source = survey.source
    note = {"ebbtide": f"rows with {MARK} = 1 are synthetic: see the manifest"}
    with open_writer(path, source=marked_source(source, MARK), columns=columns, metadata=note) as writer:
        dtypes: Any = {}
        for frame in source.chunks():
            dtypes = dtypes if len(dtypes) else frame.dtypes
            writer.write(frame.assign(**{MARK: 0}))
        added = made.reindex(columns=list(source.columns))
        for name in source.columns if len(dtypes) else ():
            if added[name].dtype != dtypes[name]:
                added[name] = added[name].astype(dtypes[name], errors="ignore")
        writer.write(added.assign(**{MARK: 1}), np.ones((len(added), len(added.columns) + 1), bool))
