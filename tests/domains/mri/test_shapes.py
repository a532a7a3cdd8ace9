"""Label maps drawn from a Gaussian over signed distances: balls and their parts, whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ebbtide.domains.mri.shapes import LabelShapes, one_hot
from ebbtide.shared.noise import Keys

SIZE = (24, 22, 20)


def balls(count: int, seed: int = 0) -> list[np.ndarray]:
    """Balls of radii uniform in 5 to 9 around (12, 11, 10): label 3 in front of x = 12, label 7 behind."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(SIZE)
    away = np.sqrt((x - 12.0) ** 2 + (y - 11.0) ** 2 + (z - 10.0) ** 2)
    return [np.where(away < r, np.where(x < 12, 3, 7), 0) for r in rng.uniform(5, 9, count)]


@pytest.fixture(scope="module")
def shapes() -> LabelShapes:
    torch.set_default_dtype(torch.float32)
    return LabelShapes.fit(balls(40), (3, 7))


def test_drawn_maps_are_like_those_that_were_learnt_from(shapes: LabelShapes) -> None:
    drawn = shapes.draw(Keys.range(0, 200)).numpy()
    assert drawn.shape == (200, *SIZE) and set(np.unique(drawn)) == {0, 3, 7}
    truth = np.stack(balls(200, seed=1))
    for label in (3, 7):
        ours, theirs = ((maps == label).sum((1, 2, 3)) for maps in (drawn, truth))
        assert ours.mean() == pytest.approx(theirs.mean(), rel=0.07)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.25)
    assert np.allclose(shapes.middle, (11.5, 11, 10), atol=0.6)


def test_parts_meet_without_a_gap_and_lie_on_their_sides(shapes: LabelShapes) -> None:
    for one in shapes.draw(Keys.range(5, 20)).numpy():
        assert (one[:11] != 7).all() and (one[13:] != 3).all()
        middle = one[11:13, 9:13, 8:12]
        assert (middle > 0).all()


def test_a_map_depends_on_its_key_alone(shapes: LabelShapes) -> None:
    many = shapes.draw(Keys.range(3, 6))
    assert torch.equal(many[4:5], shapes.draw(Keys.range(3, 1, start=4)))
    assert not torch.equal(many[0], many[1])


def test_state_comes_back(shapes: LabelShapes) -> None:
    config, tensors = shapes.state()
    again = LabelShapes.from_state(config, tensors, SIZE)
    a, b = shapes.draw(Keys.range(0, 4)), again.draw(Keys.range(0, 4))
    assert again.labels == (3, 7) and (a != b).float().mean() < 0.005


def test_one_map_alone_is_the_only_shape_and_none_is_refused() -> None:
    (only,) = balls(1)
    drawn = LabelShapes.fit([only], (3, 7)).draw(Keys.range(0, 3))
    assert torch.equal(drawn[0], drawn[1])
    assert float((drawn[0].numpy() == only).mean()) > 0.98
    with pytest.raises(ValueError, match="at least one"):
        LabelShapes.fit([], (3, 7))


def test_one_hot_is_plus_inside_and_minus_outside() -> None:
    held = one_hot(torch.tensor([[[[0, 3], [7, 3]]]]), (3, 7))
    assert held.shape == (1, 2, 1, 2, 2) and set(held.unique().tolist()) == {-1.0, 1.0}
    assert held[0, 0].flatten().tolist() == [-1, 1, -1, 1]


def test_thin_shapes_that_move_are_drawn_as_large_as_they_are() -> None:
    """Rods of radius 2 that lie anywhere within six voxels: their average distance is hardly positive."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices(SIZE)
    maps = [
        np.where((x - a) ** 2 + (y - b) ** 2 < 5, 1, 0) * ((z > 3) & (z < 16))
        for a, b in rng.uniform(8, 14, (40, 2))
    ]
    shapes = LabelShapes.fit(maps, (1,))
    truth = np.mean([one.sum() for one in maps])
    size = shapes.draw(Keys.range(9, 100)).sum((1, 2, 3)).double().mean()
    unlevelled = (
        replace(shapes, levels=torch.zeros(2)).draw(Keys.range(9, 100)).sum((1, 2, 3)).double().mean()
    )
    assert size == pytest.approx(truth, rel=0.12)
    assert unlevelled < 0.9 * truth
