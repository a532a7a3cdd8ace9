"""Whatever is wrong with a file is named, and nothing that differs from what was written is ever accepted."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ebbtide.domains.mri.compressed import deflate, inflate
from ebbtide.domains.mri.nifti import read_geometry, read_volume
from ebbtide.shared.errors import InputError

AFFINE = np.array([[0, 0, 2.0, -9], [-1.5, 0, 0, 14], [0, 1.2, 0, -12], [0, 0, 0, 1]])  # axes P, S, R


def image(
    dtype: str = "<i2", shape: tuple[int, ...] = (5, 6, 7), version: int = 1, extension: bytes = b""
) -> bytes:
    """A NIfTI file, uncompressed."""
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(
        endianness="<" if np.dtype(dtype).byteorder in "<|=" else ">"
    )
    header.set_data_dtype(np.dtype(dtype))
    values = (np.arange(np.prod(shape)).reshape(shape) % 100).astype(dtype)
    made = kind(values, AFFINE, header)
    if extension:
        made.header.extensions.append(nib.nifti1.Nifti1Extension(6, extension))
    return bytes(made.to_bytes())


def put(folder: Path, data: bytes, name: str = "a.nii") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def changed(data: bytes, at: int, layout: str, *values: float) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, at, *values)
    return bytes(out)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", ">i4", "<f4", ">f4", "<f8", "<i8", "<u8"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_type_order_version_and_packing(tmp_path: Path, dtype: str, version: int, suffix: str) -> None:
    data = image(dtype, version=version, extension=b"kept")
    path = put(tmp_path, gzip.compress(data) if suffix.endswith("gz") else data, "a" + suffix)
    volume, told = read_volume(path), nib.load(path)
    assert volume.stored.dtype == told.get_data_dtype()
    np.testing.assert_array_equal(volume.values(), told.get_fdata())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.header.extensions[0].get_content().rstrip(b"\0") == b"kept"
    assert data.startswith(volume.preamble) and len(data) == len(volume.preamble) + volume.stored.nbytes
    geometry = read_geometry(path)
    assert geometry.shape == volume.shape and geometry.dtype == volume.stored.dtype
    np.testing.assert_array_equal(geometry.affine, volume.affine)


def test_scaling_is_applied_and_nan_slope_means_none(tmp_path: Path) -> None:
    data = changed(image(), 112, "<2f", 0.5, -3.0)
    volume = read_volume(put(tmp_path, data))
    np.testing.assert_allclose(volume.values(), volume.stored * 0.5 - 3)
    plain = read_volume(put(tmp_path, changed(image(), 112, "<2f", np.nan, 4.0)))
    np.testing.assert_array_equal(plain.values(), plain.stored)


def test_units_become_millimetres(tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, changed(image(), 123, "<B", 3)))  # micrometres
    np.testing.assert_allclose(volume.spacing, [0.0015, 0.0012, 0.002])


def test_trailing_ones_are_dropped(tmp_path: Path) -> None:
    assert read_volume(put(tmp_path, image(shape=(4, 5, 6, 1)))).shape == (4, 5, 6)


PACKED = gzip.compress(image("u1", (3, 4, 5)), mtime=0)


def accepted(data: bytes) -> np.ndarray | None:
    """The bytes that come out, or None when the file is refused."""
    try:
        return np.frombuffer(bytes(inflate(data, lambda head: 352 + 60, "a")), "u1")
    except InputError:
        return None


def test_of_all_single_bit_flips_those_accepted_change_nothing() -> None:
    whole = accepted(PACKED)
    assert whole is not None
    survivors = []
    for bit in range(8 * len(PACKED)):
        flipped = bytearray(PACKED)
        flipped[bit // 8] ^= 1 << bit % 8
        out = accepted(bytes(flipped))
        if out is not None:
            survivors.append(bit)
            np.testing.assert_array_equal(out, whole)
    # What is left: marks of speed and system in the header (bytes 8 and 9), which say nothing; and, within a
    # run of zeros, "go back 1" for "go back 2", which are two ways to write the same bytes.
    assert {bit // 8 for bit in survivors if bit < 80} <= {8, 9}
    assert len(survivors) <= 0.02 * 8 * len(PACKED)


def test_bits_that_no_code_uses_must_be_as_they_were_written() -> None:
    """The last byte of the compressed stream ends in unused bits, which no decompressor looks at."""
    unused = 0
    for n in range(8):
        data = bytearray(gzip.compress(b"voxels" * n + bytes(range(40 + n)), mtime=0))
        data[-9] ^= 0x80
        unused += decompresses(bytes(data))
        with pytest.raises(InputError, match="gzip-damaged"):
            inflate(bytes(data), lambda head, n=n: 40 + 7 * n, "a")
    assert unused >= 3  # of eight: in so many the bit is one that others accept


def decompresses(data: bytes) -> bool:
    try:
        return bool(gzip.decompress(data))
    except (OSError, zlib.error, EOFError):
        return False


def test_flips_of_a_file_are_refused_by_the_reader(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (16, 16, 16)).astype("u1")
    data = gzip.compress(nib.Nifti1Image(values, AFFINE).to_bytes(), mtime=0)
    for bit in rng.integers(8 * 400, 8 * len(data), 300):  # in the voxels; of the rest the last test tells
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << int(bit) % 8
        with pytest.raises(InputError, match=r"a\.nii\.gz"):
            read_volume(put(tmp_path, bytes(flipped), "a.nii.gz"))


@pytest.mark.parametrize("keep", [0, 1, 17, 100, len(PACKED) - 9, len(PACKED) - 8, len(PACKED) - 1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        read_volume(put(tmp_path, PACKED[:keep], "a.nii.gz"))


def test_bytes_behind_the_stream_and_behind_the_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="belong to nothing"):
        read_volume(put(tmp_path, PACKED + b"\0" * 512, "a.nii.gz"))
    bomb = gzip.compress(image("u1", (3, 4, 5)) + bytes(200_000_000), 1)
    with pytest.raises(InputError, match="gzip-tail"):
        read_volume(put(tmp_path, bomb, "a.nii.gz"))


def test_several_members_are_one_file(tmp_path: Path) -> None:
    data = image()
    path = put(tmp_path, gzip.compress(data[:300]) + gzip.compress(data[300:]), "a.nii.gz")
    np.testing.assert_array_equal(read_volume(path).stored, nib.load(path).dataobj)


def test_packing_is_deterministic_and_read_by_others() -> None:
    data = image()
    assert deflate(data) == deflate(data)
    assert gzip.decompress(deflate(data)) == data


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_asks_for_more_than_there_can_be(tmp_path: Path, suffix: str) -> None:
    data = changed(image(), 40, "<4h", 3, 32767, 32767, 32767)
    data = gzip.compress(data) if suffix.endswith("gz") else data
    with pytest.raises(InputError, match=r"hold|declares"):
        read_volume(put(tmp_path, data, "a" + suffix))
    with pytest.raises(InputError, match="hold"):
        read_geometry(tmp_path / ("a" + suffix))


def dims(*values: int) -> Callable[[bytes], bytes]:
    return lambda data: changed(data, 40, f"<{len(values)}h", *values)


FAULTY = {
    "nifti-dimensions": [dims(3, 5, -6, 7), dims(3, 5, 0, 7), dims(0, 5, 6, 7), dims(9, 5, 6, 7)],
    "nifti-2d": [dims(2, 5, 42)],
    "nifti-4d": [dims(4, 5, 6, 1, 7)],
    "nifti-datatype": [lambda d: changed(d, 70, "<h", 128), lambda d: changed(d, 70, "<h", 99)],
    "nifti-bitpix": [lambda d: changed(d, 72, "<h", 8)],
    "nifti-offset": [lambda d, v=v: changed(d, 108, "<f", v) for v in (np.nan, 100.0, -1.0, 352.5, 1e30)],
    "nifti-length": [lambda d: d[:-1], lambda d: d + b"\0"],
    "nifti-extension": [lambda d: changed(changed(d, 348, "<B", 1), 108, "<f", 352.0 + 16)],
    "nifti-affine": [
        lambda d: changed(d, 280, "<f", np.nan),
        lambda d: changed(d, 296, "<4f", 0, 0, 0, 0),
    ],
    "nifti-scaling": [lambda d: changed(d, 112, "<f", np.inf)],
    "nifti-orientation": [lambda d: changed(d, 252, "<2h", 0, 0)],
    "nifti-spacing": [lambda d: changed(d, 80, "<f", 0.0), lambda d: changed(d, 80, "<f", np.nan)],
    "nifti-pair": [lambda d: changed(d, 344, "4s", b"ni1\0")],  # type: ignore[arg-type]
    "nifti-not-nifti": [lambda d: changed(d, 344, "4s", b"abcd"), lambda d: b"name,age\n1,2\n"],  # type: ignore[arg-type]
    "nifti-short": [lambda d: d[:200]],
    "nifti-empty": [lambda d: b""],
}


@pytest.mark.parametrize(
    "code, change", [(code, change) for code, changes in FAULTY.items() for change in changes]
)
def test_faults_have_names(tmp_path: Path, code: str, change: Callable[[bytes], bytes]) -> None:
    data = change(image())
    if code == "nifti-extension":
        data = data[:352] + struct.pack("<2i", 400, 6) + bytes(8) + data[352:]
    with pytest.raises(InputError) as raised:
        read_volume(put(tmp_path, data))
    assert raised.value.fault.code == code
    assert str(tmp_path) in str(raised.value)


def test_spacing_may_be_assumed(tmp_path: Path) -> None:
    data = changed(changed(image(), 252, "<2h", 0, 0), 80, "<f", 0.0)
    with pytest.raises(InputError, match="assume-spacing"):
        read_volume(put(tmp_path, data))
    np.testing.assert_allclose(read_volume(put(tmp_path, data), assume_spacing=True).spacing, [1, 1.2, 2])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_voxels_that_are_no_numbers_are_counted(tmp_path: Path, wrong: float) -> None:
    data = image("<f8")
    data = changed(changed(data, 352, "<d", wrong), 352 + 80, "<d", np.nan)
    with pytest.raises(InputError, match="of 210 are NaN"):
        read_volume(put(tmp_path, data))
    with np.errstate(over="ignore"):
        assert (~np.isfinite(read_volume(put(tmp_path, data), missing_nan=True).values())).sum() == 2


@pytest.mark.parametrize(
    "data, said",
    [(b"\x89PNG\r\n\x1a\n" + bytes(900), "PNG"), (bytes(128) + b"DICM" + bytes(900), "DICOM"),
     (b"age\tsex\n" * 200, "text"), (bytes(range(256)) * 4, "not known")],
)  # fmt: skip
def test_other_files_are_recognised(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_volume(put(tmp_path, data))


def test_names_that_lie(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nifti-suffix.*\.nii$"):
        read_volume(put(tmp_path, image(), "a.nii.gz"))
    with pytest.raises(InputError, match=r"nifti-suffix.*\.nii\.gz$"):
        read_volume(put(tmp_path, gzip.compress(image()), "a.nii"))
