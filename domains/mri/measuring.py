"""Synthetic scans beside the real ones they were made from: alike, useful, copied?

Everything is measured on one grid and one intensity scale (`comparable`). Beside each figure of the
synthetic scans stands the same of real scans that take their place: those held out, or one half of the real
ones against the other. Nothing is drawn at random but by the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ...shared.errors import InputError
from ...shared.measures import frechet_distance, kernel_distance, ms_ssim, prdc, rbf_distance
from ...shared.noise import Keys
from .. import Comparison, Figure, Progress
from .collection import Read, Subject
from .comparable import Ground, Scans
from .copied import search
from .judging import TRUSTED, faults_of, pictured, told_fidelity, told_privacy, told_utility
from .membership import attacked
from .model import FittedScans
from .radiomics import table

MOST, FEWEST = 400, 4
"""Scans of a set, at most and at least."""
PAIRS = 48  # of scans whose likeness is measured
_CLIP = 10.0  # standard deviations beyond which a feature says no more
_PERMUTATIONS = 199


@dataclass(frozen=True)
class Numbers:
    """Features of the three sets, standardised by the real ones.

    Args:
        names: of the columns of `real`, `fake`, `other`: (n, F) each.
        left_out: features that are the same in all real scans, or cannot be told.
        blocks: (n, D) where tissue lies, of the three sets.
    """

    names: tuple[str, ...]
    real: Tensor
    fake: Tensor
    other: Tensor
    left_out: tuple[str, ...]
    blocks: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, real: Scans, fake: Scans, other: Scans) -> Numbers:
        names, joined = table([*real.texture, *fake.texture, *other.texture])
        own = joined[: len(real)]
        with np.errstate(all="ignore"):
            mean, std = np.nanmean(own, 0), np.nanstd(own, 0)
        kept = np.isfinite(mean) & (std > 1e-6 * np.maximum(np.abs(mean), 1e-3))
        z = np.clip((joined[:, kept] - mean[kept]) / std[kept], -_CLIP, _CLIP)
        rows, (n, m) = torch.from_numpy(np.nan_to_num(z)), (len(real), len(fake))
        chosen = tuple(name for name, keep in zip(names, kept, strict=True) if keep)
        scale = max(float(real.layout.std(0).mean()), 1e-6) * real.layout.shape[1] ** 0.5
        first, second, third = (torch.from_numpy(scans.layout / scale) for scans in (real, fake, other))
        left = tuple(name for name, keep in zip(names, kept, strict=True) if not keep)
        return cls(chosen, rows[:n], rows[n : n + m], rows[n + m :], left, (first, second, third))


def measured(
    real: Sequence[Subject],
    synthetic: Sequence[Subject],
    holdout: Sequence[Subject] | None,
    *,
    seed: int = 0,
    read: Read,
    fitted: FittedScans | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare synthetic scans with real ones.

    Args:
        real: what the model was trained on. synthetic: what it made. holdout: like `real`, never seen by it.
        seed: of halves, pairs, permutations and planted copies.
        read: reads one real image.
        fitted: the model; with `holdout`, it is tried whether it knows those it was trained on.

    Raises:
        InputError: fewer than four scans of a kind; no modality in common; a damaged image.
    """
    tell = progress or (lambda stage, fraction: None)
    sets = {"real": real, "synthetic": synthetic} | ({} if holdout is None else {"held-out": holdout})
    for kind, subjects in sets.items():
        if len(subjects) < FEWEST:
            what = f"{len(subjects)} {kind} scan(s), nothing to compare"
            raise InputError("few-scans", what, "", f"give {FEWEST} or more")
    chosen = {kind: _chosen(subjects, MOST, seed) for kind, subjects in sets.items()}
    ground = Ground.between(chosen["real"], chosen["synthetic"], read, lambda s, f: tell(s, 0.15 * f))
    train = ground.scans(
        chosen["real"], read, "measuring the real scans", lambda s, f: tell(s, 0.15 + 0.2 * f)
    )
    fake = ground.scans(
        chosen["synthetic"], read, "measuring the synthetic scans", lambda s, f: tell(s, 0.35 + 0.2 * f)
    )
    if holdout is None:
        order = Keys.range(seed, len(train)).uniform((), "halves").argsort().tolist()
        here, other = (train.some(order[i::2]) for i in (0, 1))
        reference = "one half of the real scans against the other"
    else:
        here, reference = train, "held-out scans, which the model never saw, against the real ones"
        other = ground.scans(
            chosen["held-out"], read, "measuring the held-out scans", lambda s, f: tell(s, 0.55 + 0.1 * f)
        )
    tell("comparing", 0.65)
    numbers = Numbers.of(here, fake, other)
    fidelity, told_apart, differing = _fidelity(numbers, here, fake, other, seed)
    fidelity += _volumes(numbers, fake, train, other)
    tell("looking for copies", 0.75)
    held = None if holdout is None else (other.volumes, other.known)
    found = search((train.volumes, train.known), (fake.volumes, fake.known), held, ground.backgrounds, seed)
    utility = _utility(numbers, here, fake, other)
    known = None
    if fitted is not None and holdout is not None:
        tell("asking the model", 0.85)
        known = attacked(fitted, chosen["real"], chosen["held-out"], seed, read)
    privacy = [*found.figures(), *([] if known is None else [known.figure()])]
    tell("drawing", 0.95)
    pictures, internal = pictured(train, fake, found, ground)
    verdict = {
        "fidelity": told_fidelity(told_apart, differing, fidelity, len(fake)),
        "utility": told_utility(utility),
        "privacy": told_privacy(found, len(fake), holdout is not None, known),
    }
    facts = {
        "scans": {"real": len(train), "synthetic": len(fake), "reference": len(other)},
        "grid": list(ground.space.size),
        "spacing_mm": [round(float(s), 3) for s in ground.space.spacing],
        "modalities": list(ground.space.modalities),
        "features": list(numbers.names),
        "features_left_out": list(numbers.left_out),
        "permutation_p": told_apart,
        "differs_most": dict(differing),
        "copies": found.facts(fake.names),
        "seed": seed,
    }
    return Comparison(
        reference,
        {
            "fidelity": fidelity,
            "utility": utility,
            "privacy": privacy,
        },
        verdict,
        pictures,
        internal,
        facts,
        faults_of(train, fake, found),
    )


