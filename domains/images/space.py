"""Between pictures and model space: one size, one set of channels, zero mean and unit variance; and back
again.

A picture is seen through a *window*, a box in its own pixels that is scaled to the model's size. To learn
and to make variations the window is the largest in the middle; to fill a hidden part it is moved over that
part, or, where that does not fit, widened until the whole picture lies in it (what is beyond the border
counts as unknown). On the
way back only hidden pixels are taken from the model: known ones are the picture's own, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import InputError
from ...shared.noise import Keys
from .collection import Collection
from .conditions import Conditions
from .framing import Window, around, cut, middle, resize
from .pictures import Picture
from .samples import NEEDS, from_channels, rounded, scaled, to_channels

SIDE_LIMIT = 128
"""Pixels of the shorter side that are modelled without being asked to."""
SAMPLE = 2000
"""Pictures that mean and variance are learnt from."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Frame:
    """What a picture was before it was encoded.

    Args:
        picture: itself.
        hidden: (H, W) bool, its pixels to be filled; None when all are known.
        window: the part of it that the model sees.
    """

    picture: Picture
    hidden: np.ndarray | None
    window: Window


@dataclass(frozen=True, eq=False)
class Placed:
    """A picture in model space.

    Args:
        values: (C, H, W) float32, 0 where not observed.
        observed: (C, H, W) bool.
        frame: the way back.
    """

    values: Tensor
    observed: Tensor
    frame: Frame


@dataclass(frozen=True, eq=False)
class ImageSpace:
    """The encoding of a set of pictures, learnt from training data and saved with the model.

    Args:
        shape: (C, H, W); C is 1 (grey), 3 (colour) or 4 (colour and opacity).
        mean, std: (C,) float32, of samples scaled to [0, 1].
        bits: 8 or 16, of pictures that are generated.
        conditions: classes and covariates.
        reduces: whether pictures of more channels may be reduced to C, because the user chose C.
        notes: sentences on what was decided and why.
    """

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    bits: int = 8
    conditions: Conditions = field(default_factory=Conditions)
    reduces: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        collection: Collection,
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Decide on size and channels, and learn mean and variance.

        Args:
            collection: training pictures.
            size: side, or (height, width); by default the common size, or the shorter side of most.
            channels: 1, 3 or 4; by default what the most demanding picture needs.
            seed: of the choice of pictures that mean and variance are learnt from.

        Raises:
            InputError: a damaged file, or a size or number of channels that cannot be.
        """
        if not len(collection):
            raise InputError("image-none", "there is no picture to learn from", collection.path, "add some")
        seen = []
        for index in range(len(collection)):
            seen.append(collection.glance(index))
            if progress is not None and index % 100 == 0:
                progress("looking at the pictures", index / len(collection))
        sizes = [(glance.height, glance.width) for glance in seen]
        shape, told = _decide_size(sizes, size)
        wanted, also = _decide_channels([glance.mode for glance in seen], channels)
        depths = [glance.bits for glance in seen]
        mixed = (f"{depths.count(16)} of {len(depths)} pictures have 16 bits: 16 are generated",)
        bits = max(depths)
        start = cls(
            (wanted, *shape),
            torch.zeros(wanted),
            torch.ones(wanted),
            bits,
            Conditions.fit(collection),
            channels is not None,
            (*told, *also, *(mixed if len(set(depths)) > 1 else ())),
        )
        order = Keys.range(seed, len(collection)).uniform((), "sample of pictures").argsort()[:SAMPLE]
        sample = start.scaled(start.pixels(collection.subset(order.numpy())))
        mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
        # A channel that never changes (opacity of opaque pictures) has no scale of its own.
        return replace(start, mean=mean, std=torch.where(std > 1e-3, std, 1.0))

    # --- many pictures, for training ------------------------------------------------------------

    def pixels(self, collection: Collection, progress: Progress | None = None) -> Tensor:
        """All pictures at the model's size: (n, C, H, W) uint8, or int32 where samples have 16 bits."""
        kept = torch.empty(len(collection), *self.shape, dtype=torch.uint8 if self.bits == 8 else torch.int32)
        for index in range(len(collection)):
            picture = collection.read(index)
            self._require_channels(picture)
            window = middle(picture.size, self.shape[1:])
            kept[index] = (self._resized(picture, window) * self._top).round().clamp(0, self._top)
            if progress is not None and index % 100 == 0:
                progress("reading pictures", index / len(collection))
        return kept

    @property
    def _top(self) -> int:
        return int(2**self.bits - 1)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Pixels of `pixels` as float32 in [0, 1], where augmentation works."""
        return pixels.float() / self._top

    def standardised(self, samples: Tensor) -> Tensor:
        """(..., C, H, W) in [0, 1] to model space."""
        std, mean = (c[:, None, None].to(samples) for c in (self.std, self.mean))
        return (samples - mean) / std

    def unstandardised(self, values: Tensor) -> Tensor:
        """Model space to [0, 1], clipped."""
        std, mean = (c[:, None, None].to(values) for c in (self.std, self.mean))
        return (values * std + mean).clamp(0, 1)

    # --- one picture, and back ------------------------------------------------------------------

    def encode(self, picture: Picture, hidden: np.ndarray | None = None) -> Placed:
        """One picture in model space.

        Args:
            picture: of any size.
            hidden: (H, W) bool on its own pixels, True where to be filled. Nothing of what lies there is
                looked at.

        Raises:
            InputError: `image-channels`, `image-mask`.
        """
        self._require_channels(picture)
        if hidden is None:
            window = middle(picture.size, self.shape[1:])
            values = self.standardised(self._resized(picture, window))
            return Placed(values, torch.ones_like(values, dtype=torch.bool), Frame(picture, None, window))
        hidden = np.asarray(hidden, bool)
        if hidden.shape != picture.size:
            what = f"the mask has {hidden.shape} pixels and the picture {picture.size}"
            raise InputError("image-mask", what, picture.where, "make a mask of the picture's size")
        window = around(hidden, self.shape[1:])
        known = cut((~hidden)[..., None].astype(np.float32), window)
        shown = cut(to_channels(scaled(picture), self.shape[0]), window) * known
        weight = resize(torch.from_numpy(known).permute(2, 0, 1), self.shape[1:])
        values = self.standardised(resize(torch.from_numpy(shown).permute(2, 0, 1), self.shape[1:]))
        observed = (weight > 1 - 1e-4).expand(self.shape)
        return Placed(torch.where(observed, values, 0.0), observed.clone(), Frame(picture, hidden, window))

    def decode(self, values: Tensor, frame: Frame) -> np.ndarray:
        """The picture with its hidden part taken from `values`: (H, W, C) in its own size, type and mode,
        known pixels bit for bit its own. Where nothing was hidden, the whole window comes from `values`."""
        picture, window = frame.picture, frame.window
        full = resize(self.unstandardised(values.float().cpu()), (window.height, window.width), smooth=True)
        made = rounded(from_channels(full.permute(1, 2, 0).numpy(), picture.mode), picture.pixels.dtype)
        if frame.hidden is None:
            return made
        filled = picture.pixels.copy()
        rows, columns, window_rows, window_columns = window.inside(picture.size)
        there = frame.hidden[rows, columns]
        filled[rows, columns][there] = made[window_rows, window_columns][there]
        return filled

    def decode_generated(self, values: Tensor) -> np.ndarray:
        """Pictures from model space (n, C, H, W): (n, H, W, C) uint8 or uint16."""
        samples = self.unstandardised(values.float().cpu()).permute(0, 2, 3, 1).numpy()
        return rounded(samples, np.dtype(f"uint{self.bits}"))

    def _require_channels(self, picture: Picture) -> None:
        if NEEDS[picture.mode] > self.shape[0] and not self.reduces:
            kinds = {1: "grey pictures", 3: "colour without opacity", 4: "colour with opacity"}
            what = f"the picture is {picture.mode} and the model knows {kinds[self.shape[0]]}"
            raise InputError("image-channels", what, picture.where, "convert the picture, or train with it")

    def _resized(self, picture: Picture, window: Window) -> Tensor:
        """(C, H, W) float32 in [0, 1]."""
        seen = cut(to_channels(scaled(picture), self.shape[0]), window)
        return resize(torch.from_numpy(seen).permute(2, 0, 1), self.shape[1:])

    # --- saving ---------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(plain JSON, tensors)."""
        conditions, tensors = self.conditions.state()
        config = {
            "shape": list(self.shape),
            "bits": self.bits,
            "reduces": self.reduces,
            "notes": list(self.notes),
            "conditions": conditions,
        }
        return config, {"space.mean": self.mean, "space.std": self.std, **tensors}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        channels, height, width = config["shape"]
        return cls(
            (channels, height, width),
            tensors["space.mean"],
            tensors["space.std"],
            config["bits"],
            Conditions.from_state(config["conditions"], tensors),
            config["reduces"],
            tuple(config["notes"]),
        )


