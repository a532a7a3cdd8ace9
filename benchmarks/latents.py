"""Latents against the packed grid: what an autoencoder loses, what a step costs, how well holes are filled.

    python benchmarks/latents.py photographs [--steps 1500]
    python benchmarks/latents.py clothes DATA.npz WORK [--side 64] [--pictures 2000] [--tests 64]

- `photographs`: crops of 256 x 256 of scikit-learn's two sample pictures. An autoencoder learns from their
  left two thirds; how it reconstructs the right third is told in dB, whole and in tiles. Then what a training
  step of the recommended network costs in latents and on the Haar-packed grid.
- `clothes`: Fashion-MNIST (`x_train`, `x_test`) enlarged by cubic interpolation. A model in latents is
  trained; the right half of test pictures is filled in: PSNR in dB (range 0 to 1) over what was hidden, of
  `expected`, of the mean of the draws and of one draw, beside the smooth guess alone, and how much 90 %
  prediction intervals of Student's law from the draws cover. WORK keeps the model and two sheets.

Seconds are of one processor core's own time: a machine that is busy with other things changes little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor

from ebbtide.domains.images.collection import collect
from ebbtide.domains.images.model import FittedImages, recommended
from ebbtide.domains.images.sheets import Completion, before_after, contact_sheet
from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.grids import GridModel, GridSettings, GridShape, LatentModel
from ebbtide.shared.latent import Autoencoder, AutoencoderSettings, train_autoencoder
from ebbtide.shared.measures import psnr
from ebbtide.shared.noise import Keys
from ebbtide.shared.settings import computes_bfloat16
from ebbtide.shared.smooth import smoothly_filled

EDGE, CROP, BATCH = 256, 64, 8
MEAN, STD = 0.45, 0.28


def photographs(steps: int) -> None:
    """Reconstruction and time, printed as JSON lines."""
    from sklearn.datasets import load_sample_images

    whole = [torch.tensor(i).permute(2, 0, 1).float() / 255 for i in load_sample_images().images]
    cut = 2 * whole[0].shape[2] // 3
    train = [(x[:, :, :cut] - MEAN) / STD for x in whole]
    test = torch.stack([(x[:, :208, cut:] - MEAN) / STD for x in whole])
    test = test[..., : test.shape[3] // 16 * 16]
    settings = recommended((3, EDGE, EDGE), 1000)
    torch.manual_seed(0)
    autoencoder = Autoencoder(2, 3, latent=settings.latent, widths=settings.latent_widths)
    for name, done in (("untrained", 0), ("trained", steps)):
        seconds = _timed(lambda n=done: _train(autoencoder, train, n)) if done else 0.0
        found = {"autoencoder": name, "steps": done, "seconds_a_step": round(seconds / max(done, 1), 3)}
        for way, tile in (("whole", None), ("tiles_of_128", 32)):
            with torch.no_grad():
                made = autoencoder.decode(autoencoder.encode(test, tile), test.shape[2:], tile)
            found[f"psnr_{way}"] = [round(float(one), 2) for one in psnr(made * STD, test * STD)]
        print(json.dumps(found), flush=True)
    picture = torch.randn(1, 3, EDGE, EDGE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
        z = autoencoder.encode(picture)
        there = min(_timed(lambda: autoencoder.encode(picture)) for _ in range(3))
        back = min(_timed(lambda: autoencoder.decode(z, (EDGE, EDGE))) for _ in range(3))
    print(json.dumps({"seconds_to_encode": round(there, 3), "seconds_to_decode": round(back, 3)}), flush=True)
    packed = replace(settings, latent=0, levels=2)
    for name, chosen in (("packed", packed), ("latents", settings)):
        chosen = replace(chosen, batch_size=BATCH)
        print(json.dumps({"network": name, "batch": BATCH, "seconds_a_step": _step(chosen)}), flush=True)


def _train(autoencoder: Autoencoder, pictures: list[Tensor], steps: int) -> None:
    settings = AutoencoderSettings(steps=steps, learning_rate=1e-3, half=computes_bfloat16())
    train_autoencoder(autoencoder, _crops(pictures, steps, 0), settings, scale_on=_crops(pictures, 8, 1))


def _crops(pictures: list[Tensor], count: int, seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.stack([_crop(pictures[rng.integers(len(pictures))], rng) for _ in range(BATCH)])
            for _ in range(count)]  # fmt: skip


def _crop(x: Tensor, rng: np.random.Generator) -> Tensor:
    a, b = (int(rng.integers(n - CROP + 1)) for n in x.shape[1:])
    return x[:, a : a + CROP, b : b + CROP]


def _step(settings: GridSettings) -> float:
    """Seconds of a training step, the best of three."""
    form = GridShape((3, EDGE, EDGE))
    form = LatentModel.shaped(settings, form) if settings.latent else form
    model = GridModel.untrained(settings, form, GaussianCentre.blank(form.shape, settings.components))
    x, seen = torch.randn(BATCH, *form.shape), torch.rand(BATCH, *form.shape) < 0.5
    told = model.told(Condition(known=Encoded(x * seen, seen)), BATCH)
    t = model.denoiser.schedule.time(torch.ones(BATCH, dtype=torch.float64))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
            loss = model.denoiser.loss(x, torch.randn_like(x), t, told, ~seen)
        loss.mean().backward()

    return round(min(_timed(step) for _ in range(3)), 2)


def _timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def clothes(data: Path, work: Path, side: int, count: int, steps: int, tests: int, draws: int = 8) -> None:
    """Train, or read what was trained; fill right halves; write the sheets."""
    work.mkdir(parents=True, exist_ok=True)
    held = np.load(data)
    rows = np.random.default_rng(0).permutation(len(held["x_train"]))[:count]
    if not (work / "model").exists():
        np.savez(work / "train.npz", x_train=_enlarged(held["x_train"][rows], side),
                 y_train=held["y_train"][rows])  # fmt: skip
        settings = replace(recommended((1, EDGE, EDGE), count), widths=(48, 96, 144), batch_size=16)
        settings = replace(settings, steps=steps, latent_steps=steps // 2, levels=0)
        fitted: FittedImages | None = None

        def fit() -> None:
            nonlocal fitted
            fitted = FittedImages.fit(collect(work / "train.npz"), settings=settings, device="cpu")

        print(json.dumps({"seconds_to_train": round(_timed(fit))}), flush=True)
        assert fitted is not None
        fitted.save(work / "model")
    fitted = FittedImages.load(work / "model")
    print(json.dumps({"model": fitted.description, "trust": str(fitted.model.trust)}), flush=True)
    pixels = torch.from_numpy(_enlarged(held["x_test"][:: len(held["x_test"]) // tests], side))[
        :, None
    ].float()
    truth = fitted.space.standardised(pixels / 255)
    observed = torch.ones_like(truth, dtype=torch.bool)
    observed[..., side // 2 :] = False
    known, missing = Encoded(truth * observed, observed), ~observed
    n = len(truth)
    keys = Keys(0, torch.arange(n).repeat_interleave(draws), torch.arange(draws).repeat(n))
    drawn = fitted.model.fill(known[keys.items], keys).unflatten(0, (n, draws))
    assert torch.equal(drawn[:, 0][observed], truth[observed])
    scale = float(fitted.space.std[0])

    def found(x: Tensor) -> float:
        return round(float(psnr(x * scale, truth * scale, mask=missing).mean()), 2)

    half = student.ppf(0.95, draws - 1) * (1 + 1 / draws) ** 0.5 * drawn.std(1)
    inside = ((truth - drawn.mean(1)).abs() <= half + 1e-6)[missing]
    made = fitted.model.into(truth)
    told = {
        "pictures": n,
        "reconstruction": round(float(psnr(fitted.model.out(made) * scale, truth * scale).mean()), 2),
        "smooth": found(smoothly_filled(known.values, observed)),
        "expected": found(fitted.model.expected(known, Keys.range(0, n))),
        "mean_of_draws": found(drawn.mean(1)),
        "one_draw": found(drawn[:, 0]),
        "covered": round(float(inside.float().mean()), 3),
    }
    print(json.dumps(told), flush=True)
    shown = fitted.space.decode_generated(drawn[:6, :5].flatten(0, 1)).reshape(6, 5, side, side, 1)
    original = fitted.space.decode_generated(truth[:6])
    before_after(
        [
            Completion(o, h[0].numpy(), d, truth=True)
            for o, h, d in zip(original, missing[:6], shown, strict=True)
        ],
        work / "halves.png",
        heading="Right halves, filled in latents",
    )
    condition = fitted.condition(Keys.range(1, 24), {})
    samples = fitted.generate(Keys.range(1, 24), condition)
    contact_sheet(list(samples), work / "generated.png", heading="SYNTHETIC, in latents")


def _enlarged(pictures: np.ndarray, side: int) -> np.ndarray:
    x = torch.from_numpy(pictures)[:, None].float()
    x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False)
    return np.asarray(x.round().clamp(0, 255).byte()[:, 0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("photographs", "clothes"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "photographs":
        photographs(asked.steps)
    else:
        clothes(*asked.paths, asked.side, asked.pictures, asked.steps, asked.tests)
