"""The core against closed-form truth: every schedule, sampler and number of steps on priors whose answer is
known, and every way of filling against the exact posterior.

    python benchmarks/posterior.py [--quick] [--only spread,priors,mixture,filling,overhead]

writes benchmarks/results/posterior.md. One thread, ten minutes or so.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ebbtide.shared.data import NOTHING, Condition, Encoded
from ebbtide.shared.exact import GaussianDenoiser, MixtureDenoiser
from ebbtide.shared.filling import MomentMatched, RePaint, Twisted, fill
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import (
    DDIM,
    DDPM,
    Churned,
    DPMSolver2M,
    DPMSolver3M,
    DPMSolverSDE,
    Heun,
    PredictorCorrector,
    Sampler,
    UniPC,
)
from ebbtide.shared.schedules import (
    EDM,
    VE,
    Cosine,
    LinearVP,
    RectifiedFlow,
    ScaledLinearVP,
    Schedule,
    SigmoidVP,
    SubVP,
    ZeroTerminal,
)

SCHEDULES: dict[str, Schedule] = {
    "cosine": Cosine(),
    "linear VP": LinearVP(),
    "scaled-linear VP, zero terminal": ZeroTerminal(ScaledLinearVP()),
    "sigmoid VP": SigmoidVP(),
    "sub-VP": SubVP(),
    "VE": VE(),
    "EDM": EDM(),
    "rectified flow": RectifiedFlow(),
}
SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "DDIM / Euler": DDIM,
    "Heun": Heun,
    "DPM-Solver++ 2M": DPMSolver2M,
    "DPM-Solver++ 3M": DPMSolver3M,
    "UniPC": UniPC,
    "DDPM": DDPM,
    "DPM-Solver++ SDE": DPMSolverSDE,
    "EDM churn": Churned,
    "predictor-corrector": PredictorCorrector,
}
STEPS = (5, 10, 20, 50)
F64 = torch.empty(0, dtype=torch.float64)


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# --- exact spread, no Monte Carlo -------------------------------------------------------------------


@dataclass
class Directions:
    """A new axis for each use of noise; with a linear denoiser the result's squared norm is its variance."""

    used: int = 0

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor:
        z = torch.zeros_like(x)
        z[..., self.used] = 1.0
        self.used += 1
        return z


@dataclass
class Linear:
    """The denoiser of N(0, std^2), one standard deviation a row."""

    schedule: Schedule
    std: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = self.schedule(t)
        return alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x_t


def spread(quick: bool) -> str:
    stds = torch.tensor([[0.1], [0.3], [0.5], [1.0]], dtype=torch.float64)
    body = []
    for name, make in SAMPLERS.items():
        for title, schedule in SCHEDULES.items():
            cells = []
            for steps in STEPS:
                sampler, noise = make(steps), Directions()
                sampler.noise = noise
                if isinstance(sampler, PredictorCorrector):
                    sampler.predictor.noise = noise
                x = sampler(Linear(schedule, stds), (3 * steps + 4,), Keys.range(0, 4), like=F64)
                error = x.norm(dim=1) / stds[:, 0] - 1
                cells.append(f"{100 * float(error[error.abs().argmax()]):+.1f}")
            body.append([name, title, *cells])
    text = (
        "Error of the standard deviation in %, the worst of data of standard deviation 0.1, 0.3, 0.5 and 1\n"
    )
    text += "(computed, not sampled). Each sampler on its default grid.\n\n"
    return text + table(["sampler", "schedule", *(f"{s} steps" for s in STEPS)], body)


# --- priors -----------------------------------------------------------------------------------------


