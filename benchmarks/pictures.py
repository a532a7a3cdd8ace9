"""Pictures against a plain diffusion model at equal network size and equal time of one processor.

    python benchmarks/pictures.py DATA.npz WORK [--seconds 420] [--count 2000] [--model M] [--calls 50 20 10]

DATA holds Fashion-MNIST (`x_train y_train x_test y_test`) or CIFAR-10 (also `cifar10_jpeg.npz`: `data offsets
labels is_test`); WORK keeps what was trained: a run goes on.

- `ddpm`: the recipe of diffusers' example of unconditional training (huggingface/diffusers,
  examples/unconditional_image_generation): its `UNet2DModel`, epsilon prediction, linear betas, 1,000 steps,
  batches of 16, AdamW, moving average of the weights.
- `lucid`: the recipe of denoising-diffusion-pytorch (lucidrains) with the same network: v prediction, sigmoid
  betas (Jabri et al. 2022), Adam at a constant rate, an average of decay 0.995 taken every 10 steps.
  Two things are changed in both: they are told the class, and the learning rate is 5e-4, not 1e-4, which is
  meant for hundred times as many steps. Both are sampled by DDIM.
- `ebbtide`: `FittedImages.fit` with `recommended` settings at about the same number of weights; or `--model`,
  one that was trained before.

All are trained for as many steps as fit into so many seconds of one processor's own time (a machine that is
busy with other things changes nothing), in bfloat16 where the processor has it. diffusers is needed for
the first two alone (`pip install diffusers==0.32.2`).

Every picture is compared by a small network that learnt the classes of the real training pictures: the
Frechet distance, the kernel distance, precision, recall and coverage to real training pictures; `TSTR` is the
accuracy on real test pictures of a classifier that learnt from the synthetic ones alone. `real`: the test
pictures in the place of synthetic ones. Then the right half of test pictures is filled in by the model, and
by RePaint with the same weights and ten times as many calls of the network: PSNR in dB (range 0 to 1) over
what was hidden, of the mean and of one draw; how much 90 % prediction intervals cover, by Student's law from
the draws alone: the mean of n draws, give or take t_(n-1) times their standard deviation times sqrt(1 + 1/n).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor
from torchvision.io import decode_image

from ebbtide.domains.images.collection import collect
from ebbtide.domains.images.features import Learnt, learn
from ebbtide.domains.images.model import FittedImages, recommended
from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.filling import RePaint
from ebbtide.shared.measures import frechet_distance, kernel_distance, prdc, psnr
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import DDIM
from ebbtide.shared.settings import computes_bfloat16

CLASSES = 10
OURS, THEIRS = (48, 96, 144), (40, 80, 112)
"""Widths of the networks, of 2.6 million weights each."""
STEPS = (50, 20, 10)
Make = Callable[[Tensor, int], Tensor]
"""(labels, denoising steps) -> pixels (n, C, H, W) in [0, 1]."""


def half() -> AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16())


# --- the plain models ---------------------------------------------------------------------------


def linear_betas() -> Tensor:
    return torch.linspace(1e-4, 0.02, 1000)


def sigmoid_betas() -> Tensor:
    """Between -3 and 3, as denoising-diffusion-pytorch has them."""
    v = torch.sigmoid(torch.linspace(-3, 3, 1001, dtype=torch.float64))
    kept = (v[-1] - v) / (v[-1] - v[0])
    return (1 - kept[1:] / kept[:-1]).clamp(0, 0.999).float()


@dataclass(frozen=True)
class Recipe:
    """How a plain model is made.

    Args:
        betas: of the 1,000 steps. prediction: "epsilon" or "v_prediction"; the error of v is weighted by
            SNR / (1 + SNR).
        optimiser: of parameters. rate: (step, steps in all) -> factor on the learning rate.
        decay: (step) -> of the averaged weights, 1 where they are left as they are.
    """

    betas: Callable[[], Tensor]
    prediction: str
    optimiser: Callable[[Any], torch.optim.Optimizer]
    rate: Callable[[int, int], float]
    decay: Callable[[int], float]


def warm_cosine(step: int, total: int) -> float:
    return min(1.0, (step + 1) / (0.05 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))


RECIPES = {
    "ddpm": Recipe(
        linear_betas,
        "epsilon",
        lambda weights: torch.optim.AdamW(weights, 5e-4, betas=(0.95, 0.999), weight_decay=1e-6),
        warm_cosine,
        lambda step: min(0.9999, 1 - (1 + step) ** -0.75),
    ),
    "lucid": Recipe(
        sigmoid_betas,
        "v_prediction",
        lambda weights: torch.optim.Adam(weights, 5e-4, betas=(0.9, 0.99)),
        lambda step, total: 1.0,
        # It begins to average after 100 steps, and has the weights themselves until then.
        lambda step: 0.0 if step <= 100 else 0.995 if step % 10 == 0 else 1.0,
    ),
}


def unet(shape: tuple[int, ...]) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=shape[-1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=1,
        block_out_channels=THEIRS,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        num_class_embeds=CLASSES,
    )


def train_plain(recipe: Recipe, pixels: Tensor, labels: Tensor, seconds: float, file: Path) -> dict[str, Any]:
    """Train by a recipe, and keep the averaged weights."""
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    shape, betas = tuple(pixels.shape[1:]), recipe.betas()
    network, noising = unet(shape).train(), DDPMScheduler(1000, trained_betas=betas.numpy())
    share = (1 - betas).cumprod(0)  # alpha^2, which is SNR / (1 + SNR)
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = recipe.optimiser(network.parameters())
    begun, steps, total = time.process_time(), 0, 100
    while steps < total:
        rows = torch.randint(len(pixels), (16,))
        x, noise, t = 2 * pixels[rows] - 1, torch.randn(16, *shape), torch.randint(1000, (16,))
        with half():
            guess = network(noising.add_noise(x, noise, t), t, class_labels=labels[rows]).sample
        if recipe.prediction == "epsilon":
            loss = F.mse_loss(guess.float(), noise)
        else:
            errors = (guess.float() - noising.get_velocity(x, noise, t)).square().flatten(1).mean(1)
            loss = (errors * share[t]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * recipe.rate(steps, total)
        optimiser.step()
        steps += 1
        decay = recipe.decay(steps)
        for name, tensor in network.state_dict().items() if decay < 1 else ():
            average[name].lerp_(tensor, 1 - decay)
        if steps == 20:  # as many as fit: known before the rate begins to fall
            total = max(25, int(seconds / (time.process_time() - begun) * 20))
    torch.save(average, file)
    weights = sum(p.numel() for p in network.parameters())
    return {"steps": steps, "batch": 16, "seconds": time.process_time() - begun, "weights": weights}


def plain(recipe: Recipe, shape: tuple[int, ...], file: Path) -> Make:
    from diffusers import DDIMScheduler

    network = unet(shape)
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()

    @torch.no_grad()
    def make(labels: Tensor, steps: int) -> Tensor:
        sampler = DDIMScheduler(
            1000,
            trained_betas=recipe.betas().numpy(),
            prediction_type=recipe.prediction,
            timestep_spacing="trailing",
        )
        sampler.set_timesteps(steps)
        generator, parts = torch.Generator().manual_seed(0), []
        for told in labels.split(64):
            x = torch.randn(len(told), *shape, generator=generator)
            for t in sampler.timesteps:
                with half():
                    guess = network(x, t, class_labels=told).sample
                x = sampler.step(guess.float(), t, x).prev_sample
            parts.append(x)
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    return make


# --- the data -----------------------------------------------------------------------------------


def unpacked(data: Path, work: Path) -> Path:
    """The data as `x_train y_train x_test y_test`: pictures that are kept as JPEG are read once."""
    with np.load(data) as held:
        if "x_train" in held:
            return data
        target = work / "pictures.npz"
        if not target.exists():
            ends, packed, test = held["offsets"], held["data"], held["is_test"]
            x = np.stack(
                [
                    decode_image(torch.from_numpy(packed[a:b])).permute(1, 2, 0).numpy()
                    for a, b in pairwise(ends)
                ]
            )
            y = held["labels"]
            np.savez(target, x_train=x[~test], y_train=y[~test], x_test=x[test], y_test=y[test])
    return target


def as_pixels(pictures: np.ndarray) -> Tensor:
    """(n, H, W) or (n, H, W, C) bytes -> (n, C, H, W) in [0, 1]."""
    x = torch.from_numpy(pictures)
    return (x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)).float() / 255


# --- ours ---------------------------------------------------------------------------------------


def train_ours(data: Path, shape: tuple[int, ...], seconds: float, folder: Path) -> dict[str, Any]:
    """Twenty steps tell how many fit; then from the start."""
    found = collect(data)
    settings = replace(recommended(shape, len(found)), widths=OURS, patience=None, held_out=0.01, steps=20)
    marks: dict[str, float] = {}

    def tell(label: str, share: float) -> None:
        if label.startswith("step"):
            marks.setdefault("first", time.process_time())
            marks["last"] = time.process_time()
        elif label.startswith("fitting"):
            marks["begun"] = time.process_time()

    FittedImages.fit(found, settings=settings, device="cpu", progress=tell)
    each = (marks["last"] - marks["first"]) / 19
    steps = max(25, int((seconds - (marks["first"] - marks["begun"])) / each))
    fitted = FittedImages.fit(found, settings=replace(settings, steps=steps), device="cpu", progress=tell)
    fitted.save(folder)
    weights = sum(p.numel() for p in fitted.model.denoiser.network.parameters())
    spent = time.process_time() - marks["begun"]
    return {"steps": steps, "batch": settings.batch_size, "seconds": spent, "weights": weights}


def ebbtide(fitted: FittedImages, guidance: float | None) -> Make:
    def make(labels: Tensor, steps: int) -> Tensor:
        made = fitted.model.generate(
            Keys.range(0, len(labels)),
            Condition(label=labels),
            guidance=fitted.guidance if guidance is None else guidance,
            sampler=fitted.model.sampler(steps),
        )
        return torch.from_numpy(fitted.space.decode_generated(made)).permute(0, 3, 1, 2) / 255

    return make


# --- figures ------------------------------------------------------------------------------------


def figures(features: Learnt, real: Tensor, made: Tensor) -> dict[str, float]:
    x, y = features(real), features(made)
    near = prdc(x, y)
    return {
        "frechet": frechet_distance(x, y),
        "kernel": kernel_distance(x, y),
        "precision": near.precision,
        "recall": near.recall,
        "coverage": near.coverage,
    }


def covered(values: Tensor, drawn: Tensor) -> Tensor:
    """bool (B, C, *S): values that lie in the 90 % prediction interval of draws (n, B, C, *S).

    It lies around the mean of these draws and no better one: a black pixel is where most draws are, and
    their small scatter around another mean would miss it.
    """
    count = len(drawn)
    wide = float(student.ppf(0.95, count - 1)) * math.sqrt(1 + 1 / count)
    return (values - drawn.mean(0)).abs() <= wide * drawn.std(0)


def completion(
    fitted: FittedImages, x: Tensor, labels: Tensor, draws: int, calls: int
) -> list[dict[str, Any]]:
    """The right half of some pictures, by ourselves and by RePaint."""
    space, model = fitted.space, fitted.model
    values = space.standardised(x)
    seen = torch.ones_like(values, dtype=torch.bool)
    seen[..., values.shape[-1] // 2 :] = False
    known, condition = Encoded(values * seen, seen), Condition(label=torch.full_like(labels, -1))
    count = len(x)
    rows = torch.arange(count).repeat(draws)
    keys = Keys(0, rows, torch.arange(draws).repeat_interleave(count))
    sampler = model.filler((calls + 1) // 2)  # Heun's method calls the network twice a step, but for the last
    ours = model.fill(known[rows], keys, condition[rows], sampler=sampler)
    mean = model.expected(known, Keys.range(0, count), condition)
    repaint = RePaint(steps=calls, inner=DDIM(eta=1.0), repeats=10)
    parts = []
    for some in torch.arange(len(rows)).split(32):
        told = replace(model.told(condition[rows[some]], len(some)), known=known[rows[some]])
        with torch.no_grad(), half():
            parts.append(repaint(model.denoiser, space.shape, keys[some], told, like=values[:0]).float())
    theirs = torch.where(seen.repeat(draws, 1, 1, 1), values.repeat(draws, 1, 1, 1), torch.cat(parts))
    table = []
    both = (("ebbtide", ours, mean, calls + 2), ("RePaint", theirs, None, 10 * calls))
    for name, drawn, middle, used in both:
        drawn = drawn.reshape(draws, *values.shape)
        middle = drawn.mean(0) if middle is None else middle
        shown, one = space.unstandardised(middle), space.unstandardised(drawn[0])
        hidden = ~seen & (space.unstandardised(values).std(0, keepdim=True) > 0.02)
        table.append(
            {
                "method": name,
                "calls": used,
                "mean": float(psnr(shown, x, mask=~seen).mean()),
                "one draw": float(psnr(one, x, mask=~seen).mean()),
                "cover": float(covered(values, drawn)[hidden].double().mean()),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--learn", type=int, default=1200, help="steps of the classifiers")
    parser.add_argument("--fill", type=int, default=64, help="test pictures to complete; 0 for none")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calls", type=int, nargs="+", default=STEPS, help="2 alone for a distilled model")
    parser.add_argument("--guidance", type=float, help="of ebbtide; its own by default")
    parser.add_argument("--only", nargs="+", choices=("ebbtide", *RECIPES), default=("ebbtide", *RECIPES))
    told = parser.parse_args()
    torch.set_num_threads(1)
    told.work.mkdir(parents=True, exist_ok=True)
    data = unpacked(told.data, told.work)
    with np.load(data) as held:
        x, y = as_pixels(held["x_train"]), torch.from_numpy(held["y_train"]).long()
        order = torch.randperm(len(held["x_test"]), generator=torch.Generator().manual_seed(0))
        test_x = as_pixels(held["x_test"])[order]
        test_y = torch.from_numpy(held["y_test"]).long()[order]
    shape = tuple(x.shape[1:])

    def kept(name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives as JSON, once."""
        file = told.work / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(work()))
        found = json.loads(file.read_text())
        print(name, json.dumps(found), flush=True)
        return found

    makers: dict[str, Callable[[], Make]] = {}
    for name in [name for name in RECIPES if name in told.only]:
        file, recipe = told.work / f"{name}.pt", RECIPES[name]
        kept(f"train_{name}", partial(train_plain, recipe, x, y, told.seconds, file))
        makers[name] = partial(plain, recipe, shape, file)
    folder = told.model or told.work / "ebbtide"
    if "ebbtide" in told.only:
        if told.model is None:
            kept("train_ebbtide", lambda: train_ours(data, shape, told.seconds, folder))
        makers["ebbtide"] = lambda: ebbtide(FittedImages.load(folder), told.guidance)
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[: 5 * told.count]
    labels = torch.arange(told.count) % CLASSES
    features = learn(x, y, steps=told.learn)
    right = (features.predict(test_x) == test_y).double().mean()
    print(f"the classifier is right on {100 * right:.1f} % of test pictures")

    def useful(pixels: Tensor, classes: Tensor) -> float:
        learnt = learn(pixels, classes, steps=told.learn)
        return float((learnt.predict(test_x) == test_y).double().mean())

    def judged(make: Make, steps: int) -> dict[str, float]:
        begun = time.process_time()
        made = make(labels, steps)
        took = time.process_time() - begun
        found = figures(features, x[some], made) | {"seconds": took}
        found["agreement"] = float((features.predict(made) == labels).double().mean())
        if steps == told.calls[0]:
            found["tstr"] = useful(made, labels)
            np.save(told.work / "shown.npy", (made[:100] * 255).round().byte().numpy())
        return found

    real = test_x[: told.count], test_y[: told.count]
    rows = {
        "real": kept("real", lambda: figures(features, x[some], real[0]) | {"tstr": useful(x[some], y[some])})
    }
    for name, maker in makers.items():
        for steps in told.calls:
            rows[f"{name}, {steps} calls"] = kept(f"{name}_{steps}", lambda: judged(maker(), steps))  # noqa: B023
    columns = ("frechet", "kernel", "precision", "recall", "coverage", "agreement", "tstr", "seconds")
    print("\n| pictures | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in columns) + " |")
    if "ebbtide" in told.only and told.fill:
        fitted, n = FittedImages.load(folder), told.fill
        table = kept("completion", lambda: completion(fitted, test_x[:n], test_y[:n], 8, 20))
        print("\n| right half filled by | calls of the network | mean, dB | one draw, dB | 90 % cover |")
        print("|---|---|---|---|---|")
        for row in table:
            numbers = (
                f"{row['calls']} | {row['mean']:.2f} | {row['one draw']:.2f} | {100 * row['cover']:.0f} %"
            )
            print(f"| {row['method']} | {numbers} |")


if __name__ == "__main__":
    main()
