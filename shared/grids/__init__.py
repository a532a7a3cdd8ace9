"""A model of data on a grid (images, volumes): generate and fill, with one set of weights.

A centre (`centre`) knows mean and spread in closed form, given whatever is observed; a U-Net (`unet`) on
Haar-packed grids (`latent`) corrects it, trained by hiding random patterns of what is observed. Everything
but the network's inside works on the grid itself: masks need not fit the packing, and white noise stays
white, because the packing is orthonormal.
"""

from .distilling import distil_model
from .fitting import fit_model, probe, step_bytes
from .model import GridModel, Trust
from .settings import GridSettings, GridShape

__all__ = [
    "GridModel",
    "GridSettings",
    "GridShape",
    "Trust",
    "distil_model",
    "fit_model",
    "probe",
    "step_bytes",
]