def _chosen(subjects: Sequence[Subject], most: int, seed: int) -> list[Subject]:
    """At most so many, in an order by the seed: any first of them are a fair part."""
    order = Keys.range(seed, len(subjects)).uniform((), "chosen").argsort()[:most]
    return [subjects[i] for i in order.tolist()]


# --- alike ----------------------------------------------------------------------------------------


def _fidelity(
    x: Numbers, here: Scans, fake: Scans, other: Scans, seed: int
) -> tuple[list[Figure], float, list[tuple[str, float]]]:
    """Figures, the p-value of being told apart, and the features that differ the most."""
    equal = min(len(here), len(fake), len(other))
    mmd, p = rbf_distance(x.real, x.fake, _PERMUTATIONS, seed)
    near, usual = (prdc(x.real, y, min(5, equal - 1)) for y in (x.fake, x.other))
    places, own_places, other_places = x.blocks
    alike = "texture, intensities and shape (radiomics)"
    figures = [
        Figure("MMD, radiomics", mmd, rbf_distance(x.real, x.other)[0], None,
               f"How far apart the sets lie by {alike}, under a Gaussian kernel; 0 for equal laws."),
        Figure("kernel distance (KID), radiomics", kernel_distance(x.real, x.fake),
               kernel_distance(x.real, x.other), None,
               f"The same by a cubic kernel, which sees averages, spreads and skewness of {alike}."),
        Figure("Frechet distance, radiomics", frechet_distance(x.real[:equal], x.fake[:equal]),
               frechet_distance(x.real[:equal], x.other[:equal]), None,
               f"Between Gaussians of {alike}, of as many scans of either kind."),
        Figure("Frechet distance, layout", frechet_distance(places[:equal], own_places[:equal]),
               frechet_distance(places[:equal], other_places[:equal]), None,
               "The same by where tissue lies: means over blocks of the volume."),
        Figure("coverage", near.coverage, usual.coverage, None,
               "Share of real scans with a synthetic one nearby: is the variety there?"),
        Figure("precision", near.precision, usual.precision, None,
               "Share of synthetic scans that lie where real ones lie."),
        Figure("likeness between scans (MS-SSIM)", diversity(fake.volumes, seed),
               diversity(here.volumes, seed), None,
               "Mean over pairs, 1 if all were the same: higher than among real ones is too little variety."),
    ]  # fmt: skip
    gap = (x.fake.mean(0) - x.real.mean(0)).tolist()
    most = sorted(zip(x.names, gap, strict=True), key=lambda pair: -abs(pair[1]))[:5]
    return figures, p, [(name, round(z, 2)) for name, z in most]