def smooth(shape: tuple[int, ...], length: float) -> Tensor:
    """Covariance exp(-distance^2 / (2 length^2)) over a grid, and a little of its own for each place."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    places = torch.cartesian_prod(*axes).reshape(-1, len(shape))
    distance = torch.cdist(places, places)
    return 0.95 * (-(distance**2) / (2 * length**2)).exp() + 0.05 * torch.eye(
        len(places), dtype=torch.float64
    )


def mixture(shape: tuple[int, ...], schedule: Schedule, modes: int = 4) -> MixtureDenoiser:
    """Unequal modes, unit variance in all, a smooth covariance inside each."""
    size = math.prod(shape)
    generator = torch.Generator().manual_seed(size)
    means = torch.randn(modes, size, generator=generator, dtype=torch.float64)
    weights = torch.arange(1, modes + 1, dtype=torch.float64) / (modes * (modes + 1) / 2)
    means = means - (weights[:, None] * means).sum(0)
    means = means * (0.8 / (weights[:, None] * means**2).sum(0)).sqrt()
    inside = 0.2 * smooth(shape, 1.5)
    return MixtureDenoiser(weights, means.reshape(modes, *shape), inside.expand(modes, size, size), schedule)


def priors(schedule: Schedule) -> Iterator[tuple[str, MixtureDenoiser]]:
    yield "N(0.3, 0.5^2)", GaussianDenoiser(torch.tensor([0.3]), torch.tensor([[0.25]]), schedule)
    for size in (2, 8, 32):
        yield (
            f"correlated Gaussian, {size}",
            GaussianDenoiser(torch.zeros(size), smooth((size,), 2.0), schedule),
        )
    for size in (2, 8, 32):
        yield f"4 modes, {size}", mixture((size,), schedule)
    for shape in ((1, 16), (1, 5, 5), (1, 3, 3, 3)):
        name = " x ".join(str(n) for n in shape[1:])
        covariance = smooth(shape[1:], 1.5)
        yield f"smooth Gaussian, {name}", GaussianDenoiser(torch.zeros(shape), covariance, schedule)
    yield "4 modes, 5 x 5", mixture((1, 5, 5), schedule)


def sliced(x: Tensor, y: Tensor, count: int = 64) -> float:
    """Sliced Wasserstein-2 distance between two sets of equally many draws."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[1], count, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).square().mean().sqrt())


def judge(x: Tensor, prior: MixtureDenoiser, truth: Tensor) -> list[str]:
    x, (mean, covariance) = x.double().flatten(1), (m[0] for m in prior.moments())
    std = covariance.diagonal().sqrt()
    off = float(((x.mean(0) - mean) / std).abs().max())
    shape = float((x.T.cov().reshape_as(covariance) - covariance).norm() / covariance.norm())
    modes = prior.weights(x_t=x).mean(0) - prior.log_weights.exp()
    share = f"{float(modes.abs().sum()) / 2:.3f}" if len(modes) > 1 else ""
    return [f"{off:.3f}", f"{shape:.3f}", f"{sliced(x, truth):.3f}", share]


def on_priors(quick: bool) -> str:
    n, body = 300 if quick else 1000, []
    for title, prior in priors(Cosine()):
        truth = prior.sample(Keys.range(1, n)).flatten(1)
        body.append([title, "exact draws", *judge(prior.sample(Keys.range(2, n)), prior, truth)])
        for name, make in SAMPLERS.items():
            x = make(20)(prior, prior.shape, Keys.range(0, n), like=F64)
            body.append(["", name, *judge(x, prior, truth)])
    text = f"20 steps, cosine schedule, {n} draws; the row of exact draws is the noise of the measure.\n\n"
    head = [
        "prior",
        "sampler",
        "mean (largest, in std)",
        "covariance (relative)",
        "sliced W2",
        "mode weights (TV)",
    ]
    return text + table(head, body)


def on_mixture(quick: bool) -> str:
    n, body = 300 if quick else 1000, []
    some = {k: v for k, v in SCHEDULES.items() if k in ("cosine", "linear VP", "EDM", "rectified flow")}
    for title, schedule in some.items():
        prior = mixture((8,), schedule)
        truth = prior.sample(Keys.range(1, n))
        floor = judge(prior.sample(Keys.range(2, n)), prior, truth)
        body.append([title, "exact draws", *[f"{floor[2]} / {floor[3]}"] * len(STEPS)])
        for name, make in SAMPLERS.items():
            cells = []
            for steps in STEPS:
                found = judge(make(steps)(prior, (8,), Keys.range(0, n), like=F64), prior, truth)
                cells.append(f"{found[2]} / {found[3]}")
            body.append(["", name, *cells])
    text = f"4 modes in 8 dimensions, {n} draws: sliced W2 / mode weights (TV).\n\n"
    return text + table(["schedule", "sampler", *(f"{s} steps" for s in STEPS)], body)


