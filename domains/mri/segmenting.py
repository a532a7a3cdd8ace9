"""Does a segmentation network learn more from more volumes? MONAI's U-Net, small, with and without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.noise import Keys
from .augmentation import ScanAugmentation
from .shapes import one_hot

WIDTHS = (8, 16, 32)
STEPS, BATCH, RATE = 250, 4, 3e-3


class Pairs(NamedTuple):
    """Volumes with their label maps.

    Args:
        images: (n, C, *S) in model space. labels: (n, *S) int64 label values, 0 for none.
    """

    images: Tensor
    labels: Tensor

    def rows(self, chosen: Tensor) -> Pairs:
        return Pairs(self.images[chosen], self.labels[chosen])


def learn(
    sets: Sequence[Pairs],
    values: Sequence[int],
    *,
    classical: bool = True,
    steps: int = STEPS,
    seed: int = 0,
) -> nn.Module:
    """Train on batches drawn from the sets in equal parts, and in the second half of the steps from the first
    set alone: what synthetic volumes lack in likeness is unlearnt, what they show of shapes stays.

    Args:
        sets: real volumes, and others to mix in.
        values: labels to be told apart, beside 0.
        classical: move, mirror, tone and blur what is shown (`changed`).
        steps, seed: the same first weights and as many steps whatever the sets.

    Returns:
        A network of (B, C, *S) -> (B, 1 + K, *S) scores.
    """
    from monai.networks.nets.unet import UNet  # takes seconds

    held = {value: place for place, value in enumerate(values, 1)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = sets[0].images.shape[1]
        network = UNet(3, channels, len(values) + 1, WIDTHS, (2, 2), num_res_units=2, norm="instance")
    optimiser = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        shown = sets if 2 * step < steps else sets[:1]
        parts = [
            one.rows(torch.from_numpy(rng.integers(len(one.images), size=BATCH // len(shown))))
            for one in shown
        ]
        batch = Pairs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        if classical:
            keys = Keys(seed, torch.arange(len(batch.labels)), torch.full((len(batch.labels),), step))
            batch = changed(batch, values, keys)
        target = torch.zeros_like(batch.labels)
        for value, place in held.items():
            target[batch.labels == value] = place
        loss = _loss(_scores(network, batch.images), target, len(values))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def dice(network: nn.Module, test: Pairs, values: Sequence[int]) -> np.ndarray:
    """(n,) Dice of each volume, the mean over the labels that it has."""
    found = torch.cat([_scores(network, part).argmax(1) for part in test.images.split(8)])
    scores = []
    for place, value in enumerate(values, 1):
        ours, theirs = (found == place).flatten(1), (test.labels == value).flatten(1)
        both = 2 * (ours & theirs).sum(1) / (ours.sum(1) + theirs.sum(1)).clamp(min=1)
        scores.append(torch.where(theirs.any(1), both, torch.nan))
    return torch.stack(scores).nanmean(0).double().numpy()


def changed(pairs: Pairs, values: Sequence[int], keys: Keys) -> Pairs:
    """Classical augmentation: images and labels turned, shifted, scaled and mirrored alike; contrast, bias
    field and noise of images alone."""
    x, channels = pairs.images, pairs.images.shape[1]
    flat = x.movedim(1, 0).flatten(1)
    dark, bright = (
        flat.amin(1).tolist(),
        flat[:, :: max(1, flat.shape[1] // 2**20)].quantile(0.99, 1).tolist(),
    )
    change = ScanAugmentation(
        tuple(dark), tuple(bright), 0.5, 0.8, 0.8, degrees=10, shift=0.05, scale=0.1, gamma=0.3, bias=0.3
    )
    maps = one_hot(pairs.labels, values)
    moved, _ = change(keys, torch.cat([x, torch.ones_like(x), maps], 1))
    best, place = moved[:, 2 * channels :].max(1)
    labels = torch.where(best > 0, torch.tensor(values)[place], 0)
    image = moved[:, :channels] + 0.1 * keys.normal(tuple(x.shape[1:]), "grain").to(x)
    return Pairs(image, labels)


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    """Of volumes of any size: filled up to multiples of 4, and cropped."""
    size = images.shape[2:]
    extra = [n for size_of in reversed(size) for n in (0, -size_of % 4)]
    out: Tensor = network(F.pad(images, extra, mode="replicate"))
    return out[..., : size[0], : size[1], : size[2]]


def _loss(out: Tensor, target: Tensor, count: int) -> Tensor:
    """Cross entropy plus one minus the soft Dice of the labels."""
    shares, wanted = out.softmax(1)[:, 1:], F.one_hot(target, count + 1).movedim(-1, 1)[:, 1:]
    overlap = 2 * (shares * wanted).sum((2, 3, 4)) / (shares + wanted).sum((2, 3, 4)).clamp(min=1)
    return F.cross_entropy(out, target) + 1 - overlap.mean()
