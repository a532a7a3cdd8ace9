"""How good synthetic pictures are: each number beside the same number for real pictures that were held out.

What real pictures score is what a perfect model would: a distance of synthetic pictures means little alone,
since it depends on the features and on how many pictures there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.measures import Copies, frechet_distance, kernel_distance, nearest, prdc
from ...shared.noise import Keys
from .. import Figure
from .features import Extractor, inception, learn

MOST = 5000
"""Pictures of each set that are compared."""
NEIGHBOURS, CANDIDATES, PLANTED = 5, 20, 50
Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Pictures:
    """A set of pictures of one size.

    Args:
        pixels: (n, C, H, W) in [0, 1].
        labels: (n,) classes, -1 where unknown; None when there are none.
    """

    pixels: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, count: int, seed: int) -> Tensor:
        """Positions of at most `count` of them, chosen by the seed, in order."""
        return Keys.range(seed, len(self)).uniform((), "pictures to compare").argsort()[:count].sort().values

    def halves(self, seed: int) -> tuple[Pictures, Pictures]:
        """One half and the other."""
        first = torch.zeros(len(self), dtype=torch.bool)
        first[self.rows(len(self) // 2, seed)] = True
        return self._of(first), self._of(~first)

    def _of(self, rows: Tensor) -> Pictures:
        return Pictures(self.pixels[rows], None if self.labels is None else self.labels[rows])

    def some(self, count: int, seed: int) -> Pictures:
        """Those of `rows`."""
        return self._of(self.rows(count, seed))


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured.

    Args:
        figures: by part: fidelity, utility, privacy.
        notes: how it was measured, and what was left out.
        copies: in pixels: which synthetic pictures are nearest to which training pictures.
        compared: rows of the synthetic pictures that `copies` speaks of, in its order.
        planted: share of planted copies that the same search found, by what was done to them.
    """

    figures: Mapping[str, tuple[Figure, ...]]
    notes: tuple[str, ...]
    copies: Copies
    compared: Tensor
    planted: Mapping[str, float]

    def __getitem__(self, name: str) -> Figure:
        return next(figure for part in self.figures.values() for figure in part if figure.name == name)


def measure(
    train: Pictures,
    held: Pictures | None,
    fake: Pictures,
    *,
    seed: int = 0,
    steps: int = 1200,
    most: int = MOST,
    progress: Progress | None = None,
) -> Report:
    """Compare synthetic pictures, and real ones that were held out, with those that were trained on.

    Args:
        train: what the model was trained on.
        held: real pictures that it was not trained on, some hundred at least; None compares one half of
            `train` with the other, and looks for copies by how near training pictures are to each other.
        fake: synthetic pictures, with the classes that were asked for.
        seed: of the feature network and of which pictures are compared.
        steps: of training the feature network.
        most: pictures of each set that are compared.
        progress: told what is done and how far it is.

    Returns:
        The report. With fewer held-out than synthetic pictures as many of both are compared.

    Raises:
        ValueError: when the sizes differ, or there are too few pictures.
    """
    sets = [train, fake] if held is None else [train, held, fake]
    if len({s.pixels.shape[1:] for s in sets}) > 1:
        raise ValueError("all pictures must be of one size")
    learning, other = (train, held) if held is not None else train.halves(seed)
    count = min(len(other), len(fake), most)
    if count <= NEIGHBOURS or len(learning) <= NEIGHBOURS:
        raise ValueError(f"more than {NEIGHBOURS} pictures of each set are needed")
    tell = progress or (lambda what, done: None)
    real, pair = learning.some(most, seed), (fake.some(count, seed), other.some(count, seed))
    tell("training the feature network", 0.0)
    network = learn(learning.pixels, learning.labels, seed=seed, steps=steps)
    whose = "held-out" if held is not None else "other real"
    notes = [f"features: a small network that learnt {network.task} on real pictures, seed {seed}"]
    notes.append(f"{count} synthetic and as many {whose} pictures, each compared with {len(real)} real ones")
    tell("comparing features", 0.3)
    fidelity = _distances(network, real, *pair, "")
    extractor, why_not = inception()
    if extractor is not None:
        fidelity += _distances(extractor, real, *pair, "Inception ")
    else:
        notes.append(why_not)
    tell("looking for copies", 0.5)
    copies, planted, privacy = _copied(network, train, pair[0], None if held is None else pair[1], seed)
    utility: list[Figure] = []
    if fake.labels is not None and network.task == "classes" and other.labels is not None:
        tell("training on synthetic pictures", 0.7)
        fidelity.append(_agreement(network.predict, *pair))
        utility.append(_utility(learning, other, fake, seed, steps))
    figures = {"fidelity": tuple(fidelity), "utility": tuple(utility), "privacy": tuple(privacy)}
    return Report(figures, tuple(notes), copies, fake.rows(count, seed), planted)