# --- filling ----------------------------------------------------------------------------------------


@dataclass
class Counted:
    """A denoiser that counts its calls, and that never sees what is known unless `masks`."""

    inner: MixtureDenoiser
    masks: bool
    calls: int = 0
    schedule: Schedule = field(default_factory=Cosine)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        return self.inner(x_t, t, condition if self.masks else replace(condition, known=None))


def separated(size: int, modes: int, apart: float, inside: float) -> MixtureDenoiser:
    generator = torch.Generator().manual_seed(3)
    means = apart * torch.randn(modes, size, generator=generator, dtype=torch.float64)
    factors = torch.randn(modes, size, size, generator=generator, dtype=torch.float64)
    covariances = inside * (factors @ factors.mT / size + 0.3 * torch.eye(size, dtype=torch.float64))
    weights = torch.rand(modes, generator=generator, dtype=torch.float64) + 0.3
    return MixtureDenoiser(weights, means, covariances, Cosine())


def fill_cases() -> Iterator[tuple[str, MixtureDenoiser, int]]:
    yield (
        "correlated Gaussian, 10, 5 seen",
        GaussianDenoiser(torch.zeros(10), smooth((10,), 2.0), Cosine()),
        5,
    )
    yield "6 overlapping modes, 10, 4 seen", separated(10, 6, 0.7, 0.4), 4
    yield "6 separated modes, 10, 4 seen", separated(10, 6, 1.0, 0.05), 4


def ways() -> dict[str, tuple[bool, Callable[[Counted], object], Sampler]]:
    same, matched = (lambda d: d), (lambda d: MomentMatched(d))
    return {
        "mask-conditional, Heun 20": (True, same, Heun(20)),
        "mask-conditional, 2M 20": (True, same, DPMSolver2M(20)),
        "mask-conditional, DDPM 64": (True, same, DDPM(64)),
        "moment matching, 1 iteration, Heun 32": (False, lambda d: MomentMatched(d, iterations=1), Heun(32)),
        "moment matching, 3 iterations, Heun 32": (False, matched, Heun(32)),
        "replacement, 128": (False, same, RePaint(128, repeats=1)),
        "RePaint, 64, 10 repeats": (False, same, RePaint(64, repeats=10)),
        "twisted, 100, 1 particle": (False, same, Twisted(100, particles=1)),
        "twisted, 100, 8 particles": (False, same, Twisted(100, particles=8)),
        "twisted, 100, 32 particles": (False, same, Twisted(100, particles=32)),
    }


def judge_filled(x: Tensor, prior: MixtureDenoiser, truth: Tensor, known: Encoded) -> list[str]:
    """x (n, draws, d) against the exact posterior of each record."""
    n, draws, size = x.shape
    hidden = ~known.observed
    low, high = x.quantile(0.05, dim=1), x.quantile(0.95, dim=1)
    covered = float(((truth >= low) & (truth <= high))[hidden].double().mean())
    covariance = prior.moments(Condition(known=known))[1].diagonal(dim1=1, dim2=2)
    ratio = float((x.var(1)[hidden] / covariance[hidden]).median())
    each = torch.arange(n).repeat_interleave(draws)
    again = Keys(11, each, torch.arange(draws).repeat(n))
    told = Condition(known=known[each])
    exact = prior.sample(again, told).reshape(n, draws, size)
    pairs = zip(x, exact, hidden, strict=True)
    distance = sum(sliced(a[:, h], b[:, h]) for a, b, h in pairs) / n
    weights = prior.weights(x_t=x.reshape(-1, size)).reshape(n, draws, -1).mean(1)
    exact_weights = prior.weights(Condition(known=known))
    modes = float((weights - exact_weights).abs().sum(1).mean()) / 2
    return [
        f"{distance:.3f}",
        f"{ratio:.2f}",
        f"{covered:.2f}",
        f"{modes:.3f}" if weights.shape[1] > 1 else "",
    ]


