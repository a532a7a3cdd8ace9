"""How to train on scans, written down: the grid, the conditions, the model, and a short probe's estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...shared.errors import InputError
from ...shared.grids import GridSettings, GridShape, probe
from .. import Progress
from ..documents import scalar, section, settings_of, spoken, typed
from .collection import Subject
from .model import FEWEST, label_values
from .options import ScanOptions
from .presets import PRESETS, preset_for, recommended
from .space import MriSpace

KEYS = (
    "modalities",
    "conditions",
    "spacing",
    "pose",
    "labels",
    "assume_spacing",
    "missing_nan",
    "preset",
    "model",
)
"""What a plan of scans holds."""


FEWEST_STEPS = 300
"""Of a training that a plan makes shorter than its preset's."""


@dataclass(frozen=True)
class Decided:
    """What was decided.

    Args:
        options: all of them.
        estimate: minutes, memory_mb, disk_mb.
        seen: a sentence on the data.
    """

    options: ScanOptions
    estimate: Mapping[str, float]
    seen: str


def decided(said: ScanOptions, subjects: Sequence[Subject], progress: Progress | None = None) -> Decided:
    """Decide what was not said, and try two steps of the training.

    Raises:
        InputError: a damaged image; nothing to learn from.
    """
    tell = progress or (lambda stage, fraction: None)
    preset = said.preset or preset_for("auto")
    space = MriSpace.fit(
        subjects,
        spacing=said.spacing,
        modalities=said.modalities,
        most=PRESETS[preset].voxels,
        pose=said.pose,
        read=said.read,
        progress=lambda label, share: tell(label, 0.7 * share),
    )
    labels = label_values(subjects, said.read) if said.labels else ()
    form = GridShape((len(space.modalities), *space.size), context=len(labels))
    settings = said.settings or recommended(form.shape, max(len(subjects), FEWEST), preset)
    tell("a short probe", 0.7)
    estimate: Mapping[str, float] = probe(settings, form)
    if said.spacing is None and said.settings is None:
        settings, estimate = in_time(settings, estimate)
    tell("a short probe", 1.0)
    spacing = said.spacing or tuple(round(float(s), 4) for s in space.spacing)
    options = replace(
        said,
        modalities=space.modalities,
        spacing=spacing,
        labels=bool(labels),
        preset=preset,
        settings=settings,
    )
    size = " x ".join(str(n) for n in space.size)
    millimetres = " x ".join(f"{s:.3g}" for s in space.spacing)
    how = "whole" if settings.patch is None else f"through windows of {settings.patch} voxels, as it is large"
    seen = (
        f"{len(subjects):,} subjects, {', '.join(space.modalities)}; trained on {size} voxels of "
        f"{millimetres} mm, seen {how}, for {settings.steps:,} steps, preset {preset}."
    )
    seen = " ".join([seen, *settings.notes])
    return Decided(options, estimate, seen)


def in_time(
    settings: GridSettings, estimate: Mapping[str, float]
) -> tuple[GridSettings, Mapping[str, float]]:
    """With as many steps as the time limit leaves on this machine, as busy as it is; a few hundred at least:
    of fewer nothing is to be seen."""
    if settings.time_limit is None or estimate["minutes"] * 60 <= settings.time_limit:
        return settings, estimate
    steps = int(settings.steps * settings.time_limit / (estimate["minutes"] * 60)) // 50 * 50
    steps = min(settings.steps, max(steps, FEWEST_STEPS))
    minutes = min(estimate["minutes"] * steps / settings.steps, settings.time_limit / 60)
    return replace(settings, steps=steps), {**estimate, "minutes": round(minutes, 1)}


def written(options: ScanOptions) -> str:
    """The options as YAML with remarks."""
    lines = [
        "# Modalities, in the order of the model's channels; one that a subject lacks counts as missing.",
        f"modalities: {scalar(options.modalities)}",
        "",
        "# Covariates that the model is told and can be asked for, from participants.tsv: [age, sex].",
        f"conditions: {scalar(options.conditions)}",
        "",
        "# Millimetres of the model's grid.",
        f"spacing: {scalar(options.spacing)}",
        "# Whether each subject is turned, rigidly, to lie as all do on average (and what is filled, back).",
        f"pose: {scalar(options.pose)}",
        "# Whether the model learns from label maps, too.",
        f"labels: {scalar(options.labels)}",
        "",
        "# Whether files are accepted that do not say how they lie, and voxels without a number are missing.",
        f"assume_spacing: {scalar(options.assume_spacing)}",
        f"missing_nan: {scalar(options.missing_nan)}",
        "",
        "# The machine: cpu, 4gb, 16gb or 80gb (of GPU memory). The model below was chosen for it.",
        f"preset: {scalar(options.preset)}",
        "",
        "# levels: of Haar packing. components: of the centre. blank: share of examples made from nothing.",
        "# latent: channels of an autoencoder's latents, where large scans are modelled (4); 0: none.",
        "# patch: edge of the windows that a large grid is seen through, where there are no latents.",
        "# time_limit: seconds, after which the best of what was reached is kept.",
        *section("model", asdict(options.settings or GridSettings())),
    ]
    return "\n".join(lines) + "\n"


def followed(found: Mapping[str, Any], path: Path, said: ScanOptions) -> ScanOptions:
    """The options of a plan; those that were said stay.

    Raises:
        InputError: a value of the wrong type.
    """
    spacing = typed(found, "spacing", (float, int, list), None, path)
    preset = typed(found, "preset", str, None, path)
    if preset is not None and preset not in PRESETS:
        where, known = f"{path}, preset", ", ".join(PRESETS)
        raise InputError("plan-value", f"there is no preset {preset!r}", where, f"choose one of {known}")
    modalities = typed(found, "modalities", list, None, path)
    planned = {
        "modalities": None if modalities is None else tuple(str(name) for name in modalities),
        "conditions": tuple(str(name) for name in typed(found, "conditions", list, [], path)),
        "spacing": tuple(spacing) if isinstance(spacing, list) else spacing,
        "pose": typed(found, "pose", bool, False, path),
        "labels": typed(found, "labels", bool, True, path),
        "assume_spacing": typed(found, "assume_spacing", bool, False, path),
        "missing_nan": typed(found, "missing_nan", bool, False, path),
        "preset": preset,
        "settings": settings_of(GridSettings, GridSettings(), typed(found, "model", dict, {}, path), path),
    }
    kept = spoken(said)
    return replace(said, **{name: value for name, value in planned.items() if name not in kept})
