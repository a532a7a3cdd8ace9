"""Synthetic pictures beside the real ones that they were made from: figures, a verdict, and sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.stats import binom

from ...shared.errors import Fault, InputError
from ...shared.noise import Keys
from .. import Comparison, Progress
from .collection import Collection
from .measures import NEIGHBOURS, Pictures, Report, measure
from .samples import NEEDS
from .sheets import sheet_of
from .space import SIDE_LIMIT, ImageSpace
from .writing import Provenance, png_bytes

VALUES = 2**28
"""Numbers of each set that are held at most: 340,000 pictures of Fashion-MNIST, 87,000 of CIFAR-10."""
FEW = 200
"""Pictures of a set below which figures are coarse."""
SHOWN, SUSPECTS = 24, 12
LEVELS = {
    "Much like the real ones": "good",
    "Not yet like the real ones": "look",
    "Unlike the real ones": "bad",
    "Nearly as useful as real ones": "good",
    "Of some use": "look",
    "Of little use": "bad",
    "No copies found": "good",
    "Some may be copies": "bad",
    "Not assessed": "none",
}
"""How good it is that a title says."""
SURE = 1e-3
"""How improbable more flagged pictures must be by chance alone to be called copies."""


def compare(
    real: Collection,
    synthetic: Collection,
    holdout: Collection | None,
    *,
    seed: int = 0,
    steps: int = 1200,
    progress: Progress | None = None,
) -> Comparison:
    """Compare them at the size of the synthetic ones, larger ones made smaller.

    Args:
        real: what the model was trained on.
        synthetic: what it made; classes by its folders or its `metadata.csv`.
        holdout: real pictures that it was not trained on.
        seed: of the feature network, and of which pictures are compared and shown.
        steps: of training the feature network.
        progress: told what is done and how far it is.

    Raises:
        InputError: fewer than a dozen pictures of a set; a damaged picture.
    """
    tell = progress or (lambda what, done: None)
    space = _space(real, synthetic)
    sets: dict[str, Pictures | None] = {}
    for k, (name, found) in enumerate({"REAL": real, "SYNTHETIC": synthetic, "--holdout": holdout}.items()):
        sets[name] = None if found is None else _read(found, name, space, real.class_names, seed)
        tell("reading pictures", 0.1 * (k + 1))
    train, fake, held = sets["REAL"], sets["SYNTHETIC"], sets["--holdout"]
    assert train is not None and fake is not None
    report = measure(
        train, held, fake, seed=seed, steps=steps, progress=lambda what, done: tell(what, 0.3 + 0.65 * done)
    )
    copies = report.search.copies
    shared, internal = _sheets(train, fake, report, seed)
    verdict = _verdict(report, fake)
    small = [name for name, found in sets.items() if found is not None and len(found) < FEW]
    faults = [
        Fault("few-pictures", f"fewer than {FEW}: its figures are coarse", name, "give more", "warning")
        for name in small
    ]
    facts = {
        "size": list(space.shape),
        "counts": {name: len(found) for name, found in sets.items() if found is not None},
        "notes": list(report.notes),
        "copies": {"threshold": copies.threshold, "flagged": int(copies.flagged.sum())},
        "planted_copies_found": dict(report.search.planted),
        "levels": {part: LEVELS[title] for part, (title, _) in verdict.items()},
        "seed": seed,
    }
    whose = "held-out pictures" if held is not None else "one half of the real pictures beside the other"
    return Comparison(whose, report.figures, verdict, shared, internal, facts, tuple(faults))


def _space(real: Collection, synthetic: Collection) -> ImageSpace:
    """The synthetic pictures' size, and the channels of the real ones."""
    first = [synthetic.glance(k) for k in range(min(len(synthetic), FEW))]
    sizes = [(glance.height, glance.width) for glance in first]
    height, width = max(set(sizes), key=sizes.count)
    shrink = min(1.0, SIDE_LIMIT / min(height, width))
    channels = max(NEEDS[real.glance(k).mode] for k in range(min(len(real), FEW)))
    shape = (channels, round(height * shrink), round(width * shrink))
    return ImageSpace(shape, torch.zeros(channels), torch.ones(channels), reduces=True)


def _read(found: Collection, name: str, space: ImageSpace, class_names: Sequence[str], seed: int) -> Pictures:
    """Pixels in [0, 1] and classes; some of them, where all are more than memory should hold."""
    least = 2 * NEIGHBOURS + 2
    if len(found) < least:
        remedy = f"give {least} or more, some hundred for figures that mean something"
        raise InputError("few-pictures", f"{len(found)} picture(s) cannot be compared", name, remedy)
    most = VALUES // int(np.prod(space.shape))
    if len(found) > most:
        order = Keys.range(seed, len(found)).uniform((), "some pictures").argsort()[:most]
        found = found.subset(np.sort(order.numpy()))
    labels = torch.from_numpy(found.labels_among(class_names)) if class_names else None
    known = labels is not None and bool((labels >= 0).any())
    return Pictures(space.scaled(space.pixels(found)), labels if known else None)


