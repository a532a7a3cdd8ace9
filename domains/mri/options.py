"""What the user said about scans."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...shared.grids import GridSettings
from .collection import Read, read_image
from .holes import Holes

NO_HOLES = Holes()


@dataclass(frozen=True)
class ScanOptions:
    """What the user said about scans. None means: as seen in the data.

    Args:
        modalities: which, in which order.
        segmentation: a folder of label maps, where they are not beside the images.
        covariates: a TSV or CSV, where it is not beside the images.
        conditions: covariates that a model is to be told.
        spacing: millimetres of the model's grid.
        pose: turn each subject rigidly to a common pose.
        labels: learn what images look like given a label map.
        holes: what to fill.
        assume_spacing: accept files that do not say how they lie.
        missing_nan: voxels that are not numbers are missing.
        faces: fill in a face that was removed.
        preset: of the machine: cpu, 4gb, 16gb, 80gb.
        settings: of the model.
    """

    modalities: tuple[str, ...] | None = None
    segmentation: Path | None = None
    covariates: Path | None = None
    conditions: tuple[str, ...] = ()
    spacing: float | tuple[float, ...] | None = None
    pose: bool = False
    labels: bool = True
    holes: Holes = NO_HOLES
    assume_spacing: bool = False
    missing_nan: bool = False
    faces: bool = False
    preset: str | None = None
    settings: GridSettings | None = None

    @property
    def read(self) -> Read:
        """How an image is read: what is allowed is allowed by every verb."""
        return partial(read_image, assume_spacing=self.assume_spacing, missing_nan=self.missing_nan)
