"""Masks: how much they hide, in what shape, and that they depend on their keys alone."""

from __future__ import annotations

import pytest
import torch

from ebbtide.shared.masking import (
    Boxes,
    Cells,
    Channels,
    EveryKth,
    Half,
    Mixture,
    Nothing,
    Pattern,
    Slices,
    Strokes,
)
from ebbtide.shared.noise import Keys

ON_RECORDS: list[Pattern] = [Nothing(), Cells(), Channels(), Mixture((Cells(), Channels(), Nothing()))]
ON_GRIDS: list[Pattern] = [
    *ON_RECORDS,
    Cells(together=True),
    Boxes(count=3),
    Strokes(),
    Half(),
    Slices(),
    EveryKth(),
    EveryKth(grid=True),
    Mixture((Boxes(), Strokes(), Half(), Slices(), EveryKth()), (1, 2, 3, 4, 5)),
]
SHAPES = [(3, 11), (2, 9, 7), (2, 5, 6, 7)]
CASES = [(p, (5,)) for p in ON_RECORDS] + [(p, s) for p in ON_GRIDS for s in SHAPES]


@pytest.mark.parametrize(("pattern", "shape"), CASES, ids=str)
def test_mask_is_a_pure_function_of_its_keys(pattern: Pattern, shape: tuple[int, ...]) -> None:
    keys = Keys.range(3, 40)
    mask = pattern(keys, shape)
    assert mask.shape == (40, *shape) and mask.dtype == torch.bool
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pattern(keys[order], shape), mask[order])
    assert torch.equal(pattern(keys[7:8], shape), mask[7:8])
    if not isinstance(pattern, Nothing):
        assert not torch.equal(pattern(Keys.range(4, 40), shape), mask)
        assert not torch.equal(pattern(Keys.range(3, 40, draw=1), shape), mask)
    assert not mask.all()


def test_cells_hide_at_the_rate_asked_for() -> None:
    mask = Cells(0.3, 0.3)(Keys.range(0, 4000), (5, 2)).double()
    error = (0.3 * 0.7 / mask[:, 0].numel()) ** 0.5
    assert ((1 - mask).mean(0) - 0.3).abs().max() < 4.5 * (0.3 * 0.7 / 4000) ** 0.5
    assert (1 - mask).mean().item() == pytest.approx(0.3, abs=4.5 * error)
    # Cells of one element are independent given a fixed rate ...
    assert abs(torch.corrcoef(mask.reshape(4000, -1).T)[0, 3]) < 4.5 / 4000**0.5
    # ... and share a rate when it is drawn: Cov = Var(rate) = 0.8^2 / 12.
    shared = Cells(0.1, 0.9)(Keys.range(0, 20000), (2,)).double()
    assert torch.cov(shared.T)[0, 1].item() == pytest.approx(0.64 / 12, abs=0.006)


def test_cells_together_hide_all_channels_of_a_position() -> None:
    mask = Cells(together=True)(Keys.range(0, 50), (3, 8, 8))
    assert torch.equal(mask.any(1), mask.all(1))


