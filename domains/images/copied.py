"""Whether synthetic pictures are copies of real ones: mirrored, moved, grainy, blurred or brighter ones too.

The distance of two pictures is the root mean squared difference of what both show, the least over mirroring
and over shifts of up to `SHIFT` pixels in steps of one half. It is divided by that to the fifth nearest
picture in the same search: plain pictures (trousers) lie near each other and rich ones far apart, and one
limit for both finds copies of the rich ones alone. 0 is a copy, 1 a picture as far from the nearest as from
the fifth.

What is near is judged by both: by real pictures that were never trained on (or else each against the
others), in the same search, and by copies that are planted. The threshold lies half-way between what
`EXPECTED` of real pictures fall below and where all but one in twenty planted copies lie, of the hardest sort
that can be told from real pictures at all (in pictures of 8 x 8, blurred ones cannot); without any, at the
former.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.measures import Copies
from ...shared.noise import Keys

SHIFT = 2
"""Pixels along each axis that a copy may be moved by; an eighth of the shorter side where that is less."""
LARGEST = 48
"""Pixels of the longer side that are compared; larger pictures are made smaller by averaging."""
CANDIDATES, LOCAL = 50, 5
"""Pictures that are compared closely; the how-manieth says how far apart pictures are there."""
EXPECTED = 0.005
"""Share of new real pictures that may be flagged."""
PLANTED = 50
"""Copies planted of each sort."""
CLEAR = 0.8
"""A sort of copy can be told from real pictures if it lies below this part of what `EXPECTED` of them do."""
_COARSE, _BLOCK = 7, 64
_HALVES: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))


@dataclass(frozen=True, eq=False)
class CopySearch:
    """What the search for copies found.

    Args:
        copies: of the synthetic pictures; distances are relative to that of the fifth nearest.
        reference: share of real pictures, not trained on, that the same threshold flags.
        planted: share of planted copies that were flagged, by what was done to them.
    """

    copies: Copies
    reference: float
    planted: Mapping[str, float]

    @property
    def power(self) -> float:
        """Share of all planted copies that were found."""
        return sum(self.planted.values()) / len(self.planted)


def search(train: Tensor, fake: Tensor, held: Tensor | None, some: Tensor, seed: int) -> CopySearch:
    """Look for copies of training pictures among synthetic ones.

    Args:
        train, fake: (n, C, H, W) and (m, C, H, W) in [0, 1]; more than `LOCAL` of `train`.
        held: real pictures that were not trained on, some hundred; None compares `some` with the others.
        some: (r,) rows of `train`, of which `PLANTED` from first to last are planted.
        seed: of what is done to them.
    """
    usual = unusual(train[some], train, but=some)[0] if held is None else unusual(held, train)[0]
    # From first to last: where pictures are sorted, of every class.
    whom = some[torch.linspace(0, len(some) - 1, min(PLANTED, len(some))).long()]
    plants = {what: unusual(x, train)[0] for what, x in planted(train[whom], seed).items()}
    copies = judged(*unusual(fake, train), usual, list(plants.values()))
    found = {what: float((x < copies.threshold).double().mean()) for what, x in plants.items()}
    return CopySearch(copies, float((usual < copies.threshold).double().mean()), found)


def judged(distances: Tensor, positions: Tensor, reference: Tensor, plants: Sequence[Tensor]) -> Copies:
    """Which pictures are copies.

    Args:
        distances, positions: (n,) as `unusual` gives them.
        reference: (r,) distances of real pictures. plants: (p,) of planted copies, for each sort.
    """
    far = float(reference.quantile(EXPECTED))
    near = [q for q in (float(sort.quantile(0.95)) for sort in plants) if q < CLEAR * far]
    limit = (max(near) + far) / 2 if near else far
    return Copies(distances, positions, limit, distances < limit, EXPECTED)


def unusual(pixels: Tensor, among: Tensor, but: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How unusually near pictures are to one of `among`: (n,) distance to the nearest over that to the fifth
    nearest, and (n,) which is nearest.

    Args:
        pixels: (n, C, H, W) in [0, 1]. among: (m, C, H, W), more than five.
        but: (n,) a row of `among` that does not count, for each picture: itself.
    """
    apart, where = nearest_pictures(pixels, among, but=but)
    far = apart[:, -1].double()
    return torch.where(far > 0, apart[:, 0].double() / far.clamp(min=1e-12), 0.0), where[:, 0]


