"""Everything wrong with a collection is told at once, with the file, and nothing that is right is."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from ebbtide.domains.mri.checking import check
from ebbtide.domains.mri.intensity import look
from ebbtide.domains.mri.slices import bad_slices, numbers
from ebbtide.shared.errors import Fault


def textured(scenes: Any, seed: int, shape: tuple[int, int, int] = (30, 34, 32)) -> np.ndarray:
    """A brain with noise, as every real one has."""
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    values = scenes.brain(shape, seed)
    return np.where(values > 0, values + noise, 0).astype("f4")


@pytest.fixture
def folder(tmp_path: Path, scenes: Any) -> Path:
    """Ten sound scans with labels and covariates."""
    rows = ["participant_id\tage"]
    for i in range(10):
        scenes.save(tmp_path / "images" / f"s{i}.nii.gz", textured(scenes, i))
        scenes.save(tmp_path / "labels" / f"s{i}.nii.gz", textured(scenes, i) > 100, dtype="u1")
        rows.append(f"s{i}\t{50 + i}")
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def found(path: Path, **options: Any) -> dict[str, list[Fault]]:
    """Faults by code, without what was assumed."""
    out: dict[str, list[Fault]] = {}
    for fault in check(path, **options):
        if fault.code != "assumed":
            out.setdefault(fault.code, []).append(fault)
    return out


def test_nothing_is_wrong_with_sound_scans(folder: Path) -> None:
    assert found(folder) == {}
    assert [str(f.code) for f in check(folder)] == ["assumed"]  # the table of covariates


def test_everything_is_told_at_once(folder: Path, scenes: Any) -> None:
    images, labels = folder / "images", folder / "labels"
    damaged = bytearray((images / "s0.nii.gz").read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (images / "s0.nii.gz").write_bytes(damaged)
    scenes.save(images / "s1.nii.gz", np.stack([textured(scenes, 1)] * 2, 3))
    scenes.save(images / "s2.nii.gz", np.full((30, 34, 32), 7.0))
    (images / "s3.nii.gz").write_bytes((images / "s4.nii.gz").read_bytes())
    scenes.save(images / "s5.nii.gz", textured(scenes, 5) * 90)
    scenes.save(labels / "s6.nii.gz", textured(scenes, 6)[:-2] > 100, dtype="u1")
    far = scenes.affine()
    far[:3, 3] += 5000
    scenes.save(labels / "s7.nii.gz", textured(scenes, 7) > 100, far, "u1")
    scenes.save(labels / "s8.nii.gz", textured(scenes, 8) / 100)
    blank = textured(scenes, 9)
    blank[:, 17] = 0
    scenes.save(images / "s9.nii.gz", blank)
    (folder / "participants.tsv").write_text("participant_id\tage\ns1\t5\n")
    faults = found(folder)
    severities = {code: sorted(f.severity for f in all_of) for code, all_of in faults.items()}
    assert severities == {
        "gzip-damaged": ["error"], "nifti-4d": ["error"], "constant": ["error"], "mask-values": ["error"],
        "mask-grid": ["error", "warning"], "duplicate": ["warning"], "bad-slices": ["warning"],
        "covariates-missing": ["warning"], "odd-intensities": ["warning"],
    }  # fmt: skip
    assert "s0.nii.gz" in faults["gzip-damaged"][0].where
    assert "axis 1 (front-back), slices 17 are blank" in faults["bad-slices"][0].what
    assert "s4.nii.gz" in str(faults["duplicate"][0]) and "s3.nii.gz" in str(faults["duplicate"][0])
    assert faults["odd-intensities"][0].where.startswith("s5.nii.gz")  # the farthest first
    listed = [fault.severity for fault in check(folder)]
    assert listed == sorted(listed)  # errors before warnings


def test_mixed_grids_are_told_with_what_mends_them(folder: Path, scenes: Any) -> None:
    scenes.save(folder / "images" / "s3.nii.gz", textured(scenes, 3), scenes.affine((2, 2, 3), "LPS"))
    faults = found(folder)
    spacing = faults["mixed-spacing"][0]
    assert "2 x 2 x 2 to 2 x 2 x 3 mm" in spacing.what and "--spacing" in spacing.remedy
    assert "9 RAS, 1 LPS" in faults["mixed-orientation"][0].what


def test_few_subjects_and_missing_modalities(tmp_path: Path, scenes: Any) -> None:
    for i in range(3):
        scenes.save(tmp_path / f"s{i}_T1w.nii.gz", textured(scenes, i))
    scenes.save(tmp_path / "s0_FLAIR.nii.gz", textured(scenes, 9))
    faults = found(tmp_path)
    assert "3 subjects" in faults["few"][0].what and "heart" in faults["few"][0].what
    assert "2 of 3 subjects have no FLAIR image (s1, s2)" in faults["modality-missing"][0].what


def test_a_collection_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert list(found(tmp_path)) == ["mri-nothing"]
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"not a volume at all"))
    assert {"nifti-not-nifti", "few"} == set(found(tmp_path))


def test_missing_voxels_are_counted(folder: Path, scenes: Any) -> None:
    values = textured(scenes, 2)
    values[15, 15, 10:13] = np.nan
    scenes.save(folder / "images" / "s2.nii.gz", values)
    assert "3 voxels" in found(folder)["nifti-not-finite"][0].what
    assert "3 voxels" in found(folder, missing_nan=True)["missing-voxels"][0].what


# --- slices --------------------------------------------------------------------------------------


def blank(plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(plane)


def mixed(plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(plane.ravel()).reshape(plane.shape)


def brighter(plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return plane * 1.6


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spoil", [blank, mixed, brighter])
def test_a_spoilt_slice_is_found_and_no_other(scenes: Any, axis: int, spoil: Any) -> None:
    values = textured(scenes, axis)
    planes = np.moveaxis(values, axis, 0)
    planes[14] = spoil(planes[14], np.random.default_rng(0))
    bad = bad_slices(values, look(values).object)
    assert [(b.axis, b.all) for b in bad] == [(axis, (14,))]
    assert bool(bad[0].blank) == (spoil is blank)


@pytest.mark.parametrize("seed", range(6))
def test_sound_scans_have_no_bad_slices(scenes: Any, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 5, (20, 24, 22)).astype("f4")
    for values in (textured(scenes, seed), scenes.crop((20, 24, 22), seed) + noise):
        assert bad_slices(values, look(values).object) == []


def test_an_image_made_finer_by_interpolation_is_sound(scenes: Any) -> None:
    coarse = textured(scenes, 3, (20, 22, 24))
    for factor in (2, 3):
        values = ndimage.zoom(coarse, factor, order=1)
        assert bad_slices(values, look(values).object) == []


def test_slices_are_written_as_people_do() -> None:
    assert numbers((3, 5, 6, 7, 9)) == "3, 5-7, 9"
