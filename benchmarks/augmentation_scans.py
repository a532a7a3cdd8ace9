"""Does a segmentation network learn more when synthetic volumes with labels are added to few real ones?

    python benchmarks/augmentation_scans.py DATA MODEL [--test-subjects NAMES.json] [--real 20]
        [--synthetic 40] [--seeds 3] [--steps 250] [--out FILE]

DATA is the Decathlon hippocampus folder (images, labels); MODEL a model that was trained with label maps.
For each seed, `--real` volumes to train on are drawn from those that are not for testing; MONAI's UNet (3
levels, 8 to 32 channels) is trained for the same number of steps three times from the same first weights:

- `real`: on the real volumes alone;
- `real + synthetic`: half of each batch synthetic; `synthetic`: on them alone.

All get the same classical augmentation (small rotation, shift and scaling, mirror, gamma, bias field, noise).
Dice of head and tail on the test volumes (those the model never saw, by its own record or NAMES.json), mean
over volumes and labels; the gain is paired by seed. Everything is resampled to the model's grid.

What the model itself was trained on matters: one that saw 168 volumes brings knowledge of more than the 20,
which a network trained on 20 cannot have. With `--train-on` the script writes the folder of the 20 volumes
of seed 0 and stops, so that a model of those alone can be trained (`ebbtide train FOLDER -o MODEL`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ebbtide.domains.mri.augmentation import ScanAugmentation
from ebbtide.domains.mri.collection import Subject, collect
from ebbtide.domains.mri.model import FittedScans
from ebbtide.shared.noise import Keys

ARMS = ("real", "real + synthetic", "synthetic")
TESTED = 40
"""Test volumes at most."""


def chosen(names: list[str], count: int, seed: int) -> list[str]:
    """Some of the names, by the seed."""
    order = np.random.default_rng(seed).permutation(len(names))[:count]
    return sorted(names[i] for i in order)


def copied(subjects: list[Subject], folder: Path) -> None:
    """Images and label maps in the Decathlon layout, to train a model on these alone."""
    for subject in subjects:
        files = {"images": next(iter(subject.images.values())), "labels": subject.segmentation}
        for kind, path in files.items():
            assert path is not None
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / kind / path.name)


def encoded(fitted: FittedScans, subjects: list[Subject]) -> tuple[Tensor, Tensor]:
    """Images (n, 1, *S) in model space and labels (n, *S), 0, 1, 2, ..."""
    values = torch.cat([fitted.encode(subject).known.values for subject in subjects])
    scores = values[:, 1:]
    return values[:, :1], torch.where(scores.amax(1) > 0, scores.argmax(1) + 1, 0)


def generated(fitted: FittedScans, count: int, steps: int | None) -> tuple[Tensor, Tensor]:
    """The same of samples."""
    samples = fitted.generate(Keys.range(0, count), [{}] * count, steps=steps)
    scores = samples[:, 1:]
    return samples[:, :1], torch.where(scores.amax(1) > 0, scores.argmax(1) + 1, 0)


def changed(images: Tensor, labels: Tensor, count: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Classical augmentation: images and labels moved alike, tones of images alone."""
    ends = images.amin().item(), images.quantile(0.99).item() if images.numel() < 1e7 else 2.0
    change = ScanAugmentation(
        (ends[0], *(-1.0 for _ in range(count))), (ends[1],), 0.5, 0.8, 0.8, 10.0, 0.05, 0.1, 0.3, 0.3
    )
    channels = torch.stack([(labels == k).float() * 2 - 1 for k in range(1, count + 1)], 1)
    both = torch.cat([images, channels], 1)
    keys = Keys(seed, torch.arange(len(both)), torch.full((len(both),), step))
    moved = change(keys, torch.cat([both, torch.ones_like(both)], 1))[0]
    scores = moved[:, 1 : 1 + count]
    image = moved[:, :1] + 0.1 * keys.normal(tuple(images.shape[1:]), "grain").to(images)
    return image, torch.where(scores.amax(1) > 0, scores.argmax(1) + 1, 0)


def dice(found: Tensor, truth: Tensor, label: int) -> Tensor:
    """(n,) of one label."""
    a, b = (found == label).flatten(1), (truth == label).flatten(1)
    return 2 * (a & b).sum(1) / (a.sum(1) + b.sum(1)).clamp(min=1)


