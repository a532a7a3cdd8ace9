"""Whether synthetic scans are copies of real ones: mirrored, moved by some voxels, or with other intensities.

All volumes lie on one grid, right-anterior-superior. Within each, intensities are replaced by the template's
at the same rank, so that no monotone change of them matters; then the template (the mean of the real scans
and their mirror images) is taken away, so that what counts is how a person differs from the average. The
distance of two scans is 1 - the correlation of these differences, the least over mirroring and over all
shifts of up to `SHIFT` voxels: 0 for a copy, near 1 for people who have nothing in common but being people.

What is near is judged by both: by real people, each compared with a template without them (five folds), and
by copies that are planted. The threshold lies half-way between where all but one in twenty planted copies lie
and the near end of real people (median - 3.3 scaled median absolute deviations, which a few scans of the same
person do not move: fewer than 1 in 1,000 would lie below if distances were normal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ...shared.measures import Copies
from ...shared.noise import Keys
from .. import Figure

SHIFT = 2
"""Voxels of the grid, along each axis."""
CANDIDATES = 3
"""Real scans, the likest by whole voxels, that are compared at half voxels too."""
Pair = tuple[Tensor, Tensor]
"""Scans (n, C, *S) and, bool, what of them is known."""
FAR = 3.3
"""Standard deviations below the middle of real people's distances."""
PLANTS, EACH = 40, 8
"""Copies that are planted: with everything done to them, and of each simpler sort."""
_EXPECTED = 0.001
_RANKS = 257
_SMOOTH = 0.5  # voxels, standard deviation: half a voxel off must not matter much
_SEEN = 0.05  # intensity above which a voxel is ranked, where there is a background


@dataclass(frozen=True, eq=False)
class Likeness:
    """Real scans, prepared to be compared with.

    Args:
        template: (C, *S). ranks: (C, R) its intensities at equally spaced ranks.
        backgrounds: for each channel, whether there is one.
        people: (n, D) differences from the template at least SHIFT from the border, of unit length.
    """

    template: Tensor
    ranks: Tensor
    backgrounds: tuple[bool, ...]
    people: Tensor

    @classmethod
    def of(cls, real: Tensor, known: Tensor, backgrounds: tuple[bool, ...]) -> Likeness:
        """Of real scans (n, C, *S), 0 dark to 1 bright, and what of them is known."""
        held = [_ranks(one, seen, backgrounds) for one, seen in zip(real, known, strict=True)]
        blank = cls(torch.zeros_like(real[0]), torch.stack(held).mean(0), backgrounds, torch.empty(0, 0))
        equal = torch.stack([blank._equalised(one, seen) for one, seen in zip(real, known, strict=True)])
        weight = (known + known.flip(2)).sum(0)
        template = ((equal + equal.flip(2)) * (known + known.flip(2)) / 2).sum(0) / weight.clamp(min=1)
        people = torch.stack([_unit(_within((e - template) * k)) for e, k in zip(equal, known, strict=True)])
        return cls(template, blank.ranks, backgrounds, people)

    def distances(self, one: Tensor, known: Tensor) -> Tensor:
        """(n,) of one scan (C, *S) to each of the real ones."""
        equal = self._equalised(one, known)
        steps = list(product(range(-SHIFT, SHIFT + 1), repeat=3))
        best = torch.full((len(self.people),), -1.0)
        for turned, seen in ((equal, known), (equal.flip(1), known.flip(1))):
            alike = self.people @ torch.stack([self._moved(turned, seen, step) for step in steps]).T
            top = alike.max(1)
            best = torch.maximum(best, top.values)
            halves = _between(turned), _between(seen.float()).ge(1)
            for person in top.values.topk(min(CANDIDATES, len(best))).indices.tolist():
                near = steps[int(top.indices[person])]
                for half in product((-1, 0), repeat=3):
                    moved = self._moved(*halves, [a + b for a, b in zip(near, half, strict=True)])
                    best[person] = torch.maximum(best[person], moved @ self.people[person])
        return 1 - best

    def _equalised(self, one: Tensor, known: Tensor) -> Tensor:
        """(C, *S) with the template's intensities at the ranks of its own, smoothed a little."""
        made = np.zeros(one.shape, np.float32)
        own = _ranks(one, known, self.backgrounds)
        for channel, background in enumerate(self.backgrounds):
            moved = np.interp(one[channel].numpy(), own[channel].numpy(), self.ranks[channel].numpy())
            if background:
                moved = np.where(one[channel].numpy() > _SEEN, moved, 0)
            made[channel] = ndimage.gaussian_filter(moved.astype(np.float32), _SMOOTH)
        return torch.from_numpy(made)

    def _moved(self, equal: Tensor, known: Tensor, step: Sequence[int]) -> Tensor:
        """(D,) of a scan that is moved by whole voxels."""
        inner = [n - 2 * SHIFT for n in self.template.shape[1:]]
        first = [
            min(max(SHIFT + d, 0), equal.shape[1 + a] - n)
            for a, (d, n) in enumerate(zip(step, inner, strict=True))
        ]
        place = (slice(None), *(slice(f, f + n) for f, n in zip(first, inner, strict=True)))
        return _unit((equal[place].flatten() - _within(self.template)) * known[place].flatten())


