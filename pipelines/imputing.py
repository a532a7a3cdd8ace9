"""`ebbtide impute DATA -o OUT`: fill what is missing in a data set of any size, unit by unit.

Work in progress lives in `OUT.partial`: a state file, the model, and one folder for each finished unit.
Running
the same command again goes on where it stopped; `OUT` appears by one rename when all is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..domains import Domain, Fitted, Request, Survey
from ..shared.errors import Fault, InputError
from ..shared.files import locked, refuse_existing, remove
from . import output_cards
from .frames import Imputation, impute
from .generating import named
from .manifest import NAME, manifest, model_sha256, sha256_of, write_json
from .options import model_folder
from .work import Work

__all__ = ["Imputation", "Imputed", "impute", "impute_file"]

Progress = Callable[[str, float], None]
ROWS = 50_000
"""Items that a model learns from, unless asked for more."""


@dataclass(frozen=True)
class Imputed:
    """What a run left behind.

    Args:
        folder: the output.
        files: names of what is in it.
        summary: counts of what was missing and filled.
        lines: the same in plain words.
        warnings: faults that did not stop the work.
        resumed: units that an earlier, interrupted run had finished.
    """

    folder: Path
    files: tuple[str, ...]
    summary: Mapping[str, Any]
    lines: tuple[str, ...]
    warnings: tuple[Fault, ...] = ()
    resumed: int = 0

    @property
    def exit_code(self) -> int:
        """1 when a part could not be filled, 0 when everything was done."""
        return 1 if self.summary.get("failed") else 0


@dataclass(frozen=True)
class _Job:
    """One run: what it works on and where."""

    domain: Domain[Any, Any]
    data: Path
    out: Path
    request: Request
    options: Mapping[str, Any]
    progress: Progress
    survey: Survey = field(repr=False)
    first: int = 0
    last: int = 0

    @property
    def work(self) -> Work:
        return Work(self.out)

    @property
    def starts(self) -> list[int]:
        return list(range(self.first, self.last, self.survey.per_unit))


def impute_file(
    data: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    model: Path | str | None = None,
    draws: int = 20,
    all_draws: int = 0,
    statistic: str = "mean",
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    rows: int = ROWS,
    device: str = "auto",
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Imputed:
    """Complete a data set and say what was filled, by which model, how surely.

    Args:
        data: what to complete.
        out: a folder that does not exist yet: completed data, mask, spread, picture, manifest; the model too
            when it was trained here.
        domain: what kind of data it is, with its options; see `domains.tabular.TabularDomain`.
        model: a model folder, or the name of a bundled model; None trains one first.
        draws: how many times each missing part is drawn.
        all_draws: how many completed data sets to write, for multiple imputation.
        statistic: what the completed data shows of the draws: mean, median, mode or sample.
        seed: of training and of the draws.
        shard: (i, n), the i-th of n nearly equal parts, i from 1: for many machines. Needs `model`.
        rows: how many items at most a model learns from.
        device: what to train on: auto, cpu or cuda.
        overwrite: replace `out`, and throw away an unfinished run with other options.
        options: what the domain was told, for the manifest.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: bad data, options that do not fit, output that exists, a model of something else.
    """
    data, out = Path(data), Path(out)
    model = None if model is None else model_folder(model)
    request = _request(draws, statistic, seed, all_draws)
    report = progress or (lambda stage, fraction: None)
    if shard is not None and model is None:
        raise InputError(
            "shard-model",
            "shards must share one model",
            "--shard",
            f"train it first: ebbtide train {data.name} -o MODEL, then add --model MODEL to every shard",
        )
    refuse_existing(out, overwrite)
    with locked(out):
        survey = domain.survey(data, report)
        first, last = span(survey.items, shard)
        told = {
            **(options or {}),
            "draws": draws,
            "all_draws": all_draws,
            "statistic": statistic,
            "seed": seed,
            "shard": list(shard) if shard else None,
            "rows": rows,
        }
        job = _Job(domain, data, out, request, told, report, survey, first, last)
        _begin(job, model, overwrite)
        try:
            fitted, digest = _model(job, model, rows, device)
            counts, resumed = _fill(job, fitted)
            return _finish(job, fitted, digest, counts, resumed, trained=model is None)
        except BaseException:
            job.work.put_away()
            raise


def _request(draws: int, statistic: str, seed: int, all_draws: int) -> Request:
    if statistic not in ("mean", "median", "mode", "sample"):
        raise InputError(
            "statistic", f"no statistic {statistic!r}", "--statistic", "choose mean, median, mode or sample"
        )
    if draws < 1:
        raise InputError("draws", f"{draws} draws", "--draws", "at least 1; 20 give a 90 % interval")
    if not 0 <= all_draws <= draws:
        raise InputError(
            "all-draws",
            f"{all_draws} completed data sets of {draws} draws",
            "--all-draws",
            "ask for at most as many as --draws",
        )
    return Request(draws, statistic, seed, all_draws)  # type: ignore[arg-type]


def span(items: int, shard: tuple[int, int] | None) -> tuple[int, int]:
    """First item and end of a shard (i, n), i from 1; of everything when None.

    Example:
        >>> [span(10, (i, 3)) for i in (1, 2, 3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    if shard is None:
        return 0, items
    i, n = shard
    if not 1 <= i <= n <= max(items, 1):
        raise InputError(
            "shard",
            f"there is no shard {i}/{n} of {items}",
            "--shard",
            "write i/n with i from 1 to n, and n at most the number of rows",
        )
    return items * (i - 1) // n, items * i // n


def _begin(job: _Job, model: Path | str | None, overwrite: bool) -> None:
    """Make the working folder, or recognise the unfinished work of the same run in it."""
    state = {
        "data": job.survey.sha256,
        "per_unit": job.survey.per_unit,
        "options": dict(job.options),
        "model": None if model is None else model_sha256(Path(model)),
    }
    job.work.begin(state, 3 * int(job.survey.facts.get("bytes", 0)) + 2**22, overwrite)


def _is_model(folder: Path) -> bool:
    return (folder / NAME).is_file()


def _model(job: _Job, model: Path | str | None, rows: int, device: str) -> tuple[Fitted, str]:
    """The model that was given, or one trained now (or trained already, when this run was interrupted)."""
    if model is not None:
        return job.domain.load(Path(model)), model_sha256(Path(model))
    folder = job.work.folder / "model"
    if not _is_model(folder):
        raw = job.domain.sample(job.data, job.survey, rows, job.request.seed, job.progress)
        checkpoints = job.work.folder / "training"
        fitted: Fitted = job.domain.fit(
            raw,
            seed=job.request.seed,
            about=output_cards.learnt_from(job.data, job.survey),
            survey=job.survey,
            folder=checkpoints,
            resume=checkpoints.exists(),
            device=device,
            progress=job.progress,
            verbs=("impute",),
        )
        fitted.save(folder)
        remove(checkpoints)
    return job.domain.load(folder), model_sha256(folder)


def _fill(job: _Job, fitted: Fitted) -> tuple[list[dict[str, Any]], int]:
    """Fill every unit that is not finished yet; give the counts of all, and how many were finished before."""
    todo = job.work.missing(job.starts)
    if todo:
        for unit in job.domain.units(job.data, job.survey, todo[0], job.last):
            if unit.start in todo:
                job.work.do(unit.start, partial(job.domain.fill, fitted, job.survey, unit, job.request))
            ended = unit.start + unit.items - job.first
            job.progress("filling", ended / (job.last - job.first))
    return job.work.counts(job.starts), len(job.starts) - len(todo)


def _finish(
    job: _Job, fitted: Fitted, digest: str, counts: list[dict[str, Any]], resumed: int, trained: bool
) -> Imputed:
    """Put the units together, describe them, and give the folder its name."""
    parts = {start: job.work.part(start) for start in job.starts}
    summary, made = job.domain.summary(counts), list[str]()
    warnings = (*job.survey.faults, *fitted.warnings)

    def build(whole: Path) -> None:
        made.extend(
            job.domain.assemble(
                job.data, fitted, job.survey, parts, job.last, whole, job.request, job.progress
            )
        )
        job.domain.preview(job.data, fitted, list(parts.values()), whole / "preview.png")
        made.append("preview.png")
        if trained:
            shutil.copytree(job.work.folder / "model", whole / "model")
        write_json(whole / NAME, _manifest(job, fitted, digest, summary, warnings, made))
        made.extend(_card(job, fitted, digest, summary, made))

    job.work.finish(build)
    files = (*made, NAME, *(["model"] if trained else []))
    lines = [*job.domain.tell(summary), f"Wrote {named(files)} in {job.out}"]
    return Imputed(job.out, files, summary, tuple(lines), warnings, resumed)


def _card(
    job: _Job, fitted: Fitted, digest: str, summary: Mapping[str, Any], made: Sequence[str]
) -> list[str]:
    origin = output_cards.Origin(
        job.out.name, job.domain, fitted, digest, job.data.name, output_cards.card_of(job.data)
    )
    return output_cards.imputed(
        job.work.whole,
        origin,
        draws=job.request.draws,
        shown=job.request.statistic,
        filled=int(summary.get("pixels_filled", summary["filled"])),
        mask=next((name for name in made if "mask" in name), "none"),
        files=made,
    )


def _manifest(
    job: _Job,
    fitted: Fitted,
    digest: str,
    summary: Mapping[str, Any],
    warnings: Sequence[Fault],
    made: Sequence[str],
) -> dict[str, Any]:
    whole = job.work.whole
    return manifest(
        "impute",
        data={
            "name": job.data.name,
            "sha256": job.survey.sha256,
            "items": job.survey.items,
            "first": job.first,
            "end": job.last,
            **job.survey.facts,
        },
        model={"sha256": digest, **fitted.about},
        options=job.options,
        counts=summary,
        assumed=job.survey.assumed,
        warnings=warnings,
        files={name: sha256_of(whole / name) for name in made},
    )
