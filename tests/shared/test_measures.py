"""Measures against closed forms, and against the same thing written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ebbtide.shared import measures
from ebbtide.shared.measures import (
    copies,
    frechet,
    frechet_distance,
    kernel_distance,
    ms_ssim,
    nearest,
    prdc,
    psnr,
    rbf_distance,
    ssim,
)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth pictures in [0, 1], and the same with noise."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis in range(2, len(shape)):
        x = (x + x.roll(1, axis) + x.roll(2, axis) + x.roll(3, axis)) / 4
    return x, (x + 0.1 * draws(*shape, seed=seed + 1)).clamp(0, 1)


# --- sets ---------------------------------------------------------------------------------------


def test_frechet_of_gaussians_with_axes_in_common() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 4.0, 1.0])
    turn = torch.linalg.qr(draws(3, 3)).Q
    cov1, cov2 = turn * a @ turn.T, turn * b @ turn.T
    mean = torch.tensor([1.0, -2.0, 0.5])
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet(mean, cov1, torch.zeros(3), cov2) == pytest.approx(expected, rel=1e-9)


def test_frechet_agrees_with_the_matrix_square_root() -> None:
    one, two = draws(6, 6, seed=1), draws(6, 6, seed=2)
    cov1, cov2 = one @ one.T, two @ two.T
    root = scipy.linalg.sqrtm((cov1 @ cov2).numpy()).real
    expected = float((cov1 + cov2).trace()) - 2 * np.trace(root)
    assert frechet(torch.zeros(6), cov1, torch.zeros(6), cov2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [8, 60])
def test_frechet_distance_of_sets(count: int) -> None:
    x, y = draws(count, 20), 2 * draws(count + 3, 20, seed=3) + 1
    expected = frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 3) == pytest.approx(20 * 9, rel=1e-9)


def test_kernel_distance_agrees_with_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "BLOCK", 4)
    x, y = draws(9, 5), draws(7, 5, seed=1) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 5 + 1) ** 3)

    own = [
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    cross = sum(k(a, b) for a in x for b in y) / 63
    assert kernel_distance(x, y) == pytest.approx(sum(own) - 2 * cross, rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    values = [kernel_distance(draws(20, 3, seed=2 * k), draws(30, 3, seed=2 * k + 1)) for k in range(300)]
    error = float(np.std(values) / math.sqrt(len(values)))
    assert abs(float(np.mean(values))) < 4.5 * error and error < 0.1
    assert kernel_distance(draws(200, 3), draws(200, 3, seed=1) + 1) > 10 * error


def test_prdc_agrees_with_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "BLOCK", 16)
    real, fake, k = draws(50, 3), 0.7 * draws(40, 3, seed=1) + 0.3, 3

    def reach(s: np.ndarray) -> np.ndarray:
        return np.sort(np.linalg.norm(s[:, None] - s[None], axis=-1), 1)[:, k]

    r, f = real.numpy(), fake.numpy()
    d = np.linalg.norm(r[:, None] - f[None], axis=-1)
    found = prdc(real, fake, k)
    assert found.precision == pytest.approx((d < reach(r)[:, None]).any(0).mean())
    assert found.recall == pytest.approx((d < reach(f)[None]).any(1).mean())
    assert found.density == pytest.approx((d < reach(r)[:, None]).sum(0).mean() / k)
    assert found.coverage == pytest.approx((d.min(1) < reach(r)).mean())


def test_prdc_of_equal_laws_and_of_two_that_do_not_meet() -> None:
    same = prdc(draws(1500, 4), draws(1500, 4, seed=1))
    # Coverage of equal laws is 1 - C(n - 1, k) / C(2n - 1, k) ~ 1 - 2^-k (Naeem et al. 2020, lemma 2).
    assert same.coverage == pytest.approx(1 - 2**-5, abs=0.02) and same.density == pytest.approx(1, abs=0.06)
    apart = prdc(draws(100, 4), draws(100, 4, seed=1) + 100)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    collapsed = prdc(draws(500, 4), 0.05 * draws(500, 4, seed=1))
    assert collapsed.precision > 0.99 and collapsed.recall < 0.1 and collapsed.coverage < 0.5


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 6"):
        prdc(draws(5, 3), draws(9, 3))
    with pytest.raises(ValueError, match="features"):
        frechet_distance(draws(5, 3), draws(5, 4))


# --- copies -------------------------------------------------------------------------------------


def test_copies_are_found_and_new_samples_are_not() -> None:
    train, reference, new = draws(400, 2, 4), draws(2000, 2, 4, seed=1), draws(2000, 2, 4, seed=2)
    copied = train[:50] + 1e-3 * draws(50, 2, 4, seed=3)
    found = copies(torch.cat([copied, new]), train, reference)
    assert found.flagged[:50].all() and found.positions[:50].tolist() == list(range(50))
    # 4.5 binomial standard errors, threshold and share each from 2,000 samples
    assert abs(float(found.flagged[50:].double().mean()) - 0.01) < 4.5 * math.sqrt(2 * 0.01 / 2000)
    distance, position = nearest(new[:5], train)
    assert distance[3] == pytest.approx(float((new[3] - train[position[3]]).norm()))
    assert distance[3] <= (new[3] - train).flatten(1).norm(dim=1).min() + 1e-9


# --- pairs --------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    x = torch.zeros(2, 1, 4, 4)
    y = torch.full_like(x, 0.1)
    y[1] = 0.5
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[:, :, :2] = True
    y[:, :, 2:] = 9.0
    assert psnr(x, y, mask=mask).tolist() == pytest.approx([20, 20 * math.log10(2)])
    assert psnr(x, y, 10.0, mask).tolist() == pytest.approx([40, 20 + 20 * math.log10(2)])
    assert psnr(x, x)[0] == math.inf


def other_ssim(x: Tensor, y: Tensor) -> Tensor:
    """torchmetrics' map, which mirrors the picture at its border, where no window had to be mirrored."""
    _, whole = structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )
    return whole[(..., *(slice(5, -5) for _ in x.shape[2:]))].flatten(1).mean(1)


