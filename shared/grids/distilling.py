"""A model of a grid that draws in a few steps what another draws in many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..centre import GaussianCentre
from ..distillation import JumpingCentre, Told, distil, walked
from ..errors import InputError
from ..training import Trained, device_of
from .latents import AnyModel, LatentModel
from .model import GridModel

Progress = Callable[[str, float], None]


def distil_model(
    model: AnyModel,
    told: Told,
    *,
    steps: int = 2,
    guidance: float = 1.0,
    paths: int = 20_000,
    calls: int = 16,
    passes: int = 5,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[AnyModel, Trained]:
    """Teach a copy of `model`, on a centre that jumps, the ends of its paths.

    Args:
        told: what each sample is to be, by key: conditions as they will be asked for.
        steps: of the student, one call of the network each.
        guidance: that the student follows its condition with, from then on.
        paths, calls: as for `walked`.
        passes, batch_size, learning_rate: of the student's training: how often it sees each jump.
        seed: of paths and lessons.
        folder, resume, device, progress: as for `shared.training.train`.

    Raises:
        InputError: `distilled`: it is such a model itself; as `shared.training.train`.
    """
    if model.jumps:
        what = f"this model was distilled before, to {model.jumps} steps"
        raise InputError("distilled", what, "", "distil the model that it was made from")
    tell, core = progress or (lambda label, fraction: None), model.core
    core.denoiser.to(device_of(device))
    found = walked(
        core.guided(guidance),
        core.form.shape,
        lambda keys: core.told(told(keys), len(keys)),
        paths,
        steps=steps,
        calls=calls,
        start=core.denoiser.centre.prior()[0].cpu(),
        batch=core.micro_batch,
        seed=seed,
        folder=None if folder is None else folder / "paths",
        device=core.device,
        half=core.half,
        progress=lambda label, share: tell(label, 0.5 * share),
    )
    centre = core.denoiser.centre
    assert isinstance(centre, GaussianCentre)
    jumping = JumpingCentre(centre, core.denoiser.schedule, steps)
    student = GridModel.untrained(core.settings, core.form, jumping, steps)
    student.denoiser.network.load_state_dict(core.denoiser.network.state_dict())
    lessons = max(10, round(passes * paths * steps / batch_size))
    settings = replace(
        core.settings.training(paths),
        steps=lessons,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=min(100, lessons // 10 + 1),
        validate_every=max(lessons // 20, 20),
        validation_draws=1,
        checkpoint_every=max(lessons // 20, 20),
        patience=None,
    )
    trained = distil(
        student.denoiser,
        found,
        settings,
        seed=seed,
        folder=None if folder is None else folder / "lessons",
        resume=resume,
        device=device,
        progress=lambda label, share: tell(label, 0.5 + 0.5 * share),
    )
    if isinstance(model, LatentModel):
        return LatentModel(model.autoencoder, student, model.form, model.error), trained
    return student, trained
