"""Measures of synthetic pictures: they must see what is wrong, and see nothing wrong in real ones."""

from __future__ import annotations

import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ebbtide.domains.images.copied import judged, nearest_pictures, planted, search, unusual
from ebbtide.domains.images.features import inception, learn, rotated
from ebbtide.domains.images.measures import Pictures, measure


@functools.cache
def digits() -> Pictures:
    """1,797 digits of 8 x 8, shuffled."""
    images, target = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    return Pictures(pixels[order], torch.from_numpy(target).long()[order])


def part(start: int, stop: int) -> Pictures:
    whole = digits()
    assert whole.labels is not None
    return Pictures(whole.pixels[start:stop], whole.labels[start:stop])


TRAIN, HELD, OTHER = (0, 900), (900, 1300), (1300, 1700)


def test_the_network_learns_classes_and_is_the_same_again() -> None:
    train, held = part(*TRAIN), part(*HELD)
    network = learn(train.pixels, train.labels, steps=200)
    assert network.task == "classes" and held.labels is not None
    assert (network.predict(held.pixels) == held.labels).double().mean() > 0.85
    first, second, other = (
        learn(train.pixels, train.labels, steps=4, seed=k)(held.pixels) for k in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_without_classes_it_learns_how_far_a_picture_was_turned() -> None:
    train, held = part(*TRAIN), part(*HELD)
    network = learn(train.pixels, steps=250)
    turned, turns = rotated(held.pixels, torch.arange(400) % 4)
    assert network.task == "rotations" and (network.predict(turned) == turns).double().mean() > 0.6
    assert torch.equal(turned[0], held.pixels[0]) and torch.equal(turned[1], held.pixels[1].rot90(1, (1, 2)))


def damaged() -> Tensor:
    """Real pictures with noise, 40 copies among them."""
    other, train = part(*OTHER), part(*TRAIN)
    noise = torch.randn(other.pixels.shape, generator=torch.Generator().manual_seed(1))
    pixels = (other.pixels + 0.35 * noise).clamp(0, 1)
    pixels[:40] = train.pixels[:40]
    return pixels


def test_real_pictures_score_as_real_ones_and_damaged_ones_worse() -> None:
    train, held, other = part(*TRAIN), part(*HELD), part(*OTHER)
    good = measure(train, held, other, steps=100)
    bad = measure(train, held, Pictures(damaged(), other.labels), steps=100)
    distance = good["Frechet distance"]
    assert 0.4 < distance.synthetic / distance.reference < 2.5
    assert bad["Frechet distance"].synthetic > 2 * distance.synthetic
    assert bad["kernel distance"].synthetic > 5 * abs(good["kernel distance"].synthetic)
    assert bad["coverage"].synthetic < bad["coverage"].reference - 0.1
    assert good["copies in pixels"].synthetic < 0.05 and 0.1 <= bad["copies in pixels"].synthetic < 0.13
    assert bad["copies in features"].synthetic >= 0.1
    assert good["class agreement"].synthetic > 0.8 and good["trained on synthetic"].synthetic > 0.7
    assert bad["trained on synthetic"].synthetic < bad["trained on synthetic"].reference
    assert bad.search.copies.positions[:40].tolist() == list(range(40)) and bad.compared[:3].tolist() == [
        0,
        1,
        2,
    ]
    planted = good.search.planted
    assert good["planted copies found"].synthetic == sum(planted.values()) / len(planted)
    assert good["planted copies found: moved"].synthetic == planted["moved"]


def test_a_missing_class_costs_coverage_and_recall() -> None:
    train, held, other = part(*TRAIN), part(*HELD), part(*OTHER)
    assert other.labels is not None
    few = other.labels < 5
    report = measure(train, held, Pictures(other.pixels[few]), steps=150)
    assert report["coverage"].synthetic < report["coverage"].reference - 0.1
    assert report["precision"].synthetic > report["precision"].reference - 0.1
    with pytest.raises(StopIteration):
        report["class agreement"]  # no class was asked for


def test_the_nearest_picture_is_found_mirrored_and_shifted() -> None:
    among = torch.rand(60, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    moved = among[[7, 30, 59]].flip(-1).roll((2, -1), (-2, -1))
    distance, position = nearest_pictures(moved, among)
    assert position[:, 0].tolist() == [7, 30, 59] and distance[:, 0].max() < 1e-3
    half = (among[:9, :, :-1] + among[:9, :, 1:]) / 2  # moved by half a row; the last one is repeated
    distance, position = nearest_pictures(torch.cat([half, half[:, :, -1:]], 2), among)
    assert position[:, 0].tolist() == list(range(9)) and distance[:, 0].max() < 1e-3
    plain, where = nearest_pictures(among[:5] + 0.01, among)
    assert where[:, 0].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(plain[:, 0], torch.full((5,), 0.01), atol=1e-3, rtol=0)
    fresh = torch.rand(5, 3, 20, 17, generator=torch.Generator().manual_seed(1))
    apart, where = nearest_pictures(fresh, among)
    assert apart.min() > 0.28 and (apart.diff(dim=1) >= 0).all() and unusual(fresh, among)[0].min() > 0.9
    others, _ = nearest_pictures(among[:5], among, but=torch.arange(5))
    assert others.min() > 0.28  # a picture is not its own neighbour


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_copies_are_found_whatever_their_share_and_fresh_ones_are_not(
    share: float, seed: int
) -> None:
    """At least 95 % of copies that are exact, mirrored, moved or jittered; under 1 % of new real pictures."""
    order = torch.randperm(len(digits()), generator=torch.Generator().manual_seed(seed))
    train, held, fresh = digits().pixels[order].split([800, 400, 597])
    count, among = round(share * len(fresh)), torch.randperm(800, generator=torch.Generator().manual_seed(9))
    for sort, copies in planted(train[among[:count]], 1).items():
        if sort in ("exact", "mirrored", "moved", "jittered", "mirrored, moved and jittered"):
            found = search(train, torch.cat([copies, fresh[count:]]), held, among[:400], seed)
            assert found.copies.flagged[:count].double().mean() >= 0.95, sort
            assert found.copies.flagged[count:].double().mean() < 0.01, sort
            assert found.planted[sort] >= 0.95 and found.reference < 0.01


def test_what_is_planted_is_of_all_classes() -> None:
    grain = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    rich, plain = grain[:200], 0.5 + 0.1 * (grain[200:] - 0.5)  # copies of plain ones drown in jitter
    train, held = torch.cat([rich[:150], plain[:150]]), torch.cat([rich[150:], plain[150:]])
    found = search(train, held, held, torch.arange(300), 0)
    assert found.planted["exact"] == 1 and 0.4 < found.planted["jittered"] < 0.6


def test_the_threshold_lies_between_real_pictures_and_copies_that_can_be_told() -> None:
    far, one = torch.linspace(0.5, 1, 2001), torch.zeros(1)
    told, hidden = torch.linspace(0, 0.2, 21), torch.linspace(0, 0.9, 21)
    assert judged(one, one, far, [told]).threshold == pytest.approx((0.19 + 0.5025) / 2)
    assert judged(one, one, far, [told, hidden]).threshold == pytest.approx((0.19 + 0.5025) / 2)
    assert judged(one, one, far, [hidden]).threshold == pytest.approx(0.5025)


def test_inception_is_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    extractor, why = inception()
    assert extractor is None and why.startswith("Inception features are left out")


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        measure(part(*TRAIN), part(*HELD), Pictures(torch.rand(50, 1, 9, 9)))
    with pytest.raises(ValueError, match="more than 5"):
        measure(part(*TRAIN), part(*HELD), part(0, 4))
