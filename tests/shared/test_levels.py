"""Absorbing diffusion over levels: what is hidden, what the network may see, that it learns a known law."""

from __future__ import annotations

import math

import pytest
import torch

from ebbtide.shared.data import NOTHING
from ebbtide.shared.levels import LevelsDenoiser, LevelsNetwork, LevelsShape
from ebbtide.shared.noise import Keys
from ebbtide.shared.schedules import UniformDensity
from ebbtide.shared.training import Batch, TrainingSettings, train

SHAPE = LevelsShape(
    (2, 3, 4),
    (False, False, True),
    tuple(math.log(1 / k) for k in (2, 3, 4) for _ in range(k)),
    (True,) * 5 + (False,) * 4,
)


class Rows:
    """Rows of levels as training examples."""

    def __init__(self, levels: torch.Tensor) -> None:
        self.levels = levels

    def __len__(self) -> int:
        return len(self.levels)

    def batch(self, indices: torch.Tensor, keys: Keys) -> Batch:
        x = self.levels[indices].float()
        return Batch(x, NOTHING, torch.ones(x.shape, dtype=torch.bool))


def network(width: int = 32) -> LevelsNetwork:
    torch.manual_seed(0)
    return LevelsNetwork(SHAPE, width=width, depth=1, dropout=0.0)


def test_an_untrained_network_says_the_shares_it_was_given() -> None:
    shape = LevelsShape(
        (2, 3), (False, True), tuple(math.log(p) for p in (0.9, 0.1, 0.5, 0.3, 0.2)), (True,) * 5
    )
    logits = LevelsNetwork(shape, width=8, depth=1)(
        torch.zeros(4, 2, dtype=torch.long), torch.ones(4, 2).bool()
    )
    assert torch.allclose(logits[:, :2].softmax(1), torch.tensor([0.9, 0.1]).expand(4, 2))
    assert torch.allclose(logits[:, 2:].softmax(1), torch.tensor([0.5, 0.3, 0.2]).expand(4, 3))


def test_hidden_codes_are_not_looked_at_and_seen_ones_are() -> None:
    model = network().eval()
    torch.nn.init.normal_(model.out)
    hidden = torch.tensor([[False, True, True]])
    one, other, third = (torch.tensor([row]) for row in ([1, 0, 0], [1, 2, 3], [0, 0, 0]))
    assert torch.equal(model(one, hidden), model(other, hidden))
    assert not torch.allclose(model(one, hidden), model(third, hidden))


def test_the_logits_of_one_column_are_a_part_of_all() -> None:
    model = network().eval()
    torch.nn.init.normal_(model.out)
    record = model.encode(torch.zeros(5, 3, dtype=torch.long), torch.ones(5, 3).bool())
    assert torch.allclose(model.logits(record)[:, 2:5], model.logits(record, 1, 2), atol=1e-6)


def test_neighbouring_levels_of_an_ordered_column_share_functions_and_others_none() -> None:
    waves = SHAPE.waves()
    assert waves.shape == (9, 4)
    assert not waves[:5].any()
    assert waves[5:, 0].diff().lt(0).all()  # the first falls along the ranks


@pytest.mark.parametrize("straight", [0.0, 1.0])
def test_between_one_and_all_cells_are_hidden_each_number_equally_often(straight: float) -> None:
    denoiser = LevelsDenoiser(network(), [2, 0, 1], straight)
    n = 3000
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    hidden = denoiser.hide(noise, (torch.arange(n) + 0.5) / n)
    assert hidden.sum(1).bincount().tolist() == [0, 1000, 1000, 1000]
    if straight:  # what is hidden comes last in the order
        assert hidden[:, 1].all() and not (hidden[:, 2] & ~hidden[:, 0]).any()
    else:  # every column is hidden equally often: 4.5 standard errors
        assert (hidden.double().mean(0) - 2 / 3).abs().max() < 4.5 * math.sqrt(2 / 9 / n)


def test_it_learns_the_law_of_any_column_given_any_others() -> None:
    """x is a coin of 0.3, y says x in two of three cases, z is independent of both."""
    generator = torch.Generator().manual_seed(3)
    n = 4000
    x = (torch.rand(n, generator=generator) < 0.3).long()
    y = torch.where(torch.rand(n, generator=generator) < 2 / 3, x, 2)
    z = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), n, replacement=True, generator=generator)
    rows = torch.stack([x, y, z], 1)
    denoiser = LevelsDenoiser(network(), [0, 1, 2])
    settings = TrainingSettings(steps=250, batch_size=512, learning_rate=5e-3, density=UniformDensity())
    done = train(denoiser, Rows(rows), settings, seed=0, device="cpu")
    # The bound: entropies of x, of y given x, and of z, in nats; at most some hundredths above it.
    best = 0.6109 + 0.6365 + 1.2799
    codes, hidden = rows[:1000], torch.ones(1000, 3).bool()
    surprise = torch.zeros(3)
    with torch.no_grad():
        for column in range(3):
            surprise[column] = denoiser.surprise(denoiser.network(codes, hidden), codes)[:, column].mean()
            hidden[:, column] = False
        law = denoiser.network(torch.tensor([[0, 0, 0], [0, 2, 1]]), torch.tensor([[True, False, True]] * 2))
    assert surprise.sum() < best + 0.06
    given_y = law[:, :2].softmax(1)[:, 1]
    assert given_y[0] < 0.03 and given_y[1] == pytest.approx(
        0.3, abs=0.05
    )  # y = 0 says x; y = 2 says nothing
    assert law[1, 5:].softmax(0).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.05)
    assert done.history[-1]["loss"] < done.history[0]["loss"]