def padded(x: Tensor) -> Tensor:
    """Up to multiples of 4, at the far ends."""
    extra = [(0, -n % 4) for n in reversed(x.shape[2:])]
    return F.pad(x, [n for pair in extra for n in pair], mode="replicate")


def trained(sets: list[tuple[Tensor, Tensor]], count: int, steps: int, seed: int) -> torch.nn.Module:
    """A network after so many steps of four volumes, drawn from the sets in equal parts."""
    from monai.networks.nets import UNet

    torch.manual_seed(seed)
    network = UNet(3, 1, count + 1, (8, 16, 32), (2, 2), num_res_units=2, norm="instance")
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        rows = [rng.integers(len(images), size=4 // len(sets)) for images, _ in sets]
        parts = [(images[r], labels[r]) for (images, labels), r in zip(sets, rows, strict=True)]
        image, label = changed(
            torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), count, seed, step
        )
        out = network(padded(image))[(..., *(slice(n) for n in label.shape[1:]))]
        shares, wanted = out.softmax(1)[:, 1:], F.one_hot(label, count + 1).movedim(-1, 1)[:, 1:]
        overlap = 2 * (shares * wanted).sum((2, 3, 4)) / (shares + wanted).sum((2, 3, 4)).clamp(min=1)
        loss = F.cross_entropy(out, label) + 1 - overlap.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def tested(network: torch.nn.Module, images: Tensor, labels: Tensor, count: int) -> float:
    out = torch.cat([network(padded(part)) for part in images.split(8)])
    found = out[(..., *(slice(n) for n in labels.shape[1:]))].argmax(1)
    return float(torch.stack([dice(found, labels, k).mean() for k in range(1, count + 1)]).mean())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--test-subjects", type=Path, help="JSON list of names the model never saw")
    parser.add_argument("--real", type=int, default=20)
    parser.add_argument("--synthetic", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--sampler-steps", type=int)
    parser.add_argument("--train-on", type=Path, help="write the volumes of seed 0 here, and stop")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    return parser.parse_args()


def main() -> None:
    told = parsed()
    torch.set_num_threads(1)
    scans = {subject.name: subject for subject in collect(told.data) if subject.segmentation}
    if told.model is None and told.train_on is None:
        raise SystemExit("give a MODEL, or --train-on FOLDER")
    fitted = None if told.model is None else FittedScans.load(told.model)
    held = json.loads(told.test_subjects.read_text()) if told.test_subjects else None
    if held is None:
        held = list(fitted.about.get("held_out", [])) if fitted else []
    held = [name for name in held if name in scans] or chosen(list(scans), TESTED, 99)
    rest = [name for name in scans if name not in held]
    if told.train_on is not None:
        copied([scans[name] for name in chosen(rest, told.real, 0)], told.train_on)
        return
    assert fitted is not None
    count, began = len(fitted.labels), time.process_time()
    test = encoded(fitted, [scans[name] for name in chosen(held, TESTED, 0)])
    synthetic = generated(fitted, told.synthetic, told.sampler_steps)
    print(f"encoded and generated in {time.process_time() - began:.0f} processor seconds", flush=True)
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(told.seeds):
        real = encoded(fitted, [scans[name] for name in chosen(rest, told.real, seed)])
        for arm, sets in zip(ARMS, ([real], [real, synthetic], [synthetic]), strict=True):
            scores[arm].append(tested(trained(sets, count, told.steps, seed), *test, count))
            spent = time.process_time() - began
            print(f"seed {seed}, {arm}: Dice {scores[arm][-1]:.4f} ({spent:.0f} s)", flush=True)
    real_scores = np.array(scores["real"])
    lines = ["| trained on | Dice, mean ± sd over seeds | gain, paired |", "|---|---|---|"]
    for arm, found in scores.items():
        gain = np.array(found) - real_scores
        spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in (found, gain)]
        lines.append(
            f"| {arm} | {np.mean(found):.4f} ± {spread[0]:.4f} | {gain.mean():+.4f} ± {spread[1]:.4f} |"
        )
    lines.append(
        f"\n{told.real} real and {told.synthetic} synthetic volumes, {len(test[0])} to test, {told.seeds} "
        f"seeds, {told.steps} steps; the model was trained on {fitted.about.get('items')} volumes."
    )
    print("\n".join(lines))
    if told.out:
        with told.out.open("a") as file:
            file.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