def _distances(
    extract: Extractor, train: Pictures, fake: Pictures, held: Pictures, name: str
) -> list[Figure]:
    x, y, z = (extract(pictures.pixels) for pictures in (train, fake, held))
    near, real = prdc(x, y, NEIGHBOURS), prdc(x, z, NEIGHBOURS)
    frechet = frechet_distance(x, y), frechet_distance(x, z)
    kernel = kernel_distance(x, y), kernel_distance(x, z)
    table: tuple[tuple[str, float, float, float | None, str], ...] = (
        ("Frechet distance", *frechet, None, "Quality and variety together; lower is better."),
        ("kernel distance", *kernel, 0.0, "The same by another formula; 0 when nothing tells them apart."),
        ("precision", near.precision, real.precision, None, "Share that look like some real picture."),
        ("recall", near.recall, real.recall, None, "Share of the real variety that is there."),
        ("density", near.density, real.density, 1.0, "How deep among real pictures they lie."),
        ("coverage", near.coverage, real.coverage, None, "Share of real pictures with one nearby."),
    )
    return [Figure(name + row[0], *row[1:]) for row in table]


# --- copies -------------------------------------------------------------------------------------


def _copied(
    extract: Extractor, train: Pictures, fake: Pictures, held: Pictures | None, seed: int
) -> tuple[Copies, dict[str, float], list[Figure]]:
    """Nearest training pictures in pixels (over flips and shifts) and in features; and what the same search
    in pixels finds of copies that were planted."""
    near = nearest_picture(fake.pixels, train.pixels)
    known = extract(train.pixels)
    near_features = nearest(extract(fake.pixels), known)
    if held is not None:
        usual, usual_features = (
            nearest_picture(held.pixels, train.pixels)[0],
            nearest(extract(held.pixels), known)[0],
        )
    else:
        rows = train.rows(len(fake), seed)
        usual = nearest_picture(train.pixels[rows], train.pixels, but=rows)[0]
        usual_features = _nearest_other(known, rows)
    in_pixels = Copies.judged(*near, usual)
    in_features = Copies.judged(*near_features, usual_features)
    planted = {}
    for what, copy in _plants(train.some(PLANTED, seed).pixels, seed).items():
        seen = nearest_picture(copy, train.pixels)[0] < in_pixels.threshold
        seen |= nearest(extract(copy), known)[0] < in_features.threshold
        planted[what] = float(seen.double().mean())
    about = "Share nearer to a training picture than all but 1 % of real pictures are to others"
    found = sum(planted.values()) / len(planted)
    return (
        in_pixels,
        planted,
        [
            Figure(
                "copies in pixels",
                in_pixels.share,
                in_pixels.expected,
                None,
                f"{about}, flipped or shifted too.",
            ),
            Figure(
                "copies in features", in_features.share, in_features.expected, None, f"{about}, by features."
            ),
            Figure(
                "planted copies found", found, None, 1.0, "What the search finds of copies that were planted."
            ),
        ],
    )


def _plants(pixels: Tensor, seed: int) -> dict[str, Tensor]:
    """Copies as a model makes them, by what was done to them."""
    noise = Keys.range(seed, len(pixels)).normal(tuple(pixels.shape[1:]), "planted").float()
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return {
        "noise": (pixels + 0.02 * noise).clamp(0, 1),
        "mirrored and moved": pixels.flip(-1).roll(1, -1),
        "blurred": 0.7 * pixels + 0.3 * blurred,
        "brighter": (1.08 * pixels).clamp(0, 1),
    }


def _nearest_other(features: Tensor, rows: Tensor) -> Tensor:
    """(r,) distance of some rows to the nearest other row."""
    found = []
    for part in rows.split(1024):
        apart = torch.cdist(features[part].double(), features.double())
        apart[torch.arange(len(part)), part] = torch.inf
        found.append(apart.min(1).values)
    return torch.cat(found)


