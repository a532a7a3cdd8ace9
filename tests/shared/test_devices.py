"""The same numbers on every device: noise to the bit, networks, walks and fills to float32's rounding.

The yardstick is the same computation in float64 on the CPU, so that each device, the CPU too, is held to
what its float32 may cost. TF32, in which a GPU may compute convolutions, is off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.grids import GridModel, GridSettings, GridShape
from ebbtide.shared.noise import Coloured, Keys, Offset, White
from ebbtide.shared.samplers import DDIM, Heun, Sampler, UniPC
from ebbtide.shared.unet import UNet

FORWARD, WALK = 1e-5, 1e-4
"""Of the largest number in the answer: one call of a network, and a whole walk or fill
(docs/explanation/same-seed.md)."""
SHAPE = (1, 6, 5)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
    ),
]


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def awake(network: nn.Module) -> None:
    """A new network says nothing; this one says something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def model() -> GridModel:
    generator = torch.Generator().manual_seed(1)
    loadings, variance = torch.randn(30, 3, generator=generator), torch.rand(30, generator=generator)
    centre = GaussianCentre(torch.randn(SHAPE, generator=generator), 0.6 * loadings, 0.05 + 0.3 * variance)
    settings = GridSettings(widths=(8, 12), attention=(1,), components=3, reach=0.0, sampler_steps=8)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = GridModel.untrained(settings, GridShape(SHAPE), centre)
    awake(made.denoiser.network)
    return made


def placed(model: GridModel, where: str | torch.dtype) -> GridModel:
    """A copy on a device, or of a type."""
    copied = copy.deepcopy(model)
    copied.denoiser.to(where)  # type: ignore[arg-type]
    return copied


def half_known(count: int) -> Encoded:
    values = Keys.range(3, count).normal(SHAPE, "values")
    observed = Keys.range(3, count).uniform(SHAPE, "observed") < 0.5
    return Encoded(values * observed, observed)


def same(found: Tensor, exact: Tensor, within: float) -> None:
    assert (found.cpu().double() - exact.double()).abs().max() < within * exact.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", [White(), Coloured(), Offset()], ids=repr)
def test_noise_has_the_same_bits(source: White | Coloured | Offset, device: str) -> None:
    keys = Keys.range(5, 4)
    there = Keys(keys.seed, keys.items.to(device), keys.draws.to(device))
    noise = source(there, torch.empty(4, *SHAPE, device=device), "start")
    assert noise.device.type == device
    alone = [source(keys[k : k + 1], torch.empty(1, *SHAPE), "start") for k in range(4)]
    assert torch.equal(noise.cpu(), torch.cat(alone))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_network_answers_alike(ndim: int, device: str) -> None:
    torch.manual_seed(0)
    network = UNet(ndim, 2, (8, 16), blocks=1, attention=(1,), classes=3, covariates=2).eval()
    awake(network)
    x, level = Keys.range(0, 3).normal((2, *(7,) * ndim), "x"), torch.linspace(-1, 1, 3)
    told = Condition(label=torch.tensor([-1, 0, 2]), covariates=Keys.range(0, 3).normal((2,), "covariates"))
    wide = Condition(label=told.label, covariates=told.covariates.double())  # type: ignore[union-attr]
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(x.double(), level.double(), wide)
        found = network.to(device)(x.to(device), level.to(device), told.to(torch.device(device)))
    same(found, exact, FORWARD)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampler", [UniPC(8), Heun(8), DDIM(8, eta=1.0)], ids=repr)
def test_a_walk_ends_alike(model: GridModel, sampler: Sampler, device: str) -> None:
    exact = placed(model, torch.float64).generate(Keys.range(0, 5), sampler=sampler)
    there = placed(model, device)
    assert there.device.type == device
    same(there.generate(Keys.range(0, 5), sampler=sampler), exact, WALK)


@pytest.mark.parametrize("device", DEVICES)
def test_a_fill_ends_alike(model: GridModel, device: str) -> None:
    known, keys = half_known(5), Keys.range(0, 5)
    wide = Encoded(known.values.double(), known.observed)
    exact = placed(model, torch.float64).fill(wide, keys)
    filled = placed(model, device).fill(known, keys)
    assert torch.equal(filled[known.observed], known.values[known.observed])
    same(filled, exact, WALK)
    mean = placed(model, device).expected(known, keys)
    same(mean, placed(model, torch.float64).expected(wide, keys), WALK)


def test_item_k_has_the_same_bits_in_any_batch(model: GridModel) -> None:
    """On a CPU. Batches are filled up to one size, so that neither company nor place in it matters."""
    keys, known = Keys.range(0, 40), half_known(40)
    drawn, filled = model.generate(keys), model.fill(known, keys)
    for rows in (torch.tensor([17]), torch.tensor([39, 3, 20]), torch.arange(30, 37)):
        assert torch.equal(model.generate(keys[rows]), drawn[rows])
        assert torch.equal(model.fill(known[rows], keys[rows]), filled[rows])
