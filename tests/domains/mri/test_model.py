"""A model of scans: what it hides, what it keeps, what it tells of itself. Trained for a few steps only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ebbtide.domains import Request
from ebbtide.domains.mri.augmentation import ScanAugmentation
from ebbtide.domains.mri.collection import Collection, Subject, collect, read_image, read_subject
from ebbtide.domains.mri.filling import detailed, fill_subject, point
from ebbtide.domains.mri.holes import Holes, parse_holes
from ebbtide.domains.mri.membership import attacked
from ebbtide.domains.mri.model import FittedScans
from ebbtide.domains.mri.nifti import Volume
from ebbtide.domains.mri.plans import FEWEST_STEPS, in_time
from ebbtide.domains.mri.presets import PRESETS, recommended
from ebbtide.domains.mri.space import MriSpace
from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.errors import InputError
from ebbtide.shared.grids import GridModel, GridSettings, step_bytes
from ebbtide.shared.noise import Keys

TINY = GridSettings(
    widths=(8, 12), components=3, folds=2, steps=4, batch_size=4, held_out=0.2, sampler_steps=4, patience=None
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scenes: SimpleNamespace) -> Path:
    """Ten brains in two modalities (one lacks the second), with label maps and ages."""
    root = tmp_path_factory.mktemp("scans")
    for i in range(10):
        values = scenes.brain((16, 18, 16), seed=i)
        scenes.save(root / f"sub{i:02d}_T1w.nii.gz", values)
        if i != 4:
            scenes.save(root / f"sub{i:02d}_T2w.nii.gz", np.where(values > 0, 250 - values, 0), dtype="i2")
        scenes.save(root / f"sub{i:02d}_dseg.nii.gz", values > 150, dtype="u1")
    rows = "\n".join(f"sub{i:02d}\t{40 + i}\t{'F' if i % 2 else 'M'}" for i in range(10))
    (root / "participants.tsv").write_text(f"participant_id\tage\tsex\n{rows}\n")
    return root


@pytest.fixture(scope="module")
def scans(folder: Path) -> Collection:
    return collect(folder)


@pytest.fixture(scope="module")
def fitted(scans: Collection) -> FittedScans:
    torch.set_default_dtype(torch.float32)
    return FittedScans.fit(list(scans), conditions=["age", "sex"], settings=TINY, device="cpu")


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def filled(fitted: FittedScans, scans: Collection, which: int, *words: str, draws: int = 3):  # type: ignore[no-untyped-def]
    subject = scans.subjects[which]
    return fill_subject(fitted, subject, read_subject(subject), parse_holes(words), Request(draws=draws))


def test_images_are_channels_and_labels_are_told(fitted: FittedScans) -> None:
    assert fitted.space.modalities == ("T1w", "T2w") and fitted.labels == (1,)
    assert fitted.shape == (2, 16, 20, 16) and fitted.model.form.covariates == 3
    assert fitted.model.form.context == 1
    assert fitted.can == ("generate", "impute")


def test_a_label_map_changes_the_image_and_none_is_none(fitted: FittedScans) -> None:
    keys = Keys.range(0, 2)
    assert fitted.shapes is not None
    maps = fitted.shapes.draw(keys)
    with_maps, other = (fitted.generate(keys, [{}, {}], labels=one, steps=3) for one in (maps, 1 - maps))
    assert not torch.equal(with_maps, other)
    blank = fitted.generate(keys, [{}, {}], steps=3)
    nothing = fitted.model.generate(
        keys,
        replace(fitted.condition([{}, {}]), channels=torch.zeros(2, 1, 16, 20, 16)),
        sampler=fitted.model.sampler(3),
    )
    assert fitted.tones is not None
    nothing = torch.from_numpy(fitted.tones(nothing.numpy()))
    assert torch.equal(blank, nothing) and not torch.equal(blank, with_maps)


def test_a_label_map_of_ones_own_lies_where_those_of_training_lay(
    fitted: FittedScans, scans: Collection
) -> None:
    """Turned and flipped on disk, it lies in the model as the upright one does."""
    subject = scans.subjects[0]
    assert subject.segmentation is not None and fitted.shapes is not None
    volume = read_image(subject.segmentation)
    placed = fitted.placed(volume)
    own = fitted.encode(subject).labels
    assert own is not None and placed.shape == own[0].shape
    overlap = 2 * (placed.bool() & own[0].bool()).sum() / (placed.bool().sum() + own[0].bool().sum())
    assert overlap > 0.9
    with pytest.raises(InputError, match="labels-unknown"):
        fitted.placed(replace(volume, stored=np.full_like(volume.stored, 7)))


def test_only_the_hole_changes(fitted: FittedScans, scans: Collection) -> None:
    first, second = filled(fitted, scans, 0, "box:5-9,6-10,4-8")
    for image in (first, second):
        own = image.volume.values()
        assert image.mask.sum() == 125 and np.array_equal(image.values[~image.mask], own[~image.mask])
        assert (image.std[image.mask] > 0).all() and not image.std[~image.mask].any()
        assert not np.array_equal(image.values[image.mask], own[image.mask])
    assert {first.modality, second.modality} == {"T1w", "T2w"}


def test_what_is_hidden_is_not_looked_at(
    fitted: FittedScans, scans: Collection, scenes: SimpleNamespace, tmp_path: Path
) -> None:
    subject = scans.subjects[0]
    volumes = read_subject(subject)
    holes = parse_holes(["slices:2:7-9"])
    spoilt = {}
    for name, volume in volumes.items():
        values = volume.values().copy()
        values[:, :, 7:10] = 9000 if name == "T1w" else 3000
        path = scenes.save(tmp_path / f"{name}.nii.gz", values, volume.affine)
        spoilt[name] = read_subject(type(subject)("sub00", {name: path}))[name]
    a = fill_subject(fitted, subject, volumes, holes, Request(draws=2))
    b = fill_subject(fitted, subject, spoilt, holes, Request(draws=2))
    for x, y in zip(a, b, strict=True):
        assert np.allclose(x.values[x.mask], y.values[y.mask], rtol=1e-4, atol=1e-2)


def test_a_modality_that_is_missing_is_made(fitted: FittedScans, scans: Collection) -> None:
    (made,) = filled(fitted, scans, 4)
    assert made.modality == "T2w" and not made.measured and made.mask.all()
    assert made.values.dtype == np.float32 and made.values.shape == (16, 18, 16)


def test_the_only_image_needs_no_name(fitted: FittedScans, scans: Collection) -> None:
    volumes = read_subject(scans.subjects[0])
    assert fitted.named(volumes) is volumes  # two modalities: names decide
    space = replace(fitted.space, channels={"T1w": fitted.space.channels["T1w"]})
    single = replace(fitted, space=space)
    assert list(single.named({"image": volumes["T1w"]})) == ["T1w"]
    assert list(single.named({"T2w": volumes["T2w"]})) == ["T2w"]


def test_nothing_missing_nothing_filled(fitted: FittedScans, scans: Collection) -> None:
    assert filled(fitted, scans, 0) == []


def test_draws_do_not_depend_on_how_many_there_are(fitted: FittedScans, scans: Collection) -> None:
    few, many = (filled(fitted, scans, 1, "slices:0:8", draws=n)[0].draws for n in (1, 4))
    assert np.array_equal(few[0], many[0])


def test_thick_slices_keep_what_was_measured(fitted: FittedScans, scans: Collection) -> None:
    subject = scans.subjects[2]
    volumes = read_subject(subject)
    made = fill_subject(fitted, subject, volumes, parse_holes(["thick:2:2"]), Request(draws=1))
    for image in made:
        assert image.values.shape == (16, 18, 31)
        assert np.array_equal(image.values[..., ::2], volumes[image.modality].values())


def test_saved_scans_come_back(fitted: FittedScans, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    again = FittedScans.load(tmp_path / "model")
    assert again.labels == fitted.labels and again.covariates == fitted.covariates
    assert np.allclose(again.space.affine, fitted.space.affine)
    assert any("age" in line for line in again.description)
    keys = Keys.range(0, 2)
    a, b = (m.generate(keys, [{"age": 45.0}, {}], steps=3) for m in (fitted, again))
    assert a.shape == (2, 2, 16, 20, 16) and (a - b).abs().mean() < 0.05
    assert set(fitted.images(a[0])) == {"T1w", "T2w"}
    assert fitted.shapes is not None and again.shapes is not None
    maps, same = fitted.shapes.draw(keys), again.shapes.draw(keys)
    assert (maps != same).float().mean() < 0.01


def test_a_modality_that_few_have_reaches_as_far_as_theirs(scenes: SimpleNamespace, tmp_path: Path) -> None:
    for i in range(6):
        values = scenes.brain((16, 18, 16), seed=i) + 5.0
        scenes.save(tmp_path / f"sub{i:02d}_T1w.nii.gz", values)
        if i < 2:
            scenes.save(tmp_path / f"sub{i:02d}_T2w.nii.gz", 250 - values, dtype="i2")
    model = FittedScans.fit(list(collect(tmp_path)), settings=replace(TINY, steps=1), device="cpu")
    assert model.reached is not None and (model.reached.flatten(1).float().mean(1) > 0.5).all()


def test_what_no_training_image_reached_is_dark(fitted: FittedScans, tmp_path: Path) -> None:
    assert fitted.reached is not None and fitted.reached.shape == (2, 16, 20, 16)
    reached = torch.ones(2, 16, 20, 16, dtype=torch.bool)
    reached[:, :, :, 13:] = False
    cut = replace(fitted, reached=reached)
    cut.save(tmp_path / "model")
    again = FittedScans.load(tmp_path / "model")
    assert again.reached is not None and torch.equal(again.reached, reached)
    reached[0, :4, :, :13] = False
    box, affine = replace(fitted, reached=reached).frame
    assert box == (slice(0, 16), slice(0, 20), slice(0, 13))  # the other modality reaches further
    assert np.array_equal(affine, fitted.space.affine)
    for name, image in replace(fitted, reached=reached).images(torch.full((2, 16, 20, 16), 2.0)).items():
        low = fitted.space.channels[name].scale.low
        dark = image[:4] if name == "T1w" else image[:0]
        assert image.shape == (16, 20, 13) and np.allclose(dark, low, atol=1)
        assert (image[4:] > low + 10).all()
    reached[1, :4] = False
    box, affine = replace(fitted, reached=reached).frame
    assert box[0] == slice(4, 16)
    assert np.allclose(affine @ [0, 0, 0, 1], fitted.space.affine @ [4, 0, 0, 1])


def test_too_few_and_damaged_are_refused(scans: Collection, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="few-scans"):
        FittedScans.fit(list(scans)[:2], settings=TINY, device="cpu")
    damaged = bytearray((folder / "sub00_T1w.nii.gz").read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "a_T1w.nii.gz").write_bytes(damaged)
    bad = list(scans)[1:4] + list(collect(tmp_path))
    with pytest.raises(InputError, match="a_T1w"):
        FittedScans.fit(bad, settings=TINY, device="cpu")


def test_a_grid_too_fine_for_the_machine_is_made_coarser_in_one_look(scans: Collection) -> None:
    looked = []

    def read(path: Path) -> Volume:
        looked.append(path)
        return read_image(path)

    fine = MriSpace.fit(list(scans), read=read)
    once = len(looked)
    coarse = MriSpace.fit(list(scans), most=1000, read=read)
    assert len(looked) == 2 * once
    assert np.prod(coarse.size) <= 1000 and np.allclose(coarse.spacing, 2 * fine.spacing)
    asked = MriSpace.fit(list(scans), spacing=2.0, most=1000)
    assert np.allclose(asked.spacing, 2)
    assert recommended((1, 8, 8, 8), 30, "cpu").widths == (40, 80, 112)


def test_a_volume_that_does_not_fit_is_seen_through_windows() -> None:
    """Small ones whole, larger ones whole but packed twice, and those beyond the memory in windows."""
    for preset, chosen in PRESETS.items():
        for size, patch in ((40, None), (100, None), (520, chosen.patch)):
            if preset != "cpu" and size == 520:
                continue  # those are modelled in latents
            shape = (1, size, size, size)
            settings = recommended(shape, 40, preset)
            fine = replace(settings, levels=1, patch=None, batch_size=1, checkpointing=False)
            assert (settings.patch is None) == (step_bytes(fine, shape) <= chosen.memory)
            assert settings.patch == patch and settings.levels == (2 if size == 100 else 1)
    limits = [recommended((1, n, n, n), 40, "cpu").time_limit for n in (40, 100)]
    assert limits == [600.0, None]  # who asks for a finer grid asks for the time
    seen = recommended((1, 160, 192, 160), 40, "cpu")
    assert seen.patch == 48 and seen.batch_size == 2  # as many as fit
    assert step_bytes(seen, (1, 160, 192, 160)) <= PRESETS["cpu"].memory
    assert step_bytes(replace(seen, batch_size=3), (1, 160, 192, 160)) > PRESETS["cpu"].memory


def test_a_plan_keeps_its_time_on_a_slow_machine() -> None:
    """Fewer steps, yet not too few; what is quick enough, or has no limit, stays."""
    settings = GridSettings(steps=1000, time_limit=600.0)
    for minutes, steps, told in ((8.0, 1000, 8.0), (20.0, 500, 10.0), (100.0, FEWEST_STEPS, 10.0)):
        found, estimate = in_time(settings, {"minutes": minutes, "memory_mb": 900.0})
        assert found == replace(settings, steps=steps) and estimate == {"minutes": told, "memory_mb": 900.0}
    free = replace(settings, time_limit=None)
    assert in_time(free, {"minutes": 90.0}) == (free, {"minutes": 90.0})


def test_a_model_says_that_its_time_ran_out(fitted: FittedScans) -> None:
    half = replace(fitted.model.settings, steps=100)
    for steps, ending, codes in ((40, "time", ["stopped-early"]), (60, "time", []), (40, "patience", [])):
        model = GridModel(half, fitted.model.form, fitted.model.denoiser)
        told = replace(fitted, model=model, about={**fitted.about, "steps": steps, "ending": ending})
        assert [fault.code for fault in told.warnings] == codes


def test_large_volumes_are_modelled_in_latents() -> None:
    small, large = (recommended((1, n, 128, 128), 30, "80gb") for n in (127, 128))
    assert recommended((1, 160, 192, 160), 30, "cpu").latent == 0  # an autoencoder takes long there
    assert small.latent == 0 and large.latent == 4 and large.levels == 1
    assert large.batch_size > 1 and "autoencoder" in large.notes[0]


def test_points_of_draws() -> None:
    told = np.array([[2.5], [0.0], [1.0], [5.0]])  # the mean, then draws
    assert point(told, "mean") == 2.5 and point(told, "median") == 1 and point(told, "sample") == 0


def test_detail_is_carried_into_a_hole_and_its_error_is_known() -> None:
    """An image that its model sees one unit too dark, with noise of a known size beside."""
    rng = np.random.default_rng(0)
    decoded = np.zeros((2, 24, 24, 24), np.float32)
    own = (1 + 0.3 * rng.normal(size=decoded.shape[1:])).astype(np.float32)
    known = np.ones(own.shape, bool)
    known[:, :, 1::2] = False
    made, off = detailed(decoded, own, known, np.ones(3))
    assert np.array_equal(made[:, known], decoded[:, known]) and not off[known].any()
    inner = (slice(None), *(slice(5, 19),) * 3)
    carried = made[inner][:, ~known[inner[1:]]]
    assert carried.mean() == pytest.approx(1, abs=0.08)
    # the error of a mean of about twenty noisy neighbours against one noisy voxel
    truth = own[~known & (off > 0)]
    assert off[inner[1:]][~known[inner[1:]]].mean() == pytest.approx(np.std(truth), rel=0.2)
    same, nothing = detailed(own[None], own, known, np.ones(3))
    assert np.array_equal(same[0], own) and not nothing.any()


def test_augmentation_moves_values_and_what_is_observed_alike() -> None:
    change = ScanAugmentation((-1.0,), (2.0,), mirror=0.5, move=1.0, tone=0.0, shift=0.2)
    x = torch.full((6, 2, 12, 12, 12), -1.0)
    x[:, 0, 4:8, 3:9, 5:9] = 1.5
    x[:, 1] = (x[:, 0] > 0).float()
    moved, done = change(Keys.range(0, 6), x)
    assert done[:, 1].all() and 0 < done[:, 0].sum() < 6
    # what comes in from outside is air, and observed; all that is observed besides is inside
    inside = (moved[:, 1] > 0.999) & (moved[:, 0] > -0.99)
    assert inside.any() and (moved[:, 0][inside] - 1.5).abs().max() < 0.01
    assert not torch.allclose(moved, x)
    # a mirror is its own inverse, and a tone leaves air as it is
    mirror = ScanAugmentation((-1.0,), (2.0,), mirror=1.0, move=0.0, tone=0.0)
    assert torch.equal(mirror(Keys.range(0, 6), x)[0].flip(2), x)
    tone = ScanAugmentation((-1.0,), (2.0,), mirror=0.0, move=0.0, tone=1.0)
    toned = tone(Keys.range(0, 6), x)[0]
    assert torch.equal(toned[:, 1], x[:, 1]) and (toned[:, 0][x[:, 0] < 0] == -1).all()
    assert not torch.equal(toned[:, 0], x[:, 0])


def test_a_hole_is_a_hole() -> None:
    assert not Holes() and parse_holes(["slices:0:1"])


def remembering(fitted: FittedScans, scans: list[Subject]) -> FittedScans:
    """The same model around a centre whose components are the very scans, less their mean."""
    x = torch.cat([fitted.encode(scan).known.values for scan in scans])
    rest = (x - x.mean(0)).flatten(1).T / len(x) ** 0.5
    centre = GaussianCentre(x.mean(0), rest, torch.full((len(rest),), 0.01))
    core = fitted.model.core
    return replace(fitted, model=GridModel.untrained(core.settings, core.form, centre))


def test_a_model_that_saw_somebody_fills_them_in_better(
    fitted: FittedScans, scans: Collection, scenes: SimpleNamespace, tmp_path: Path
) -> None:
    for i in range(30, 38):
        values = scenes.brain((16, 18, 16), seed=i)
        scenes.save(tmp_path / f"sub{i:02d}_T1w.nii.gz", values)
        scenes.save(tmp_path / f"sub{i:02d}_T2w.nii.gz", np.where(values > 0, 250 - values, 0), dtype="i2")
        scenes.save(tmp_path / f"sub{i:02d}_dseg.nii.gz", values > 150, dtype="u1")
    fresh = list(collect(tmp_path))
    found = attacked(remembering(fitted, list(scans)), list(scans), fresh, 0, read_image)
    assert found.told and found.area > 0.7
    assert found.error == pytest.approx(((10 + 8 + 1) / (12 * 10 * 8)) ** 0.5)
    nobody = attacked(fitted, fresh[:4], fresh[4:], 0, read_image)
    assert not nobody.told and nobody.figure().best == 0.5
    swapped = attacked(remembering(fitted, list(scans)), fresh, list(scans), 0, read_image)
    assert swapped.area == pytest.approx(1 - found.area)
