"""`ebbtide augment` for pictures: the real ones with synthetic ones beside them in the folders of their
classes.

The proof needs `--holdout`, pictures that the model never saw: a small network learns from the real
pictures, from these and as many moved ones, and from these and the synthetic ones, and is tried on the
held-out pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..domains.images import ImageDomain
from ..domains.images.collection import Collection, collect
from ..domains.images.features import learn
from ..domains.images.model import FittedImages
from ..domains.images.writing import Provenance, write_png
from ..domains.tabular.augmenting import wanted
from ..domains.tabular.measures.downstream import NOTHING, Proof
from ..shared.errors import InputError
from ..shared.files import require_space
from ..shared.noise import Keys
from . import output_cards
from .sieving import drawn_apart, threshold

if TYPE_CHECKING:
    from .augmenting import Asked, Augmented

Progress = Callable[[str, float], None]
MOVED, NETWORK = "moved pictures", "small network"
SHIFT = 0.1
"""Of the side: how far the classical way moves pictures, at most."""
STEPS = 600
"""Of training a downstream network."""
SEEDS = 3
"""Downstream networks for each repeat of the proof."""
CONTENTS = "contents.csv"


@dataclass(frozen=True)
class Made:
    """Pictures of one class that were made.

    Args:
        pixels: (n, H, W, C) that were kept. items: (n,) their numbers in the run.
        drawn, copies: how many were made in all, and dropped as near copies.
    """

    pixels: np.ndarray
    items: np.ndarray
    drawn: int
    copies: int


def augment_pictures(
    data: Path,
    folder: Path,
    out: Path,
    domain: ImageDomain,
    asked: Asked,
    model: Path | str | None,
    holdout: Path | str | None,
    device: str,
    options: Mapping[str, Any],
    tell: Progress,
) -> Augmented:
    """Fill `folder` with real and synthetic pictures; see `augmenting.augment`.

    Args:
        out: what it will be called.
        holdout: for the proof; None proves nothing.

    Raises:
        InputError: no classes to balance; pictures of other classes; a model of other classes.
    """
    from .augmenting import finish, given_or_trained

    survey: Any = domain.survey(data, tell)
    real: Collection = survey.collection
    if asked.balance is not None and len(real.class_names) < 2:
        remedy = "put them into a folder for each class"
        raise InputError("not-balanceable", "these pictures have no classes", str(data), remedy)
    fitted, digest = given_or_trained(domain, data, survey, asked, model, device, tell)
    counts = class_counts(real)
    add = wanted(counts, balance=asked.balance is not None, factor=asked.factor)
    if not add.any():
        raise InputError("nothing-to-add", "no picture is to be added", "--factor", "ask for more than 1")
    require_space(folder, 2 * sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) + 2**22)
    pixels = fitted.space.pixels(real)
    made = list(_make(fitted, real, pixels, add, asked, tell))
    files = list(_write(folder, real, made, asked, digest))
    proof = None
    if holdout is not None and asked.repeats:
        proof = prove(fitted, real, pixels, made, collect(Path(holdout)), asked, str(holdout), tell)
    total = {
        "real": len(real),
        "synthetic": sum(len(part.pixels) for part in made),
        "drawn": sum(part.drawn for part in made),
        "near_copies_dropped": sum(part.copies for part in made),
    }
    lines = [
        f"{total['real']:,} real pictures, {total['synthetic']:,} synthetic ones added (synthetic_*.png).",
        f"Of {total['drawn']:,} that were made {total['near_copies_dropped']:,} were near copies "
        "and dropped.",
    ]
    if proof is None:
        lines.append("Whether they help was not measured: --holdout PICTURES does.")
    return finish(
        folder,
        out,
        output_cards.Origin(out.name, domain, fitted, digest, data.name, output_cards.card_of(data)),
        survey,
        {**options, **vars(asked)},
        total,
        files,
        proof,
        note="Files called synthetic_* are",
        mark="their names (synthetic_*), the text in the file, and contents.csv",
        card={
            "conditions": "of each class as many as wanted" if real.class_names else "none",
            "sampler": output_cards.sampler(fitted, None),
        },
        lines=lines,
    )


def class_counts(real: Collection) -> np.ndarray:
    """(k,) pictures of each class; (1,) of all where there are no classes."""
    if not real.class_names:
        return np.array([len(real)])
    return np.bincount(real.labels[real.labels >= 0], minlength=len(real.class_names))


def _make(
    fitted: FittedImages, real: Collection, pixels: Tensor, add: np.ndarray, asked: Asked, tell: Progress
) -> Iterator[Made]:
    """The pictures of each class, without near copies of real ones."""
    flat = _small(pixels)
    near, start = threshold(flat), 0
    size = (0, *pixels.shape[2:], pixels.shape[1])
    for at, count in enumerate(add.tolist()):
        kept = drawn_apart(
            partial(_drawn, fitted, real, at, asked),
            lambda made: _small(torch.from_numpy(made).movedim(-1, 1)),
            flat,
            near,
            count,
            start=start,
            progress=lambda share: tell("making pictures", share),
        )
        start += kept.drawn
        whole = np.concatenate([np.empty(size, np.uint8), *(part for _, part in kept.batches)])
        yield Made(whole, kept.items, kept.drawn, kept.copies)


def _drawn(
    fitted: FittedImages, real: Collection, at: int, asked: Asked, start: int, count: int
) -> np.ndarray:
    """(count, H, W, C) pictures of class `at`, drawn anew or varied from real ones of it."""
    keys = Keys.range(asked.seed, count, start=start)
    wish = {"class": real.class_names[at]} if real.class_names else {}
    if asked.vary is None:
        return fitted.generate(keys, fitted.condition(keys, wish))
    rows = np.flatnonzero(real.labels == at) if real.class_names else np.arange(len(real))
    chosen = rows[(keys.uniform((), "which picture to vary").numpy() * len(rows)).astype(int)]
    like = [real.read(int(row)) for row in chosen]
    return fitted.generate(keys, fitted.condition(keys, wish), like=like, strength=asked.vary)


def _small(pixels: Tensor) -> Tensor:
    """(n, D) pictures as points, of at most 32 pixels a side."""
    x = pixels.float()
    x = x / (255 if float(x.max()) < 256 else 65535)
    shrink = -(-max(x.shape[-2:]) // 32)
    return (torch.nn.functional.avg_pool2d(x, shrink) if shrink > 1 else x).flatten(1)


def _write(folder: Path, real: Collection, made: list[Made], asked: Asked, digest: str) -> Iterator[str]:
    """Copy the real pictures, write the synthetic ones and the table of both; gives their names."""
    rows = []
    for index in range(len(real)):
        label = real.class_names[real.labels[index]] if real.class_names and real.labels[index] >= 0 else ""
        stem = Path(real.names[index]).as_posix().replace("/", "_")
        stem = stem.removeprefix(f"{label}_") if label else stem
        suffix = Path(stem).suffix.lower()
        name = f"{label}/{stem}" if label else stem
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if real.kind in ("classes", "metadata", "folder", "file") and suffix:
            (folder / name).write_bytes(real.source.raw(index))
        else:
            name += ".png"
            write_png(real.read(index).pixels, folder / name)
        rows.append((name, label, 0))
    for at, part in enumerate(made):
        label = real.class_names[at] if real.class_names else ""
        for pixels, item in zip(part.pixels, part.items, strict=True):
            name = f"{label}/synthetic_{item:06d}.png" if label else f"synthetic_{item:06d}.png"
            condition = {"class": label} if label else {}
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_png(
                pixels, folder / name, Provenance("SYNTHETIC", asked.seed, int(item), 0, digest, condition)
            )
            rows.append((name, label, 1))
    with (folder / CONTENTS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "label", "synthetic"))
        writer.writerows(rows)
    yield from (name for name, _, _ in rows)
    yield CONTENTS


# ----------------------------------------------------------------------------------------------- the proof


def prove(
    fitted: FittedImages,
    real: Collection,
    pixels: Tensor,
    made: list[Made],
    holdout: Collection,
    asked: Asked,
    where: str,
    tell: Progress,
) -> Proof:
    """A small network with nothing added, with as many moved pictures, and with the synthetic ones; tried
    on the held-out pictures, the mean of several seeds for each of them.

    Raises:
        InputError: no classes, or none in common.
    """
    labels = holdout.labels_among(real.class_names) if real.class_names else np.empty(0, np.int64)
    known = np.flatnonzero(labels >= 0)
    if len(real.class_names) < 2 or not len(known):
        what = "there are no classes in common with DATA to be told apart"
        raise InputError("no-classes", what, where, "give pictures in folders of the same classes")
    test = fitted.space.scaled(fitted.space.pixels(holdout.subset(known)))
    truth = torch.from_numpy(labels[known])
    x, y = fitted.space.scaled(pixels), torch.from_numpy(real.labels.astype(np.int64))
    synthetic = torch.cat([fitted.space.scaled(torch.from_numpy(m.pixels).movedim(-1, 1)) for m in made])
    theirs = torch.cat([torch.full((len(m.pixels),), at) for at, m in enumerate(made)])
    right: dict[str, list[np.ndarray]] = {NOTHING: [], MOVED: [], "Ebbtide": []}
    seeds = range(asked.seed, asked.seed + SEEDS * asked.repeats)
    for seed in seeds:
        tell("proof", (seed - asked.seed) / len(seeds))
        moved = shifted(x, y, theirs, seed)
        for way, (more, more_y) in {
            NOTHING: (x[:0], y[:0]),
            MOVED: (moved, theirs),
            "Ebbtide": (synthetic, theirs),
        }.items():
            network = learn(torch.cat([x, more]), torch.cat([y, more_y]), seed=seed, steps=STEPS)
            right[way].append((network.predict(test) == truth).double().numpy())
    tell("proof", 1.0)
    scores = {way: {NETWORK: {"accuracy": np.mean(found, axis=0)}} for way, found in right.items()}
    counts = {way: 0.0 if way == NOTHING else float(len(theirs)) for way in right}
    return Proof("class", "accuracy", scores, "Ebbtide", (MOVED,), 1, len(seeds), counts)


def shifted(x: Tensor, y: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """Real pictures of the wanted classes moved by up to a tenth of their side: the classical way.

    Args:
        x, y: (n, C, H, W) and their classes. wanted: (m,) classes.
    """
    rng = np.random.default_rng([seed, 91])
    most = max(1, round(SHIFT * min(x.shape[-2:])))
    moved = []
    for label in wanted.tolist():
        rows = np.flatnonzero((y == label).numpy())
        one = x[int(rng.choice(rows))]
        up, left = (int(rng.integers(-most, most + 1)) for _ in range(2))
        padded = torch.nn.functional.pad(one[None], (most, most, most, most), mode="replicate")[0]
        height, width = one.shape[-2:]
        moved.append(padded[:, most + up : most + up + height, most + left : most + left + width])
    return torch.stack(moved) if moved else x[:0]
