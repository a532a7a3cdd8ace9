"""Keyed noise: known answers of the generator, invariance, and the laws of each source."""

import math

import pytest
import torch

from ebbtide.shared.noise import CategoricalNoise, Coloured, Keys, Offset, White, key_of, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    out = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert " ".join(f"{int(word):08x}" for word in out) == expected


def test_key_of_is_stable_and_separates():
    assert key_of(0, "normal") == key_of("0", "normal")
    assert key_of("ab", "c") != key_of("a", "bc")
    assert 0 <= key_of("row 17") < 2**63


@pytest.mark.parametrize("source", [White(), Coloured(2.0), Offset(0.5)], ids=repr)
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 6, 5), (1, 4, 3, 5)])
def test_noise_depends_on_its_key_alone(source, shape):
    if isinstance(source, Coloured) and len(shape) == 1:
        pytest.skip("a random field needs space")
    keys = Keys.range(7, 9)
    whole = source(keys, torch.zeros(9, *shape), "s")
    assert torch.equal(source(keys[torch.tensor([4])], torch.zeros(1, *shape), "s")[0], whole[4])
    order = torch.tensor([8, 0, 3])
    assert torch.equal(source(keys[order], torch.zeros(3, *shape), "s"), whole[order])
    assert not torch.equal(source(keys, torch.zeros(9, *shape), "other"), whole)
    assert not torch.equal(source(Keys.range(8, 9), torch.zeros(9, *shape), "s"), whole)
    assert not torch.equal(source(Keys.range(7, 9, draw=1), torch.zeros(9, *shape), "s"), whole)
    assert whole.dtype == torch.float32


def test_far_items_and_negative_draws_have_their_own_noise():
    items = torch.tensor([1, 1 + 2**32, 1 + 2**40])
    a, b, c = Keys(0, items, torch.zeros(3, dtype=torch.int64)).normal((4,))
    assert not torch.equal(a, b) and not torch.equal(b, c)


def test_uniform_and_normal_moments():
    keys = Keys.range(3, 500)
    u, z = keys.uniform((401,)), keys.normal((401,), dtype=torch.float64)
    n = u.numel()
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4.5 * math.sqrt(1 / 12 / n)
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - mean) < 4.5 * math.sqrt(variance / n)
    cosine, sine = z[:, :200], z[:, 202:402]  # the two halves of Box and Muller
    assert abs((cosine[:, : sine.shape[1]] * sine).mean()) < 4.5 / math.sqrt(sine.numel())
    assert abs((z[:-1] * z[1:]).mean()) < 4.5 / math.sqrt(n)  # neighbouring items


@pytest.mark.parametrize("shape", [(1, 64), (1, 16, 16), (1, 8, 8, 8)])
def test_coloured_noise_has_unit_variance_and_its_power_law(shape):
    power = 2.0
    z = Coloured(power)(Keys.range(0, 2000), torch.zeros(2000, *shape, dtype=torch.float64), "s")
    assert z.var(0).mean().item() == pytest.approx(1.0, rel=0.03)
    spectrum = torch.fft.fftn(z[:, 0], dim=tuple(range(1, z.ndim - 1))).abs().square().mean(0)
    first, second = spectrum[(1,) + (0,) * (z.ndim - 3)], spectrum[(2,) + (0,) * (z.ndim - 3)]
    assert (first / second).item() == pytest.approx(2**power, rel=0.25)  # 4.5 standard errors


def test_coloured_noise_of_power_zero_is_white():
    x = torch.zeros(3, 2, 5, 6)
    assert torch.allclose(
        Coloured(0.0)(Keys.range(0, 3), x, "s"), White()(Keys.range(0, 3), x, "s"), atol=1e-6
    )


def test_offset_noise_shares_one_number_in_a_channel():
    z = Offset(0.5)(Keys.range(0, 20_000), torch.zeros(20_000, 2, 2, dtype=torch.float64), "s").flatten(1)
    expected = torch.eye(4) + 0.25 * torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    assert torch.allclose(z.T.cov(), (expected / 1.25).double(), atol=4.5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize("noise", [CategoricalNoise(3), CategoricalNoise(3, absorbing=False)], ids=repr)
def test_categorical_reverse_step_is_bayes(noise):
    """Against the joint law of (x_0, x_s, x_t) written out."""
    prior, kept_s, kept_t = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.7, 0.4
    eye = torch.eye(3, dtype=torch.float64)
    at_s = noise.forward(eye, torch.tensor(kept_s))  # q(x_s | x_0)
    rest = noise.forward(eye, torch.tensor(0.0))[0]
    onward = kept_t / kept_s * torch.eye(noise.states) + (1 - kept_t / kept_s) * rest  # q(x_t | x_s)
    joint = prior[:, None, None] * at_s[:, :, None] * onward[None]
    assert torch.allclose(joint.sum((0, 1)), noise.forward(prior, torch.tensor(kept_t)))
    for code in range(noise.states):
        belief = joint[:, :, code].sum(1) / joint[:, :, code].sum()
        truth = joint[:, :, code].sum(0) / joint[:, :, code].sum()
        got = noise.reverse(torch.tensor(code), belief, torch.tensor(kept_t), torch.tensor(kept_s))
        assert torch.allclose(got, truth, atol=1e-9)


@pytest.mark.parametrize("noise", [CategoricalNoise(3), CategoricalNoise(3, absorbing=False)], ids=repr)
def test_categorical_chain_reproduces_the_law(noise):
    """Ten reverse steps with the exact p(x_0 | x_t) from pure noise."""
    prior, keys = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), Keys.range(0, 40_000)
    rest = noise.forward(torch.eye(3, dtype=torch.float64), torch.tensor(0.0))[0]
    codes = noise.draw(keys, rest.expand(len(keys), -1), "start")
    levels = [i / 10 for i in range(11)]
    for i in range(10):
        kept_t, kept_s = torch.tensor(levels[i]), torch.tensor(levels[i + 1])
        chance = noise.forward(torch.eye(3, dtype=torch.float64), kept_t)[:, codes].T
        belief = prior * chance / (prior * chance).sum(1, keepdim=True)
        codes = noise.draw(keys, noise.reverse(codes, belief, kept_t, kept_s), f"step {i}")
    shares = torch.bincount(codes, minlength=3) / len(keys)
    assert codes.max() < 3
    assert ((shares - prior).abs() < 4.5 * (prior * (1 - prior) / len(keys)).sqrt()).all()