def nearest_pictures(pixels: Tensor, among: Tensor, *, but: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `LOCAL` nearest of `among` to each picture, which may be mirrored and moved.

    Small versions of all, moved, are compared first; the nearest `CANDIDATES` of those pixel by pixel.

    Args:
        pixels: (n, C, H, W). among: (m, C, H, W).
        but: (n,) a row of `among` that does not count, for each picture.

    Returns:
        Root mean squared differences (n, k), ascending, and positions (n, k).
    """
    pixels, among = _reduced(pixels), _reduced(among)
    side = min(pixels.shape[-2:])
    shift, step = min(SHIFT, side // 8), 2 if side >= 4 * _COARSE else 1
    small, count = _coarse(_inner(among, shift)), min(CANDIDATES, len(among) - (but is not None))
    distances, positions = [], []
    for start, rows in zip(range(0, len(pixels), _BLOCK), pixels.split(_BLOCK), strict=True):
        apart = torch.full((len(rows), len(among)), torch.inf)
        for moved in _moved(rows, shift, step):
            torch.minimum(apart, torch.cdist(_coarse(moved), small), out=apart)
        if but is not None:
            apart[torch.arange(len(rows)), but[start : start + len(rows)]] = torch.inf
        chosen = apart.topk(count, largest=False).indices
        best = _apart(rows, among[chosen], shift).topk(min(LOCAL, count), largest=False)
        distances.append(best.values)
        positions.append(chosen.gather(1, best.indices))
    return torch.cat(distances), torch.cat(positions)


def _reduced(pixels: Tensor) -> Tensor:
    """Not larger than `LARGEST`."""
    factor = -(-max(pixels.shape[-2:]) // LARGEST)
    return F.avg_pool2d(pixels.float(), factor) if factor > 1 else pixels.float()


def _coarse(pixels: Tensor) -> Tensor:
    """(n, C 49): 7 x 7 means."""
    return F.adaptive_avg_pool2d(pixels, _COARSE).flatten(1)


def _inner(pixels: Tensor, shift: int) -> Tensor:
    """What is seen of a picture wherever it is moved."""
    return pixels[..., shift : pixels.shape[-2] - shift, shift : pixels.shape[-1] - shift]


def _moved(pixels: Tensor, shift: int, step: int = 1) -> Iterator[Tensor]:
    """As `_inner`, of the pictures mirrored and moved by whole pixels: nothing is made up at borders."""
    height, width = (n - 2 * shift for n in pixels.shape[-2:])
    steps = range(0, 2 * shift + 1, step)
    for turned, down, right in product((pixels, pixels.flip(-1)), steps, steps):
        yield turned[..., down : down + height, right : right + width]


def _apart(pixels: Tensor, candidates: Tensor, shift: int) -> Tensor:
    """(B, C, H, W) and (B, K, C, H, W) -> (B, K): the least root mean squared difference of inner parts over
    mirroring and shifts, by |a - b|^2 = |a|^2 - 2 a b + |b|^2. For half steps a candidate is averaged with
    its neighbour."""
    moved, inner = torch.stack(list(_moved(pixels, shift)), 1), _inner(candidates, shift)
    least = torch.full(candidates.shape[:2], torch.inf)
    for axes in _HALVES:
        others = _between(inner, axes)
        a, b = moved[..., : others.shape[-2], : others.shape[-1]].flatten(2), others.flatten(2)
        squared = a.square().sum(2)[..., None] - 2 * a @ b.mT + b.square().sum(2)[:, None]
        least = torch.minimum(least, squared.amin(1) / b.shape[2])
    return least.clamp(min=0).sqrt()


def _between(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Values half-way to the next pixel along some axes, which become shorter by one."""
    for axis in axes:
        n = x.shape[axis] - 1
        x = (x.narrow(axis, 0, n) + x.narrow(axis, 1, n)) / 2
    return x


# --- copies that are planted --------------------------------------------------------------------


def planted(pixels: Tensor, seed: int) -> dict[str, Tensor]:
    """Copies as a model makes them, by what was done to them."""
    noise = Keys.range(seed, len(pixels)).normal(tuple(pixels.shape[1:]), "planted").float()
    way = max(1, min(SHIFT, min(pixels.shape[-2:]) // 8))
    grainy = (pixels + 0.03 * noise).clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return {
        "exact": pixels,
        "mirrored": pixels.flip(-1),
        "moved": _rolled(pixels, way, -way),
        "moved by half a pixel": _between(F.pad(pixels, (0, 1, 0, 1), mode="replicate"), (-2, -1)),
        "jittered": grainy,
        "blurred": 0.7 * pixels + 0.3 * blurred,
        "brighter": (1.08 * pixels).clamp(0, 1),
        "mirrored, moved and jittered": _rolled(grainy.flip(-1), -way, way),
    }


def _rolled(pixels: Tensor, down: int, right: int) -> Tensor:
    """Moved by whole pixels, what comes in at the border repeating it."""
    height, width = pixels.shape[-2:]
    most = max(abs(down), abs(right))
    padded = F.pad(pixels, (most,) * 4, mode="replicate")
    return padded[..., most - down : most - down + height, most - right : most - right + width]