@dataclass(frozen=True, eq=False)
class CopySearch:
    """What the search for copies found.

    Args:
        copies: of the synthetic scans.
        people: (r,) distances of real scans to the nearest other real one. twins: how many are as near as
            copies: scans of one person, or the same scan twice.
        power: share of planted copies that were found, of those with everything done to them.
        sorts: the same by what alone was done to them.
        held: (h,) distances of held-out scans to the nearest real one, if there are any.
    """

    copies: Copies
    people: Tensor
    twins: int
    power: float
    sorts: Mapping[str, float]
    held: Tensor | None

    def figures(self) -> list[Figure]:
        """For the part on privacy."""
        reference = self.people if self.held is None else self.held
        usual = float(reference.quantile(0.05))
        flagged = float((reference < self.copies.threshold).double().mean())
        return [
            Figure("share that are copies", self.copies.share, flagged, 0.0,
                   "Far nearer to a real scan than people are to each other; also when mirrored, moved by "
                   "some voxels, or of other contrast."),
            Figure("share unusually near", float((self.copies.distances < usual).double().mean()), 0.05, 0.05,
                   "Nearer to a real scan than all but 5 % of real people are to another."),
            Figure("distance to the nearest real scan", float(self.copies.distances.median()),
                   float(reference.median()), None,
                   "Median of 1 - correlation of how two people differ from the average; 0 for a copy."),
            Figure("planted copies found", self.power, None, 1.0,
                   "Real scans, mirrored, moved, with another contrast and some grain: are they found?"),
            *(Figure(f"planted copies found: {sort}", share, None, 1.0, "The same, nothing else done.")
              for sort, share in self.sorts.items()),
        ]  # fmt: skip

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """JSON-able, for a report; `names` are the synthetic scans'."""
        flagged = [name for name, copy in zip(names, self.copies.flagged.tolist(), strict=True) if copy]
        return {
            "threshold": round(self.copies.threshold, 4),
            "flagged": flagged,
            "planted_found": self.power,
            "planted_found_by_sort": dict(self.sorts),
            "real_people": len(self.people),
            "real_twins": self.twins,
        }


def search(real: Pair, fake: Pair, held: Pair | None, backgrounds: tuple[bool, ...], seed: int) -> CopySearch:
    """Look for copies of real scans among synthetic ones.

    Args:
        real, fake: the scans, (n, C, *S) each, and what of them is known.
        held: real scans that the model never saw.
        backgrounds: for each channel, whether there is one. seed: of the planted copies.
    """
    likeness = Likeness.of(*real, backgrounds)
    plants, whom = planted(real, PLANTS, seed)
    apart, where = nearest(likeness, plants)
    people, _ = among_themselves(real, backgrounds)
    copies = judged(*nearest(likeness, fake), people, apart)
    power = float(((apart < copies.threshold) & (where == whom)).double().mean())
    found = {sort: nearest(likeness, scans)[0] for sort, scans in simple(real, EACH, seed).items()}
    sorts = {sort: float((each < copies.threshold).double().mean()) for sort, each in found.items()}
    others = None if held is None else nearest(likeness, held)[0]
    return CopySearch(copies, people, int((people < copies.threshold).sum()), power, sorts, others)


def nearest(likeness: Likeness, scans: Pair) -> tuple[Tensor, Tensor]:
    """(m,) distance of each scan to the nearest real one, and (m,) which that is."""
    rows = [likeness.distances(one, known).min(0) for one, known in zip(*scans, strict=True)]
    return torch.stack([row.values for row in rows]), torch.stack([row.indices for row in rows])


def among_themselves(real: Pair, backgrounds: tuple[bool, ...], folds: int = 5) -> tuple[Tensor, Tensor]:
    """(n,) distance of each real scan to the nearest of the other folds, and (n,) which that is. A person who
    is part of the template seems farther from the others than one who is not; so nobody is."""
    volumes, known = real
    fold = torch.arange(len(volumes)) % min(folds, len(volumes))
    distances, positions = torch.zeros(len(volumes)), torch.zeros(len(volumes), dtype=torch.int64)
    for part in fold.unique():
        others, own = (fold != part).nonzero()[:, 0], fold == part
        likeness = Likeness.of(volumes[others], known[others], backgrounds)
        distances[own], where = nearest(likeness, (volumes[own], known[own]))
        positions[own] = others[where]
    return distances, positions


