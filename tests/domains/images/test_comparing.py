"""Synthetic pictures beside real ones: what is said of good ones, of copies, and of sets without classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ebbtide.domains import Comparison, Measures
from ebbtide.domains.images import ImageDomain
from ebbtide.domains.images.collection import Collection, collect
from ebbtide.domains.images.comparing import _copying, compare
from ebbtide.domains.images.copied import CopySearch
from ebbtide.domains.images.measures import Report
from ebbtide.shared.errors import InputError
from ebbtide.shared.measures import Copies


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 digits of 8 x 8, shuffled, and their classes."""
    images, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order].reshape(-1, 8, 8) * 15.9).astype(np.uint8), target[order]


def saved(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Collection:
    held = {"images": images} if labels is None else {"images": images, "labels": labels}
    np.savez(path, **held)
    return collect(path)


def judged(folder: Path, digits: tuple[np.ndarray, np.ndarray], copies: int, held: bool) -> Comparison:
    """600 real ones, 300 others that pass for synthetic, some of them copies with little noise."""
    x, y = digits
    fake, labels = x[600:900].copy(), y[600:900].copy()
    noise = np.random.default_rng(1).integers(-4, 5, (copies, 8, 8))
    fake[:copies] = (x[:copies] + noise).clip(0, 255)
    labels[:copies] = y[:copies]
    real, synthetic = saved(folder / "a.npz", x[:600], y[:600]), saved(folder / "b.npz", fake, labels)
    holdout = saved(folder / "c.npz", x[900:1200], y[900:1200]) if held else None
    return compare(real, synthetic, holdout, steps=120)


def test_pictures_as_good_as_real_ones_are_said_to_be(
    tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    found = judged(tmp_path, digits, copies=0, held=True)
    assert found.verdict["fidelity"][0] == "Much like the real ones"
    assert found.verdict["privacy"][0] == "No copies found"
    assert found.verdict["utility"][0] == "Nearly as useful as real ones"
    assert found.reference == "held-out pictures" and found.facts["levels"]["privacy"] == "good"
    figures = {figure.name: figure for part in found.figures.values() for figure in part}
    assert figures["copies in pixels"].synthetic < 0.04 and figures["class agreement"].synthetic > 0.8
    for png in (*found.pictures.values(), *found.internal.values()):
        assert Image.open(io.BytesIO(png)).size[0] > 200
    assert len(found.internal) == 2 and not set(found.pictures) & set(found.internal)
    assert isinstance(ImageDomain(), Measures)


def test_copies_are_found_without_a_holdout(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    found = judged(tmp_path, digits, copies=60, held=False)
    assert found.verdict["privacy"][0] == "Some may be copies" and found.facts["levels"]["privacy"] == "bad"
    assert 60 <= found.facts["copies"]["flagged"] < 80
    assert found.facts["planted_copies_found"]["jittered"] >= 0.95


def test_what_cannot_be_assessed_is_said(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    real, synthetic = saved(tmp_path / "a.npz", x[:100], y[:100]), saved(tmp_path / "b.npz", x[100:150])
    found = compare(real, synthetic, None, steps=10)
    assert found.verdict["utility"][0] == "Not assessed" and not found.figures["utility"]
    assert {fault.where for fault in found.faults} == {"REAL", "SYNTHETIC"}
    few = saved(tmp_path / "c.npz", x[:5])
    with pytest.raises(InputError, match="few-pictures"):
        compare(real, few, None)


def test_thousands_of_copies_are_called_copies() -> None:
    distances = torch.linspace(0.0, 1.0, 4000)
    copies = Copies(distances, torch.arange(4000), 0.75, distances < 0.75, 0.01)
    title, words = _copying(Report({}, (), CopySearch(copies, 0.0, {"moved": 1.0}), torch.arange(4000)))
    assert title == "Some may be copies" and words[0].startswith("3000 of 4000")
