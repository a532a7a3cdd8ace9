"""A model of data on a grid (images, volumes): generate and fill, with one set of weights.

A centre (`centre`) knows mean and spread in closed form, given whatever is observed; a U-Net (`unet`) on
Haar-packed grids (`latent`) corrects it, trained by hiding random patterns of what is observed. Everything
but the network's inside works on the grid itself: masks need not fit the packing, and white noise stays
white, because the packing is orthonormal. Of large grids it works in the latents of an autoencoder
(`latents`), asked in the same way.
"""

from .distilling import distil_model
from .fitting import fit_model, probe, step_bytes
from .latents import AnyModel, LatentModel, model_from_state
from .model import GridModel, Trust
from .settings import GridSettings, GridShape

__all__ = [
    "AnyModel",
    "GridModel",
    "GridSettings",
    "GridShape",
    "LatentModel",
    "Trust",
    "distil_model",
    "fit_model",
    "model_from_state",
    "probe",
    "step_bytes",
]
