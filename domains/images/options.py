"""What the user said about pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...shared.grids import GridSettings
from .holes import Holes

NO_HOLES = Holes()


@dataclass(frozen=True)
class ImageOptions:
    """None means: as seen in the data.

    Args:
        size: side of the model's pictures, in pixels.
        channels: 1, 3 or 4.
        mirror: show mirrored pictures in training, too.
        augment: chance in training that a picture is moved, and that its light is changed.
        holes: what to fill.
        text_encoder: a folder of a frozen one: to train with, or that a model was trained with.
        settings: of the model.
    """

    size: int | None = None
    channels: int | None = None
    mirror: bool = False
    augment: float = 0.0
    holes: Holes = NO_HOLES
    text_encoder: Path | None = None
    settings: GridSettings | None = None
