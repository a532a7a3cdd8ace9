"""The model of a collection of scans: its space, its covariates, and a denoiser over the grid.

Label maps are modelled beside the images, one channel a label: a pair of image and labels can be drawn from
nothing, an image to given labels, or labels to a given image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from ...shared.grids import GridModel, GridSettings
from ...shared.hiding import GridData
from ...shared.noise import Keys, key_of
from .augmentation import ScanAugmentation
from .collection import Read, Subject, read_image, read_subject
from .names import UNKNOWN
from .nifti import Volume
from .placing import Frame
from .presets import PRESETS, pattern, preset_for, recommended
from .space import Hidden, MriSpace

Progress = Callable[[str, float], None]
FORMAT = "ebbtide-mri/1"
FEWEST = 3
"""Subjects below which there is nothing to learn."""


@dataclass(frozen=True)
class Scan:
    """One subject in model space.

    Args:
        known: (1, C, *S) values and what of them is observed.
        frame: the way back to the images' own grids.
        volumes: the images, by modality.
    """

    known: Encoded
    frame: Frame
    volumes: Mapping[str, Volume]


@dataclass(frozen=True)
class FittedScans:
    """An encoding and a denoiser, as training leaves them behind.

    Args:
        space: of the images.
        labels: values of the label maps that are modelled, beside 0.
        covariates: what the model can be told.
        model: the denoiser.
        about: JSON-able facts.
        reached: (C, *S) bool, where at least a tenth of the training images reach; None is everywhere.
    """

    space: MriSpace
    labels: tuple[int, ...]
    covariates: Covariates
    model: GridModel
    about: Mapping[str, Any]
    reached: Tensor | None = None

    # ----------------------------------------------------------------------------------------------- fit

    @classmethod
    def fit(
        cls,
        subjects: Sequence[Subject],
        *,
        spacing: float | Sequence[float] | None = None,
        shape: Sequence[int] | None = None,
        modalities: Sequence[str] | None = None,
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
            spacing, shape, modalities: as for `MriSpace.fit`.
            labels: model the label maps too, where subjects have them.
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
        seen = torch.cat([one.observed for one in known])
        data = GridData(
            torch.cat([one.values.half() for one in known]),
            None if bool(seen.all()) else seen,
            Condition(covariates=covariates.encode([s.covariates for s in subjects])),
            torch.tensor([key_of("subject", subject.name) for subject in subjects]),
        )
        settings = settings or recommended(tuple(data.values.shape[1:]), len(subjects), preset)
        model, trained = GridModel.fit(
            data,
            settings,
            pattern(len(space.modalities), len(values)),
            augmentation=_augmentation(space, values, data),
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=lambda label, fraction: tell(label, 0.05 + 0.95 * fraction),
        )
        facts = {
            "items": len(subjects),
            "seed": seed,
            "settings": asdict(settings),
            "steps": trained.steps,
            "best_step": trained.best_step,
            "held_out_loss": min(
                (r["held_out"] for r in trained.history if r["held_out"] is not None), default=None
            ),
        }
        reached = seen[:, : len(space.modalities)].float().mean(0) >= 0.1
        return cls(space, values, covariates, model, {**(about or {}), **facts}, reached)

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

    def condition(self, rows: Sequence[Mapping[str, Fact]]) -> Condition:
        """What the denoiser is told of B subjects."""
        return Condition(covariates=self.covariates.encode(rows)) if self.covariates.columns else NOTHING

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
        condition = self.condition([subject.covariates] * draws)
        return self.model.fill(known, keys, condition, progress=progress)

    def mean(self, scan: Scan, subject: Subject, seed: int) -> Tensor:
        """(C, *S) the conditional mean of what one subject lacks."""
        keys = Keys(seed, *self.keys(subject, 1))
        return self.model.expected(scan.known, keys, self.condition([subject.covariates]))[0]

    def generate(
        self,
        keys: Keys,
        facts: Sequence[Mapping[str, Fact]],
        *,
        guidance: float = 1.0,
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """(B, C, *S) samples in model space."""
        sampler = self.model.sampler(steps)
        condition = self.condition(facts)
        return self.model.generate(keys, condition, guidance=guidance, sampler=sampler, progress=progress)

    def images(self, sample: Tensor) -> dict[str, np.ndarray]:
        """(C, *S) in model space to one volume for each modality, in its own type, on `space.affine`; dark
        where hardly any training image reached, of which the model knows nothing."""
        own = sample[: len(self.space.modalities)]
        if self.reached is not None:
            channels = self.space.channels.values()
            dark = [float(c.encode(np.array([c.scale.low]), c.scale)[0]) for c in channels]
            own = torch.where(self.reached, own, torch.tensor(dark)[:, None, None, None])
        return self.space.decode_generated(own)

    def label_map(self, sample: Tensor) -> np.ndarray | None:
        """(C, *S) in model space to (*S) labels: of each voxel the likeliest, 0 where none is likely."""
        if not self.labels:
            return None
        scores = sample[len(self.space.modalities) :]
        best, place = scores.max(0)
        values = torch.tensor(self.labels)[place]
        chosen: np.ndarray = (
            torch.where(best > 0, values, 0).numpy().astype(np.uint8 if max(self.labels) < 256 else np.int32)
        )
        return chosen

    # --------------------------------------------------------------------------------------------- folder

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
        return found

    @property
    def description(self) -> list[str]:
        """Lines for `info`."""
        size = " x ".join(str(n) for n in self.space.size)
        spacing = " x ".join(f"{s:.3g}" for s in self.space.spacing)
        lines = [
            f"grid        {size} voxels of {spacing} mm",
            f"modalities  {', '.join(self.space.modalities)}",
        ]
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
        facts = {
            "format": FORMAT,
            "space": space,
            "labels": list(self.labels),
            "covariates": self.covariates.state(),
            "model": config,
            "about": dict(self.about),
        }
        write_model(Path(folder), facts, tensors | weights, overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model folder.

        Raises:
            InputError: not such a folder, damaged, or of a version that this one does not read.
        """
        config, tensors = read_model_of(FORMAT, folder)
        space = {name: tensor for name, tensor in tensors.items() if name.startswith("space.")}
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("space.")}
        return cls(
            MriSpace.from_state(config["space"], space),
            tuple(config["labels"]),
            Covariates.from_state(config["covariates"]),
            GridModel.from_state(config["model"], weights),
            dict(config["about"]),
            space["space.reached"].bool() if "space.reached" in space else None,
        )