def diversity(volumes: Tensor, seed: int) -> float:
    """Mean MS-SSIM of random pairs of different scans (n, C, *S)."""
    pairs = torch.combinations(torch.arange(len(volumes)))
    order = Keys.range(seed, len(pairs)).uniform((), "pairs").argsort()[:PAIRS]
    rows = [ms_ssim(volumes[a][None], volumes[b][None], 1.25) for a, b in pairs[order].tolist()]
    return float(torch.cat(rows).mean())


def _volumes(x: Numbers, fake: Scans, train: Scans, other: Scans) -> list[Figure]:
    """Distributions of the object's volume and of labelled regions."""
    figures = []
    if (name := "shape volume") in x.names:
        a, b, c = ([row[name] for row in scans.texture] for scans in (train, fake, other))
        figures.append(_gap("volume of the object", a, b, c))
    labels = sorted({label for row in train.regions for label in row})
    if labels and any(fake.regions) and any(other.regions):
        each = []
        for label in labels:
            a, b, c = (
                [row.get(label, 0.0) for row in scans.regions if row] for scans in (train, fake, other)
            )
            each.append(_gap(f"volume of label {label}", a, b, c))
        if len(each) > 8:
            ours, theirs = (float(np.mean([getattr(f, k) for f in each])) for k in ("synthetic", "reference"))
            meaning = f"{each[0].meaning} Mean over {len(each)} labels."
            return [
                *figures,
                Figure("volumes of labels, gap between distributions", ours, theirs, None, meaning),
            ]
        figures += each
    return figures


def _gap(name: str, real: Sequence[float], fake: Sequence[float], other: Sequence[float]) -> Figure:
    """The largest difference between two distribution functions (Kolmogorov and Smirnov)."""
    a, b = (float(stats.ks_2samp(real, held).statistic) for held in (fake, other))
    meaning = (
        f"Largest difference of the shares below any volume, 0 to 1; medians {np.median(fake):.3g} ml "
        f"synthetic, {np.median(real):.3g} ml real."
    )
    return Figure(f"{name}, gap between distributions", a, b, None, meaning)


# --- useful ---------------------------------------------------------------------------------------


def _utility(x: Numbers, here: Scans, fake: Scans, other: Scans) -> list[Figure]:
    """How well covariates are told on real scans from what was learnt on synthetic ones."""
    from sklearn.linear_model import RidgeCV

    figures = []
    inputs = {
        "real": torch.cat([x.real, x.blocks[0]], 1).numpy(),
        "fake": torch.cat([x.fake, x.blocks[1]], 1).numpy(),
        "other": torch.cat([x.other, x.blocks[2]], 1).numpy(),
    }
    for name in dict.fromkeys(name for row in here.covariates for name in row):
        columns = {
            kind: _as_numbers([row.get(name) for row in scans.covariates], here, name)
            for kind, scans in (("real", here), ("fake", fake), ("other", other))
        }
        known = {kind: np.isfinite(column) for kind, column in columns.items()}
        count = min(int(known["real"].sum()), int(known["fake"].sum()))
        if count < TRUSTED // 2 or known["other"].sum() < TRUSTED // 2:
            continue
        if any(np.ptp(columns[kind][known[kind]]) == 0 for kind in columns):
            continue
        scores = {}
        for kind in ("fake", "real"):
            rows = np.flatnonzero(known[kind])[:count]
            ridge = RidgeCV(np.logspace(0, 5, 11)).fit(inputs[kind][rows], columns[kind][rows])
            told = ridge.predict(inputs["other"][known["other"]])
            truth = columns["other"][known["other"]]
            scores[kind] = float(np.corrcoef(told, truth)[0, 1]) if told.std() > 1e-9 else 0.0
        meaning = "Correlation with the truth on real scans, learnt on synthetic or on real ones."
        figures.append(Figure(f"{name} told from a scan", scores["fake"], scores["real"], None, meaning))
    return figures


def _as_numbers(column: Sequence[Any], here: Scans, name: str) -> np.ndarray:
    """Numbers as they are, the two levels of a text as 0 and 1, NaN for all else."""
    levels = sorted({str(row[name]) for row in here.covariates if isinstance(row.get(name), str)})
    if levels and len(levels) != 2:
        return np.full(len(column), np.nan)
    codes: Mapping[Any, float] = {level: float(place) for place, level in enumerate(levels)}
    return np.array(
        [codes.get(v, np.nan) if isinstance(v, str) else np.nan if v is None else v for v in column]
    )
