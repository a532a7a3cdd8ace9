"""The U-Net: identity at birth, any size, one answer per element, exact gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.denoisers import NetworkDenoiser
from ebbtide.shared.schedules import Cosine
from ebbtide.shared.unet import SIZES, Attention, Block, UNet, _plain, norm_silu, unet

ODD = {1: (13,), 2: (13, 7), 3: (5, 7, 6)}


def awake(network: nn.Module) -> nn.Module:
    """A network whose zero-initialised layers have been trained a little: nothing hides behind zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
                )
    return network


def small(ndim: int, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return awake(UNet(ndim, 2, (8, 16, 24), blocks=1, **settings))  # type: ignore[arg-type]


def everything(ndim: int, batch: int = 3) -> tuple[nn.Module, Tensor, Tensor, Condition]:
    """A network with every kind of condition, and an input for it."""
    network = small(ndim, attention=(1, 2), context=1, classes=3, covariates=2, token_width=5)
    size = ODD[ndim]
    generator = torch.Generator().manual_seed(2)
    x, values = (torch.randn(batch, 2, *size, generator=generator) for _ in range(2))
    observed = torch.rand(batch, 2, *size, generator=generator) < 0.5
    condition = Condition(
        label=torch.arange(batch) % 4 - 1,
        covariates=torch.randn(batch, 2, generator=generator),
        tokens=torch.randn(batch, 4, 5, generator=generator).index_fill(0, torch.tensor([0]), torch.nan),
        channels=torch.randn(batch, 1, *size, generator=generator),
        known=Encoded(values * observed, observed),
    )
    return network, x, torch.linspace(-1, 1, batch), condition


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_new_block_is_the_identity(ndim: int) -> None:
    x, embedding = torch.randn(3, 8, *ODD[ndim]), torch.randn(3, 7)
    assert torch.equal(Block(ndim, 8, 8, 7)(x, embedding), x)
    assert torch.equal(Attention(8, 5)(x, torch.randn(3, 2, 5)), x)
    assert not torch.equal(awake(Block(ndim, 8, 8, 7))(x, embedding), x)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_any_size_comes_back(ndim: int, size: int) -> None:
    shape = (2, 2, size, *(3,) * (ndim - 1))
    out = small(ndim)(torch.randn(shape), torch.zeros(2))
    assert out.shape == shape and torch.isfinite(out).all()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_padding_does_not_touch_sizes_that_divide(ndim: int) -> None:
    network, x = small(ndim), torch.randn(2, 2, *(8,) * ndim)
    replicated = network(x, torch.zeros(2))
    network.padding = "reflect"
    assert torch.equal(network(x, torch.zeros(2)), replicated)
    odd = torch.randn(2, 2, *(7,) * ndim)
    reflected = network(odd, torch.zeros(2))
    network.padding = "replicate"
    assert not torch.equal(network(odd, torch.zeros(2)), reflected)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_an_element_has_one_answer_whatever_the_batch(ndim: int) -> None:
    network, x, level, condition = everything(ndim)
    with torch.no_grad():
        together = network(x, level, condition)
        for k in range(len(x)):
            alone = network(x[k : k + 1], level[k : k + 1], condition[k : k + 1])
            # Convolutions choose their loops by batch size: equal to rounding, 2e-6 of a unit-size output.
            assert (alone - together[k : k + 1]).abs().max() < 1e-5 * together.abs().max()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_condition_matters(ndim: int) -> None:
    network, x, level, condition = everything(ndim)
    changes = {
        "label": (condition.label + 2) % 4 - 1,
        "covariates": condition.covariates + 1,
        "tokens": condition.tokens.roll(1, 0),
        "channels": condition.channels + 1,
        "known": Encoded(torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)),
    }
    with torch.no_grad():
        base = network(x, level, condition)
        assert (network(x, level + 0.5, condition) - base).abs().max() > 1e-4
        for name, value in changes.items():
            changed = network(x, level, Condition(**{**vars(condition), name: value}))
            assert (changed - base).abs().flatten(1).amax(1).min() > 1e-4, name
        # What is unknown is the same as what is absent, and known nothing as no knowledge.
        absent = network(x, level, Condition(channels=condition.channels))
        nothing = Encoded(torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool))
        null = Condition(channels=condition.channels, known=nothing)
        assert torch.equal(network(x, level, null), absent)


