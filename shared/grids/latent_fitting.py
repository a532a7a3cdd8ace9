"""Fitting a model of a large grid: an autoencoder first, then centre and network in its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ..artifacts import read_model_of, recovered, write_model
from ..centre import GaussianCentre
from ..data import Condition, Encoded
from ..errors import InputError
from ..hiding import Augmentation, GridData, Hiding, held_out
from ..latent import Autoencoder, AutoencoderSettings, haar_known, train_autoencoder
from ..masking import Nothing, Pattern
from ..noise import Keys, key_of
from ..settings import Batch
from ..smooth import smoothly_filled
from ..training import Trained, device_of, train
from .calibration import DRAWN, DRAWS, asked, covering, drawn_for, least_error
from .latents import LatentModel, autoencoder_of
from .model import GridModel, Trust, centre_of
from .settings import GridSettings, GridShape

Progress = Callable[[str, float], None]

FORMAT = "ebbtide-autoencoder/1"
_CROPPED = 2**15  # positions of a batch of crops
_KEPT = 2**30  # bytes of encoded examples that are kept
_FEWEST, _MOST = 4, 32  # ways of hiding and augmenting one example that are encoded


def fit_latents(
    data: GridData,
    settings: GridSettings,
    form: GridShape,
    pattern: Pattern,
    *,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[LatentModel, Trained]:
    """Fit the autoencoder, the centre of its latents, then train the network. See `fit_model`.

    The finished autoencoder is kept in `folder`: a training that is stopped after that goes on from it, and
    one that is stopped before makes the same again.
    """
    tell = progress or (lambda label, fraction: None)
    apart = held_out(data.owners, settings.held_out, seed)
    learning, kept = data[(~apart).nonzero()[:, 0]], data[apart.nonzero()[:, 0]]
    seen = Hiding(learning, None, Nothing(), 0.0, 0.0, augmentation, form.done)
    autoencoder = _autoencoder(
        seen, settings, form, seed, folder, resume, device, lambda label, share: tell(label, 0.3 * share)
    )
    with torch.random.fork_rng():
        torch.manual_seed(key_of(seed, "network") % 2**31)
        inner = LatentModel.shaped(settings, form)
        blank = GaussianCentre.blank(inner.shape, 0)
        model = LatentModel(autoencoder, GridModel.untrained(settings, inner, blank), form)
    model.core.denoiser.to(device_of(device))
    latents, counted = _encoded(model, learning, lambda share: tell("encoding", 0.3 + 0.03 * share))
    tell("fitting the centre", 0.33)
    centre = centre_of(settings, latents, None if bool(counted.all()) else counted, learning.owners)
    model.core.denoiser.centre = centre

    def examples(part: GridData, changes: Augmentation | None, drop: float) -> InLatents:
        blind = settings.drop_channels if drop else 0.0
        hidden = Hiding(part, None, pattern, settings.blank, drop, changes, form.done, blind)
        return InLatents(hidden, model, centre.fold(part.owners))

    trained = train(
        model.core.denoiser,
        examples(learning, augmentation, settings.drop),
        settings.training(len(data)),
        held_out=examples(kept, None, 0.0) if len(kept) else None,
        seed=seed,
        folder=folder,
        resume=resume,
        device=device,
        progress=lambda label, fraction: tell(label, 0.33 + 0.62 * fraction),
    )
    model.core.denoiser.centre = centre.whole.to(model.core.device)
    if len(kept):
        hidden = Hiding(kept, None, pattern, 0.0, 0.0, None, form.done)
        calibrate(
            model, hidden, seed, lambda share: tell("calibrating on held-out examples", 0.95 + 0.05 * share)
        )
    return model, trained


# --- the autoencoder ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Crops:
    """Batches of crops of examples, what is unknown of them guessed; the same each time.

    Args:
        examples: hide nothing that is known; may augment.
        edge: of a crop. size: of a batch.
        steps: how many batches.
        seed: of examples, corners and augmentation.
    """

    examples: Hiding
    edge: int
    size: int
    steps: int
    seed: int

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.steps):
            first = Keys.range(key_of(self.seed, "crops"), self.size, start=step * self.size)
            rows = (first.uniform((), "example") * len(self.examples)).long()
            x = _completed(self.examples, rows, Keys(first.seed, rows, first.items))
            room = torch.tensor([max(n - self.edge, 0) + 1 for n in x.shape[2:]])
            corners = (first.uniform((len(room),), "corner") * room).long()
            yield torch.stack(
                [self._crop(one, corner.tolist()) for one, corner in zip(x, corners, strict=True)]
            )

    def _crop(self, x: Tensor, corner: list[int]) -> Tensor:
        return x[(slice(None), *(slice(a, a + self.edge) for a in corner))]


def _completed(examples: Hiding, rows: Tensor, keys: Keys) -> Tensor:
    """(B, C, *S) augmented examples, what is unknown of them guessed."""
    batch = examples.batch(rows, keys)
    assert batch.condition.known is not None
    return smoothly_filled(batch.x_0, batch.where | batch.condition.known.observed)


def _autoencoder(
    examples: Hiding,
    settings: GridSettings,
    form: GridShape,
    seed: int,
    folder: Path | None,
    resume: bool,
    device: str,
    progress: Progress,
) -> Autoencoder:
    """Trained, or the one that a stopped training left behind."""
    edge = settings.latent_crop
    size = max(1, min(32, _CROPPED // math.prod(min(edge, n) for n in form.shape[1:])))
    identity: dict[str, Any] = {
        "format": FORMAT,
        "channels": settings.latent,
        "widths": list(settings.latent_widths),
        "steps": settings.latent_steps,
        "crop": edge,
        "shape": list(form.shape),
        "examples": len(examples),
        "seed": seed,
    }
    with torch.random.fork_rng():
        torch.manual_seed(key_of(seed, "autoencoder") % 2**31)
        autoencoder = autoencoder_of(settings, form.shape)
    where = None if folder is None else folder / "autoencoder"
    if where is not None and resume and recovered(where).exists():
        config, tensors = read_model_of(FORMAT, recovered(where))
        if config != identity:
            what = "the autoencoder of the stopped training is another"
            raise InputError(
                "resume-mismatch", what, str(where), "resume with the settings it was begun with"
            )
        autoencoder.load_state_dict(tensors)
        return autoencoder.to(device_of(device))
    autoencoder.to(device_of(device))
    train_autoencoder(
        autoencoder,
        _Crops(examples, edge, size, settings.latent_steps, seed),
        AutoencoderSettings(
            steps=settings.latent_steps,
            seed=key_of(seed, "latents") % 2**31,
            half=settings.precision == "bf16",
        ),
        scale_on=_Crops(examples, edge, size, max(1, 256 // size), key_of(seed, "scale")),
        progress=progress,
    )
    if where is not None:
        write_model(where, identity, autoencoder.state_dict(), overwrite=True)
    return autoencoder


# --- examples -----------------------------------------------------------------------------------


def _counted(seen: Tensor, like: Tensor, factor: int) -> Tensor:
    """Shaped like latents: whose block was seen whole in every channel."""
    whole = haar_known(seen.all(1, keepdim=True), factor.bit_length() - 1)[:, :1]
    return whole.expand_as(like)


def _encoded(model: LatentModel, data: GridData, progress: Callable[[float], None]) -> tuple[Tensor, Tensor]:
    """Latents of all examples, 0 where they do not count, and where they do."""
    found, counts = [], []
    for rows in torch.arange(len(data)).split(32):
        part = data[rows]
        x = part.values.float()
        seen = torch.ones_like(x, dtype=torch.bool) if part.observed is None else part.observed
        z = model.into(smoothly_filled(x, seen))
        counts.append(_counted(seen, z, model.autoencoder.factor))
        found.append(z * counts[-1])
        progress((int(rows[-1]) + 1) / len(data))
    return torch.cat(found), torch.cat(counts)


@dataclass(eq=False)
class InLatents:
    """Examples on a grid, of which a part is hidden there, as seen in latents; `Examples` for a training.

    Each example is hidden and augmented in a fixed number of ways, and what was encoded is kept: an encoder
    costs more than a step in the latents.

    Args:
        hidden: the examples on the grid.
        model: whose latents.
        fold: (n,) of the centre that never saw each.
    """

    hidden: Hiding
    model: LatentModel
    fold: Tensor
    _held: dict[tuple[int, int], Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inner = self.model.core.form
        self._room = _KEPT // (4 * (inner.shape[0] + inner.context) * math.prod(inner.shape[1:]))
        self._ways = min(_MOST, max(_FEWEST, self._room // max(1, len(self.hidden))))

    def __len__(self) -> int:
        return len(self.hidden)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        own = Keys(keys.seed, keys.items, keys.draws % self._ways)
        names = list(zip(indices.tolist(), own.draws.tolist(), strict=True))
        new = [place for place, name in enumerate(names) if name not in self._held]
        made = {}
        if new:
            rows = torch.tensor(new)
            made = dict(
                zip((names[place] for place in new), self._made(indices[rows], own[rows]), strict=True)
            )
            for name, one in made.items():
                if len(self._held) < self._room:
                    self._held[name] = one
        return _together([made[name] if name in made else self._held[name] for name in names])

    def _made(self, indices: Tensor, keys: Keys) -> list[Batch]:
        """One batch of one for each; in half precision, kept or not."""
        given = self.hidden.batch(indices, keys)
        condition = given.condition
        assert condition.known is not None
        seen = given.where | condition.known.observed
        known, beside = self.model.known(condition.known)
        z = self.model.into(smoothly_filled(given.x_0, seen))
        counted = _counted(seen, z, self.model.autoencoder.factor) & ~known.observed
        told = self.model.told(replace(condition, known=None), beside)
        assert told.channels is not None
        told = replace(
            told,
            channels=told.channels.half(),
            known=Encoded(known.values.half(), known.observed),
            fold=self.fold[indices],
        )
        rows = torch.arange(len(z)).split(1)
        return [Batch(z[row].half(), told[row], counted[row].contiguous()) for row in rows]


def _together(parts: list[Batch]) -> Batch:
    """Batches of one as one, in single precision."""
    told: dict[str, Any] = {}
    for name in (f.name for f in fields(Condition)):
        held = [getattr(part.condition, name) for part in parts]
        if name == "known":
            values = torch.cat([one.values for one in held]).float()
            told[name] = Encoded(values, torch.cat([one.observed for one in held]))
        elif held[0] is not None:
            joined = torch.cat(held)
            told[name] = joined.float() if joined.dtype == torch.float16 else joined
    x_0, where = (torch.cat([getattr(part, name) for part in parts]) for name in ("x_0", "where"))
    return Batch(x_0.float(), Condition(**told), where)


# --- how far it is to be trusted ----------------------------------------------------------------


def calibrate(
    model: LatentModel, examples: Hiding, seed: int, progress: Callable[[float], None] | None = None
) -> None:
    """Find `model.trust` and `model.error` on the grid itself: the weight that errs least, and the scatter of
    latents with which 90 % intervals cover 90 % of hidden entries of held-out examples, counted where these
    differ. Twice, as decoding is not linear."""
    tell = progress or (lambda share: None)
    model.core.denoiser.eval()
    model.core.trust = Trust()
    most = max(4, min(48, DRAWN // (DRAWS * math.prod(model.form.shape))))
    batch, known, keys, condition = asked(examples, model.form, seed, most)
    seen = batch.where | known.observed
    found = model.out(model.into(smoothly_filled(batch.x_0, seen)))
    model.error = float((found - batch.x_0)[seen].square().mean().sqrt())
    varies = batch.x_0.std(0, correction=0)
    where = batch.where & (varies >= varies.mean())
    if not where.any():
        return
    network, centre = model.means(known, keys, condition)
    weight = least_error((network - centre)[where], (batch.x_0 - centre)[where])
    model.core.trust = Trust(weight, 1.0)
    middle = model.expected(known, keys, condition)
    rows, every = drawn_for(keys, DRAWS)
    for turn in range(2):
        drawn = model.fill(
            known[rows],
            every,
            condition[rows],
            sampler=model.filler(8),
            progress=lambda label, share, turn=turn: tell((turn + share) / 2),  # type: ignore[misc]
        )
        scatter = (drawn - middle[rows]).unflatten(0, (-1, DRAWS)).square().mean(1).sqrt()
        factor = covering(batch.x_0 - middle, scatter, where)
        model.core.trust = Trust(weight, model.trust.spread * factor)


def probe_latents(settings: GridSettings, form: GridShape, tries: int = 2) -> float:
    """Minutes of training the autoencoder, from a few of its steps on noise."""
    edges = [min(settings.latent_crop, n) for n in form.shape[1:]]
    x = torch.randn(max(1, min(32, _CROPPED // math.prod(edges))), form.shape[0], *edges)
    autoencoder, half = autoencoder_of(settings, form.shape), settings.precision == "bf16"
    seconds = []
    for _ in range(tries):
        begun = monotonic()
        train_autoencoder(autoencoder, [x], AutoencoderSettings(steps=1, half=half), scale_on=[x[:1]])
        seconds.append(monotonic() - begun)
    return min(seconds) * settings.latent_steps / 60
