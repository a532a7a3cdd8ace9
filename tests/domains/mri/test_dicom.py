"""DICOM series: slices in order, left and posterior turned, and every gap named."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.domains.mri.collection import collect, read_subject
from ebbtide.shared.errors import InputError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: E402

ACROSS, DOWN = [1.0, 0, 0], [0, np.cos(0.3), -np.sin(0.3)]  # oblique coronal


def series(
    folder: Path,
    depths: list[float],
    *,
    series_uid: str = "1.2.3",
    description: str = "t1_mprage_sag",
    number: int = 1,
    **changes: Any,
) -> np.ndarray:
    """Write slices at these depths in shuffled files; gives (rows, columns, slices) pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 900, (6, 5, len(depths))).astype("i2")
    normal = np.cross(ACROSS, DOWN)
    for i in np.random.default_rng(1).permutation(len(depths)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = changes.get("syntax", ExplicitVRLittleEndian)
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"{series_uid}{i}"])
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.PatientName, data.Modality = "Secret^Name", "MR"
        data.SeriesInstanceUID, data.SeriesNumber, data.SeriesDescription = series_uid, number, description
        data.ContentDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
        data.ImageOrientationPatient = [*ACROSS, *[float(f"{v:.8f}") for v in DOWN]]
        data.ImagePositionPatient = [float(f"{v:.8f}") for v in np.array([10.0, 20, 30]) + depths[i] * normal]
        data.PixelSpacing, data.SliceThickness = [1.5, 2.0], 3.0
        data.Rows, data.Columns, data.SamplesPerPixel = 6, 5, 1
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.RescaleSlope, data.RescaleIntercept = changes.get("slopes", [2.0] * len(depths))[i], -10
        if "frames" in changes:
            data.NumberOfFrames = changes["frames"]
        plane = np.ascontiguousarray(pixels[:, :, i]).tobytes()[: changes.get("keep")]
        data.PixelData = encapsulate([plane]) if "syntax" in changes else plane
        data.save_as(folder / f"IM{number}_{i:03d}.dcm", enforce_file_format=True)
    return pixels


def test_a_series_is_a_volume_in_the_right_place(tmp_path: Path) -> None:
    pixels = series(tmp_path, [7.5, 0.0, 2.5, 5.0])
    found = collect(tmp_path)
    assert found.layout == "dicom" and found.modalities == ("T1w",) and len(found) == 1
    assert "Secret" not in repr(found)
    volume = read_subject(found.subjects[0])["T1w"]
    in_order = pixels[:, :, [1, 2, 3, 0]].transpose(1, 0, 2)
    np.testing.assert_array_equal(volume.stored, in_order)
    np.testing.assert_allclose(volume.values(), in_order * 2.0 - 10)
    np.testing.assert_allclose(volume.spacing, [2.0, 1.5, 2.5], atol=1e-5)
    # Column 3, row 2, slice 1 by the standard's equation, then left and posterior turned.
    lps = np.array([10.0, 20, 30]) + 3 * 2.0 * np.array(ACROSS) + 2 * 1.5 * np.array(DOWN)
    lps = lps + 2.5 * np.cross(ACROSS, DOWN)
    np.testing.assert_allclose((volume.affine @ [3, 2, 1, 1])[:3], lps * [-1, -1, 1], atol=1e-5)


def test_several_series_of_one_folder(tmp_path: Path) -> None:
    series(tmp_path / "p1", [0, 1, 2])
    series(tmp_path / "p1", [0, 3, 6, 9], series_uid="1.2.4", description="AX FLAIR", number=2)
    series(tmp_path / "p2", [0, 1, 2], series_uid="1.2.5")
    series(tmp_path / "p2", [0, 2, 4], series_uid="1.2.6", number=7)
    found = collect(tmp_path)
    assert {s.name: sorted(s.images) for s in found} == {
        "p1": ["FLAIR", "T1w"], "p2": ["T1w"], "p2_series7": ["T1w"],
    }  # fmt: skip
    assert read_subject(found.subjects[0])["FLAIR"].spacing[2] == pytest.approx(3)
    assert read_subject(found.subjects[2])["T1w"].spacing[2] == pytest.approx(2)


@pytest.mark.parametrize(
    "depths, changes, code",
    [
        ([0, 1, 2, 4, 5], {}, "dicom-missing-slice"),
        ([0, 1, 2.3, 3.3, 4.3], {}, "dicom-uneven"),
        ([0, 1, 1, 2, 3], {}, "dicom-repeated"),
        ([0, 1, 2], {"syntax": "1.2.840.10008.1.2.4.90"}, "dicom-codec"),
        ([0, 1, 2], {"frames": 4}, "dicom-multiframe"),
        ([0, 1, 2], {"keep": 20}, "dicom-damaged"),
    ],
)
def test_faults_have_names(tmp_path: Path, depths: list[float], changes: Any, code: str) -> None:
    series(tmp_path, depths, **changes)
    with pytest.raises(InputError) as raised:
        read_subject(collect(tmp_path).subjects[0])
    assert raised.value.fault.code == code and "Secret" not in str(raised.value)


def test_a_missing_slice_is_told_by_its_neighbours(tmp_path: Path) -> None:
    series(tmp_path, [0, 1, 2, 4, 5])
    with pytest.raises(InputError, match=r"between IM1_002\.dcm and IM1_003\.dcm"):
        read_subject(collect(tmp_path).subjects[0])


def test_slices_with_scales_of_their_own(tmp_path: Path) -> None:
    pixels = series(tmp_path, [0, 1, 2], slopes=[1.0, 2.0, 4.0])
    values = read_subject(collect(tmp_path).subjects[0])["T1w"].values()
    np.testing.assert_allclose(values, pixels.transpose(1, 0, 2) * [1.0, 2, 4] - 10)
