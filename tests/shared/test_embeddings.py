"""Embeddings: what is unknown has one meaning, and tells nothing of the value that it hides."""

from __future__ import annotations

import pytest
import torch

from ebbtide.shared.data import Condition
from ebbtide.shared.embeddings import ConditionEmbedding, NoiseEmbedding, drop_randomly

NAN = torch.nan


def test_noise_embedding_tells_levels_apart_and_rows_apart() -> None:
    torch.manual_seed(0)
    embed = NoiseEmbedding(32)
    level = torch.linspace(-4.6, 4.6, 50)
    vectors = embed(level)
    assert vectors.shape == (50, 32)
    assert torch.pdist(vectors).min() > 0.02
    assert torch.allclose(embed(level[7:8]), vectors[7:8], atol=1e-6)
    # 5 % in sigma is 0.0122 in level, and it shows.
    assert (embed(level + 0.0122) - vectors).norm(dim=1).min() > 0.02


def test_noise_features_are_computed_in_float32_whatever_the_weights() -> None:
    level = torch.tensor([0.0, 0.01])
    torch.manual_seed(0)
    exact = NoiseEmbedding(16)
    rough = NoiseEmbedding(16).bfloat16()
    rough.load_state_dict(exact.state_dict())
    assert torch.allclose(rough(level).float(), exact(level), atol=0.02)


def test_unknown_is_the_same_as_absent_and_hides_nothing() -> None:
    torch.manual_seed(0)
    embed = ConditionEmbedding(16, classes=3, covariates=2, token_width=5)
    like = torch.zeros(4, 1)
    full = Condition(
        label=torch.tensor([0, 1, 2, 0]), covariates=torch.randn(4, 2), tokens=torch.randn(4, 1, 5)
    )
    vector, tokens = embed(full, like)
    null, null_tokens = embed(full.drop(), like)
    absent, absent_tokens = embed(Condition(), like)
    assert torch.equal(null, absent) and torch.equal(null_tokens, absent_tokens)
    assert torch.equal(null, null[:1].expand(4, -1))
    assert (vector - null).norm(dim=1).min() > 0.1 and not torch.equal(tokens, null_tokens)


def test_each_covariate_has_a_null_of_its_own() -> None:
    torch.manual_seed(0)
    embed = ConditionEmbedding(16, covariates=2)
    cases = torch.tensor([[NAN, 0.0], [0.0, NAN], [NAN, NAN], [0.0, 0.0], [1.0, 0.0]])
    vectors, tokens = embed(Condition(covariates=cases), torch.zeros(5, 1))
    assert tokens is None
    assert torch.pdist(vectors).min() > 0.05


def test_gradients_are_finite_and_reach_the_nulls() -> None:
    embed = ConditionEmbedding(8, classes=2, covariates=2, token_width=3)
    tokens = torch.randn(2, 4, 3)
    tokens[0, 1] = NAN
    condition = Condition(torch.tensor([-1, 1]), torch.tensor([[NAN, 1.0], [0.5, 2.0]]), tokens)
    vector, sequence = embed(condition, torch.zeros(2, 1))
    (vector.sum() + sequence.sum()).backward()
    for name, parameter in embed.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert embed.null_token.grad.abs().sum() > 0
    assert torch.equal(sequence[0, 1], embed.null_token)


def test_refuses_what_it_was_not_made_for() -> None:
    with pytest.raises(ValueError, match="classes"):
        ConditionEmbedding(8)(Condition(label=torch.zeros(1, dtype=torch.int64)), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="2 covariates for a network of 3"):
        ConditionEmbedding(8, covariates=3)(Condition(covariates=torch.zeros(1, 2)), torch.zeros(1, 1))


def test_dropping_is_per_element_and_at_the_rate() -> None:
    uniform = torch.tensor([0.05, 0.5, 0.15])
    condition = Condition(
        torch.arange(3), torch.ones(3, 2), torch.ones(3, 2, 4), channels=torch.ones(3, 1, 2)
    )
    dropped = drop_randomly(condition, 0.2, uniform)
    assert dropped.label.tolist() == [-1, 1, -1]
    assert dropped.covariates.isnan().all(1).tolist() == [True, False, True]
    assert dropped.tokens.isnan().flatten(1).all(1).tolist() == [True, False, True]
    assert torch.equal(dropped.channels, condition.channels)
    each = drop_randomly(condition, 0.2, torch.tensor([[0.1, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.1]]))
    assert each.label.tolist() == [-1, 1, 2]
    assert each.covariates.isnan().all(1).tolist() == [False, True, False]
    assert each.tokens.isnan().flatten(1).all(1).tolist() == [False, False, True]
    assert drop_randomly(Condition(), 0.5, uniform) == Condition()
