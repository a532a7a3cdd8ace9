"""Latents: packing loses nothing, tiles meet without seams, latents have unit variance."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ebbtide.shared.latent import (
    Autoencoder,
    AutoencoderSettings,
    haar_known,
    haar_pack,
    haar_unpack,
    tiled,
    train_autoencoder,
)

SIZES = {1: [(8,), (7,), (1,)], 2: [(8, 4), (5, 7)], 3: [(4, 6, 8), (3, 5, 4)]}
CASES = [(size, levels) for sizes in SIZES.values() for size, levels in itertools.product(sizes, (1, 2))]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize(("size", "levels"), CASES, ids=str)
def test_real_packing_is_orthonormal_and_inverts(size: tuple[int, ...], levels: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    packed = haar_pack(x, levels)
    factor = 2**levels
    assert packed.shape == (2, 3 * factor ** len(size), *(-(-n // factor) for n in size))
    assert (haar_unpack(packed, size, levels) - x).abs().max() < 1e-14
    if not any(n % factor for n in size):
        assert torch.allclose(packed.square().sum((1, *range(2, packed.ndim))), x.square().flatten(1).sum(1))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(("size", "levels"), CASES, ids=str)
def test_integer_packing_loses_no_bit(size: tuple[int, ...], levels: int, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(info.min, info.max, (2, 3, *size), generator=generator, dtype=dtype)
    x[0, 0].fill_(info.min)
    x[0, 1].fill_(info.max)
    x[1, 0] = torch.where(torch.arange(size[-1]) % 2 == 0, info.min, info.max).to(dtype)
    assert torch.equal(haar_unpack(haar_pack(x, levels), size, levels, dtype), x)


def test_bands_are_means_and_differences_side_by_side() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 11.0]])[None, None]
    assert torch.allclose(haar_pack(x).flatten(), torch.tensor([20.0, -12.0, -8.0, 4.0]) / 2)
    both = haar_pack(torch.cat([x, 0 * x], 1))
    assert torch.equal(both[:, :4], haar_pack(x)) and not both[:, 4:].any()
    assert haar_pack(torch.tensor([[[7, 2]]])).flatten().tolist() == [4, 5]


@pytest.mark.parametrize("size", [(7,), (6, 5), (4, 5, 6)])
def test_known_coefficients_do_not_depend_on_the_unknown(size: tuple[int, ...]) -> None:
    observed = torch.rand(2, 2, *size) < 0.8
    x, y = torch.randn(2, 2, *size), torch.randn(2, 2, *size)
    y = torch.where(observed, x, y)
    known = haar_known(observed)
    packed = haar_pack(x)
    assert known.shape == packed.shape and known.any() and not known.all()
    assert torch.equal(packed[known], haar_pack(y)[known])
    assert (packed != haar_pack(y))[~known].any()


@pytest.mark.parametrize("size", [(13,), (9, 13), (5, 9, 6)])
@pytest.mark.parametrize("overlap", [0, 2])
def test_tiles_meet_without_seams(size: tuple[int, ...], overlap: int) -> None:
    z = torch.randn(2, 3, *size, dtype=torch.float64)
    calls = []

    def double(part: Tensor) -> Tensor:
        calls.append(part.shape[2:])
        for axis in range(2, part.ndim):
            part = part.repeat_interleave(2, axis)
        return part.sin()

    whole = double(z)
    assert torch.allclose(tiled(double, z, 4, overlap, 2), whole, atol=1e-14)
    assert len(calls) > 2 and all(max(c) <= 4 for c in calls[1:])
    with pytest.raises(ValueError, match="overlap"):
        tiled(double, z, 4, 4, 2)


def waves(ndim: int) -> list[Tensor]:
    """Four batches of smooth fields, two channels, odd sizes."""
    generator = torch.Generator().manual_seed(0)
    size = (11, 9, 10)[:ndim]
    coarse = [torch.randn(4, 2, *(3,) * ndim, generator=generator) for _ in range(4)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[ndim]
    return [torch.nn.functional.interpolate(c, size, mode=mode) * 1.5 for c in coarse]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_autoencoder_reconstructs_and_its_latents_have_unit_variance(ndim: int) -> None:
    torch.manual_seed(0)
    batches = waves(ndim)
    autoencoder = Autoencoder(ndim, 2, latent=4, widths=(16, 32))
    history = train_autoencoder(autoencoder, batches, AutoencoderSettings(steps=40, learning_rate=3e-3))
    assert len(history) == 40
    assert history[-1]["reconstruction"] < 0.75 * history[0]["reconstruction"]
    with torch.no_grad():
        z = torch.cat([autoencoder.encode(x) for x in batches])
        made = autoencoder.decode(autoencoder.encode(batches[0]), batches[0].shape[2:])
    channels = z.transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-4 and (channels.std(1, correction=0) - 1).abs().max() < 1e-3
    assert made.shape == batches[0].shape
    assert (made - batches[0]).abs().mean() < 0.9 * batches[0].abs().mean()


def test_adversary_learns_and_is_answered() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(2, 2, widths=(16, 32))
    settings = AutoencoderSettings(steps=12, learning_rate=1e-3, adversarial=0.1)
    batches = [x.repeat(1, 1, 2, 3) for x in waves(2)]
    history = train_autoencoder(autoencoder, batches, settings)
    assert ["judged" in costs for costs in history] == [False] * 6 + [True] * 6
    assert history[-1]["judged"] < history[6]["judged"]


def test_tiled_decoding_is_close_to_whole_decoding() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(2, 1, widths=(8, 16)).eval()
    z = torch.randn(1, 4, 16, 12)
    with torch.no_grad():
        whole = autoencoder.decode(z, (31, 24))
        parts = autoencoder.decode(z, (31, 24), tile=8, overlap=4)
    assert parts.shape == whole.shape == (1, 1, 31, 24)
    # Group statistics over a tile differ from those over the whole: close, not equal.
    assert (parts - whole).std() < 0.3 * whole.std()
