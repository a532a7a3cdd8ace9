"""Somebody who has the model: people that it learned by heart are told from strangers, and no others."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from ebbtide.domains.tabular.codec import TableCodec
from ebbtide.domains.tabular.fitted import FittedTable
from ebbtide.domains.tabular.generator import GeneratorSettings
from ebbtide.domains.tabular.measures import encode_pair
from ebbtide.domains.tabular.measures.assessing import assess_privacy
from ebbtide.domains.tabular.measures.whitebox import NAME, attack_by_loss, row_losses


def people(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(np.zeros(4), 0.5 * np.eye(4) + 0.5, n)
    frame = pd.DataFrame({f"x{j}": np.round(50 + 10 * z[:, j], 1) for j in range(4)})
    return frame.assign(site=rng.choice(list("abc"), n), ill=np.where(z.sum(1) > 0, "yes", "no"))


@cache
def model(kind: str) -> FittedTable:
    """An honest one; one that learned 120 people by heart."""
    honest = GeneratorSettings(steps=60)
    heart = GeneratorSettings(
        steps=250, rare=1, dropout=0.0, weight_decay=0.0, width=256, patience=1000, held_out=0
    )
    return FittedTable.fit(
        people(120, 0), verbs=("generate",), generator=heart if kind == "by heart" else honest, seed=0
    )


def losses(kind: str, seed: int) -> np.ndarray:
    fitted = model(kind)
    assert fitted.generator is not None
    return row_losses(fitted.generator, fitted.codec.encode(people(120, seed)))


def test_the_loss_is_the_exact_likelihood() -> None:
    frame = pd.DataFrame({"a": ["x", "y"] * 20, "b": (["u"] * 3 + ["v"]) * 10})
    fitted = FittedTable.fit(frame, verbs=("generate",), generator=GeneratorSettings(steps=5), seed=0)
    assert fitted.generator is not None
    every = pd.DataFrame([(a, b) for a in "xy" for b in "uv"], columns=["a", "b"])
    found = row_losses(fitted.generator, fitted.codec.encode(every))
    assert np.exp(-found[:, 0]).sum() == pytest.approx(1, abs=0.02)  # all there is, but for the rare levels
    shares = np.outer([0.5, 0.5], [0.75, 0.25]).ravel()  # of the cells one by one
    assert np.allclose(found[:, 0] - found[:, 1], -np.log(shares), atol=0.05)


def test_whom_a_model_learned_by_heart_is_found_and_an_honest_one_tells_nobody() -> None:
    found = attack_by_loss(losses("by heart", 0), losses("by heart", 5), 0)
    assert found.area.low > 0.6 and found.p < 1e-4 and found.caught[2].found.share > 0.15
    honest = attack_by_loss(losses("honest", 0), losses("honest", 5), 0)
    assert honest.area.value < 0.65
    others = attack_by_loss(losses("by heart", 6), losses("by heart", 5), 0)  # a model of other people
    assert others.p > 0.05 and abs(others.area.value - 0.5) < 0.1


def test_of_two_attacks_the_one_that_finds_more_is_told_and_paid_for() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=(300, 2)), rng.normal(size=(300, 2))
    members[:, 1] -= 0.5
    both, alone = attack_by_loss(members, others, 0), attack_by_loss(members[:, 1:], others[:, 1:], 0)
    assert both.area.value == alone.area.value and both.p == pytest.approx(2 * alone.p)


def test_the_report_fails_a_model_whose_synthetic_rows_look_innocent() -> None:
    pair = encode_pair(people(120, 0), people(120, 9), people(120, 5))  # rows of strangers: nothing to see
    assert not assess_privacy(pair, 0, lambda done: None).leaks
    by_heart = assess_privacy(pair, 0, lambda done: None, (losses("by heart", 0), losses("by heart", 5)))
    assert by_heart.leaks == [f"{NAME} (everybody)"] and by_heart.white_box and by_heart.n_attacks == 7


def test_losses_do_not_depend_on_company() -> None:
    fitted = model("honest")
    assert fitted.generator is not None
    coded = TableCodec().fit(people(120, 0)).encode(people(40, 5))
    whole = row_losses(fitted.generator, coded)
    alone = row_losses(fitted.generator, type(coded)(coded.numbers[7:8], coded.codes[7:8]))
    assert torch.isfinite(torch.from_numpy(whole)).all() and alone[0] == pytest.approx(whole[7], rel=1e-5)
