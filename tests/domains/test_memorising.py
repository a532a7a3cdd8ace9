"""When a model begins to learn rows by heart: by its loss, and by near copies among what it draws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from ebbtide.domains.tabular.codec import TableCodec
from ebbtide.domains.tabular.fitted import FittedTable
from ebbtide.domains.tabular.generator import GeneratorSettings, TableGenerator
from ebbtide.domains.tabular.measures import memorising
from ebbtide.domains.tabular.measures.memorising import Neighbourhood, is_moment
from ebbtide.shared.noise import Keys


def people(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(np.zeros(4), 0.5 * np.eye(4) + 0.5, n)
    frame = pd.DataFrame({f"x{j}": np.round(50 + 10 * z[:, j], 1) for j in range(4)})
    return frame.assign(site=rng.choice(list("abc"), n), ill=np.where(z.sum(1) > 0, "yes", "no"))


BY_HEART = GeneratorSettings(
    steps=256,
    rare=1,
    dropout=0.0,
    weight_decay=0.0,
    width=128,
    learning_rate=3e-3,
    patience=1000,
    held_out=0.4,
)


@pytest.fixture(scope="module")
def overtrained() -> FittedTable:
    return FittedTable.fit(people(120, 3), verbs=("generate",), generator=BY_HEART, seed=0)


def test_a_training_remembers_when_it_began_to_learn_by_heart(overtrained: FittedTable) -> None:
    assert overtrained.generator is not None
    curve = overtrained.generator.memory
    first, last = curve[0], curve[-1]
    assert first["auc"] < 0.75 and last["auc_low"] > 0.95
    assert last["members"] < first["members"] and last["others"] > min(row["others"] for row in curve)
    assert {row["rows"] for row in curve} == {48}
    kept = next(row for row in curve if row["step"] == overtrained.generator.kept_step)
    assert kept["auc"] < last["auc"]  # stopping by held-out rows keeps the weights of before
    again = FittedTable.__new__(FittedTable)
    again.__setstate__(overtrained.__getstate__())
    assert again.generator is not None and again.generator.memory == curve


def test_a_training_remembers_when_what_it_draws_became_copies(overtrained: FittedTable) -> None:
    assert overtrained.generator is not None
    curve = overtrained.generator.memory
    moments = {row["step"]: row for row in curve if "copies" in row}
    assert set(moments) == {20, 40, 80, 160, 256} | {overtrained.generator.kept_step}
    first, last = moments[20], moments[256]
    assert (
        first["copies"] < 0.02 and last["copies_low"] > 0.2 and last["copies_low"] > 2 * last["chance_high"]
    )
    assert {row["chance"] for row in moments.values()} == {first["chance"]} and first["chance"] < 0.05
    assert {(row["drawn"], row["others_searched"], row["members_searched"]) for row in moments.values()} == {
        (512, 48, 72)
    }
    kept = moments[overtrained.generator.kept_step]
    assert kept["copies"] < last["copies"] / 5
    # The figure of the step that was kept is of the weights that were kept.
    drawn = overtrained.generator.glimpse(0)
    assert len(drawn) == 512 and len(np.unique(drawn.numbers, axis=0)) > 400


def test_what_is_found_is_what_was_planted() -> None:
    frame = people(400, 0)
    codec = TableCodec().fit(frame)
    coded, held = codec.encode(frame), np.arange(400) % 4 == 0
    near = Neighbourhood.of([c for c in codec.columns_ if c.modelled], coded, held, 0)
    assert near is not None
    known = np.flatnonzero(~held)[:30]
    drawn = codec.encode(people(100, 9))
    mixed = type(drawn)(
        np.concatenate([coded.numbers[known], drawn.numbers]),
        np.concatenate([coded.codes[known], drawn.codes]),
    )
    found, without = near.figures(mixed), near.figures(drawn)
    assert found["copies"] == pytest.approx((30 + 100 * without["copies"]) / 130)
    assert without["copies"] < 0.05 and without["copies_low"] <= without["chance_high"]
    stolen = type(drawn)(
        coded.numbers[held], coded.codes[held]
    )  # held-out rows are copies of no training row
    assert near.figures(stolen)["copies"] < 0.05


def test_watching_changes_neither_what_is_learnt_nor_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GeneratorSettings(steps=45, width=16, depth=1)
    states, drawn = [], []
    for watched in (True, False):
        if not watched:
            monkeypatch.setattr(memorising, "Memorising", lambda *_: Silent())
        torch.manual_seed(5)
        fitted = FittedTable.fit(people(120, 0), verbs=("generate",), generator=settings, seed=0)
        after = torch.rand(3)
        assert fitted.generator is not None
        assert any("copies" in row for row in fitted.generator.memory) == watched
        states.append({**fitted.generator.denoiser.state_dict(), "random state": after})
        drawn.append(fitted.generator.draw(Keys.range(1, 40), fitted.generator.demand()))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert np.array_equal(drawn[0].numbers, drawn[1].numbers, equal_nan=True)
    assert np.array_equal(drawn[0].codes, drawn[1].codes)


class Silent:
    """A watch that looks at nothing."""

    def __call__(self, step: int) -> dict[str, float]:
        return {}

    def remembered(self, history: object, kept: int) -> list[dict[str, float]]:
        return []


def test_moments_are_a_geometric_grid_and_the_last() -> None:
    assert [s for s in range(1, 1001) if is_moment(s, 60, 1000)] == [60, 120, 240, 480, 960, 1000]
    assert [s for s in range(1, 46) if is_moment(s, 20, 45)] == [20, 40, 45]


def test_odd_tables_are_watched_without_a_stumble() -> None:
    """Rows that are all alike, a number that is hardly ever there, and rules that no early draw obeys."""
    n = 120
    rng = np.random.default_rng(0)
    seldom = np.full(n, np.nan)
    seldom[:6] = np.arange(6) + 0.5
    start = rng.integers(0, 50, n)
    tables = [
        pd.DataFrame({"a": ["x"] * n, "b": [1] * (n - 1) + [2]}),
        pd.DataFrame({"a": rng.choice(list("xy"), n), "seldom": seldom, "c": rng.normal(size=n).round(2)}),
        pd.DataFrame({"start": start, "end": start + rng.integers(1, 5, n)}),
    ]
    for table in tables:
        codec = TableCodec().fit(table)
        columns = [column for column in codec.columns_ if column.modelled]
        made = TableGenerator.fit(
            codec.encode(table), columns, GeneratorSettings(steps=25, width=16, depth=1), seed=0, device="cpu"
        )
        assert made.memory and all(np.isfinite(list(row.values())).all() for row in made.memory)
