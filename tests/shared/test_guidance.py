"""End points to the bit, and the one case of guidance that has a closed form."""

import math

import pytest
import torch

from ebbtide.shared.data import Condition
from ebbtide.shared.exact import GaussianDenoiser
from ebbtide.shared.guidance import AutoGuided, Composed, Guided, only, wanting
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import Heun
from ebbtide.shared.schedules import Cosine


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class ByLabel:
    """N(m_label, 0.25) for each label, N(0, 0.25) without; a covariate adds itself to the mean."""

    schedule = Cosine()
    means = double(-0.4, 0.2, 0.5)

    def __init__(self):
        self.calls = 0

    def __call__(self, x_t, t, condition):
        self.calls += 1
        mean = torch.zeros(len(x_t), 1, dtype=torch.float64)
        if condition.label is not None:
            mean = torch.where(condition.label < 0, 0.0, self.means[condition.label.clamp(min=0)])[:, None]
        if condition.covariates is not None:
            mean = mean + condition.covariates.nan_to_num(0.0)
        exact = GaussianDenoiser(double(0.0), double(0.25)[None], self.schedule)
        alpha = self.schedule(t.double())[0]
        return mean + exact(x_t - alpha * mean, t)


X, T = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None], double(0.4)[0]
CONDITION = Condition(label=torch.tensor([0, 1, 2]), covariates=double(0.1, 0.2, 0.3)[:, None])


def test_end_points_are_exact_and_cost_one_call():
    denoiser = ByLabel()
    assert torch.equal(Guided(denoiser, 0.0)(X, T, CONDITION), ByLabel()(X, T, CONDITION.drop()))
    assert torch.equal(Guided(denoiser, 1.0)(X, T, CONDITION), ByLabel()(X, T, CONDITION))
    assert denoiser.calls == 2


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_gaussian_has_its_mean_multiplied(scale):
    n = 2000
    condition = Condition(label=torch.full((n,), 1))
    x = Heun(20)(Guided(ByLabel(), scale), (1,), Keys.range(0, n), condition, like=X)
    assert abs(x.mean() - scale * 0.2) < 0.005 + 4.5 * 0.5 / math.sqrt(n)
    assert x.std().item() == pytest.approx(0.5, rel=0.02 + 4.5 / math.sqrt(2 * n))


def test_interval_limits_where_guidance_acts():
    ratio = float(Cosine().ratio(T))
    inside = Guided(ByLabel(), 3.0, interval=(ratio / 2, ratio * 2))(X, T, CONDITION)
    outside = Guided(ByLabel(), 3.0, interval=(ratio * 2, math.inf))(X, T, CONDITION)
    assert torch.equal(inside, Guided(ByLabel(), 3.0)(X, T, CONDITION))
    assert torch.equal(outside, ByLabel()(X, T, CONDITION))


def test_a_negative_condition_is_what_to_move_away_from():
    label = Condition(label=torch.tensor([1, 1, 1]))
    got = Guided(ByLabel(), 3.0, reference=wanting(0))(X, T, label)
    away, toward = ByLabel()(X, T, Condition(label=torch.tensor([0, 0, 0]))), ByLabel()(X, T, label)
    assert torch.allclose(got, away + 3 * (toward - away))
    with pytest.raises(ValueError, match="labels"):
        wanting(0)(Condition())


def test_several_conditions_each_with_its_scale():
    """Means add: N(2 m_label + 3 covariate, v)."""
    got = Composed(ByLabel(), ((only("label"), 2.0), (only("covariates"), 3.0)))(X, T, CONDITION)
    free = ByLabel()(X, T, CONDITION.drop())
    label = ByLabel()(X, T, Condition(label=CONDITION.label)) - free
    covariate = ByLabel()(X, T, Condition(covariates=CONDITION.covariates)) - free
    assert torch.allclose(got, free + 2 * label + 3 * covariate)
    silent = Composed(ByLabel(), ((only("label"), 0.0), (only("covariates"), 0.0)))(X, T, CONDITION)
    assert torch.equal(silent, free)


def test_autoguidance():
    good, weak = ByLabel(), GaussianDenoiser(double(0.0), double(1.0)[None], Cosine())
    assert torch.equal(AutoGuided(good, weak, 1.0)(X, T, CONDITION), good(X, T, CONDITION))
    assert torch.equal(AutoGuided(good, weak, 0.0)(X, T, CONDITION), weak(X, T, CONDITION))
    half = AutoGuided(good, weak, 2.0)(X, T, CONDITION)
    assert torch.allclose(half, 2 * good(X, T, CONDITION) - weak(X, T, CONDITION))
    later = AutoGuided(good, weak, 2.0, (0.0, 1e-3))  # t = 0.4 is noisier
    assert torch.equal(later(X, T, CONDITION), good(X, T, CONDITION))


def test_guided_denoisers_nest():
    inner = Guided(ByLabel(), 2.0)
    assert torch.allclose(Guided(inner, 1.5)(X, T, CONDITION), Guided(ByLabel(), 3.0)(X, T, CONDITION))