def judged(distances: Tensor, positions: Tensor, reference: Tensor, plants: Tensor) -> Copies:
    """Which scans are copies.

    Args:
        distances, positions: (m,) to the nearest real scan, and which it is.
        reference: (r,) distances of real people. plants: (p,) distances of planted copies.
    """
    near, middle = float(plants.quantile(0.95)), reference.median()
    far = float(middle - FAR * 1.4826 * (reference - middle).abs().median())
    if far <= near:  # people are of many kinds: their own near end tells more than a normal law
        far = float(reference.quantile(0.05))
    limit = max((near + far) / 2 if near < far else far, 0.0)
    return Copies(distances, positions, limit, distances < limit, _EXPECTED)


def planted(real: Pair, count: int, seed: int) -> tuple[Pair, Tensor]:
    """Copies as a model might make them: half of them mirrored, all moved by up to 1.5 voxels (fractions
    too), with another contrast (gamma 0.7 to 1.4), brightness and some grain; and (count,) of whom."""
    volumes, seen = real
    keys = Keys.range(seed, count)
    whom = keys.uniform((), "whom").mul(len(volumes)).long().clamp(max=len(volumes) - 1)
    chance = keys.uniform((6,), "change").tolist()
    grain = keys.normal(tuple(volumes.shape[1:]), "grain").to(volumes)
    made, known = [], []
    for person, u, noise in zip(whom.tolist(), chance, grain, strict=True):
        one, own = volumes[person], seen[person]
        if u[0] < 0.5:
            one, own = one.flip(1), own.flip(1)
        moved, inside = _moved(one, own, [0.0, *(3 * x - 1.5 for x in u[1:4])])
        known.append(inside)
        toned = moved.clamp(min=0) ** (0.7 * 2 ** u[4]) * (0.8 + 0.4 * u[5])
        made.append(toned + 0.02 * noise * (moved > _SEEN))
    return (torch.stack(made), torch.stack(known)), whom


def simple(real: Pair, count: int, seed: int) -> dict[str, Pair]:
    """Copies of some real scans to which one thing was done."""
    volumes, seen = real
    keys = Keys.range(seed, len(volumes))
    some = keys.uniform((), "simple copies").argsort()[:count]
    one, own = volumes[some], seen[some]
    grain = Keys.range(seed, len(some)).normal(tuple(volumes.shape[1:]), "grain of simple copies").to(one)
    return {
        "exact": (one, own),
        "mirrored": (one.flip(2), own.flip(2)),
        "moved": _moved(one, own, (0, 0, 1, -1, 0.5)),
        "jittered": (one + 0.03 * grain * (one > _SEEN), own),
    }


def _moved(values: Tensor, known: Tensor, step: Sequence[float]) -> Pair:
    """By some voxels along each axis, and what of that is known: nothing that was half unknown."""
    shifted = ndimage.shift(values.numpy(), step, order=1, mode="nearest")
    inside = ndimage.shift(known.numpy().astype(np.float32), step, order=1) > 0.99
    return torch.from_numpy(shifted), torch.from_numpy(inside)


def _ranks(one: Tensor, known: Tensor, backgrounds: Sequence[bool]) -> Tensor:
    """(C, R) intensities at equally spaced ranks: of what is known and, where there is a background, is not
    background."""
    at, rows = torch.linspace(0, 1, _RANKS), []
    for channel, seen, background in zip(one, known, backgrounds, strict=True):
        values = channel[seen & (channel > _SEEN)] if background else channel[seen]
        step = max(1, len(values) // 100_000)
        rows.append(values[::step].quantile(at) if len(values) else torch.zeros(_RANKS))
    return torch.stack(rows)


def _between(x: Tensor) -> Tensor:
    """(C, *S) to values half-way to the next voxel along each axis; the last repeats."""
    for axis in (1, 2, 3):
        last = x.narrow(axis, x.shape[axis] - 1, 1)
        x = (x + torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), last], axis)) / 2
    return x


def _within(x: Tensor) -> Tensor:
    """(C, *S) to (D,): what lies at least SHIFT voxels from the border."""
    return x[:, SHIFT:-SHIFT, SHIFT:-SHIFT, SHIFT:-SHIFT].flatten()


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm().clamp(min=1e-9)
    return unit
