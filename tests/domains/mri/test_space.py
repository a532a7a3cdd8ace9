"""To model space and back: exact where grids coincide, near where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from ebbtide.domains.mri.collection import Collection, collect, read_subject
from ebbtide.domains.mri.intensity import Scale, Tones, box, look
from ebbtide.domains.mri.nifti import read_volume
from ebbtide.domains.mri.placing import canonical
from ebbtide.domains.mri.resampling import Line, Resampling
from ebbtide.domains.mri.space import MriSpace
from ebbtide.shared.errors import InputError


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(20 * np.log10(np.ptp(b) / np.sqrt(((a.astype(float) - b) ** 2).mean())))


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory, scenes: Any) -> Collection:
    """Twelve brains, each in another place, size, orientation and brightness."""
    folder = tmp_path_factory.mktemp("brains")
    for i, axes in enumerate(["RAS", "LPS", "PSR", "AIL"] * 3):
        shape = (24 + i % 3, 28, 26 - i % 2)
        values = scenes.brain(shape, i, 0.33, (0.5, 0.46 + 0.01 * (i % 5), 0.5), 100.0 + 30 * i)
        scenes.save(folder / f"s{i:02d}.nii.gz", values, scenes.affine(axes=axes))
    return collect(folder)


@pytest.fixture(scope="module")
def space(brains: Collection) -> MriSpace:
    return MriSpace.fit(brains)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_only_axes_are_moved_where_spacings_agree(brains: Collection, space: MriSpace, which: int) -> None:
    subject = brains.subjects[which]
    volume = read_subject(subject)["image"]
    placed = space.encode({"image": volume})
    assert placed.values.shape == space.shape and placed.values.dtype == np.float32
    back = space.decode(placed.values, placed.frame)["image"]
    inside = space.covered(placed.frame)["image"]
    np.testing.assert_allclose(back[inside], volume.values()[inside], rtol=1e-5, atol=1e-4)
    assert (volume.values()[~inside] == 0).all()  # what the grid leaves out is background


def test_all_orientations_become_one(
    brains: Collection, space: MriSpace, tmp_path: Path, scenes: Any
) -> None:
    values = scenes.brain((24, 28, 26), 3)
    seen = []
    for i, axes in enumerate(["RAS", "LAS", "RPI"]):
        flips = tuple(j for j in range(3) if axes[j] != "RAS"[j])
        path = scenes.save(tmp_path / f"{i}.nii", np.flip(values, flips), scenes.affine(axes=axes))
        seen.append(space.encode({"image": read_volume(path)}).values)
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-6)
    np.testing.assert_allclose(seen[2], seen[0], atol=1e-6)


def test_model_space_is_standard_and_its_background_one_number(brains: Collection, space: MriSpace) -> None:
    values = np.stack([space.encode(read_subject(s)).values for s in brains])
    assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1, abs=1e-3)
    corners = values[:, 0, 0, 0, 0]
    np.testing.assert_allclose(corners, corners[0], atol=1e-6)


def test_the_object_is_centred(brains: Collection, space: MriSpace) -> None:
    for subject in brains:
        inside = space.encode(read_subject(subject)).values[0]
        inside = inside > inside.min() + 0.1
        for axis in range(3):
            lines = np.flatnonzero(inside.any(tuple({0, 1, 2} - {axis})))
            assert abs((lines[0] + lines[-1]) / 2 - (inside.shape[axis] - 1) / 2) <= 1


def test_shapes_are_multiples_of_four_and_hold_the_object(space: MriSpace) -> None:
    assert all(n % 4 == 0 for n in space.size)
    assert all(20 >= n >= 16 for n in space.size)  # objects are 0.66 of 24 to 28
    np.testing.assert_allclose(space.affine @ [*(np.array(space.size) - 1) / 2, 1], [0, 0, 0, 1], atol=1e-9)


def test_a_coarser_grid_averages(tmp_path: Path, scenes: Any) -> None:
    for i in range(3):
        scenes.save(tmp_path / f"{i}.nii.gz", scenes.brain((24, 32, 16), i))
    subjects = collect(tmp_path)
    space = MriSpace.fit(subjects, spacing=4)
    assert space.aligned and space.size == (12, 16, 8)
    volume = read_subject(subjects.subjects[0])["image"]
    placed = space.encode({"image": volume})
    channel, scale = space.channels["image"], placed.frame.images["image"].scale
    blocks = channel.encode(volume.values(), scale).reshape(12, 2, 16, 2, 8, 2).mean((1, 3, 5))
    np.testing.assert_allclose(placed.values[0], blocks, atol=1e-5)
    # The coarse grid covers the fine one: its first voxel's middle lies half a fine voxel further in.
    np.testing.assert_allclose(space.affine[:3, 3], volume.affine[:3, 3] + 1)
    assert psnr(space.decode(placed.values, placed.frame)["image"], volume.values()) > 19


@pytest.mark.parametrize("spacing", [1.4, 2.3, (2.0, 3.1, 2.0)])
def test_resampled_round_trip_is_near(brains: Collection, spacing: Any) -> None:
    space = MriSpace.fit(brains, spacing=spacing)
    volume = read_subject(brains.subjects[2])["image"]
    placed = space.encode({"image": volume})
    np.testing.assert_allclose(space.spacing, np.broadcast_to(spacing, 3))
    assert psnr(space.decode(placed.values, placed.frame)["image"], volume.values()) > 23


def test_images_on_one_grid_stay_on_it(tmp_path: Path, scenes: Any) -> None:
    for i in range(3):
        scenes.save(tmp_path / f"{i}.nii.gz", scenes.brain((24, 28, 20), i, centre=(0.4, 0.5, 0.5)))
    subjects = collect(tmp_path)
    space = MriSpace.fit(subjects)
    assert space.aligned and space.size == (24, 28, 20)
    np.testing.assert_allclose(space.affine, scenes.affine())
    assert not MriSpace.fit(subjects, normalise=True).aligned
    placed = space.encode(read_subject(subjects.subjects[1]))
    assert placed.observed.all()


def test_grids_that_differ_are_not_taken_for_one(brains: Collection) -> None:
    with pytest.raises(InputError, match="mri-grids-differ"):
        MriSpace.fit(brains, normalise=False)


def test_images_without_background_end_where_they_end(tmp_path: Path, scenes: Any) -> None:
    for i in range(8):
        scenes.save(tmp_path / f"{i}.nii.gz", scenes.crop((14 + i % 3, 18, 13), i), scenes.affine((1, 1, 1)))
    subjects = collect(tmp_path)
    space = MriSpace.fit(subjects)
    assert not space.channels["image"].background
    placed = space.encode(read_subject(subjects.subjects[0]))
    assert placed.observed.sum() == 14 * 18 * 13
    assert not placed.values[~placed.observed].any()


def test_background_goes_on_beyond_the_image_but_not_where_the_object_is_cut(
    brains: Collection, space: MriSpace, tmp_path: Path, scenes: Any
) -> None:
    values = scenes.brain((24, 28, 26), 5, 0.33)[:, :, 13:]  # cut through the middle, so open below
    placed = space.encode({"image": read_volume(scenes.save(tmp_path / "cut.nii", values))})
    rows = placed.observed[0].any((0, 1))
    assert rows[-1] and not rows[0]


def test_what_is_hidden_is_not_known_and_not_looked_at(brains: Collection, space: MriSpace) -> None:
    volume = read_subject(brains.subjects[1])["image"]
    hidden = np.zeros(volume.shape, bool)
    hidden[8:13, 10:16, 9:15] = True
    spoilt = volume.values().copy()
    spoilt[hidden] = 1e6
    one = space.encode({"image": volume}, hidden)
    other = space.encode(
        {"image": SimpleNamespace(**vars(volume), shape=volume.shape, values=lambda: spoilt)}, hidden
    )  # type: ignore[dict-item]
    np.testing.assert_array_equal(one.values, other.values)
    assert (~one.observed).sum() == hidden.sum() and not one.values[~one.observed].any()
    back = space.decode(one.values, one.frame)["image"]
    seen = space.covered(one.frame)["image"] & ~hidden
    np.testing.assert_allclose(back[seen], volume.values()[seen], rtol=1e-5, atol=1e-4)


def test_every_second_slice_hidden_does_not_move_the_object(brains: Collection, space: MriSpace) -> None:
    volume = read_subject(brains.subjects[0])["image"]
    hidden = np.zeros(volume.shape, bool)
    hidden[:, :, 1::2] = True
    plain, thick = space.encode({"image": volume}), space.encode({"image": volume}, hidden)
    assert np.abs(plain.frame.affine - thick.frame.affine).max() <= 2 * (1 + 1e-9)  # a voxel at most
    assert thick.observed.mean() == pytest.approx(0.5, abs=0.15)


def test_what_is_known_of_a_coarse_voxel_stands_for_all_of_it(tmp_path: Path, scenes: Any) -> None:
    scenes.save(tmp_path / "a.nii.gz", scenes.brain((24, 32, 16)))
    subjects = collect(tmp_path)
    space = MriSpace.fit(subjects, spacing=4, normalise=False)
    volumes = read_subject(subjects.subjects[0])
    hidden = np.zeros((24, 32, 16), bool)
    hidden[10:12, 20:22, 6] = True  # half of a voxel of the grid
    hidden[14:16, 20:22, 6:8] = True  # all of one
    hidden[15, 20, 8] = hidden[14, 21, 8] = hidden[15, 21, 8] = True
    hidden[14:16, 20, 9] = True  # five eighths of one
    placed = space.encode(volumes, hidden)
    assert np.argwhere(~placed.observed[0]).tolist() == [[7, 10, 3], [7, 10, 4]]
    channel, seat = space.channels["image"], placed.frame.images["image"]
    half = channel.encode(volumes["image"].values()[10:12, 20:22, 7], seat.scale).mean()
    assert placed.values[0, 5, 10, 3] == pytest.approx(half, abs=1e-5)


def test_nan_is_unknown(brains: Collection, space: MriSpace, tmp_path: Path, scenes: Any) -> None:
    values = scenes.brain()
    values[12, 14, 13] = np.nan
    volume = read_volume(scenes.save(tmp_path / "nan.nii", values), missing_nan=True)
    placed = space.encode({"image": volume})
    assert (~placed.observed).sum() == 1 and np.isfinite(placed.values).all()


def test_masks_on_another_grid_are_refused(brains: Collection, space: MriSpace) -> None:
    with pytest.raises(InputError, match="mask-grid"):
        space.encode(read_subject(brains.subjects[0]), np.zeros((3, 3, 3), bool))


def test_modalities_are_channels_and_may_be_missing(tmp_path: Path, scenes: Any) -> None:
    for i in range(5):
        t1 = scenes.brain((24, 28, 26), i)
        scenes.save(tmp_path / f"sub{i}_T1w.nii.gz", t1)
        if i != 2:  # on a coarser grid, as FLAIR often is
            flair = (300 - t1[:, :, ::2]) * (t1[:, :, ::2] > 0)
            scenes.save(tmp_path / f"sub{i}_FLAIR.nii.gz", flair, scenes.affine((2, 2, 4)))
    subjects = collect(tmp_path)
    space = MriSpace.fit(subjects)
    assert space.modalities == ("T1w", "FLAIR") and space.shape[0] == 2
    placed = space.encode(read_subject(subjects.subjects[2]))
    assert placed.observed[0].all() and not placed.observed[1].any()
    decoded = space.decode(placed.values, placed.frame)
    assert decoded["FLAIR"].shape == decoded["T1w"].shape == (24, 28, 26)
    whole = space.encode(read_subject(subjects.subjects[0]))
    assert whole.observed[1].mean() > 0.9
    inside = ndimage.binary_erosion(whole.values[0] > whole.values[0].min() + 0.1, iterations=2)
    assert (
        np.corrcoef(whole.values[0][inside], whole.values[1][inside])[0, 1] < -0.9
    )  # they lie on each other
    with pytest.raises(InputError, match="mri-no-modality"):
        space.encode({})


def test_grids_turned_against_each_other_meet_in_the_world(tmp_path: Path, scenes: Any) -> None:
    """A modality scanned at an angle of 20 degrees lands where the upright one says."""
    for i in range(2):
        scenes.save(tmp_path / f"s{i}_T1w.nii.gz", scenes.brain((30, 30, 30), i))
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    upright = read_volume(tmp_path / "s0_T1w.nii.gz")
    middle = upright.affine @ [14.5, 14.5, 14.5, 1]
    shift, back = np.eye(4), np.eye(4)
    shift[:3, 3], back[:3, 3] = middle[:3], -middle[:3]
    turned = shift @ turn @ back @ upright.affine
    values = Resampling(upright.shape, upright.shape, np.linalg.inv(upright.affine) @ turned).apply(
        upright.values()
    )
    scenes.save(tmp_path / "s0_T2w.nii.gz", values, turned)
    subjects = collect(tmp_path)
    space = MriSpace.fit(subjects)
    placed = space.encode(read_subject(subjects.subjects[0]))
    one, other = (
        c.decode(v, Scale(0, 200)) for v, c in zip(placed.values, space.channels.values(), strict=True)
    )
    both = placed.observed.all(0)
    assert np.corrcoef(one[both], other[both])[0, 1] > 0.98


def test_labels_follow_by_the_nearest_voxel(
    brains: Collection, space: MriSpace, tmp_path: Path, scenes: Any
) -> None:
    volume = read_subject(brains.subjects[2])["image"]
    labels = (volume.values() > 0).astype("u1") * 3
    segmentation = read_volume(scenes.save(tmp_path / "seg.nii.gz", labels, volume.affine, "u1"))
    placed = space.encode({"image": volume})
    laid = space.encode_labels(segmentation, placed.frame)
    assert laid.dtype.kind == "i" and set(np.unique(laid)) == {0, 3}
    inside = placed.values[0] > placed.values[0].min() + 0.01
    np.testing.assert_array_equal(laid > 0, inside)


def test_generated_volumes_have_the_data_s_type_and_range(tmp_path: Path, scenes: Any) -> None:
    for i in range(4):
        scenes.save(tmp_path / f"{i}.nii.gz", scenes.brain((24, 28, 20), i), dtype="u1")
    space = MriSpace.fit(collect(tmp_path))
    noise = np.random.default_rng(0).normal(0, 30, space.shape)
    made = space.decode_generated(noise)["image"]
    assert made.dtype == np.uint8 and made.min() == 0 and made.max() == 255


def test_what_is_saved_comes_back(brains: Collection, space: MriSpace) -> None:
    config, tensors = space.state()
    again = MriSpace.from_state(json.loads(json.dumps(config)), tensors)
    volumes = read_subject(brains.subjects[3])
    one, other = space.encode(volumes), again.encode(volumes)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(
        space.decode_generated(one.values)["image"], again.decode_generated(one.values)["image"]
    )
    assert again == again and again.modalities == space.modalities


# --- the pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("step, start", [(2.0, 0.5), (3.0, 1.0), (-2.0, 10.5), (1.7, 0.2), (2.5, 1.0)])
def test_a_coarser_line_keeps_constants_and_means(step: float, start: float) -> None:
    line = Line.between(12, 4, step, start)
    np.testing.assert_allclose(line.weight.sum(1), 1)
    ramp = np.arange(12.0)
    want = start + step * np.arange(4)
    inside = (want - abs(step) / 2 > -0.5) & (want + abs(step) / 2 < 11.5)
    assert inside.sum() >= 2
    # The mean of a ramp over an interval is its middle, wherever it begins, but for a fraction of a voxel.
    tolerance = 1e-6 if step == round(step) else 0.13
    np.testing.assert_allclose(line.apply(ramp, 0)[inside], want[inside], atol=tolerance)


def test_a_coarser_voxel_weighs_by_what_it_covers() -> None:
    line = Line.between(12, 2, 2.5, 0.75)  # from -0.5 to 2, and on to 4.5
    np.testing.assert_allclose(line.weight @ np.ones(line.weight.shape[1]), 1)
    unit = np.eye(12)
    weights = np.stack([line.apply(unit[i], 0) for i in range(6)], 1)
    np.testing.assert_allclose(weights, [[0.4, 0.4, 0.2, 0, 0, 0], [0, 0, 0.2, 0.4, 0.4, 0]], atol=1e-6)


@pytest.mark.parametrize("spacing", [0.7, 1.0, 2.5, 3.3])
def test_whatever_takes_part_is_touched(spacing: float) -> None:
    matrix = np.diag([spacing, -spacing, spacing, 1.0])
    matrix[:3, 3] = [0.3, 11.2, 0.8]
    onto = Resampling((12, 12, 12), (4, 4, 4), matrix)
    for seed in range(20):
        mask = np.zeros((12, 12, 12), bool)
        mask[tuple(np.random.default_rng(seed).integers(0, 12, 3))] = True
        np.testing.assert_array_equal(onto.touches(mask), onto.apply(mask) > 1e-7)


@pytest.mark.parametrize("step, start", [(1.0, 3.0), (-1.0, 9.0), (0.5, 0.25), (0.8, 1.1), (1.0, 0.3)])
def test_a_finer_line_is_linear(step: float, start: float) -> None:
    line = Line.between(12, 8, step, start)
    np.testing.assert_allclose(
        line.apply(3 * np.arange(12.0), 0), 3 * (start + step * np.arange(8)), atol=1e-5
    )


def test_scale_is_undone_far_beyond_its_knees() -> None:
    scale = Scale(10.0, 110.0)
    raw = np.array([-1e5, -300, -39, -40, 10, 60, 110, 160, 161, 1e6])
    np.testing.assert_allclose(scale.decode(scale.encode(raw)), raw, rtol=2e-5)
    assert (np.diff(scale.encode(np.linspace(-1000, 2000, 5000))) > 0).all()
    np.testing.assert_allclose(scale.encode(np.array([10.0, 110])), [0, 1])


def test_background_is_told_from_tissue(scenes: Any) -> None:
    assert look(scenes.brain()).background and not look(scenes.crop()).background
    noisy = scenes.brain() + np.abs(np.random.default_rng(0).normal(0, 4, (24, 28, 26))).astype("f4")
    seen = look(noisy)
    assert seen.background and seen.dark < 8 and not seen.open.any()
    assert (seen.object == (scenes.brain() > 0)).mean() > 0.98


def test_specks_do_not_stretch_the_box(scenes: Any) -> None:
    inside = scenes.brain() > 0
    want = box(inside)
    inside[0, 0, 0] = inside[-1, -1, -1] = True
    np.testing.assert_array_equal(box(inside), want)


def test_what_is_hidden_does_not_cut_the_box(scenes: Any) -> None:
    inside = scenes.brain((30, 30, 30), radius=0.25, centre=(0.35, 0.5, 0.6)) > 0
    hidden = np.zeros(inside.shape, bool)
    hidden[:, :, 15:20] = True
    assert np.abs(box(inside & ~hidden, hidden) - box(inside)).max() <= 1


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "SLA", "ILP"])
def test_canonical_axes_point_right_anterior_superior(axes: str, scenes: Any) -> None:
    spatial = scenes.affine((1, 2, 3), axes)
    turned = spatial @ canonical(spatial, (4, 5, 6))
    assert (np.diag(turned)[:3] > 0).all() and np.count_nonzero(np.abs(turned[:3, :3]) > 1e-9) == 3


def test_tones_give_samples_the_distribution_of_the_data() -> None:
    """Gaussian samples become as bounded as the uniform data are, and none overtakes another."""
    rng = np.random.default_rng(0)
    real, made = rng.uniform(-1, 1, 20_000), rng.normal(0, 0.8, (3, 1, 20, 20, 20)).astype(np.float32)
    toned = Tones.between([made.ravel()], [real])(made)
    order = np.argsort(made.ravel())
    assert (np.diff(toned.ravel()[order]) >= 0).all()
    assert abs(toned).max() <= 1 and toned.dtype == np.float32
    levels = np.linspace(0.01, 0.99, 50)
    assert np.allclose(np.quantile(toned, levels), np.quantile(real, levels), atol=0.01)
