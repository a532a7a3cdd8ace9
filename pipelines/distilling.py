"""`ebbtide distil MODEL -o FAST`: a model that draws in a few calls what another draws in many.

Walked paths and checkpoints lie in `FAST.training` until the model is whole; a stopped run goes on from there
with `resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..domains import Domain
from ..shared.errors import InputError
from ..shared.files import locked, refuse_existing
from .manifest import model_sha256
from .training import kept_in

Progress = Callable[[str, float], None]
PATHS = 20_000
"""Of the teacher's samples, how many a student is taught unless asked for more."""


@dataclass(frozen=True)
class Distilled:
    """What a distillation left behind.

    Args:
        folder: the model.
        sha256: of its manifest, which names it.
        about: what it says about itself.
        things: what it makes.
    """

    folder: Path
    sha256: str
    about: Mapping[str, Any]
    things: str

    @property
    def lines(self) -> list[str]:
        """What was done, in plain words."""
        facts = self.about["distilled"]
        return [
            f"Taught {facts['paths']:,} {self.things} of the model {facts['from'][:16]}: "
            f"{facts['calls']} call(s) of the network each.",
            f"Wrote {self.folder}",
        ]


def distil(
    model: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    steps: int = 2,
    guidance: float = 1.0,
    data: Path | str | None = None,
    paths: int = PATHS,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Distilled:
    """Teach a copy of a model to draw in a few steps, and save it.

    Args:
        model: the teacher's folder.
        out: the model folder to make.
        domain: the teacher's.
        steps: calls of the network that the student makes for a sample, 1 to 8.
        guidance: that it will follow conditions with.
        data: whose conditions it is taught with; needed where they are not classes alone.
        paths: how many of the teacher's samples it is taught.
        seed: same seed, same model.
        device: auto, cpu or cuda.
        resume: go on with a run that was stopped.
        overwrite: replace a model, and throw away a stopped run.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: `cannot-distil`: the teacher is of tables or scans; no such model; output that exists; a
            stopped run that is not to be resumed, or is another.
    """
    model, out = Path(model), Path(out)
    fitted = domain.load(model)
    teach = getattr(fitted, "distilled", None)
    if teach is None:
        what = f"a model of {domain.things} is not distilled; only those of pictures are"
        raise InputError("cannot-distil", what, str(model), "use `generate --steps` for fewer steps")
    if not 1 <= steps <= 8:
        raise InputError("steps", f"{steps} is not in 1 ... 8", "--steps", "2 is usual")
    if paths < 64:
        raise InputError("paths", f"{paths} are too few to learn from", "--paths", "20000 is usual")
    refuse_existing(out, overwrite)
    pictures, named = None, None
    if data is not None:
        survey = domain.survey(Path(data), progress)
        pictures, named = domain.sample(Path(data), survey, survey.items, seed, progress), survey.sha256
    run = {
        "model": model_sha256(model),
        "data": named,
        "steps": steps,
        "guidance": guidance,
        "paths": paths,
        "seed": seed,
    }
    with locked(out), kept_in(out, run, resume, overwrite) as (folder, going_on):
        made = teach(
            pictures,
            steps=steps,
            guidance=guidance,
            paths=paths,
            seed=seed,
            folder=folder,
            resume=going_on,
            device=device,
            progress=progress,
        )
        made.save(out, overwrite=overwrite)
    return Distilled(out, model_sha256(out), made.about, domain.things)
