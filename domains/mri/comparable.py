"""Sets of scans on one grid and one intensity scale, so that they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import InputError
from .. import Progress
from .collection import Read, Subject, read_image
from .covariates import Value
from .names import UNKNOWN
from .radiomics import label_shapes, layout, object_in, radiomics
from .space import MriSpace
from .surveying import Facts, evenly, modalities_of, spacing_for

VOXELS = 80_000
"""Of the grid that scans are compared on, at most."""
LABELS = 8
"""Labels of which the shape is looked at; of more there is the volume alone."""
_GLANCE = 8  # synthetic scans that are asked for their spacing


@dataclass(frozen=True, eq=False)
class Scans:
    """A set of scans on the common grid.

    Args:
        names: of the subjects.
        volumes: (n, C, *S) float32, 0 dark to 1 bright; the channel's mean where not observed.
        known: bool, same shape, what was observed.
        texture: name -> number, of each scan: `radiomics`, and of label maps `label_shapes`.
        layout: (n, D) means over blocks.
        regions: label -> ml, of each scan that has a label map.
        covariates: of each subject.
    """

    names: tuple[str, ...]
    volumes: Tensor
    known: Tensor
    texture: tuple[Mapping[str, float], ...]
    layout: np.ndarray
    regions: tuple[Mapping[int, float], ...]
    covariates: tuple[Mapping[str, Value], ...]

    def __len__(self) -> int:
        return len(self.names)

    def some(self, places: Sequence[int]) -> Scans:
        """Those at some places."""
        return Scans(
            tuple(self.names[i] for i in places),
            self.volumes[list(places)],
            self.known[list(places)],
            tuple(self.texture[i] for i in places),
            self.layout[list(places)],
            tuple(self.regions[i] for i in places),
            tuple(self.covariates[i] for i in places),
        )


@dataclass(frozen=True)
class Ground:
    """What scans are compared on.

    Args:
        space: the grid and the intensities, of the real scans.
        labels: whose shapes are looked at; none where a set has no label maps, or there are too many.
    """

    space: MriSpace
    labels: tuple[int, ...]

    @classmethod
    def between(
        cls, real: Sequence[Subject], synthetic: Sequence[Subject], read: Read, progress: Progress
    ) -> Ground:
        """The real scans' own grid, as coarse as memory and the coarser of the two sets ask for.

        Raises:
            InputError: the sets have no modality in common; a damaged image.
        """
        ours, theirs = modalities_of(real), modalities_of(synthetic)
        common = tuple(name for name in ours if name in theirs)
        if len(ours) == len(theirs) == 1 and UNKNOWN in (ours[0], theirs[0]):
            common = ours
        if not common:
            what = f"the real scans are {', '.join(ours)} and the synthetic ones {', '.join(theirs)}"
            raise InputError("mri-no-modality", what, "", "compare scans of the same modality")
        space = MriSpace.fit(real, modalities=common, most=VOXELS, read=read, progress=progress)
        some = [Facts.of(subject, theirs, read_image) for subject in evenly(synthetic, _GLANCE)]
        coarse = spacing_for([fact for fact in some if fact is not None], None)
        if (coarse > 1.02 * space.spacing).any():
            wanted = np.maximum(coarse, space.spacing).tolist()
            space = MriSpace.fit(real, spacing=wanted, modalities=common, read=read)
        found: set[int] = set()
        if all(any(s.segmentation for s in subjects) for subjects in (real, synthetic)):
            for subject in evenly([s for s in real if s.segmentation], 10):
                assert subject.segmentation is not None
                found |= set(np.unique(np.round(read(subject.segmentation).values())).astype(int).tolist())
        labels = tuple(sorted(found - {0}))
        return cls(space, labels if len(labels) <= LABELS else ())

    @property
    def backgrounds(self) -> tuple[bool, ...]:
        """For each channel, whether there is a background."""
        return tuple(self._named.values())

    @property
    def _named(self) -> dict[str, bool]:
        return {name: channel.background for name, channel in self.space.channels.items()}

    def scans(self, subjects: Sequence[Subject], read: Read, label: str, progress: Progress) -> Scans:
        """Read a set of scans; those without any of the modalities are left out.

        Raises:
            InputError: a damaged image.
        """
        names, volumes, known, texture, blocks, regions, covariates = [], [], [], [], [], [], []
        for done, subject in enumerate(subjects):
            progress(label, done / len(subjects))
            images = self._images(subject)
            if not images:
                continue
            placed = self.space.encode({name: read(path) for name, path in images.items()})
            unit = self._unit(placed.values)
            numbers = radiomics(unit, placed.observed, self._named, self.space.spacing)
            region: dict[int, float] = {}
            if subject.segmentation is not None:
                held = read(subject.segmentation)
                values, counts = np.unique(np.round(held.values()).astype(int), return_counts=True)
                voxel = abs(float(np.linalg.det(held.affine[:3, :3]))) / 1000
                region = {int(v): float(c) * voxel for v, c in zip(values, counts, strict=True) if v}
                if self.labels:
                    lying = self.space.encode_labels(held, placed.frame)
                    middle = _middle(unit[0], self.backgrounds[0])
                    numbers |= label_shapes(lying, self.labels, middle, self.space.spacing)
            names.append(subject.name)
            volumes.append(torch.from_numpy(unit))
            known.append(torch.from_numpy(placed.observed))
            texture.append(numbers)
            blocks.append(layout(unit))
            regions.append(region)
            covariates.append(subject.covariates)
        if not names:
            raise InputError(
                "mri-none", f"none of {len(subjects)} subjects can be compared", "", "look at them"
            )
        return Scans(
            tuple(names),
            torch.stack(volumes),
            torch.stack(known),
            tuple(texture),
            np.stack(blocks),
            tuple(regions),
            tuple(covariates),
        )

    def _images(self, subject: Subject) -> dict[str, Path]:
        """By the space's modalities; the only image needs no name."""
        mine, theirs = self.space.modalities, list(subject.images)
        if len(mine) == len(theirs) == 1 and UNKNOWN in (mine[0], theirs[0]):
            return {mine[0]: subject.images[theirs[0]]}
        return {name: subject.images[name] for name in mine if name in subject.images}

    def _unit(self, values: np.ndarray) -> np.ndarray:
        """(C, *S) in model space to 0 dark ... 1 bright."""
        channels = self.space.channels.values()
        made = [x * np.float32(c.std) + np.float32(c.mean) for x, c in zip(values, channels, strict=True)]
        return np.stack(made).astype(np.float32)


def _middle(values: np.ndarray, background: bool) -> np.ndarray:
    """(3,) voxels: the middle of the object, or of the grid."""
    inside = object_in(values) if background else np.zeros(0, bool)
    if inside.any():
        return np.asarray(np.argwhere(inside).mean(0))
    return (np.array(values.shape) - 1) / 2
