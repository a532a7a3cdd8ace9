"""`ebbtide train DATA -o MODEL`: learn from a data set and leave a model folder behind.

Checkpoints lie in `MODEL.training` until the model is whole; a killed training goes on from there with
`resume`,
to the same weights as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..domains import Domain, Fitted
from ..shared.errors import Fault, InputError
from ..shared.files import explained, locked, refuse_existing, remove
from .manifest import model_sha256, read_json, sha256_of, write_json
from .output_cards import learnt_from

Progress = Callable[[str, float], None]
ROWS = 50_000
"""Items that a model learns from at most, unless asked for more."""


@dataclass(frozen=True)
class TrainedModel:
    """What a training left behind.

    Args:
        folder: the model.
        sha256: of the model's manifest, which names it.
        about: what it says about itself.
        warnings: what a user should know before trusting it.
        things: what it was trained on: rows, volumes.
    """

    folder: Path
    sha256: str
    about: Mapping[str, Any]
    warnings: tuple[Fault, ...]
    things: str = "rows"

    @property
    def lines(self) -> list[str]:
        """What was done, in plain words."""
        rows = self.about.get("rows", self.about.get("items", 0))
        data = self.about.get("data", "the data")
        return [f"Trained on {rows:,} {self.things} of {data}.", f"Wrote {self.folder}"]


def train(
    data: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    seed: int = 0,
    rows: int = ROWS,
    device: str = "auto",
    plan: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a model and save it.

    Args:
        data: what to learn from.
        out: the model folder to make.
        domain: what kind of data it is, with its options (and the plan's).
        seed: same seed, same model.
        rows: how many items to learn from at most.
        device: auto, cpu or cuda.
        plan: a YAML file by `ebbtide plan`: kinds, missing codes, rows, seed (unless given) and the model.
        resume: go on with a training that was stopped.
        overwrite: replace a model, and throw away a stopped training.
        options: what the domain was told, to recognise a stopped training of the same.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: bad data; a model that exists; a stopped training that is not to be resumed, or is
        another.
    """
    data, out = Path(data), Path(out)
    if plan is not None:
        from .planning import read_plan

        written = read_plan(plan, domain)
        domain, rows, seed = written.domain, written.rows, seed or written.seed
        options = {**(options or {}), "plan": sha256_of(Path(plan))}
    refuse_existing(out, overwrite)
    with locked(out):
        survey = domain.survey(data, progress)
        run = {"data": survey.sha256, "seed": seed, "rows": rows, "options": _plain(options or {})}
        with kept_in(out, run, resume, overwrite) as (folder, going_on):
            fitted: Fitted = domain.fit(
                domain.sample(data, survey, rows, seed, progress),
                seed=seed,
                about=learnt_from(data, survey),
                survey=survey,
                folder=folder,
                resume=going_on,
                device=device,
                progress=progress,
            )
            fitted.save(out, overwrite=overwrite)
    warnings = (*survey.faults, *fitted.warnings)
    return TrainedModel(out, model_sha256(out), fitted.about, warnings, domain.things)


@contextmanager
def kept_in(out: Path, run: Mapping[str, Any], resume: bool, overwrite: bool) -> Iterator[tuple[Path, bool]]:
    """Where the checkpoints of a model in the making lie, and whether a stopped training goes on; what got
    as far as a checkpoint stays when it is stopped, and goes when the model is whole.

    Args:
        out: the model folder to make.
        run: what is done, to recognise it by.

    Raises:
        InputError: `resume-differs`, `unfinished-training`.
    """
    checkpoints = out.with_name(out.name + ".training")
    going_on = _begin(checkpoints, run, resume, overwrite)
    try:
        yield checkpoints / "checkpoints", going_on
    except BaseException:
        if not _begun(checkpoints):
            remove(checkpoints)
        raise
    remove(checkpoints)


def _begin(checkpoints: Path, run: Mapping[str, Any], resume: bool, overwrite: bool) -> bool:
    """Whether a stopped training of the same run goes on; else the folder is made anew."""
    noted = checkpoints / "run.json"
    if noted.is_file() and _begun(checkpoints):
        if resume:
            if read_json(noted) == run:
                return True
            raise InputError(
                "resume-differs",
                "the training that was stopped here had other data, rows, seed or options",
                str(checkpoints),
                "repeat its command, or pass --overwrite to begin anew",
            )
        if not overwrite:
            raise InputError(
                "unfinished-training",
                "a training was stopped here",
                str(checkpoints),
                "pass --resume to go on with it, or --overwrite to begin anew",
            )
    with explained(checkpoints):
        remove(checkpoints)
        checkpoints.mkdir(parents=True)
    write_json(noted, run)
    return False


def _begun(checkpoints: Path) -> bool:
    """Whether a stopped training got as far as a checkpoint."""
    held = checkpoints / "checkpoints"
    return held.is_dir() and any(held.iterdir())


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they will be when read from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
