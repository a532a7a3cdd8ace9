"""The model of a collection of scans: its space, its covariates, and a denoiser over the grid.

Where there are label maps, the denoiser learns what images look like with and without being told one, and
new maps are drawn from a model of their shapes: a map first, then the image for it. A map of one's own does
as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...shared.artifacts import read_model_of, write_model
from ...shared.covariates import Covariates, Fact
from ...shared.data import NOTHING, Condition, Encoded
from ...shared.errors import Fault, InputError
from ...shared.grids import AnyModel, GridSettings, fit_model, model_from_state
from ...shared.hiding import GridData
from ...shared.noise import Keys, key_of
from ...shared.schedules import start_time
from .augmentation import ScanAugmentation
from .collection import Read, Subject, read_image, read_subject
from .intensity import Tones
from .names import UNKNOWN
from .nifti import Volume, spacing_of
from .placing import Frame, canonical
from .presets import PRESETS, pattern, preset_for, recommended
from .shapes import LabelShapes, one_hot
from .space import Hidden, MriSpace

Progress = Callable[[str, float], None]
FORMAT = "ebbtide-mri/1"
_TONED, _SEEN = 8, 64  # samples by which intensities are set right, and training subjects at most
FEWEST = 3
"""Subjects below which there is nothing to learn."""


@dataclass(frozen=True)
class Scan:
    """One subject in model space.

    Args:
        known: (1, C, *S) values and what of them is observed.
        frame: the way back to the images' own grids.
        volumes: the images, by modality.
        labels: (1, *S) the label map, integers; None where there is none.
    """

    known: Encoded
    frame: Frame
    volumes: Mapping[str, Volume]
    labels: Tensor | None = None


@dataclass(frozen=True)
class FittedScans:
    """An encoding and a denoiser, as training leaves them behind.

    Args:
        space: of the images.
        shapes: of the label maps that the model can be told; None when it was trained without.
        covariates: what the model can be told.
        model: the denoiser.
        about: JSON-able facts.
        reached: (C, *S) bool, where at least half of the training images reach; None is everywhere.
        tones: the intensities of what is generated; None leaves them as they are drawn.
    """

    space: MriSpace
    shapes: LabelShapes | None
    covariates: Covariates
    model: AnyModel
    about: Mapping[str, Any]
    reached: Tensor | None = None
    tones: Tones | None = None

    # ----------------------------------------------------------------------------------------------- fit

    @classmethod
    def fit(
        cls,
        subjects: Sequence[Subject],
        *,
        spacing: float | Sequence[float] | None = None,
        shape: Sequence[int] | None = None,
        modalities: Sequence[str] | None = None,
        pose: bool = False,
        labels: bool = True,
        conditions: Sequence[str] = (),
        settings: GridSettings | None = None,
        preset: str | None = None,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
        read: Read = read_image,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Self:
        """Learn a space, a centre and a network.

        Args:
            subjects: to learn from.
            spacing, shape, modalities, pose: as for `MriSpace.fit`.
            labels: learn what images look like given a label map, where subjects have them.
            conditions: covariates that the model is to be told.
            settings: of the model; None chooses for the grid, the number of subjects and the machine.
            preset: of the machine: cpu, 4gb, 16gb or 80gb; None looks.
            read: reads one image.
            folder, resume, device, progress: of the training.

        Raises:
            InputError: fewer than three subjects, a damaged image, a covariate that nobody has.
        """
        if len(subjects) < FEWEST:
            raise InputError(
                "few-scans",
                f"{len(subjects)} subject(s), nothing to learn from",
                "",
                f"give {FEWEST} or more",
            )
        tell = progress or (lambda label, fraction: None)
        preset = preset or preset_for(device)
        space = MriSpace.fit(
            subjects,
            spacing=spacing,
            shape=shape,
            modalities=modalities,
            most=PRESETS[preset].voxels,
            pose=pose,
            read=read,
            progress=lambda label, share: tell(label, 0.02 * share),
        )
        values = label_values(subjects, read) if labels else ()
        covariates = Covariates.fit([s.covariates for s in subjects], conditions)
        scans = []
        for place, subject in enumerate(subjects):
            tell("reading", 0.02 + 0.03 * place / len(subjects))
            scans.append(encode(space, values, subject, read=read))
        known = [scan.known for scan in scans]
        maps = [scan.labels[0].numpy() for scan in scans if scan.labels is not None]
        shapes = LabelShapes.fit(maps, values) if values else None
        seen = torch.cat([one.observed for one in known])
        data = GridData(
            torch.cat([one.values.half() for one in known]),
            None if bool(seen.all()) else seen,
            Condition(
                covariates=covariates.encode([s.covariates for s in subjects]),
                channels=_channels([scan.labels for scan in scans], values, space.size),
            ),
            torch.tensor([key_of("subject", subject.name) for subject in subjects]),
        )
        settings = settings or recommended(tuple(data.values.shape[1:]), len(subjects), preset)
        model, trained = fit_model(
            data,
            settings,
            pattern(len(space.modalities)),
            augmentation=_augmentation(space, data),
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=lambda label, fraction: tell(label, 0.05 + 0.92 * fraction),
        )
        reached = _reached(seen)
        tones = _tones(
            model, data, reached, seed, lambda label, fraction: tell(label, 0.97 + 0.03 * fraction)
        )
        facts = {
            "items": len(subjects),
            "seed": seed,
            "settings": asdict(settings),
            "steps": trained.steps,
            "ending": trained.ending,
            "best_step": trained.best_step,
            "held_out_loss": min(
                (r["held_out"] for r in trained.history if r["held_out"] is not None), default=None
            ),
        }
        return cls(space, shapes, covariates, model, {**(about or {}), **facts}, reached, tones)

    # ---------------------------------------------------------------------------------------- what it does

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of a subject in model space."""
        return self.model.form.shape

    def encode(
        self,
        subject: Subject,
        hidden: Hidden | None = None,
        volumes: Mapping[str, Volume] | None = None,
        read: Read = read_image,
    ) -> Scan:
        """A subject in model space; see `MriSpace.encode`."""
        volumes = self.named(read_subject(subject, read) if volumes is None else volumes)
        return encode(self.space, self.labels, subject, hidden, volumes, read)

    def named(self, volumes: Mapping[str, Volume]) -> Mapping[str, Volume]:
        """Images by the model's modalities: where model and subject have one each, and one of them does not
        say which it is, they are taken for the same."""
        mine, theirs = self.space.modalities, list(volumes)
        if len(mine) == len(theirs) == 1 and UNKNOWN in (mine[0], theirs[0]):
            return {mine[0]: volumes[theirs[0]]}
        return volumes

    @property
    def labels(self) -> tuple[int, ...]:
        """Values of the label maps that the model can be told, beside 0."""
        return () if self.shapes is None else self.shapes.labels

    def condition(self, rows: Sequence[Mapping[str, Fact]], labels: Tensor | None = None) -> Condition:
        """What the denoiser is told of B subjects: their facts, and label maps (B or 1, *S) if there are."""
        told = self.covariates.encode(rows) if self.covariates.columns else None
        if labels is None or self.shapes is None:
            return NOTHING if told is None else Condition(covariates=told)
        return Condition(
            covariates=told, channels=one_hot(labels, self.labels).expand(len(rows), -1, -1, -1, -1)
        )

    def keys(self, subject: Subject, draws: int) -> tuple[Tensor, Tensor]:
        """Items and draws of the keys of one subject's draws."""
        return torch.full((draws,), key_of("subject", subject.name)), torch.arange(draws)

    def draw(
        self, scan: Scan, subject: Subject, seed: int, draws: int, progress: Progress | None = None
    ) -> Tensor:
        """(draws, C, *S) ways of completing one subject; draw d depends on (seed, subject's name, d)."""
        keys = Keys(seed, *self.keys(subject, draws))
        known = Encoded(
            scan.known.values.expand(draws, *self.shape), scan.known.observed.expand(draws, *self.shape)
        )
        condition = self.condition([subject.covariates] * draws, scan.labels)
        return self.model.fill(known, keys, condition, progress=progress)

    def mean(self, scan: Scan, subject: Subject, seed: int) -> Tensor:
        """(C, *S) the conditional mean of what one subject lacks."""
        keys = Keys(seed, *self.keys(subject, 1))
        condition = self.condition([subject.covariates], scan.labels)
        return self.model.expected(scan.known, keys, condition)[0]

    def generate(
        self,
        keys: Keys,
        facts: Sequence[Mapping[str, Fact]],
        *,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        steps: int | None = None,
        like: Tensor | None = None,
        strength: float = 1.0,
        progress: Progress | None = None,
    ) -> Tensor:
        """(B, C, *S) samples in model space.

        Args:
            keys: B of them. facts: covariates of each.
            labels: (B, *S) label maps to make images for; None leaves them unknown.
            guidance, steps: of the sampler.
            like, strength: (B, C, *S) scans to vary, and how far (`start_time`).
        """
        samples = self.model.generate(
            keys,
            self.condition(facts, labels),
            guidance=guidance,
            sampler=self.model.sampler(steps),
            start=like,
            t_start=1.0 if like is None else start_time(strength, self.model.core.denoiser.schedule),
            progress=progress,
        )
        if self.tones is None or like is not None:
            return samples
        return torch.from_numpy(self.tones(samples.numpy()))

    def images(self, sample: Tensor) -> dict[str, np.ndarray]:
        """(C, *S) in model space to one volume for each modality, in its own type, in the box `frame`; dark
        where fewer than half of the training images reached: of that the model knows too little."""
        own = sample
        if self.reached is not None:
            channels = self.space.channels.values()
            dark = [float(c.encode(np.array([c.scale.low]), c.scale)[0]) for c in channels]
            own = torch.where(self.reached, own, torch.tensor(dark)[:, None, None, None])
        box, _ = self.frame
        return {name: array[box] for name, array in self.space.decode_generated(own).items()}

    @property
    def frame(self) -> tuple[tuple[slice, ...], np.ndarray]:
        """The box of the grid that training images reach, and (4, 4) its affine: what lies beyond is dark."""
        affine = self.space.affine.copy()
        if self.reached is None or not self.reached.any():
            return (slice(None),) * 3, affine
        places = self.reached.any(0).nonzero()
        first, last = places.min(0).values.numpy(), places.max(0).values.numpy()
        affine[:3, 3] = (affine @ [*first, 1.0])[:3]
        return tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)), affine

    def seen(self, samples: Tensor) -> Tensor:
        """(B, C, *S) samples with 0 where training images do not reach, as real ones have it."""
        return samples if self.reached is None else torch.where(self.reached, samples, 0)

    def placed(self, volume: Volume) -> Tensor:
        """(*S) a label map of one's own in model space: where training images share one grid, on that; else
        upright, and centred like the labels that were trained on.

        Raises:
            InputError: none of its values is a label that the model knows.
        """
        assert self.shapes is not None
        held = np.isin(np.round(volume.values()), self.labels)
        if not held.any():
            known = ", ".join(map(str, self.labels))
            raise InputError("labels-unknown", f"no voxel has a label that the model knows: {known}")
        affine = self.space.affine
        if not self.space.aligned:
            turn = canonical(volume.affine, volume.shape)
            own = volume.affine @ turn  # the same volume along right, anterior, superior
            middle = np.linalg.inv(turn) @ [*np.argwhere(held).mean(0), 1]
            step = self.space.spacing / spacing_of(own)
            matrix = np.diag([*step, 1.0])
            matrix[:3, 3] = middle[:3] - step * self.shapes.middle
            affine = own @ matrix
        return torch.from_numpy(self.space.encode_labels(volume, Frame(self.space.size, affine, {})))

    # --------------------------------------------------------------------------------------------- folder

    @property
    def guidance(self) -> float:
        """Of covariates; label maps have a scale of their own in the settings."""
        return 1.0

    @property
    def can(self) -> tuple[str, ...]:
        return ("generate", "impute")

    @property
    def warnings(self) -> list[Fault]:
        """What the user should know about what it was trained on."""
        found, count = [], int(self.about.get("items", 0))
        if count < 10:
            found.append(
                Fault(
                    "few-scans",
                    f"trained on {count} subjects: samples may be copies of them",
                    "training",
                    "use more subjects, and release nothing",
                    "warning",
                )
            )
        done, meant = int(self.about.get("steps", 0)), self.model.settings.steps
        if self.about.get("ending") == "time" and 2 * done < meant:
            found.append(
                Fault(
                    "stopped-early",
                    f"the time limit ended the training after {done:,} of {meant:,} steps: samples are poor",
                    "training",
                    "plan again on this machine, or give it longer (time_limit in the plan)",
                    "warning",
                )
            )
        return found

    @property
    def description(self) -> list[str]:
        """Lines for `info`."""
        size = " x ".join(str(n) for n in self.space.size)
        spacing = " x ".join(f"{s:.3g}" for s in self.space.spacing)
        lines = [
            f"grid        {size} voxels of {spacing} mm",
            f"modalities  {', '.join(self.space.modalities)}",
            *self.model.description,
        ]
        if self.space.pose is not None:
            lines.append("pose        each scan is turned to that of the training's mean")
        if self.model.settings.patch is not None:
            lines.append(f"seen        through windows of {self.model.settings.patch} voxels")
        if self.labels:
            lines.append(f"labels      {', '.join(map(str, self.labels))}")
        for column in self.covariates.columns:
            held = (
                ", ".join(column.levels)
                if column.levels
                else (f"{column.quantiles[1]:.3g} to {column.quantiles[-2]:.3g} (5 % to 95 % of training)")
            )
            lines.append(f"condition   {column.name}: {held}")
        return lines

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the model folder: safetensors, JSON and a sha256 manifest; no code."""
        space, tensors = self.space.state()
        config, weights = self.model.state()
        if self.reached is not None:
            tensors["space.reached"] = self.reached.to(torch.uint8)
        if self.tones is not None:
            tensors["tones.made"] = torch.from_numpy(self.tones.made)
            tensors["tones.real"] = torch.from_numpy(self.tones.real)
        shapes, drawn = (None, {}) if self.shapes is None else self.shapes.state()
        facts = {
            "format": FORMAT,
            "space": space,
            "shapes": shapes,
            "covariates": self.covariates.state(),
            "model": config,
            "about": dict(self.about),
        }
        write_model(Path(folder), facts, tensors | drawn | weights, overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model folder.

        Raises:
            InputError: not such a folder, damaged, or of a version that this one does not read.
        """
        config, tensors = read_model_of(FORMAT, folder)
        parts: dict[str, dict[str, Tensor]] = {"space": {}, "shapes": {}, "tones": {}}
        weights: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parts.get(name.partition(".")[0], weights)[name] = tensor
        tones = [parts["tones"][f"tones.{name}"].numpy() for name in ("made", "real") if parts["tones"]]
        space, shapes = MriSpace.from_state(config["space"], parts["space"]), config.get("shapes")
        return cls(
            space,
            None if shapes is None else LabelShapes.from_state(shapes, parts["shapes"], space.size),
            Covariates.from_state(config["covariates"]),
            model_from_state(config["model"], weights),
            dict(config["about"]),
            parts["space"]["space.reached"].bool() if "space.reached" in parts["space"] else None,
            Tones(*tones) if tones else None,
        )


