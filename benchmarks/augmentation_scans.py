"""Does a segmentation network learn more when synthetic volumes with labels are added to few real ones?

    python benchmarks/augmentation_scans.py DATA MODEL [--test-subjects NAMES.json] [--real 20]
        [--synthetic 40] [--seeds 3] [--steps 250] [--out FILE]

DATA is the Decathlon hippocampus folder (images, labels); MODEL a model that was trained with label maps.
For each seed, `--real` volumes to train on are drawn from those that are not for testing; MONAI's UNet (3
levels, 8 to 32 channels) is trained for the same number of steps from the same first weights:

- `real, nothing changed`: on the real volumes as they are;
- `real`: on the real volumes alone;
- `real + synthetic`: half of each batch synthetic in the first half of the steps, none in the second;
  `synthetic`: on them alone.

All but the first get the same classical augmentation (small rotation, shift and scaling, mirror, gamma, bias
field, noise). Dice of head and tail on the test volumes (those the model never saw, by its own record or
NAMES.json), mean over volumes and labels; the gain is paired by seed. Everything is resampled to the model's
grid.

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

from ebbtide.domains.mri.collection import Subject, collect, read_image
from ebbtide.domains.mri.model import FittedScans
from ebbtide.domains.mri.segmenting import Pairs, dice, learn
from ebbtide.pipelines.augmenting_scans import encoded
from ebbtide.shared.noise import Keys

PLAIN = "real, nothing changed"
ARMS = (PLAIN, "real", "real + synthetic", "synthetic")
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


def generated(fitted: FittedScans, count: int, steps: int | None) -> Pairs:
    """New label maps, and an image for each."""
    assert fitted.shapes is not None
    keys = Keys.range(0, count)
    labels = fitted.shapes.draw(keys)
    return Pairs(fitted.seen(fitted.generate(keys, [{}] * count, labels=labels, steps=steps)), labels)


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
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="with `real` among them")
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
    labels, began = fitted.labels, time.process_time()
    test = encoded(fitted, [scans[name] for name in chosen(held, TESTED, 0)], read_image)
    synthetic = generated(fitted, told.synthetic, told.sampler_steps)
    print(f"encoded and generated in {time.process_time() - began:.0f} processor seconds", flush=True)
    scores: dict[str, list[float]] = {arm: [] for arm in told.arms}
    for seed in range(told.seeds):
        real = encoded(fitted, [scans[name] for name in chosen(rest, told.real, seed)], read_image)
        for arm, sets in zip(ARMS, ([real], [real], [real, synthetic], [synthetic]), strict=True):
            if arm not in told.arms:
                continue
            network = learn(sets, labels, classical=arm != PLAIN, steps=told.steps, seed=seed)
            scores[arm].append(float(dice(network, test, labels).mean()))
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
        f"\n{told.real} real and {told.synthetic} synthetic volumes, {len(test.images)} to test, {told.seeds}"
        " "
        f"seeds, {told.steps} steps; the model was trained on {fitted.about.get('items')} volumes."
    )
    print("\n".join(lines))
    if told.out:
        with told.out.open("a") as file:
            file.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