def encode(
    space: MriSpace,
    labels: Sequence[int],
    subject: Subject,
    hidden: Hidden | None = None,
    volumes: Mapping[str, Volume] | None = None,
    read: Read = read_image,
) -> Scan:
    """A subject in model space, its label map as one channel for each label: 1 inside, -1 outside."""
    volumes = read_subject(subject, read) if volumes is None else volumes
    placed = space.encode(volumes, hidden)
    values, observed = torch.from_numpy(placed.values), torch.from_numpy(placed.observed)
    if labels:
        shape = (len(labels), *space.size)
        if subject.segmentation is None:
            extra, seen = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        else:
            held = torch.from_numpy(space.encode_labels(read(subject.segmentation), placed.frame))
            extra = torch.stack([held == label for label in labels]).float() * 2 - 1
            seen = torch.ones(shape, dtype=torch.bool)
        values, observed = torch.cat([values, extra]), torch.cat([observed, seen])
    return Scan(Encoded(values[None], observed[None]), placed.frame, volumes)


def label_values(subjects: Sequence[Subject], read: Read = read_image, most: int = 8) -> tuple[int, ...]:
    """The labels that occur in the first label maps; none when there are more than `most`: a channel for
    each would cost more than it tells."""
    found: set[int] = set()
    for subject in [s for s in subjects if s.segmentation is not None][:10]:
        assert subject.segmentation is not None
        found |= set(np.unique(np.round(read(subject.segmentation).values())).astype(int).tolist())
    values = tuple(sorted(found - {0}))
    return values if len(values) <= most else ()


def _augmentation(space: MriSpace, labels: Sequence[int], data: GridData) -> ScanAugmentation:
    """Of a space; nobody is mirrored when a label lies on one side."""
    channels = list(space.channels.values())
    dark, bright = (
        [float(c.encode(np.array([end(c.scale)]), c.scale)[0]) for c in channels]
        for end in (attrgetter("low"), attrgetter("high"))
    )
    one_sided = False
    for place in range(len(channels), data.values.shape[1]):
        inside = (data.values[:, place] > 0).float().mean(0)
        across = inside.sum((1, 2))
        middle = (torch.linspace(-1, 1, len(across)) * across).sum() / across.sum().clamp(min=1e-6)
        one_sided |= bool(middle.abs() > 0.2)
    return ScanAugmentation((*dark, *(-1.0 for _ in labels)), tuple(bright), mirror=0.0 if one_sided else 0.5)
