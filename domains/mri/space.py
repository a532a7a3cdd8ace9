"""The model space of volumes: one orientation, one grid, one intensity scale; and the way back.

A subject's images are turned to right-anterior-superior by swapping and flipping axes alone, laid on a grid
of the space's spacing and shape that is centred on the object (or, where all images share one grid already,
on that grid), scaled by the object's own percentiles, and shifted to zero mean and unit variance. What was
observed stays known voxel by voxel; `decode` undoes every step on the image's own grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import InputError
from .. import Progress
from .collection import Read, Subject, read_image
from .intensity import Channel, Look, Scale, as_dtype, box, look
from .nifti import Volume, spacing_of
from .placing import Frame, Seat, canonical, canonical_box, grid
from .pose import Low, Pose, low_grid, roomy
from .surveying import (
    Facts,
    channel_for,
    coarsened,
    evenly,
    modalities_of,
    on_one_grid,
    size_for,
    spacing_for,
)

Hidden = np.ndarray | Mapping[str, np.ndarray]
_KNOWN = 0.5  # share of a voxel of the grid that must be known
LOOKED_AT = 64
"""Subjects that the space is learned from, evenly among all."""


class Placed(NamedTuple):
    """One subject in model space.

    Args:
        values: (C, *S) float32, 0 where not observed. observed: bool, the same shape.
        frame: the way back.
    """

    values: np.ndarray
    observed: np.ndarray
    frame: Frame


@dataclass(frozen=True)
class MriSpace:
    """The encoding of volumes; see the module.

    Args:
        channels: by modality, in the order of the model's channels.
        size: (S) voxels of the grid. affine: (4, 4) from it to millimetres in RAS, for generated volumes.
        aligned: every subject lies on `affine` itself; else each is centred by its object.
        pose: the pose that subjects are brought to by turning them; None leaves each as it lies.
    """

    channels: Mapping[str, Channel]
    size: tuple[int, ...]
    affine: np.ndarray
    aligned: bool
    pose: Pose | None = None

    @classmethod
    def fit(
        cls,
        subjects: Iterable[Subject],
        *,
        spacing: float | Sequence[float] | None = None,
        shape: Sequence[int] | None = None,
        modalities: Sequence[str] | None = None,
        normalise: bool | None = None,
        most: int | None = None,
        pose: bool = False,
        read: Read = read_image,
        progress: Progress | None = None,
    ) -> Self:
        """Learn a space from subjects (those to be trained on alone; a `Collection` is one).

        Args:
            spacing: mm, one for all axes or one for each; the data's median if left out.
            shape: voxels of the grid; enough for the object of nearly all subjects, if left out. Made a
                multiple of 4.
            modalities: which, and in which order; all that are found, if left out.
            normalise: False keeps the grid that all images share, and only makes it coarser when asked; True
                centres each subject by its object; left out, it is False when all images share one grid.
            most: voxels of the grid at most: a finer one is made coarser in steps of a half, unless a
                spacing or a shape was asked for.
            pose: turn each subject rigidly to a common pose, whichever grids the images have.
            read: reads one image.
            progress: told of every subject, each of which is read twice (thrice, where a pose is learnt).

        Raises:
            InputError: when there is nothing to learn from, or `normalise=False` and grids differ.
        """
        chosen = evenly(tuple(subjects), LOOKED_AT)
        names = tuple(modalities) if modalities else modalities_of(chosen)
        facts = []
        for done, subject in enumerate(chosen):
            if progress is not None:
                progress("looking at the images", done / (2 * len(chosen)))
            if (fact := Facts.of(subject, names, read)) is not None:
                facts.append(fact)
        absent = [name for name in names if not any(name in fact.images for fact in facts)]
        if absent or not facts:
            raise InputError("mri-none", f"no subject has an image of {', '.join(absent) or 'any kind'}")
        shared = on_one_grid(facts)
        if normalise is False and not shared:
            what = "the images do not share one grid, which normalise=False asks for"
            raise InputError("mri-grids-differ", what, "", "leave it out, or resample the images first")
        aligned = not pose and (shared if normalise is None else not normalise)
        steps = spacing_for(facts, spacing)
        if most is not None and spacing is None and shape is None:
            steps = coarsened(facts, steps, aligned, most)
        size = size_for(facts, steps, shape, aligned)
        if aligned:
            affine = grid(facts[0].affine, facts[0].whole, steps, size)
        else:
            affine = np.diag([*steps, 1.0])
            affine[:3, 3] = -steps * (np.array(size) - 1) / 2
        blank = {name: channel_for(facts, name) for name in names}
        space = cls(blank, size, affine, aligned)
        if pose:
            space = space._with_pose(chosen, read)
        return space._with_moments(chosen, read, progress)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one encoded subject."""
        return (len(self.channels), *self.size)

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm."""
        return spacing_of(self.affine)

    def encode(self, volumes: Mapping[str, Volume], hidden: Hidden | None = None) -> Placed:
        """A subject's images to model space.

        Args:
            volumes: by modality; one that is missing is not observed, one that the space lacks is left out.
            hidden: bool, on the images' own grid (one for all, or one for each modality): voxels to be taken
                for not observed, and not looked at. NaN voxels are not observed either.

        Raises:
            InputError: none of the space's modalities is there, or a mask is on another grid than its image.
        """
        frame, raws, masks = self._upright(volumes, hidden)
        if self.pose is not None:
            turned = self.pose.found(self._low(frame, raws, masks))
            own = frame.affine @ np.linalg.inv(self.affine)  # from the grid's millimetres to the subject's
            frame = replace(frame, affine=own @ turned @ self.affine)
        values = np.zeros(self.shape, np.float32)
        observed = np.zeros(self.shape, bool)
        for place, name in enumerate(self.channels):
            if name in raws:
                values[place], observed[place] = self._channel(name, frame, raws[name], masks[name])
        return Placed(values, observed, frame)

    def decode(self, values: np.ndarray | Tensor, frame: Frame) -> dict[str, np.ndarray]:
        """(C, *S) to float32 (X, Y, Z) for each modality, on the image's own grid and scale.

        Beyond the model's grid its edge goes on; `covered` says where that is. A modality that the subject
        does not have comes on the grid of its first one, on the typical scale.
        """
        values = np.asarray(values)
        out = {}
        for place, (name, channel) in enumerate(self.channels.items()):
            seat = frame.images[name]
            moved = frame.back(seat.shape, seat.affine).apply(values[place])
            out[name] = channel.decode(moved, seat.scale)
        return out

    def covered(self, frame: Frame) -> dict[str, np.ndarray]:
        """(X, Y, Z) bool for each modality: which voxels of its own grid the model's grid reaches."""
        return {
            name: np.asarray(~frame.back(seat.shape, seat.affine).beyond().any((0, 1)))
            for name, seat in frame.images.items()
        }

    def decode_generated(self, values: np.ndarray | Tensor) -> dict[str, np.ndarray]:
        """(C, *S) to (*S) for each modality in its own dtype, on the grid of `affine` and the typical scale.
        Nothing is darker than the background, where there is one."""
        out = {}
        for plane, (name, channel) in zip(np.asarray(values), self.channels.items(), strict=True):
            raw = channel.decode(plane, channel.scale)
            if channel.background:
                raw = np.maximum(raw, np.float32(channel.scale.low))
            out[name] = as_dtype(raw, channel.dtype)
        return out

    def encode_labels(self, volume: Volume, frame: Frame) -> np.ndarray:
        """(*S) integers of a segmentation, by the nearest voxel; 0 beyond it."""
        labels = np.round(volume.values()).astype(np.int32)
        return frame.onto(volume.shape, volume.affine).nearest(labels)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON and tensors for a model folder."""
        channels = [{"modality": n, **c.__dict__, "scale": list(c.scale)} for n, c in self.channels.items()]
        config: dict[str, Any] = {"channels": channels, "size": list(self.size), "aligned": self.aligned}
        tensors = {"space.affine": torch.from_numpy(self.affine.copy())}
        if self.pose is not None:
            config["pose"], means = self.pose.state()
            tensors |= means
        return config, tensors

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """What `state` wrote."""
        channels = {}
        for kept in config["channels"]:
            facts = {**kept, "scale": Scale(*kept["scale"])}
            name = facts.pop("modality")
            channels[name] = Channel(**facts)
        affine = tensors["space.affine"].numpy().astype(np.float64)
        pose = Pose.from_state(config["pose"], tensors) if config.get("pose") else None
        return cls(channels, tuple(config["size"]), affine, bool(config["aligned"]), pose)

    def _upright(
        self, volumes: Mapping[str, Volume], hidden: Hidden | None
    ) -> tuple[Frame, dict[str, np.ndarray], dict[str, np.ndarray | None]]:
        """The grid along the images' own axes, centred on the object; values and masks by modality."""
        volumes = {name: volumes[name] for name in self.channels if name in volumes}
        if not volumes:
            raise InputError("mri-no-modality", f"the subject has no image of {', '.join(self.channels)}")
        raws = {name: volume.values() for name, volume in volumes.items()}
        masks = {name: _mask(hidden, name, raws[name]) for name in volumes}
        looks = {name: look(raws[name], masks[name], self.channels[name].background) for name in volumes}
        reference = next(iter(volumes))
        affine = self._frame_affine(volumes[reference], looks[reference], masks[reference])
        seats = {}
        for name, channel in self.channels.items():
            volume = volumes.get(name, volumes[reference])
            seen = looks.get(name)
            scale = Scale(seen.dark, seen.bright) if seen else channel.scale
            edges = (seen or looks[reference]).open
            seats[name] = Seat(volume.shape, volume.affine, scale, edges, seen is not None)
        return Frame(self.size, affine, seats), raws, masks

    def _low(
        self, frame: Frame, raws: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray | None]
    ) -> dict[str, Low]:
        """The images at low resolution, about the middle of the grid."""
        shape, step = low_grid(self.size, self.spacing)
        shape = roomy(shape)
        about = np.diag([*step, 1.0])
        about[:3, 3] = -step * (np.array(shape) - 1) / 2
        coarse = Frame(shape, frame.affine @ np.linalg.inv(self.affine) @ about, frame.images)
        return {name: Low(*self._channel(name, coarse, raw, masks[name])) for name, raw in raws.items()}

    def _with_pose(self, subjects: Sequence[Subject], read: Read) -> Self:
        """The same with the pose that the subjects have in common."""
        lows = []
        for subject in subjects:
            volumes = {name: read(path) for name, path in subject.images.items() if name in self.channels}
            if volumes:
                lows.append(self._low(*self._upright(volumes, None)))
        return replace(self, pose=Pose.fit(lows, *low_grid(self.size, self.spacing)))

    def _frame_affine(self, volume: Volume, seen: Look, hidden: np.ndarray | None) -> np.ndarray:
        if self.aligned:
            return self.affine
        turn = canonical(volume.affine, volume.shape)
        return grid(
            volume.affine @ turn, canonical_box(box(seen.object, hidden), turn), self.spacing, self.size
        )

    def _channel(
        self, name: str, frame: Frame, raw: np.ndarray, hidden: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(*S) values and observed of one modality."""
        seat, channel = frame.images[name], self.channels[name]
        known = np.isfinite(raw) if hidden is None else ~hidden & np.isfinite(raw)
        onto = frame.onto(seat.shape, seat.affine)
        beyond = onto.beyond()
        unseen = beyond[seat.open].any(0)
        if known.all():
            values = onto.apply(channel.encode(raw, seat.scale))
        else:
            # Where voxels are larger than the image's, what is known of one stands for the whole of it.
            scaled = np.where(known, channel.encode(np.where(known, raw, seat.scale.low), seat.scale), 0)
            share = onto.apply(known.astype(np.float32))
            values = onto.apply(scaled.astype(np.float32)) / np.maximum(share, _KNOWN)
            unseen |= share < _KNOWN
        values[beyond.any((0, 1))] = channel.encode(np.array([seat.scale.low]), seat.scale)[0]
        values[unseen] = 0
        return values, ~unseen

    def _with_moments(
        self, subjects: Sequence[Subject], read: Read, progress: Progress | None = None
    ) -> Self:
        """The same with mean and standard deviation of what the subjects' images become."""
        sums = {name: np.zeros(3) for name in self.channels}
        for done, subject in enumerate(subjects):
            if progress is not None:
                progress("looking at the images", 0.5 + done / (2 * len(subjects)))
            volumes = {name: read(path) for name, path in subject.images.items() if name in self.channels}
            if not volumes:
                continue
            placed = self.encode(volumes)
            for place, name in enumerate(self.channels):
                seen = placed.values[place][placed.observed[place]].astype(np.float64)
                sums[name] += (seen.size, seen.sum(), (seen**2).sum())
        channels = {}
        for name, channel in self.channels.items():
            count, first, second = sums[name]
            mean = first / max(count, 1)
            std = float(np.sqrt(max(second / max(count, 1) - mean**2, 0)))
            channels[name] = replace(channel, mean=float(mean), std=std if std > 1e-6 else 1.0)
        return replace(self, channels=channels)


def _mask(hidden: Hidden | None, name: str, raw: np.ndarray) -> np.ndarray | None:
    """The mask that belongs to one image."""
    mask = hidden.get(name) if isinstance(hidden, Mapping) else hidden
    if mask is None:
        return None
    if mask.shape != raw.shape:
        what = f"the mask has {mask.shape} voxels and the {name} image {raw.shape}"
        raise InputError("mask-grid", what, "", "give a mask on the image's own grid")
    return np.asarray(mask, bool)