def _decide_size(
    sizes: Sequence[tuple[int, int]], asked: int | tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """The model's (height, width), and how it came about."""
    if asked is not None:
        size = (asked, asked) if isinstance(asked, int) else (int(asked[0]), int(asked[1]))
        if min(size) < 4:
            raise InputError("image-size", f"a model of {size[0]} x {size[1]} pixels", "", "choose 4 or more")
        return size, ()
    counts = Counter(sizes)
    size = counts.most_common(1)[0][0]
    told = []
    if len(counts) > 1:
        side = sorted(min(one) for one in sizes)[len(sizes) // 2]
        size = (side, side)
        told.append(f"there are {len(counts)} sizes: each is scaled to one and cut to its middle square")
    shrink = min(1.0, SIDE_LIMIT / min(size))
    chosen = (max(4, round(size[0] * shrink)), max(4, round(size[1] * shrink)))
    if shrink < 1:
        small = f"{chosen[0]} x {chosen[1]}"
        told.append(f"{size[0]} x {size[1]} is modelled at {small}; a size that is asked for is kept")
    return chosen, tuple(told)


def _decide_channels(modes: Sequence[str], asked: int | None) -> tuple[int, tuple[str, ...]]:
    counts = Counter(modes)
    needed = max(NEEDS[mode] for mode in counts)
    said = ", ".join(f"{count} {mode}" for mode, count in sorted(counts.items()))
    if asked is None:
        return needed, (f"modes differ ({said}): {needed} channels tell them all",) if len(counts) > 1 else ()
    if asked not in (1, 3, 4):
        raise InputError(
            "image-channels", f"{asked} channels", "", "choose 1 (grey), 3 (colour) or 4 (and opacity)"
        )
    lost = (f"{said} are reduced to {asked} channels, as asked",) if needed > asked else ()
    return asked, lost
