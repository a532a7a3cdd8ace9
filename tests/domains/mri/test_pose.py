"""A common pose: known motions are found, what was observed stays, and the model remembers the mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ebbtide.domains import Request
from ebbtide.domains.mri.collection import collect, read_subject
from ebbtide.domains.mri.filling import fill_subject
from ebbtide.domains.mri.holes import parse_holes
from ebbtide.domains.mri.model import FittedScans
from ebbtide.domains.mri.pose import Low, Pose, low_grid, roomy
from ebbtide.domains.mri.space import MriSpace
from ebbtide.shared.grids import GridSettings

SHAPE, STEP = (24, 28, 26), np.full(3, 4.0)
TINY = GridSettings(
    widths=(8, 12), components=3, folds=2, steps=4, batch_size=4, held_out=0.2, sampler_steps=4, patience=None
)


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def head(
    turn: np.ndarray, shift: np.ndarray, shape: tuple[int, ...], spacing: float, seed: int = 0
) -> np.ndarray:
    """An ellipsoid with lobes that none of its axes mirrors, turned (degrees about each axis) and shifted
    (mm), sampled from its formula: nothing is interpolated."""
    rng = np.random.default_rng(seed)
    points = (np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * spacing
    x = (points - shift) @ Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    inside = 1 / (1 + np.exp(np.minimum(4 * (np.linalg.norm(x / (34, 44, 38), axis=1) - 1) * 9, 50)))
    for centre in ((14, 20, 8), (-16, 12, -10), (4, -24, 14), (10, -8, -20), (-12, -14, 16)):
        inside = inside * (1 - 0.6 * np.exp(-np.sum((x - centre) ** 2, 1) / (2 * 8.0**2)))
    grain = 1 + 0.03 * ndimage.gaussian_filter(rng.standard_normal(shape), 1)
    return (inside.reshape(shape) * grain).astype(np.float32)


def low(values: np.ndarray) -> dict[str, Low]:
    return {"T1w": Low(values, np.ones(values.shape, bool))}


def off(found: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> tuple[float, float]:
    """Degrees and millimetres between a pose and the truth."""
    truth = Rotation.from_euler("xyz", turn, degrees=True)
    apart = (Rotation.from_matrix(found[:3, :3]) * truth.inv()).magnitude()
    return float(np.degrees(apart)), float(np.abs(found[:3, 3] - shift).max())


@pytest.mark.parametrize("seed", range(6))
def test_a_known_motion_is_found(seed: int) -> None:
    """Within 1 degree and half a voxel, whatever the brightness, with a hole, and the same every time."""
    rng = np.random.default_rng(seed)
    turn, shift = rng.uniform(-15, 15, 3), rng.uniform(-8, 8, 3)
    pose = Pose(STEP, {"T1w": head(np.zeros(3), np.zeros(3), SHAPE, 4.0).astype(np.float64)})
    moved = 3.5 * head(turn, shift, roomy(SHAPE), 4.0, seed=9) + 0.4
    found = pose.found(low(moved))
    degrees, away = off(found, turn, shift)
    assert degrees < 1 and away < 2
    assert np.array_equal(found, pose.found(low(moved)))
    known = np.ones(moved.shape, bool)
    known[10:18, 14:22, 8:16] = False
    degrees, away = off(pose.found({"T1w": Low(np.where(known, moved, 0), known)}), turn, shift)
    assert degrees < 1 and away < 2


def test_scans_are_laid_on_each_other() -> None:
    """Without a mean to begin with; the poses are told up to one that all have in common."""
    rng = np.random.default_rng(1)
    turns, shifts = rng.uniform(-12, 12, (8, 3)), rng.uniform(-6, 6, (8, 3))
    scans = [low(head(t, s, roomy(SHAPE), 4.0, seed=i)) for i, (t, s) in enumerate(zip(turns, shifts))]  # noqa: B905
    pose = Pose.fit(scans, SHAPE, STEP)
    found = [pose.found(scan)[:3, :3] for scan in scans]
    truth = [Rotation.from_euler("xyz", t, degrees=True).as_matrix() for t in turns]
    apart = [
        np.degrees(Rotation.from_matrix(found[i] @ found[0].T @ (truth[i] @ truth[0].T).T).magnitude())
        for i in range(1, 8)
    ]
    assert max(apart) < 1.5
    middle = tuple(slice(3, n - 3) for n in SHAPE)
    sharp, blurred = pose.means["T1w"][middle].std(), np.mean([s["T1w"].values for s in scans], 0)
    room = tuple(slice((a - b) // 2 + 3, (a + b) // 2 - 3) for a, b in zip(roomy(SHAPE), SHAPE, strict=True))
    assert sharp > 1.03 * blurred[room].std()


def test_what_makes_no_sense_is_not_believed() -> None:
    pose = Pose(STEP, {"T1w": head(np.zeros(3), np.zeros(3), SHAPE, 4.0).astype(np.float64)})
    blank = np.zeros(roomy(SHAPE), np.float32)
    assert np.array_equal(pose.found(low(blank)), np.eye(4))
    far = pose.found(low(head(np.array([0, 0, 120.0]), np.zeros(3), roomy(SHAPE), 4.0)))
    assert Rotation.from_matrix(far[:3, :3]).magnitude() < np.pi / 4


def test_low_resolution_is_never_finer() -> None:
    assert low_grid((20, 24, 22), np.full(3, 4.0)) == ((20, 24, 22), pytest.approx(np.full(3, 4.0)))
    shape, step = low_grid((80, 96, 80), np.full(3, 2.0))
    assert shape == (34, 40, 34) and step == pytest.approx(np.full(3, 4.8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scenes: SimpleNamespace) -> Path:
    """Eight heads, each in its own pose, on one grid."""
    root, rng = tmp_path_factory.mktemp("turned"), np.random.default_rng(3)
    for i in range(8):
        turn, shift = rng.uniform(-12, 12, 3), rng.uniform(-4, 4, 3)
        values = 180 * head(turn, shift, (32, 36, 32), 4.0, seed=i)
        scenes.save(
            root / f"sub{i}_T1w.nii.gz", np.where(values > 6, values, 0), scenes.affine((4, 4, 4)), "u1"
        )
    return root


def test_scans_of_one_pose_are_more_alike(folder: Path) -> None:
    """Turned, the mean of all tells more of each."""
    subjects = list(collect(folder))
    left = {}
    for pose in (False, True):
        space = MriSpace.fit(subjects, pose=pose, normalise=None if pose else True)
        images = np.stack([space.encode(read_subject(subject)).values for subject in subjects])
        left[pose] = float(images.var(0).mean() / images.var())
    assert left[True] < 0.5 * left[False], left


def test_only_the_hole_changes_and_comes_back_from_the_folder(folder: Path, tmp_path: Path) -> None:
    subjects = list(collect(folder))
    settings = replace(TINY, held_out=0.01)  # nobody: there is nothing to calibrate
    fitted = FittedScans.fit(subjects, pose=True, settings=settings, device="cpu")
    fitted.save(tmp_path / "model")
    again, subject = FittedScans.load(tmp_path / "model"), subjects[2]
    volumes, holes = read_subject(subject), parse_holes(("box:12-19,14-21,12-19",))
    image = fill_subject(again, subject, volumes, holes, Request(draws=2))[0]
    own = volumes["T1w"].values()
    assert image.mask.sum() == 8 * 8 * 8
    assert np.array_equal(image.values[~image.mask], own[~image.mask])
    centre = own[image.mask].mean()
    assert abs(image.values[image.mask] - own[image.mask]).mean() < 0.5 * centre
    frames = [one.encode(subject).frame.affine for one in (fitted, again)]
    assert np.allclose(*frames, atol=0.02)
    turned = frames[0][:3, :3] / 4
    assert np.allclose(turned.T @ turned, np.eye(3), atol=1e-6)
    assert 0.02 < Rotation.from_matrix(turned).magnitude() < 0.5