@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (1, 1, 13, 16, 14)])
def test_ssim_agrees_with_torchmetrics(shape: tuple[int, ...]) -> None:
    x, y = pictures(*shape)
    torch.testing.assert_close(ssim(x, y), other_ssim(x, y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size, levels", [((192, 184), 5), ((45, 60), 3)])
def test_ms_ssim_is_the_weighted_product_of_its_scales(size: tuple[int, int], levels: int) -> None:
    x, y = pictures(2, 1, *size)
    weights = torch.tensor(measures.SCALES[:levels], dtype=torch.float64)
    result, a, b = ms_ssim(x, y), x, y
    for weight in (weights / weights.sum())[:-1]:
        _, contrast = structural_similarity_index_measure(
            a, b, data_range=1.0, reduction="none", return_contrast_sensitivity=True
        )
        result = result / contrast**weight
        a, b = (torch.nn.functional.avg_pool2d(s, 2) for s in (a, b))
    torch.testing.assert_close(
        result, other_ssim(a, b) ** (weights / weights.sum())[-1], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 1, 7), (2, 1, 300), (2, 3, 8, 8), (2, 1, 28, 28), (1, 1, 20, 26, 20)])
def test_similarities_work_at_any_size(shape: tuple[int, ...]) -> None:
    x, y = pictures(*shape)
    worse = (y + 0.2 * draws(*shape, seed=9)).clamp(0, 1)
    for measure in (ssim, ms_ssim):
        torch.testing.assert_close(measure(x, x), torch.ones(len(x), dtype=torch.float64))
        torch.testing.assert_close(measure(x, y), measure(y, x))
        assert (measure(x, worse) < measure(x, y)).all() and (measure(x, y) < 1).all()


def test_ssim_in_a_mask_sees_the_mask_alone() -> None:
    x, y = pictures(2, 3, 40, 40)
    mask = torch.zeros(2, 1, 40, 40, dtype=torch.bool)
    mask[..., 20:] = True
    far = y.clone()
    far[..., :10] = 0  # beyond the reach of a window of 11 around column 20
    torch.testing.assert_close(ssim(x, far, mask=mask), ssim(x, y, mask=mask))
    assert (ssim(x, far) < ssim(x, y)).all()
    torch.testing.assert_close(ssim(x, y, mask=torch.ones_like(mask)), ssim(x, y))


def test_one_scale_is_ssim() -> None:
    x, y = pictures(2, 1, 15, 21)
    torch.testing.assert_close(ms_ssim(x, y), ssim(x, y))


def test_rbf_distance_is_the_double_sum_and_its_p_value_tells_laws_apart() -> None:
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(30, 3, generator=g, dtype=torch.float64) for _ in range(3))
    width = torch.pdist(x).median()
    kernel = lambda a, b: torch.exp(-((a - b) ** 2).sum() / (2 * width**2))  # noqa: E731
    within = [sum(kernel(s[i], s[j]) for i in range(30) for j in range(30) if i != j) / 870 for s in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y) / 900
    found, p = rbf_distance(x, y, permutations=99)
    assert found == pytest.approx(float(within[0] + within[1] - 2 * across)) and p > 0.05
    moved, certain = rbf_distance(x, z + 1, permutations=99)
    assert moved > 5 * abs(found) and certain == pytest.approx(0.01)
