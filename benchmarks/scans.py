"""Filling holes of brain scans that a bundled model never saw, against what needs no network.

    python benchmarks/scans.py DATA [--model brain-t1] [--draws 8] [--steps 10] [--most N]

DATA is the folder that the model was made of (of `brain-t1` the aligned, skull-stripped IXI T1 volumes). All
are brought to its grid; the subjects that its card calls held out are filled, the others teach the baselines:

- `linear`: between the nearest known slices (slices alone);
- `template`: the training mean;
- `pca-20`: the posterior mean of a Gaussian of 20 principal components given what is known;
- `centre`: the same with neighbours (`shared.centre`), the model's starting point;
- `ebbtide`: the model's conditional mean (one call of the network), and single draws.

PSNR in dB (range 0 to 1) over missing voxels of the brain, mean over subjects ± standard deviation; how many
of them 90 % intervals cover: mean ± t standard deviations of the draws, t of Student's law for so few draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from ebbtide.data_cards import MODELS
from ebbtide.domains.mri.collection import collect, read_subject
from ebbtide.domains.mri.model import FittedScans
from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import Encoded
from ebbtide.shared.noise import Keys

AXIAL = (2, 3, 4, 6)
CUBES = (24, 40, 56)  # mm


def holes(shape: tuple[int, ...], spacing: float) -> dict[str, Tensor]:
    """Name -> bool (*S), True where known."""
    found = {}
    for k in AXIAL:
        known = torch.zeros(shape, dtype=torch.bool)
        known[:, :, ::k] = True
        found[f"1 slice in {k}"] = known
    for edge in CUBES:
        known, n = torch.ones(shape, dtype=torch.bool), round(edge / spacing)
        if n > 0.75 * min(shape):
            continue
        middle = [size // 2 - n // 2 for size in shape]
        known[tuple(slice(a, a + n) for a in middle)] = False
        found[f"cube of {edge} mm"] = known
    return found


def linear(x: Tensor, known: Tensor) -> Tensor:
    """(n, C, *S) between the nearest slices that are kept along the last axis."""
    there = known[0, 0].nonzero()[:, 0].numpy()
    every = np.arange(x.shape[-1])
    lines = x.reshape(-1, x.shape[-1]).numpy()
    filled = np.stack([np.interp(every, there, line[there]) for line in lines])
    return torch.from_numpy(filled).reshape(x.shape).float()


def psnr(found: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """(n,) dB."""
    error = ((found - truth) ** 2 * where).flatten(1).sum(1) / where.flatten(1).sum(1)
    return -10 * error.log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=MODELS / "brain-t1")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--most", type=int, default=1000, help="subjects to draw for; all have a mean")
    told = parser.parse_args()
    fitted = FittedScans.load(told.model)
    held_out = set(fitted.about["held_out"])
    scans = collect(told.data)
    known_of = {s.name: fitted.encode(s, volumes=read_subject(s)).known for s in scans}
    train, trained_on = (
        torch.cat([getattr(one, part) for name, one in known_of.items() if name not in held_out])
        for part in ("values", "observed")
    )
    test, measured = (
        torch.cat([getattr(one, part) for name, one in known_of.items() if name in held_out])
        for part in ("values", "observed")
    )
    channel = fitted.space.channels[fitted.space.modalities[0]]

    def unit(x: Tensor) -> Tensor:
        """Model space to 0 (air) ... 1 (bright)."""
        return x * channel.std + channel.mean

    template = (train * trained_on).sum(0) / trained_on.sum(0).clamp(min=1)
    brain = unit(template) > 0.08
    pca = GaussianCentre.fit(train, None if bool(trained_on.all()) else trained_on, components=20, rounds=4)
    centre = fitted.model.denoiser.centre
    rows = []
    for name, known in holes(tuple(fitted.space.size), float(fitted.space.spacing[0])).items():
        seen = known.expand_as(test) & measured
        given = Encoded(test * seen, seen.clone())
        where = (~known & brain).expand_as(test) & measured
        own = Keys(0, torch.arange(len(test)), torch.zeros(len(test), dtype=torch.int64))
        answers = {
            "template": template.expand_as(test),
            "pca-20": pca.posterior(given)[0],
            "centre": centre.posterior(given)[0],
            "ebbtide, mean": fitted.model.expected(given, own),
        }
        if "slice" in name:
            answers = {"linear": linear(test, known), **answers}
        row: dict[str, object] = {"hole": name}
        n = min(len(test), told.most)
        keys = Keys(0, torch.arange(n).repeat(told.draws), torch.arange(told.draws).repeat_interleave(n))
        many = Encoded(
            given.values[:n].repeat(told.draws, 1, 1, 1, 1), given.observed[:n].repeat(told.draws, 1, 1, 1, 1)
        )
        drawn = fitted.model.fill(many, keys, sampler=fitted.model.filler(told.steps))
        drawn = drawn.reshape(told.draws, n, *test.shape[1:])
        answers["ebbtide, one draw"] = drawn[0]
        middle, spread = answers["ebbtide, mean"][:n], drawn.std(0)
        reach = float(student.ppf(0.95, told.draws - 1)) * spread
        row["cover"] = float((((test[:n] - middle).abs() <= reach) & where[:n]).sum() / where[:n].sum())
        for method, found in answers.items():
            each = psnr(unit(found), unit(test[: len(found)]), where[: len(found)])
            row[method] = [float(each.mean()), float(each.std())]
        rows.append(row)
        print(json.dumps(row), flush=True)
    methods = ["linear", "template", "pca-20", "centre", "ebbtide, mean", "ebbtide, one draw"]
    print("\n| missing | " + " | ".join(methods) + " | 90 % cover |\n|---|" + "---|" * (len(methods) + 1))
    for row in rows:
        cells = [f"{row[m][0]:.2f} ± {row[m][1]:.2f}" if m in row else "" for m in methods]  # type: ignore[index]
        print(f"| {row['hole']} | " + " | ".join(cells) + f" | {100 * float(row['cover']):.1f} |")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