def encode(
    space: MriSpace,
    labels: Sequence[int],
    subject: Subject,
    hidden: Hidden | None = None,
    volumes: Mapping[str, Volume] | None = None,
    read: Read = read_image,
) -> Scan:
    """A subject in model space, with its label map where labels are asked for and it has one."""
    volumes = read_subject(subject, read) if volumes is None else volumes
    placed = space.encode(volumes, hidden)
    values, observed = torch.from_numpy(placed.values), torch.from_numpy(placed.observed)
    held = None
    if labels and subject.segmentation is not None:
        held = torch.from_numpy(space.encode_labels(read(subject.segmentation), placed.frame))[None]
    return Scan(Encoded(values[None], observed[None]), placed.frame, volumes, held)


def label_values(subjects: Sequence[Subject], read: Read = read_image, most: int = 8) -> tuple[int, ...]:
    """The labels that occur in the first label maps; none when there are more than `most`: a channel for
    each would cost more than it tells."""
    found: set[int] = set()
    for subject in [s for s in subjects if s.segmentation is not None][:10]:
        assert subject.segmentation is not None
        found |= set(np.unique(np.round(read(subject.segmentation).values())).astype(int).tolist())
    values = tuple(sorted(found - {0}))
    return values if len(values) <= most else ()


def _tones(
    model: AnyModel, data: GridData, reached: Tensor, seed: int, progress: Progress | None = None
) -> Tones:
    """From samples made for what some of the training subjects are said to be."""
    keys = Keys.range(key_of(seed, "tones"), _TONED)
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    told = data[rows[torch.arange(_TONED) % len(data)]].condition
    told = replace(told, channels=None if told.channels is None else told.channels.float())
    data = data[rows[:_SEEN]]
    samples = model.generate(keys, told, progress=progress)
    made, real = [], []
    for channel, most in enumerate(reached):
        there = most if most.any() else torch.ones_like(most)  # of few images no two may reach one place
        known = there.expand(len(data), *there.shape)
        if data.observed is not None:
            known = known & data.observed[:, channel]
        made.append(samples[:, channel][:, there].flatten().numpy())
        real.append(data.values[:, channel][known].numpy())
    return Tones.between(made, real)


