"""What `Encoded` refuses, and what dropping, indexing and mapping a condition mean."""

import pytest
import torch

from ebbtide.shared.data import Condition, Encoded, like


def test_like_appends_axes_and_multiplies():
    x = torch.ones(3, 2, 4, 5)
    out = like(torch.tensor([1.0, 2.0, 3.0]), x) * x
    assert out.shape == x.shape
    assert out[:, 1, 2, 3].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "observed", "message"),
    [
        ([[1.0, 0.0]], [[1, 0]], "bool"),
        ([[1.0, 0.0]], [[True]], "shaped like"),
        ([[float("nan"), 0.0]], [[True, False]], "finite"),
        ([[1.0, 2.0]], [[True, False]], "must be 0"),
    ],
)
def test_encoded_refuses(values, observed, message):
    with pytest.raises(ValueError, match=message):
        Encoded(torch.tensor(values), torch.tensor(observed))


def test_drop_forgets_wishes_and_keeps_data():
    known = Encoded(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    condition = Condition(
        label=torch.tensor([3, 1]),
        covariates=torch.ones(2, 2),
        tokens=torch.ones(2, 3, 4),
        channels=torch.ones(2, 1, 5),
        known=known,
        fold=torch.tensor([0, 1]),
    )
    dropped = condition.drop()
    assert dropped.label.tolist() == [-1, -1]
    assert dropped.covariates.isnan().all() and dropped.tokens.isnan().all()
    assert dropped.channels is condition.channels
    assert dropped.known is known
    assert dropped.fold is condition.fold


def test_indexing_a_condition_indexes_every_tensor():
    known = Encoded(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1, dtype=torch.bool))
    row = Condition(label=torch.tensor([3, 1]), known=known)[torch.tensor([1])]
    assert row.label.tolist() == [1]
    assert row.known.values.tolist() == [[2.0]]
    assert row.covariates is None