def _sheets(
    train: Pictures, fake: Pictures, report: Report, seed: int
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(synthetic pictures alone, real ones beside them)."""

    def tiles(pictures: Pictures, rows: torch.Tensor) -> list[np.ndarray]:
        chosen = (pictures.pixels[rows] * 255).round().to(torch.uint8)
        return list(chosen.permute(0, 2, 3, 1).numpy())

    def png(images: list[np.ndarray], titles: Sequence[str], columns: int, heading: str) -> bytes:
        about = Provenance("SYNTHETIC", seed, "sheet")
        return png_bytes(sheet_of(images, titles, columns, heading=heading), about)

    some, real = fake.rows(SHOWN, seed), train.rows(SHOWN, seed)
    both = [*tiles(train, real), *tiles(fake, some)]
    names = ["real"] * len(real) + ["synthetic"] * len(some)
    copies = report.search.copies
    near = copies.distances.argsort()[:SUSPECTS]
    pairs = [
        tile
        for pair in zip(tiles(fake, report.compared[near]), tiles(train, copies.positions[near]), strict=True)
        for tile in pair
    ]
    marks = [mark for row in near.tolist() for mark in ("synthetic", f"apart {copies.distances[row]:.3f}")]
    shared = {"Synthetic pictures": png(tiles(fake, some), (), 8, "SYNTHETIC")}
    return shared, {
        "Real pictures, and synthetic ones": png(both, names, 8, "Real and SYNTHETIC"),
        "The synthetic pictures nearest to a real one, each beside it": png(
            pairs, marks, 6, "SYNTHETIC, and the nearest real one"
        ),
    }


# --- verdict ------------------------------------------------------------------------------------


def _verdict(report: Report, fake: Pictures) -> Mapping[str, tuple[str, Sequence[str]]]:
    return {
        "fidelity": _likeness(report),
        "utility": _use(report, fake),
        "privacy": _copying(report),
    }


def _likeness(report: Report) -> tuple[str, list[str]]:
    found = {figure.name: figure for figure in report.figures["fidelity"]}

    def share(name: str) -> float:
        """Of the reference."""
        figure = found[name]
        assert figure.synthetic is not None and figure.reference is not None
        return figure.synthetic / figure.reference if figure.reference else 1.0

    looks, variety = share("precision"), share("coverage")
    title = "Much like the real ones" if min(looks, variety) > 0.85 else "Not yet like the real ones"
    if min(looks, variety) < 0.5:
        title = "Unlike the real ones"
    distance = found["Frechet distance"]
    return title, [
        f"As many look real as {_percent(looks)} of what real pictures reach, and they cover "
        f"{_percent(variety)} of the real variety that other real pictures cover.",
        f"Their Frechet distance is {distance.synthetic:.3g}, that of real ones {distance.reference:.3g}; it "
        "compares models on this data alone, by features of a small network.",
    ]


def _use(report: Report, fake: Pictures) -> tuple[str, list[str]]:
    if not report.figures["utility"]:
        why = (
            "The synthetic pictures have no classes"
            if fake.labels is None
            else "There are no classes to tell"
        )
        return "Not assessed", [
            f"{why}: a folder for each class, or a column label in metadata.csv, says them."
        ]
    (figure,) = report.figures["utility"]
    assert figure.synthetic is not None and figure.reference is not None
    lost = figure.reference - figure.synthetic
    title = "Nearly as useful as real ones" if lost < 0.05 else "Of some use"
    if lost > 0.25:
        title = "Of little use"
    return title, [
        f"A classifier that learnt from them alone is right on {_percent(figure.synthetic)} of other real "
        f"pictures; one that learnt from as many real ones, on {_percent(figure.reference)}."
    ]


def _copying(report: Report) -> tuple[str, list[str]]:
    copies = report.search.copies
    flagged, count = int(copies.flagged.sum()), len(copies.flagged)
    usual = max(report.search.reference, copies.expected)
    by_chance = float(binom.sf(flagged - 1, count, usual))  # so many or more
    weakest = min(report.search.planted, key=lambda what: report.search.planted[what])
    searched = (
        f"The search finds {_percent(report.search.power)} of copies that were planted; it is weakest for "
        f"those {weakest}: {_percent(report.search.planted[weakest])}."
    )
    said = f"{flagged} of {count} lie as near to a training picture as copies do"
    if by_chance < SURE:
        return "Some may be copies", [f"{said}, more than chance explains: look at them.", searched]
    if report.search.power < 0.5:
        return "Not assessed", [f"{searched} That is too few to say that there are none."]
    return "No copies found", [
        f"{said}, no more than chance explains. {searched}",
        "That no copy was found does not prove that nobody can be recognised.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