def test_channels_hide_whole_columns_and_keep_one() -> None:
    mask = Channels()(Keys.range(0, 3000), (4, 3, 3))
    assert torch.equal(mask.flatten(2).any(2), mask.flatten(2).all(2))
    hidden = (~mask[:, :, 0, 0]).sum(1)
    assert set(hidden.tolist()) == {1, 2, 3}
    # Round(4 u) clamped to 1 ... 3: chances 3/8, 2/8, 3/8.
    for count, chance in ((1, 0.375), (2, 0.25), (3, 0.375)):
        assert (hidden == count).double().mean().item() == pytest.approx(chance, abs=4.5 * 0.5 / 3000**0.5)
    grouped = Channels(group=8)(Keys.range(0, 100), (16, 2)).reshape(100, 2, 8, 2)
    assert torch.equal(grouped.any(2), grouped.all(2)) and not torch.equal(grouped[:, 0], grouped[:, 1])
    assert not Channels(1, 1, keep=0)(Keys.range(0, 5), (4,)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_one_box_is_a_box_of_the_right_size(shape: tuple[int, ...]) -> None:
    hidden = ~Boxes(count=1, low=0.3, high=0.6)(Keys.range(0, 300), shape)[:, 0]
    volume = torch.ones(300, dtype=torch.long)
    for axis, n in enumerate(shape[1:]):
        others = tuple(i + 1 for i in range(len(shape) - 1) if i != axis)
        profile = hidden.any(others) if others else hidden
        assert (
            profile.int().diff(dim=1, prepend=torch.zeros(300, 1), append=torch.zeros(300, 1)).abs().sum(1)
            == 2
        ).all()
        edge = profile.sum(1)
        assert edge.min() >= round(0.3 * n) and edge.max() <= round(0.6 * n)
        volume *= edge
        assert profile[:, 0].any() and profile[:, -1].any()  # boxes reach both ends
    assert torch.equal(hidden.flatten(1).sum(1), volume)


def test_strokes_hide_a_connected_share() -> None:
    hidden = ~Strokes(count=1, width=(0.1, 0.1))(Keys.range(0, 100), (2, 32, 32))
    share = hidden.double().mean((1, 2, 3))
    assert share.min() > 0.02 and share.max() < 0.25
    more = (~Strokes(count=6, width=(0.1, 0.1))(Keys.range(0, 100), (2, 32, 32))).double().mean()
    assert more > 1.5 * share.mean()


def test_half_hides_one_side() -> None:
    mask = Half()(Keys.range(0, 400), (1, 6, 8))[:, 0]
    assert (mask.sum((1, 2)) == 24).all()
    kinds = {tuple(m.flatten().tolist()) for m in mask}
    assert len(kinds) == 4
    assert torch.equal(
        Half(axes=(1,))(Keys.range(0, 400), (1, 6, 8))[:, 0].any(1),
        Half(axes=(1,))(Keys.range(0, 400), (1, 6, 8))[:, 0].all(1),
    )


def test_slices_hide_whole_slices_at_the_rate() -> None:
    mask = Slices(0.5, 0.5, axes=(2,))(Keys.range(0, 1000), (1, 3, 4, 10))
    profile = mask[:, 0].flatten(1, 2)
    assert torch.equal(profile.any(1), profile.all(1))
    assert (profile[:, 0].sum(1) == 5).all()
    assert (profile[:, 0].double().mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 1000**0.5


def test_every_kth_keeps_evenly_spaced_slices() -> None:
    mask = EveryKth(factors=(3,), axes=(0,))(Keys.range(0, 300), (1, 12, 2))[:, 0]
    assert torch.equal(mask[:, :, 0], mask[:, :, 1])
    assert (mask[:, :, 0].sum(1) == 4).all()
    assert torch.equal(mask[:, 3:], mask[:, :-3])
    assert mask[:, :3, 0].double().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.13)
    grid = EveryKth(factors=(2,), grid=True)(Keys.range(0, 20), (1, 8, 8))
    assert (grid.sum((1, 2, 3)) == 16).all()


def test_mixture_follows_its_weights() -> None:
    mixture = Mixture((Nothing(), Cells(0, 0)), (1, 3))
    share = mixture(Keys.range(0, 4000), (2,)).all(1).double().mean().item()
    assert share == pytest.approx(0.75, abs=4.5 * (0.75 * 0.25 / 4000) ** 0.5)
    with pytest.raises(ValueError, match="weights"):
        Mixture((Nothing(),), (1, 2))
    with pytest.raises(ValueError, match="weights"):
        Mixture(())


def test_patterns_of_grids_refuse_records() -> None:
    for pattern in (Boxes(), Strokes(), Half(), Slices(), EveryKth()):
        with pytest.raises(ValueError, match="spatial axes"):
            pattern(Keys.range(0, 2), (4,))
