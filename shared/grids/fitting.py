"""Fitting a model of a grid: its centre, its network, and how far either is to be trusted."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

import torch

from ..centre import GaussianCentre
from ..data import Condition, Encoded
from ..hiding import Augmentation, GridData, Hiding, held_out, marks, with_copies
from ..masking import Pattern
from ..noise import key_of
from ..training import Trained, train
from ..words import WIDTH
from .calibration import DRAWN, DRAWS, asked, covering, drawn_for, least_error
from .latent_fitting import fit_latents, probe_latents
from .latents import AnyModel, LatentModel, autoencoder_of
from .model import GridModel, Trust, centre_of
from .settings import GridSettings, GridShape

Progress = Callable[[str, float], None]

_AT_ALL, _EACH, _PACKED, _MAPS = 240, 60, 30, 46  # bytes; see `step_bytes`
_HURRIED = 2  # examples to calibrate by, where time ran out


def fit_model(
    data: GridData,
    settings: GridSettings,
    pattern: Pattern,
    *,
    classes: int = 0,
    words: int = 0,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[AnyModel, Trained]:
    """Fit the centre, then train the network; with `settings.latent`, in the latents of an autoencoder that
    is trained first.

    Args:
        data: n examples.
        settings: how.
        pattern: what is hidden in training, beside the examples in which nothing is observed.
        classes: how many labels there are.
        words: how many ids there are, where the tokens are ids of words.
        augmentation: changes examples by key.
        seed: of the network's first weights and of the training.
        folder, resume, device, progress: as `shared.training.train`.

    Raises:
        ValueError: fewer than two groups.
        InputError, Diverged, Interrupted: as `shared.training.train`.
    """
    tell = progress or (lambda label, fraction: None)
    form = _form(data, classes, words, augmentation)
    if settings.latent:
        return fit_latents(
            data,
            settings,
            form,
            pattern,
            augmentation=augmentation,
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=progress,
        )
    tell("fitting the centre", 0.0)
    apart = held_out(data.owners, settings.held_out, seed)
    learning, kept = data[(~apart).nonzero()[:, 0]], data[apart.nonzero()[:, 0]]
    some = with_copies(learning, augmentation, seed)
    centre = centre_of(settings, some.values, some.observed, some.owners)
    with torch.random.fork_rng():
        torch.manual_seed(key_of(seed, "network") % 2**31)
        model = GridModel.untrained(settings, form, centre)

    def examples(part: GridData, changes: Augmentation | None, drop: float) -> Hiding:
        blind = settings.drop_channels if drop else 0.0
        return Hiding(
            part,
            centre.fold(part.owners),
            pattern,
            settings.blank,
            drop,
            changes,
            form.done,
            blind,
            settings.patch,
            2**settings.levels,
        )

    trained = train(
        model.denoiser,
        examples(learning, augmentation, settings.drop),
        settings.training(len(data)),
        held_out=examples(kept, None, 0.0) if len(kept) else None,
        seed=seed,
        folder=folder,
        resume=resume,
        device=device,
        progress=lambda label, fraction: tell(label, 0.02 + 0.95 * fraction),
    )
    model.denoiser.centre = centre.whole.to(next(model.denoiser.parameters()).device)
    if len(kept):
        model.trust = calibrated(
            model,
            examples(kept, None, 0.0),
            seed,
            most=_HURRIED if trained.ending == "time" else None,
            progress=lambda label, share: tell("calibrating on held-out examples", 0.97 + 0.03 * share),
        )
    return model, trained


def _form(data: GridData, classes: int, words: int, augmentation: Augmentation | None) -> GridShape:
    """What a network has to be made for to be told of these data."""
    told = data.condition
    width = 0 if told.tokens is None else told.tokens.shape[2]
    return GridShape(
        tuple(data.values.shape[1:]),
        classes,
        0 if told.covariates is None else told.covariates.shape[1],
        WIDTH if words else width if data.table is None else data.table.vectors.shape[1],
        0 if told.channels is None else told.channels.shape[1],
        0 if augmentation is None else marks(augmentation, data),
        words,
        told.tokens.shape[1] if words and told.tokens is not None else 0,
    )


def calibrated(
    model: GridModel,
    examples: Hiding,
    seed: int,
    draws: int = DRAWS,
    most: int | None = None,
    progress: Progress | None = None,
) -> Trust:
    """The weight that errs least, and the spread with which 90 % intervals cover 90 %, on hidden entries of
    held-out examples; counted where examples differ (most of a scan is air). `most` examples; None takes
    fewer the larger they are, for as many entries drawn."""
    model.denoiser.eval()
    most = _calibrating(model.form, draws) if most is None else most
    examples = replace(examples, blank=0.0, patch=None)
    batch, known, keys, condition = asked(examples, model.form, seed, most)
    network, centre = model.means(known, keys, condition)
    varies = model.denoiser.centre.prior()[1].cpu()
    where = batch.where & (varies >= varies.mean())
    if not where.any():
        return Trust()
    weight = least_error((network - centre)[where], (batch.x_0 - centre)[where])
    middle = centre + weight * (network - centre)
    rows, every = drawn_for(keys, draws)
    drawn = model.fill(known[rows], every, condition[rows], sampler=model.filler(8), progress=progress)
    spread = (drawn - network[rows]).unflatten(0, (-1, draws)).square().mean(1).sqrt()
    return Trust(weight, covering(batch.x_0 - middle, spread, where))


def _calibrating(form: GridShape, draws: int) -> int:
    """Examples to calibrate by: fewer, the larger they are."""
    return max(2, min(48, DRAWN // (draws * math.prod(form.shape[1:]))))


def step_bytes(settings: GridSettings, shape: tuple[int, ...]) -> float:
    """About how much memory a training step takes, beside the data and the program, for examples (C, *S).

    A rule from measurements (batches of 1 to 4, 0.3 to 5 million voxels, one and two levels of packing, whole
    and in windows; right to a third): so much for each entry of the grid, with the centre and its noise, and
    so much for each that the network sees.
    """
    whole, ndim = math.prod(shape), len(shape) - 1
    sides = shape[1:] if settings.patch is None else [min(settings.patch, n) for n in shape[1:]]
    maps: float = _MAPS * settings.widths[0] * settings.blocks / 2 ** (ndim * settings.levels)
    maps *= (1 if settings.precision == "bf16" else 2) / (3 if settings.checkpointing else 1)
    seen = settings.batch_size * shape[0] * math.prod(sides)
    return whole * (_AT_ALL + _EACH * settings.batch_size) + seen * (_PACKED + maps)


def probe(settings: GridSettings, form: GridShape, tries: int = 2) -> dict[str, float]:
    """Minutes, memory and disk of a training, from a few of its steps on noise."""
    before, whole = 0.0, form
    if settings.latent:
        before, form = probe_latents(settings, form), LatentModel.shaped(settings, form)
    centre = GaussianCentre.blank(form.shape, settings.components, settings.reach)
    model = GridModel.untrained(settings, form, centre)
    x = torch.randn(settings.batch_size, *form.shape)
    seen = torch.rand(x.shape) < 0.5
    condition = model.told(Condition(known=Encoded(x * seen, seen)), len(x))
    if settings.patch is not None:
        condition = replace(condition, window=torch.zeros(len(x), x.ndim - 2, dtype=torch.int64))
    t = model.denoiser.schedule.time(torch.ones(len(x), dtype=torch.float64))
    seconds = []
    for _ in range(tries):
        begun = monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = model.denoiser.loss(x, torch.randn_like(x), t, condition, ~seen)
        loss.mean().backward()
        seconds.append(monotonic() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    kept = LatentModel(autoencoder_of(settings, whole.shape), model, whole) if settings.latent else model
    weights = sum(tensor.numel() * tensor.element_size() for tensor in kept.state()[1].values())
    folds = (settings.folds + 1) * centre.loadings.numel() * 4
    # A call of the network is a third of a step; in windows the whole grid takes many, which overlap.
    calls = DRAWS * 15 * _calibrating(form, DRAWS) if settings.held_out else 0
    sides = [1.0 if settings.patch is None else max(1.0, n / (0.75 * settings.patch)) for n in form.shape[1:]]
    calibrating = calls * math.prod(sides) * min(seconds) / (3 * settings.batch_size)
    return {
        # Reading, masks, augmentation and validation take about a quarter more.
        "minutes": round(before + (1.25 * min(seconds) * settings.steps + calibrating) / 60, 1),
        "memory_mb": round((peak + folds) / 2**20),
        "disk_mb": round(weights / 2**20, 1),
    }