def test_tokens_have_no_order_and_extra_nulls_are_felt() -> None:
    network, x, level, condition = everything(2)
    turned = Condition(**{**vars(condition), "tokens": condition.tokens[:, [2, 0, 3, 1]]})
    with torch.no_grad():
        assert torch.allclose(network(x, level, turned), network(x, level, condition), atol=1e-5)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_fused_normalisation_has_the_gradients_of_the_plain_formula(ndim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *ODD[ndim], generator=generator, dtype=torch.float64).requires_grad_()
    scale, shift = (
        torch.randn(2, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )
    assert torch.allclose(norm_silu(x, scale, shift, 2), _plain(x, scale, shift, 2), atol=1e-14)
    corner = x[(slice(None), slice(0, 4), *(slice(0, 2),) * ndim)].detach().requires_grad_()
    given = (corner, scale[:, :4], shift[:, :4])
    assert torch.autograd.gradcheck(lambda *a: norm_silu(*a, 2), given)
    assert torch.autograd.gradgradcheck(lambda *a: norm_silu(*a, 2), given)


def test_normalisation_survives_low_precision_and_large_offsets() -> None:
    x = (torch.randn(2, 8, 32, 32) + 300).bfloat16()
    exact = norm_silu(x.double(), torch.ones(8), torch.zeros(8), 2)
    # Only the output is rounded (2^-9 relative); statistics are not, although x is 300 times its spread.
    assert (norm_silu(x, torch.ones(8), torch.zeros(8), 2) - exact).abs().max() < 0.01


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_checkpointing_changes_no_gradient(ndim: int) -> None:
    network, x, level, condition = everything(ndim)
    gradients = []
    for recompute in (False, True):
        network.checkpointing = recompute
        network.zero_grad()
        network(x, level, condition).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_parameter_is_trained(ndim: int) -> None:
    network, x, level, condition = everything(ndim)
    network(x, level, condition).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_gradient_of_a_gradient(ndim: int) -> None:
    """Likelihoods and moment matching differentiate the denoiser; training through them needs this."""
    network = small(ndim).double()
    x = torch.randn(1, 2, *(4,) * ndim, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(network(x, torch.zeros(1)).square().sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), x)
    step = 1e-5 * torch.ones_like(x)

    def squared_slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        (g,) = torch.autograd.grad(network(at, torch.zeros(1)).square().sum(), at)
        return g.square().sum()

    numeric = (squared_slope(x + step) - squared_slope(x - step)) / 2
    assert (bend * step).sum().item() == pytest.approx(numeric.item(), rel=1e-4)


def test_maps_stay_channels_last_and_half_precision_runs() -> None:
    network = small(2)
    seen = []
    for block in network.modules():
        if isinstance(block, Block):
            block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        exact = network(torch.ones(2, 2, 8, 8), torch.zeros(2))
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in seen)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(torch.ones(2, 2, 8, 8), torch.zeros(2))
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    rough.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_it_learns_what_is_known() -> None:
    """Trained by hiding on a constant field, the denoiser reads the field's level off the known half."""
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(UNet(1, 1, (16, 24), blocks=1), Cosine())
    optimiser = torch.optim.Adam(denoiser.parameters(), 3e-3)
    half = (torch.arange(8) < 4).expand(64, 1, 8)
    for _ in range(120):
        x_0 = torch.randn(64, 1, 1).expand(64, 1, 8)
        condition = Condition(known=Encoded(x_0 * half, half))
        loss = denoiser.loss(x_0, torch.randn(64, 1, 8), torch.rand(64), condition, ~half).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x_0 = torch.tensor([-1.0, 0.0, 1.5]).reshape(3, 1, 1).expand(3, 1, 8)
    with torch.no_grad():
        noise = torch.randn(3, 1, 8)
        guess = denoiser(noise, torch.tensor(1.0), Condition(known=Encoded(x_0 * half[:3], half[:3])))
    assert torch.equal(guess[half[:3]], x_0[half[:3]])
    # Without the known half nothing better than 0 can be said: an error of 1.04.
    assert (guess - x_0)[~half[:3]].square().mean().sqrt() < 0.5


def test_sizes_and_refusals() -> None:
    assert sum(p.numel() for p in unet(2, 1, "tiny").parameters()) < sum(
        p.numel() for p in unet(2, 1, "small").parameters()
    )
    assert set(SIZES) == {"tiny", "small", "base", "large"}
    with pytest.raises(ValueError, match="1, 2 or 3"):
        UNet(4, 1)
    with pytest.raises(ValueError, match="levels"):
        UNet(2, 1, (8, 16), blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="0 channels, the network was made for 1"):
        UNet(1, 1, (8,), context=1)(torch.zeros(1, 1, 4), torch.zeros(1))
    with pytest.raises(ValueError, match="fills=False"):
        UNet(1, 1, (8,), fills=False)(
            torch.zeros(1, 1, 4),
            torch.zeros(1),
            Condition(known=Encoded(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4).bool())),
        )


@pytest.mark.slow  # importing the compiler alone takes half a minute on a busy machine
def test_compiles_without_graph_breaks() -> None:
    network, x, level, condition = everything(2)
    expected = network(x, level, condition)
    out = torch.compile(network, fullgraph=True, backend="eager")(x, level, condition)
    assert torch.allclose(out, expected, atol=1e-4)
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