def _reached(seen: Tensor) -> Tensor:
    """(C, *S) bool of (n, C, *S): where at least half of the images of each modality reach."""
    there = seen.flatten(2).any(2).sum(0).clamp(min=1)
    return seen.float().sum(0) >= 0.5 * there[:, None, None, None]


def _channels(maps: Sequence[Tensor | None], labels: Sequence[int], size: tuple[int, ...]) -> Tensor | None:
    """(n, K, *S) the label maps as channels; blank where there is none."""
    if not labels:
        return None
    blank = torch.zeros(1, len(labels), *size)
    return torch.cat([blank if held is None else one_hot(held, labels) for held in maps]).half()


def _augmentation(space: MriSpace, data: GridData) -> ScanAugmentation:
    """Of a space; nobody is mirrored when a label lies on one side."""
    channels = list(space.channels.values())
    dark, bright = (
        [float(c.encode(np.array([end(c.scale)]), c.scale)[0]) for c in channels]
        for end in (attrgetter("low"), attrgetter("high"))
    )
    one_sided, maps = False, data.condition.channels
    for inside in () if maps is None else (maps > 0).float().mean(0):
        across = inside.sum((1, 2))
        middle = (torch.linspace(-1, 1, len(across)) * across).sum() / across.sum().clamp(min=1e-6)
        one_sided |= bool(middle.abs() > 0.2)
    return ScanAugmentation(tuple(dark), tuple(bright), mirror=0.0 if one_sided else 0.5)
