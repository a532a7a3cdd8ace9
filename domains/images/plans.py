"""How to train on pictures, written down: their size, the model, and a short probe's estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...shared.grids import GridSettings, GridShape, probe
from ...shared.words import WIDTH
from .. import Progress
from ..documents import scalar, section, settings_of, spoken, typed
from .collection import Collection
from .model import encoder_for, recommended
from .options import ImageOptions
from .space import ImageSpace

KEYS = ("size", "channels", "mirror", "augment", "text_encoder", "model")
"""What a plan of pictures holds."""


def decided(
    said: ImageOptions, pictures: Collection, seed: int, progress: Progress | None = None
) -> tuple[ImageOptions, dict[str, float], str]:
    """The options with what was not said decided; what two steps of the training tell; a sentence.

    Raises:
        InputError: a damaged picture; as `encoder_for`.
    """
    tell = progress or (lambda stage, fraction: None)
    encoder = None if said.text_encoder is None else encoder_for(pictures, said.text_encoder)
    space = ImageSpace.fit(pictures, size=said.size, channels=said.channels, seed=seed, progress=tell)
    captions = space.conditions.captions is not None
    width = encoder.identity.width if encoder is not None else WIDTH if captions else 0
    settings = said.settings or recommended(space.shape, len(pictures), captions=captions)
    tell("a short probe", 0.7)
    estimate = probe(settings, GridShape(space.shape, len(space.conditions.class_names), token_width=width))
    tell("a short probe", 1.0)
    channels, height, width = space.shape
    size = height if height == width else None
    options = replace(
        said,
        size=said.size or size,
        channels=channels,
        settings=settings,
    )
    seen = f"{len(pictures):,} pictures, trained on at {height} x {width} pixels of {channels} channel(s)."
    return options, estimate, " ".join([seen, *settings.notes, *space.notes])


def written(options: ImageOptions) -> str:
    """The options as YAML with remarks."""
    lines = [
        "# Side in pixels (null: as the pictures are), and channels: 1 grey, 3 colour, 4 with opacity.",
        f"size: {scalar(options.size)}",
        f"channels: {scalar(options.channels)}",
        "",
        "# Show half of the pictures mirrored in training (samples are not). Not where sides mean something.",
        f"mirror: {scalar(options.mirror)}",
        "# Chance that a picture is moved in training, and that its light is changed (samples are not):",
        "# for a long training on few pictures, 0.3 say; a short one is only slowed by it.",
        f"augment: {scalar(options.augment)}",
        "",
        "# A folder of a CLIP or T5 text encoder that reads the captions (null: one learns with the model).",
        f"text_encoder: {scalar(None if options.text_encoder is None else str(options.text_encoder))}",
        "",
        "# levels: of Haar packing. components: of the centre. blank: share of examples made from nothing.",
        "# latent: channels of an autoencoder's latents, where large pictures are modelled (4); 0: none.",
        *section("model", asdict(options.settings or GridSettings())),
    ]
    return "\n".join(lines) + "\n"


def followed(found: Mapping[str, Any], path: Path, said: ImageOptions) -> ImageOptions:
    """The options of a plan; those that were said stay.

    Raises:
        InputError: a value of the wrong type.
    """
    planned: dict[str, Any] = {
        "size": typed(found, "size", int, None, path),
        "channels": typed(found, "channels", int, None, path),
        "mirror": typed(found, "mirror", bool, False, path),
        "augment": typed(found, "augment", (float, int), 0.0, path),
        "settings": settings_of(GridSettings, GridSettings(), typed(found, "model", dict, {}, path), path),
    }
    encoder = typed(found, "text_encoder", str, None, path)
    planned["text_encoder"] = None if encoder is None else Path(encoder)
    kept = spoken(said)
    return replace(said, **{name: value for name, value in planned.items() if name not in kept})
