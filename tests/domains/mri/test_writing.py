"""What was not filled comes back bit by bit; what was generated says so; equal voxels give equal bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ebbtide.domains.mri.nifti import read_volume
from ebbtide.domains.mri.writing import (
    COMMENT,
    Synthetic,
    write_bids,
    write_filled,
    write_map,
    write_synthetic,
)


def plain(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def stored(
    path: Path, dtype: str, *, order: str = "<", scaled: bool = False, suffix: str = ".nii.gz"
) -> Path:
    """A file with everything in its header that a writer could lose."""
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    header["descrip"], header["cal_max"], header["intent_name"] = b"as scanned", 99, b"x"
    raw = np.random.default_rng(0).integers(0, 120, (6, 5, 4)).astype(np.dtype(dtype).newbyteorder(order))
    image = nib.Nifti1Image(raw, np.diag([-2.0, 1.5, 3, 1]), header)
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 2)
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT, b"history"))
    data = bytearray(image.to_bytes())
    if scaled:
        data[112:120] = np.array([0.25, -3], np.dtype("f4").newbyteorder(order)).tobytes()
    out = path.with_suffix(suffix)
    out.write_bytes(gzip.compress(bytes(data)) if suffix.endswith("gz") else bytes(data))
    return out


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", "f8", "i8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scaled", [False, True])
def test_outside_the_mask_no_bit_changes(tmp_path: Path, dtype: str, order: str, scaled: bool) -> None:
    volume = read_volume(stored(tmp_path / "in", dtype, order=order, scaled=scaled))
    mask = np.zeros(volume.shape, bool)
    mask[2:4, 1:3, 1:3] = True
    filled = np.where(mask, 7.3, np.nan)  # what lies outside the mask is not looked at
    out = tmp_path / "out.nii.gz"
    assert write_filled(volume, filled, mask, out) == 0
    before, after = plain(volume.path), plain(out)
    assert len(before) == len(after)
    changed = np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(after, "u1"))
    size, first = volume.stored.dtype.itemsize, len(volume.preamble)
    where = np.flatnonzero(mask.ravel(order="F"))
    assert set((changed - first) // size) <= set(where.tolist())
    again = read_volume(out)
    unit = abs(volume.slope) / 2 if np.dtype(dtype).kind in "iu" else 1e-5
    np.testing.assert_allclose(again.values()[mask], 7.3, atol=unit + 1e-5)


def test_values_that_do_not_fit_are_clipped_and_counted(tmp_path: Path) -> None:
    volume = read_volume(stored(tmp_path / "in", "u1"))
    mask = np.zeros(volume.shape, bool)
    mask[0, 0, :] = True
    filled = np.zeros(volume.shape)
    filled[0, 0, :] = [-4, 300, 254.6, 17.5]
    assert write_filled(volume, filled, mask, tmp_path / "out.nii") == 2
    assert read_volume(tmp_path / "out.nii").stored[0, 0].tolist() == [0, 255, 255, 18]
    with pytest.raises(ValueError, match="finite"):
        write_filled(volume, np.full(volume.shape, np.nan), mask, tmp_path / "no.nii")
    assert not (tmp_path / "no.nii").exists()


def test_nan_outside_the_mask_keeps_its_bits(tmp_path: Path, scenes: Any) -> None:
    values = np.ones((4, 4, 4), "f4")
    values.view("u4")[3, 3, 3] = 0x7FC0_1234  # a NaN that carries something
    volume = read_volume(scenes.save(tmp_path / "in.nii", values), missing_nan=True)
    mask = np.zeros(volume.shape, bool)
    mask[0, 0, 0] = True
    write_filled(volume, np.zeros(volume.shape), mask, tmp_path / "out.nii")
    out = read_volume(tmp_path / "out.nii", missing_nan=True).stored
    assert out.view("u4")[3, 3, 3] == 0x7FC0_1234 and out[0, 0, 0] == 0


@pytest.mark.parametrize("order", ["<", ">"])
def test_maps_lie_where_the_volume_lies(tmp_path: Path, order: str) -> None:
    volume = read_volume(stored(tmp_path / "in", "i2", order=order, scaled=True))
    spread = np.random.default_rng(1).random(volume.shape)
    write_map(volume, spread, tmp_path / "std.nii.gz", described="standard deviation")
    write_map(volume, spread > 0.5, tmp_path / "mask.nii.gz", "uint8")
    one, other = read_volume(tmp_path / "std.nii.gz"), read_volume(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(one.values(), spread.astype("f4"))
    np.testing.assert_array_equal(other.values(), spread > 0.5)
    for made in (one, other):
        np.testing.assert_array_equal(made.affine, volume.affine)
        for name in ("sform_code", "qform_code", "xyzt_units", "quatern_b", "qoffset_x"):
            assert made.header[name] == volume.header[name]
        assert not made.header.extensions and b"as scanned" not in made.preamble


def test_equal_voxels_give_equal_bytes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((5, 6, 7)).astype("f4")
    for name in ("a", "b"):
        write_synthetic(array, np.eye(4), tmp_path / f"{name}.nii.gz", {"seed": 3})
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_synthetic_volumes_say_so(tmp_path: Path, dtype: str, scenes: Any) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    spatial = scenes.affine((1, 2, 3), "PSR")
    write_synthetic(array, spatial, tmp_path / "s.nii.gz", {"seed": 3, "model": "ab12"})
    image = nib.load(tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, spatial)
    np.testing.assert_allclose(image.get_qform(), spatial, atol=1e-5)
    header = image.header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm" and header.get_data_dtype() == np.dtype(dtype)
    assert bytes(header["descrip"]).startswith(b"SYNTHETIC")
    extension = header.extensions[0]
    told = json.loads(extension.get_content().rstrip(b"\0"))
    assert extension.get_code() == COMMENT and told["SYNTHETIC"] is True and told["seed"] == 3
    assert json.loads((tmp_path / "s.json").read_text()) == told
    assert read_volume(tmp_path / "s.nii.gz").shape == (3, 4, 5)  # our own reader takes it


def test_a_bids_derivative(tmp_path: Path) -> None:
    def made() -> Any:
        for i in range(2):
            image = np.full((4, 4, 4), i, "f4")
            conditions = {"age": 70.5 + i, "sex": None if i else "F"}
            yield Synthetic({"T1w": image}, conditions, np.ones((4, 4, 4), "u1"), {"seed": 5, "item": i})

    names = write_bids(tmp_path / "out", made(), np.eye(4), {"model": "ab"}, start=9)
    out = tmp_path / "out"
    assert sorted(names) == sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert "sub-syn0009/anat/sub-syn0009_T1w.nii.gz" in names
    assert "sub-syn0010/anat/sub-syn0010_dseg.nii.gz" in names
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "ebbtide"
    assert (out / "participants.tsv").read_text().splitlines() == [
        "participant_id\tage\tsex", "sub-syn0009\t70.5\tF", "sub-syn0010\t71.5\tn/a",
    ]  # fmt: skip
    told = json.loads((out / "sub-syn0010/anat/sub-syn0010_T1w.json").read_text())
    assert told["item"] == 1 and told["conditions"]["age"] == 71.5 and told["model"] == "ab"
    from ebbtide.domains.mri.collection import collect

    found = collect(out)  # what is written is read as what it is
    assert found.layout == "bids" and found.modalities == ("T1w",) and found.covariates == ("age", "sex")
    assert all(subject.segmentation is not None for subject in found)
