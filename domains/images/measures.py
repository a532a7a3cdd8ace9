"""How good synthetic pictures are: each number beside the same number for real pictures that were held out.

What real pictures score is what a perfect model would: a distance of synthetic pictures means little alone,
since it depends on the features and on how many pictures there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.measures import Copies, frechet_distance, kernel_distance, nearest, prdc
from ...shared.noise import Keys
from .features import Extractor, inception, learn

MOST = 5000
"""Pictures of each set that are compared."""
NEIGHBOURS, CANDIDATES = 5, 20
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

    def some(self, count: int, seed: int) -> Pictures:
        """Those of `rows`."""
        rows = self.rows(count, seed)
        return Pictures(self.pixels[rows], None if self.labels is None else self.labels[rows])


@dataclass(frozen=True)
class Measure:
    """A number for synthetic pictures, and the same for held-out real ones.

    Args:
        name: of the measure.
        synthetic, real: the numbers.
        better: which way is better; "near" means near the real one.
        about: what it says, in a sentence.
    """

    name: str
    synthetic: float
    real: float
    better: Literal["lower", "higher", "near"]
    about: str


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured.

    Args:
        measures: one by one.
        notes: how it was measured, and what was left out.
        copies: in pixels: which synthetic pictures are nearest to which training pictures.
        compared: rows of the synthetic pictures that `copies` speaks of, in its order.
    """

    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    copies: Copies
    compared: Tensor

    def __getitem__(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"measures": [asdict(measure) for measure in self.measures], "notes": list(self.notes)}

    def tell(self) -> list[str]:
        """A line for each measure, then the notes."""
        width = max(len(measure.name) for measure in self.measures)
        ways = {"lower": "lower is better", "higher": "higher is better", "near": "nearer to real is better"}
        lines = [
            f"{m.name:<{width}}  {m.synthetic:9.4g}  (real {m.real:.4g}; {ways[m.better]})"
            for m in self.measures
        ]
        return [*lines, *self.notes]


def measure(
    train: Pictures,
    held: Pictures,
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
        held: real pictures that it was not trained on; some hundred at least.
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
    if len({s.pixels.shape[1:] for s in (train, held, fake)}) > 1:
        raise ValueError("all pictures must be of one size")
    count = min(len(held), len(fake), most)
    if count <= NEIGHBOURS or len(train) <= NEIGHBOURS:
        raise ValueError(f"more than {NEIGHBOURS} pictures of each set are needed")
    tell = progress or (lambda what, done: None)
    real, pair = train.some(most, seed), (fake.some(count, seed), held.some(count, seed))
    tell("training the feature network", 0.0)
    network = learn(train.pixels, train.labels, seed=seed, steps=steps)
    notes = [f"features: a small network that learnt {network.task} on the training pictures, seed {seed}"]
    notes.append(
        f"{count} synthetic and as many held-out pictures, each compared with {len(real)} of training"
    )
    tell("comparing features", 0.3)
    found = _distances(network, real, *pair, "")
    extractor, why_not = inception()
    if extractor is not None:
        found += _distances(extractor, real, *pair, "Inception ")
    else:
        notes.append(why_not)
    tell("looking for copies", 0.5)
    copies, copied = _copied(network, train, *pair)
    found += copied
    if fake.labels is not None and network.task == "classes" and held.labels is not None:
        tell("training on synthetic pictures", 0.7)
        found.append(_agreement(network.predict, *pair))
        found.append(_utility(train, held, fake, seed, steps))
    return Report(tuple(found), tuple(notes), copies, fake.rows(count, seed))


def _distances(
    extract: Extractor, train: Pictures, fake: Pictures, held: Pictures, name: str
) -> list[Measure]:
    x, y, z = (extract(pictures.pixels) for pictures in (train, fake, held))
    near, real = prdc(x, y, NEIGHBOURS), prdc(x, z, NEIGHBOURS)
    frechet = frechet_distance(x, y), frechet_distance(x, z)
    kernel = kernel_distance(x, y), kernel_distance(x, z)
    table: tuple[tuple[str, float, float, Literal["lower", "higher", "near"], str], ...] = (
        ("Frechet distance", *frechet, "lower", "quality and variety"),
        (
            "kernel distance",
            *kernel,
            "lower",
            "the same, 0 if they are equal",
        ),
        ("precision", near.precision, real.precision, "higher", "share that look real"),
        ("recall", near.recall, real.recall, "higher", "share of the real variety that is there"),
        ("density", near.density, real.density, "near", "how deep among real ones they lie"),
        ("coverage", near.coverage, real.coverage, "higher", "share of real ones with one nearby"),
    )
    return [Measure(name + row[0], *row[1:]) for row in table]


# --- copies -------------------------------------------------------------------------------------


def _copied(
    extract: Extractor, train: Pictures, fake: Pictures, held: Pictures
) -> tuple[Copies, list[Measure]]:
    """Nearest training pictures in pixels (over flips and shifts) and in features."""
    near, reference = (nearest_picture(s.pixels, train.pixels) for s in (fake, held))
    in_pixels = Copies.judged(*near, reference[0])
    known = extract(train.pixels)
    near_features, reference_features = (nearest(extract(s.pixels), known) for s in (fake, held))
    in_features = Copies.judged(*near_features, reference_features[0])
    about = "share nearer to a training picture than all but 1 % of held-out ones are"
    return in_pixels, [
        Measure(
            "copies in pixels", in_pixels.share, in_pixels.expected, "near", f"{about}, flipped or shifted"
        ),
        Measure("copies in features", in_features.share, in_features.expected, "near", about),
    ]


def nearest_picture(pixels: Tensor, among: Tensor, *, shift: int = 1) -> tuple[Tensor, Tensor]:
    """The nearest of `among` to each picture, which may be mirrored, and moved by up to `shift` pixels.

    Small versions of all, moved in every way, are compared first; the nearest few of those pixel by pixel.

    Args:
        pixels: (n, C, H, W).
        among: (m, C, H, W).
        shift: along each axis.

    Returns:
        Root mean squared difference (n,) over what both show, and positions (n,).
    """
    small = _small(among)
    candidates = min(CANDIDATES, len(among))
    distances, positions = [], []
    for rows in pixels.split(256):
        apart = torch.full((len(rows), len(among)), torch.inf)
        for moved in _variants(rows, shift):
            torch.minimum(apart, torch.cdist(_small(moved), small), out=apart)
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


def _agreement(predict: Callable[[Tensor], Tensor], fake: Pictures, held: Pictures) -> Measure:
    about = "share whose class a classifier trained on real pictures sees as asked for"
    return Measure("class agreement", _accuracy(predict, fake), _accuracy(predict, held), "higher", about)


def _utility(train: Pictures, held: Pictures, fake: Pictures, seed: int, steps: int) -> Measure:
    """Train on synthetic, test on real; beside the same with as many real pictures."""
    scores = []
    for pictures in (fake, train.some(len(fake), seed)):
        network = learn(pictures.pixels, pictures.labels, seed=seed, steps=steps)
        scores.append(_accuracy(network.predict, held))
    about = (
        "accuracy on held-out real pictures of a classifier trained on synthetic ones (real: on real ones)"
    )
    return Measure("trained on synthetic", scores[0], scores[1], "higher", about)
