"""Random flips, crops and colours for training on few pictures; a pure function of keys, off at sampling.

The operations are torchvision's transforms v2; what is random comes from `shared.noise`, so that a picture is
altered the same way whatever the batch, the order or the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ...shared.noise import Keys


@dataclass(frozen=True)
class Augmentation:
    """How pictures may be altered.

    Args:
        flip: mirror half of them, left and right. Not where sides mean something: text, organs.
        crop: shift by up to this share of each axis; what comes in at the border is its mirror image.
        colour: change brightness, contrast and saturation by factors in 1 - colour ... 1 + colour.
    """

    flip: bool = True
    crop: float = 0.0
    colour: float = 0.0

    def __call__(self, pixels: Tensor, keys: Keys) -> Tensor:
        """Alter a batch of pictures.

        Args:
            pixels: (B, C, H, W) in [0, 1]; a fourth channel is opacity and keeps its values.
            keys: B of them; picture k depends on keys[k] alone.

        Returns:
            (B, C, H, W) in [0, 1].
        """
        coin = keys.uniform((), "augment flip") < 0.5
        places = keys.uniform((2,), "augment crop").tolist()
        factors = (1 + self.colour * (2 * keys.uniform((3,), "augment colour") - 1)).tolist()
        return torch.stack(
            [
                self._one(one, bool(mirrored), place, factor)
                for one, mirrored, place, factor in zip(pixels, coin, places, factors, strict=True)
            ]
        )

    def _one(self, picture: Tensor, mirrored: bool, place: list[float], factors: list[float]) -> Tensor:
        import torchvision.transforms.v2.functional as V

        if self.flip and mirrored:
            picture = V.horizontal_flip(picture)
        height, width = picture.shape[-2:]
        rows, columns = int(self.crop * height), int(self.crop * width)
        if rows or columns:
            padded = V.pad(picture, [columns, rows, columns, rows], padding_mode="reflect")
            top, left = int(place[0] * (2 * rows + 1)), int(place[1] * (2 * columns + 1))
            picture = V.crop(padded, top, left, height, width)
        return self._coloured(picture, factors) if self.colour else picture

    def _coloured(self, picture: Tensor, factors: list[float]) -> Tensor:
        import torchvision.transforms.v2.functional as V

        channels = 1 if len(picture) == 1 else 3
        colour = V.adjust_contrast(V.adjust_brightness(picture[:channels], factors[0]), factors[1])
        if channels == 3:
            colour = V.adjust_saturation(colour, factors[2])
        return torch.cat([colour, picture[channels:]])

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(**state)