def nearest_picture(
    pixels: Tensor, among: Tensor, *, shift: int = 1, but: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest of `among` to each picture, which may be mirrored, and moved by up to `shift` pixels.

    Small versions of all, moved in every way, are compared first; the nearest few of those pixel by pixel.

    Args:
        pixels: (n, C, H, W).
        among: (m, C, H, W).
        shift: along each axis.
        but: (n,) a row of `among` that does not count, for each picture: itself.

    Returns:
        Root mean squared difference (n,) over what both show, and positions (n,).
    """
    small = _small(among)
    candidates = min(CANDIDATES, len(among) - (but is not None))
    distances, positions = [], []
    for start, rows in zip(range(0, len(pixels), 256), pixels.split(256), strict=True):
        apart = torch.full((len(rows), len(among)), torch.inf)
        for moved in _variants(rows, shift):
            torch.minimum(apart, torch.cdist(_small(moved), small), out=apart)
        if but is not None:
            apart[torch.arange(len(rows)), but[start : start + len(rows)]] = torch.inf
        chosen = apart.topk(candidates, largest=False).indices
        best = _apart(rows, among[chosen], shift).min(1)
        distances.append(best.values)
        positions.append(chosen.gather(1, best.indices[:, None])[:, 0])
    return torch.cat(distances).double(), torch.cat(positions)


def _small(pixels: Tensor) -> Tensor:
    """(n, C 49): 7 x 7 means."""
    return F.adaptive_avg_pool2d(pixels.float(), 7).flatten(1)


def _variants(pixels: Tensor, shift: int) -> Iterator[Tensor]:
    """The pictures mirrored and moved in every way, what comes in at the border repeating it."""
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels.float(), (shift,) * 4, mode="replicate")
    for mirrored in (padded, padded.flip(-1)):
        for down in range(2 * shift + 1):
            for right in range(2 * shift + 1):
                yield mirrored[..., down : down + height, right : right + width]


def _apart(pixels: Tensor, candidates: Tensor, shift: int) -> Tensor:
    """(B, C, H, W) and (B, K, C, H, W) -> (B, K): the least root mean squared difference over mirroring and
    shifts, each over the part that both show."""
    height, width = pixels.shape[-2:]
    least = torch.full(candidates.shape[:2], torch.inf)
    for mirrored in (pixels, pixels.flip(-1)):
        for down in range(-shift, shift + 1):
            for right in range(-shift, shift + 1):
                rows, other_rows = _overlap(height, down)
                columns, other_columns = _overlap(width, right)
                a = mirrored[:, None, :, rows, columns]
                b = candidates[..., other_rows, other_columns]
                least = torch.minimum(least, (a - b).square().flatten(2).mean(2).sqrt())
    return least


def _overlap(length: int, moved: int) -> tuple[slice, slice]:
    """The parts of two axes that lie over each other when the first is moved."""
    return slice(max(moved, 0), length + min(moved, 0)), slice(max(-moved, 0), length - max(moved, 0))


# --- use ----------------------------------------------------------------------------------------


def _accuracy(predict: Callable[[Tensor], Tensor], pictures: Pictures) -> float:
    if pictures.labels is None:
        return float("nan")
    known = pictures.labels >= 0
    return float((predict(pictures.pixels[known]) == pictures.labels[known]).double().mean())


def _agreement(predict: Callable[[Tensor], Tensor], fake: Pictures, held: Pictures) -> Figure:
    about = "Share whose class a classifier trained on real pictures sees as asked for."
    return Figure("class agreement", _accuracy(predict, fake), _accuracy(predict, held), None, about)


def _utility(train: Pictures, held: Pictures, fake: Pictures, seed: int, steps: int) -> Figure:
    """Train on synthetic, test on real; beside the same with as many real pictures."""
    scores = []
    for pictures in (fake, train.some(len(fake), seed)):
        network = learn(pictures.pixels, pictures.labels, seed=seed, steps=steps)
        scores.append(_accuracy(network.predict, held))
    about = "Accuracy on other real pictures of a classifier that learnt from synthetic ones alone."
    return Figure("trained on synthetic", scores[0], scores[1], None, about)