def on_filling(quick: bool) -> str:
    n, draws, body = (8, 20, []) if quick else (16, 40, [])
    for title, prior, seen in fill_cases():
        truth = prior.sample(Keys.range(4, n))
        masks = Keys.range(5, 4).uniform((10,)).argsort(1).argsort(1) < seen
        observed = masks[torch.arange(n) % 4]
        known = Encoded(truth * observed, observed)
        each = torch.arange(n).repeat_interleave(draws)
        keys, many = Keys(6, each, torch.arange(draws).repeat(n)), known[each]
        exact = prior.sample(keys, Condition(known=many)).reshape(n, draws, -1)
        body.append([title, "exact draws", "0", *judge_filled(exact, prior, truth, known), ""])
        for name, (sees, wrap, sampler) in ways().items():
            if name.endswith("32 particles") and "separated" not in title:
                continue  # eight are enough there
            begin, counted = time.perf_counter(), Counted(prior, sees)
            x = fill(wrap(counted), many, keys, sampler=sampler).reshape(n, draws, -1)  # type: ignore[arg-type]
            assert torch.equal(x[:, 0][observed], truth[observed])
            seconds = time.perf_counter() - begin
            calls = counted.calls * (sampler.particles if isinstance(sampler, Twisted) else 1)
            cells = judge_filled(x, prior, truth, known)
            effective = f"{float(sampler.effective_.median()):.2f}" if isinstance(sampler, Twisted) else ""
            body.append(["", name, str(calls), *cells, effective])
            print(f"  {title}: {name}: {' '.join(cells)} {seconds:.0f} s", flush=True)
    text = f"{n} records, four masks, {draws} draws each; cosine schedule; known entries have no\n"
    text += (
        "noise. Coverage is of the interval between the 5th and 95th percentile of the draws: the row of\n"
    )
    text += "exact draws is its ideal.\n\n"
    head = ["case", "way", "network calls a draw", "sliced W2", "variance ratio (median)", "90 % cover"]
    return text + table([*head, "mode weights (TV)", "effective share"], body)


# --- overhead ---------------------------------------------------------------------------------------


def on_overhead(quick: bool) -> str:
    from ebbtide.shared.unet import UNet

    network = UNet(2, channels=3).eval()  # its default widths
    x, level = torch.randn(1, 3, 64, 64), torch.zeros(1)

    def timed(run: Callable[[], object], repeats: int) -> float:
        run()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return min(times)

    with torch.no_grad():
        forward = timed(lambda: network(x, level, NOTHING), 5 if quick else 15)

    @dataclass
    class Free:
        schedule: Schedule = field(default_factory=Cosine)

        def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return x_t

    size, body = sum(p.numel() for p in network.parameters()), []
    for name, make in SAMPLERS.items():
        steps = 50
        calls = {"Heun": 2, "EDM churn": 2, "predictor-corrector": 3}.get(name, 1)
        run = make(steps)
        once = timed(lambda run=run: run(Free(), (3, 64, 64), Keys.range(0, 1)), 3 if quick else 7) / steps
        share = once / (calls * forward)
        body.append([name, f"{1000 * once:.2f}", f"{1000 * calls * forward:.1f}", f"{100 * share:.1f} %"])
    text = f"One 3 x 64 x 64 image on one CPU thread; U-Net of {size / 1e6:.1f} M parameters; best times.\n\n"
    return text + table(["sampler", "sampler, ms a step", "network, ms a step", "overhead"], body)


PARTS: dict[str, tuple[str, Callable[[bool], str]]] = {
    "spread": ("Spread of the samples", spread),
    "priors": ("Priors in 1 to 32 dimensions and on grids", on_priors),
    "mixture": ("A mixture: schedule x sampler x steps", on_mixture),
    "filling": ("Filling against the exact posterior", on_filling),
    "overhead": ("What a sampler costs beside the network", on_overhead),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "posterior.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pieces = ["# Against closed-form truth\n\nMade by `benchmarks/posterior.py`.\n"]
    for part in options.only.split(","):
        title, run = PARTS[part]
        begin = time.perf_counter()
        pieces.append(f"## {title}\n\n{run(options.quick)}")
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("\n".join(pieces))


if __name__ == "__main__":
    main()
