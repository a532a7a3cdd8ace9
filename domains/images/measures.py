"""How good synthetic pictures are: each number beside the same number for real pictures that were held out.

What real pictures score is what a perfect model would: a distance of synthetic pictures means little alone,
since it depends on the features and on how many pictures there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...shared.measures import Copies, frechet_distance, kernel_distance, nearest, prdc
from ...shared.noise import Keys
from .. import Figure
from .copied import PLANTED, CopySearch, search
from .features import Extractor, inception, learn

MOST = 5000
"""Pictures of each set that are compared."""
NEIGHBOURS = 5
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
        search: in pixels: which synthetic pictures are nearest to which training pictures, and what the same
            search finds of planted copies.
        compared: rows of the synthetic pictures that `search` speaks of, in its order.
    """

    figures: Mapping[str, tuple[Figure, ...]]
    notes: tuple[str, ...]
    search: CopySearch
    compared: Tensor

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
    found, privacy = _copied(network, train, pair[0], None if held is None else pair[1], seed)
    utility: list[Figure] = []
    if fake.labels is not None and network.task == "classes" and other.labels is not None:
        tell("training on synthetic pictures", 0.7)
        fidelity.append(_agreement(network.predict, *pair))
        utility.append(_utility(learning, other, fake, seed, steps))
    figures = {"fidelity": tuple(fidelity), "utility": tuple(utility), "privacy": tuple(privacy)}
    return Report(figures, tuple(notes), found, fake.rows(count, seed))


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
) -> tuple[CopySearch, list[Figure]]:
    """Nearest training pictures in pixels (over flips and shifts) and in features; and what the search in
    pixels finds of copies that were planted."""
    known = extract(train.pixels)
    near = nearest(extract(fake.pixels), known)
    rows = train.rows(max(len(fake), PLANTED), seed)
    found = search(train.pixels, fake.pixels, None if held is None else held.pixels, rows, seed)
    usual = nearest(extract(held.pixels), known)[0] if held is not None else _nearest_other(known, rows)
    in_features = Copies.judged(*near, usual)
    return found, [
        Figure(
            "copies in pixels",
            found.copies.share,
            found.reference,
            None,
            "Share far nearer to a training picture than to the next ones, as copies are; mirrored too.",
        ),
        Figure(
            "copies in features",
            in_features.share,
            in_features.expected,
            None,
            "Share nearer to a training picture, by features, than all but 1 % of real ones are to others.",
        ),
        Figure(
            "planted copies found",
            found.power,
            None,
            1.0,
            "What the search in pixels finds of copies that were planted.",
        ),
        *(
            Figure(f"planted copies found: {what}", share, None, 1.0, "The same, of this sort alone.")
            for what, share in found.planted.items()
        ),
    ]


def _nearest_other(features: Tensor, rows: Tensor) -> Tensor:
    """(r,) distance of some rows to the nearest other row."""
    found = []
    for part in rows.split(1024):
        apart = torch.cdist(features[part].double(), features.double())
        apart[torch.arange(len(part)), part] = torch.inf
        found.append(apart.min(1).values)
    return torch.cat(found)


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
