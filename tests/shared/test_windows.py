"""Windows of a grid: what they say is the crop of the whole, wherever they lie and in whatever company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import NOTHING, Condition, Encoded
from ebbtide.shared.errors import InputError
from ebbtide.shared.grids import GridModel, GridSettings, GridShape, fit_model
from ebbtide.shared.hiding import GridData, Hiding
from ebbtide.shared.masking import Boxes, Cells
from ebbtide.shared.noise import Keys
from ebbtide.shared.windows import Windowed, blended, corners, inside, positions

SIZE = (22, 18)


class Pointwise(nn.Module):
    """Acts on each position alone: on the data, what is known of it, the condition's channels, the level."""

    def forward(self, x: Tensor, level: Tensor, condition: Condition = NOTHING) -> Tensor:
        assert condition.channels is not None and condition.known is not None
        beside = condition.channels.sum(1, keepdim=True) + condition.channels[:, -1:] ** 2
        known = condition.known.values + condition.known.observed
        return torch.tanh(x * known + beside) + level.reshape(-1, 1, 1, 1)


class Local(nn.Module):
    """A convolution, over zeros beyond the edges: sees one position around each."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor, condition: Condition = NOTHING) -> Tensor:
        assert condition.channels is not None
        return self.inner(torch.cat([x, condition.channels], 1))  # type: ignore[no-any-return]


def told(batch: int = 3, size: tuple[int, ...] = SIZE) -> tuple[Tensor, Tensor, Condition]:
    g = torch.Generator().manual_seed(1)
    x, level = (torch.randn(batch, *rest, generator=g) for rest in ((1, *size), ()))
    seen = torch.rand(x.shape, generator=g) < 0.5
    return x, level, Condition(channels=torch.randn(x.shape, generator=g), known=Encoded(x * seen, seen))


@pytest.mark.parametrize("size", [SIZE, (8, 30), (7, 21)])
def test_windows_blend_to_the_whole(size: tuple[int, ...]) -> None:
    """Of a network that acts on each position alone, positions in the whole among what it is told."""
    x, level, condition = told(size=size)
    beside = torch.cat([condition.channels, positions(x)], 1)  # type: ignore[list-item]
    whole = Pointwise()(x, level, replace(condition, channels=beside))
    for patch, multiple in ((8, 2), (8, 4), (16, 4)):
        assert torch.allclose(Windowed(Pointwise(), patch, multiple)(x, level, condition), whole, atol=1e-12)


def test_half_precision_is_blended_in_full() -> None:
    """Where all windows say the same, that comes out; their weights would not fit half precision."""
    values = torch.rand(1, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = blended(lambda where: values[where], (48,) * 3, (32,) * 3, (16,) * 3)
    assert found.dtype == torch.float32 and (found - values.float()).abs().max() < 1e-6


def test_a_window_is_the_crop_of_the_whole() -> None:
    x, level, condition = told()
    network = Windowed(Pointwise(), 8, 2)
    corner = torch.tensor([[0, 0], [14, 10], [6, 4]])
    part, whole = network(x, level, replace(condition, window=corner)), network(x, level, condition)
    mask = inside(corner, SIZE, 8, 2)
    assert mask.sum() == 3 * 8 * 8
    assert torch.allclose(part, torch.where(mask, whole, 0), atol=1e-12)


def test_blending_forgets_the_seams() -> None:
    """A convolution is wrong at the edge of a window alone, where the blending hardly listens to it."""
    x, level, condition = told(1, (48, 48))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Local()
    with torch.no_grad():
        whole = network(x, level, Condition(channels=torch.cat([condition.channels, positions(x)], 1)))  # type: ignore[list-item]
        found = Windowed(network, 24, 2)(x, level, replace(condition, known=None))
    far = (found - whole).abs()
    assert far.max() < 0.35 * whole.std() and far.mean() < 0.02 * whole.std()


def test_a_new_network_in_windows_says_nothing_and_learns_in_them() -> None:
    settings = GridSettings(widths=(8, 12), levels=1, patch=8)
    model = GridModel.untrained(settings, GridShape((1, *SIZE)), GaussianCentre.blank((1, *SIZE), 2))
    x, _, condition = told()
    corner = torch.tensor([[0, 0], [14, 10], [6, 4]])
    condition = Condition(known=condition.known, window=corner)
    where = ~condition.known.observed & inside(corner, SIZE, 8, 2)  # type: ignore[union-attr]
    for parameter in model.denoiser.parameters():
        parameter.data += 0.01
    t = torch.full((3,), 0.4, dtype=torch.float64)
    model.denoiser.double().loss(x, torch.randn_like(x), t, condition, where).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.denoiser.parameters())


def test_corners_fit_and_hold_something_that_counts() -> None:
    keys = Keys.range(0, 400)
    where = torch.zeros(400, 1, *SIZE, dtype=torch.bool)
    place = (keys.uniform((), "place") * where[0].numel()).long()
    where.flatten(1)[torch.arange(400), place] = True
    found = corners(keys, where, 8, 4)
    assert not (found % 4).any() and found.min() == 0
    assert found.amax(0).tolist() == [16, 12]  # 22 and 18 filled up to 24 and 20
    assert (where & inside(found, SIZE, 8, 4)).flatten(1).any(1).all()
    assert torch.equal(corners(keys[7:9], where[7:9], 8, 4), found[7:9])
    # nothing counts: some window all the same
    assert torch.equal(
        corners(keys[:2], ~where[:2] & where[:2], 8, 4) % 4, torch.zeros(2, 2, dtype=torch.int64)
    )


def test_entries_at_the_edge_are_learnt_from_as_others_are() -> None:
    keys = Keys.range(0, 4000)
    found = corners(keys, torch.ones(4000, 1, 32, dtype=torch.bool), 8, 2)
    often = inside(found, (32,), 8, 2).double().mean((0, 1))
    assert often.min() > 0.1 and often.max() < 0.5  # of windows laid uniformly, the first entry: 0.077
    assert often.sum() == pytest.approx(8)


def test_examples_seen_through_windows_are_those_seen_whole() -> None:
    values = torch.randn(5, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    whole = Hiding(GridData(values), None, Boxes(2, 0.2, 0.5), 0.3, 0.1, None)
    rows, keys = torch.arange(5), Keys.range(3, 5)
    a, b = (one.batch(rows, keys) for one in (whole, replace(whole, patch=8, multiple=2)))
    assert torch.equal(a.x_0, b.x_0) and b.condition.window is not None
    assert torch.equal(a.condition.known.values, b.condition.known.values)  # type: ignore[union-attr]
    assert torch.equal(b.where, a.where & inside(b.condition.window, SIZE, 8, 2))
    assert b.where.flatten(1).any(1).all() and b.where.sum() < a.where.sum()


def test_windows_must_fit_the_packing() -> None:
    for patch in (2, 10, 18.5):
        with pytest.raises(InputError, match="multiple of 4, at least 8"):
            GridSettings(levels=2, patch=patch)  # type: ignore[arg-type]


BLOCKS = (1, 16, 16)
LEARNING = GridSettings(
    widths=(16, 24),
    levels=1,
    components=1,
    reach=0.0,
    blank=0.2,
    mean_share=0.5,
    held_out=0.02,
    steps=100,
    learning_rate=8e-3,
    folds=2,
    patience=None,
)


def blocks(n: int, seed: int) -> Tensor:
    """Blocks of 2 x 2 that are 1 or -1: no Gaussian of rank one knows them, but any entry tells its block."""
    g = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(n, 1, 8, 8, generator=g) < 0.5, 1.0, -1.0)
    return signs.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_windows_teach_what_the_whole_does() -> None:
    torch.set_default_dtype(torch.float32)
    pattern, test = Cells(0.3, 0.6), blocks(32, 1)
    seen = pattern(Keys.range(9, 32), BLOCKS)
    known = Encoded(test * seen, seen)
    keys, errors = Keys.range(0, 32), {}
    for patch, batch in ((None, 8), (8, 32)):  # as many positions a step
        settings = replace(LEARNING, patch=patch, batch_size=batch)
        model, _ = fit_model(GridData(blocks(100, 0)), settings, pattern, device="cpu")
        network, centre = model.means(known, keys)
        for name, found in ((patch, network), ("centre", centre)):
            errors[name] = float((found - test)[~seen].square().mean())
    assert errors["centre"] > 0.9 and errors[8] < 0.5 * errors["centre"], errors
    assert errors[8] < 1.25 * errors[None], errors
    # It draws, whatever the company, and comes back from what was saved.
    drawn = model.fill(known, keys)
    assert torch.equal(model.fill(known[5:8], keys[5:8]), drawn[5:8])
    assert torch.equal(drawn[seen], test[seen])
    again = GridModel.from_state(*model.state())
    assert again.settings.patch == 8
    assert (again.means(known, keys)[0] - network).abs().mean() < 0.02
