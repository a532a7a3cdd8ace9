"""Reading NIfTI without trust: the header is checked before anything is allocated, the file to its last byte.

nibabel parses the header once the guards here have passed; the voxels are taken from the bytes as they are.
Geometry: Cox et al., *A (sort of) new image data format standard: NIfTI-1* (2004), and nifti1.h.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ...shared.errors import InputError
from .compressed import HEAD, MOST, inflate, inflate_head

SUFFIXES = (".nii.gz", ".nii")
DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""Datatype codes that are read, as numpy names them."""
_OTHER = {1: "1 bit a voxel", 32: "complex", 128: "RGB", 1536: "128 bit", 1792: "complex", 2304: "RGBA"}
_KINDS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"PK\x03\x04": "a zip archive",
    b"NRRD": "an NRRD volume", b"\x89HDF": "an HDF5 file (MINC?)", b"CDF": "a netCDF file (MINC 1?)",
    b"%PDF": "a PDF", b"GIF8": "a GIF picture", b"BM": "a bitmap", b"7z\xbc\xaf": "a 7-Zip archive",
    b"BZh": "bzip2", b"\xfd7zX": "xz", b"(\xb5/\xfd": "zstandard", b"MATL": "a MATLAB file",
}  # fmt: skip
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre to millimetres
_BYTES_OF_HEADER = {348: (352, b"n+1\0"), 540: (544, b"n+2\0\r\n\x1a\n")}


@dataclass(frozen=True)
class Volume:
    """One image as its file holds it.

    Args:
        stored: (X, Y, Z) the file's own numbers, in its own type and byte order; read-only.
        slope, intercept: the image's value is slope * stored + intercept.
        affine: (4, 4) float64, from voxel indices to millimetres in RAS.
        header: nibabel's header, a copy.
        path: the file.
        preamble: the bytes of the file before its voxels, header and extensions; empty when there is no file.
    """

    stored: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    header: Any
    path: Path
    preamble: bytes = b""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def spacing(self) -> np.ndarray:
        """(3,) millimetres between voxels along each axis."""
        return spacing_of(self.affine)

    def values(self) -> np.ndarray:
        """(X, Y, Z) float32, scaled; NaN or infinite where the file is."""
        native = self.stored.astype(self.stored.dtype.newbyteorder("="), copy=False)
        if (self.slope, self.intercept) == (1.0, 0.0):
            return native.astype(np.float32)
        return (native * np.float64(self.slope) + self.intercept).astype(np.float32)


class Geometry(NamedTuple):
    """What the header alone tells: (X, Y, Z), the affine, the stored type."""

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype[Any]


class _Layout(NamedTuple):
    """Where the voxels lie in the bytes."""

    order: str
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def is_nifti(path: Path) -> bool:
    """Whether the name is one of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """The file's name without `.nii`, `.nii.gz` or another suffix."""
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """(3,) the lengths of an affine's first three columns."""
    return np.asarray(np.sqrt((affine[:3, :3] ** 2).sum(0)))


def read_volume(
    path: Path | str, *, assume_spacing: bool = False, missing_nan: bool = False, where: str = ""
) -> Volume:
    """Read and verify one NIfTI file.

    Args:
        path: `.nii` or `.nii.gz`, version 1 or 2, either byte order, 3-D (or 4-D with trailing ones).
        assume_spacing: accept a file that does not say how it lies, or whose voxel size is 0 (then 1 mm).
        missing_nan: take NaN and infinite voxels for missing ones rather than for a fault.
        where: what errors name; the path, if left out.

    Raises:
        InputError: one of `nifti-*` or `gzip-*`, naming the file and what to do.
    """
    path = Path(path)
    where = where or str(path)
    data = _bytes_of(path, where)
    if data[:2] == b"\x1f\x8b":
        _require_suffix(path, ".gz", where)
        most = MOST * len(data)
        whole: bytes | bytearray = inflate(data, lambda head: _layout(head, where, most).end, where)
        layout = _layout(bytes(whole[:HEAD]), where, most)
    else:
        whole, layout = data, _layout(data[:HEAD], where, None)
        _require_suffix(path, ".nii", where)
        if len(whole) != layout.end:
            raise InputError(
                "nifti-length",
                f"the file has {len(whole):,} bytes and its header declares {layout.end:,}",
                where,
                "copy the file again from where it came from",
            )
    preamble = bytes(whole[: layout.offset])
    header = _header(preamble, layout, where)
    slope, intercept = _scaling(header, where)
    affine = _affine(header, layout, assume_spacing, where)
    stored = np.frombuffer(whole, layout.dtype, offset=layout.offset).reshape(layout.shape, order="F")
    stored = stored.reshape(layout.shape[:3], order="F")
    stored.flags.writeable = False
    volume = Volume(stored, slope, intercept, affine, header, path, preamble)
    if not missing_nan:
        _require_finite(volume, where)
    return volume


def read_geometry(path: Path | str, *, assume_spacing: bool = False) -> Geometry:
    """Shape, affine and type from the header alone, checked like `read_volume` does; voxels are not read."""
    path = Path(path)
    where = str(path)
    data = _bytes_of(path, where, most=1 << 16)
    size = path.stat().st_size
    gz = data[:2] == b"\x1f\x8b"
    head = inflate_head(data, where) if gz else data[:HEAD]
    layout = _layout(head, where, MOST * size if gz else size)
    header = _header(head, layout, where, extensions=False)
    return Geometry(layout.shape[:3], _affine(header, layout, assume_spacing, where), layout.dtype)


def _bytes_of(path: Path, where: str, most: int = -1) -> bytes:
    if path.is_dir():
        raise InputError("nifti-folder", "this is a folder, not a file", where, "name one file")
    try:
        with path.open("rb") as file:
            data = file.read(most)
    except OSError as error:
        raise InputError("unreadable", f"the file cannot be read ({error.strerror})", where) from error
    if not data:
        raise InputError("nifti-empty", "the file is empty", where, "copy it again")
    return data


def _require_suffix(path: Path, suffix: str, where: str) -> None:
    if not path.name.lower().endswith(suffix):
        kind = "compressed" if suffix == ".gz" else "not compressed"
        what = f"the file is {kind}, and its name says otherwise"
        raise InputError("nifti-suffix", what, where, f"rename it to end in .nii{suffix.replace('.nii', '')}")


def _detected(data: bytes) -> str:
    """What a file that is not NIfTI seems to be."""
    if data[128:132] == b"DICM":
        return "a DICOM file; give the folder of its series"
    for magic, kind in _KINDS.items():
        if data.startswith(magic):
            return kind
    try:
        text = data.decode("utf-8", errors="strict" if len(data) < HEAD else "ignore")
    except UnicodeDecodeError:
        return "of a kind that is not known"
    return "text" if text and all(c.isprintable() or c in "\r\n\t" for c in text) else "of a kind not known"


def _layout(head: bytes, where: str, most: int | None) -> _Layout:
    """Check the numbers that say how much is to be read.

    Args:
        head: at least 348 (540) bytes, if it is NIfTI.
        most: how many bytes the file can hold; None when its length will be compared exactly.
    """

    def refuse(code: str, what: str, remedy: str = "copy the file again, or export it again") -> InputError:
        return InputError(f"nifti-{code}", what, where, remedy)

    sizes = {order: struct.unpack_from(order + "i", head.ljust(4, b"\0"))[0] for order in "<>"}
    order = next((order for order, size in sizes.items() if size in _BYTES_OF_HEADER), None)
    if order is None:
        raise refuse("not-nifti", f"this is {_detected(head)}, not NIfTI", "give .nii or .nii.gz files")
    first, magic = _BYTES_OF_HEADER[sizes[order]]
    version = 1 if first == 352 else 2
    if len(head) < first - 4:
        raise refuse("short", "the file ends within its header (truncated)")
    if version == 1:
        found = head[344:348]
        dims = struct.unpack_from(order + "8h", head, 40)
        code, bits = struct.unpack_from(order + "2h", head, 70)
        offset = struct.unpack_from(order + "f", head, 108)[0]
    else:
        found = head[4:12]
        code, bits = struct.unpack_from(order + "2h", head, 12)
        dims = struct.unpack_from(order + "8q", head, 16)
        offset = struct.unpack_from(order + "q", head, 168)[0]
    if found[:3] in (b"ni1", b"ni2") or (version == 1 and found == b"\0\0\0\0"):
        raise refuse("pair", "this is half of a .hdr/.img pair", "convert it to .nii.gz")
    if found != magic:
        raise refuse("not-nifti", "the header does not name itself NIfTI")
    if not 1 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : dims[0] + 1]):
        raise refuse("dimensions", f"the header declares the shape {_times(dims[1 : max(dims[0], 3) + 1])}")
    shape = tuple(int(n) for n in dims[1 : dims[0] + 1])
    if len(shape) < 3:
        raise refuse("2d", f"the image is {len(shape)}-D and a volume is expected", "give 3-D volumes")
    if any(n > 1 for n in shape[3:]):
        raise refuse("4d", f"the image is {len(shape)}-D ({_times(shape)})", "split it into 3-D volumes")
    if code not in DTYPES:
        kind = _OTHER.get(code, f"of a type that is not known (code {code})")
        raise refuse("datatype", f"the voxels are {kind}", "convert them to integers or real numbers")
    dtype = np.dtype(order + DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise refuse("bitpix", f"the header declares {bits} bits a voxel for a type of {8 * dtype.itemsize}")
    if not math.isfinite(offset) or offset != int(offset) or not first <= offset <= 2**31:
        raise refuse("offset", "the header does not say properly where the voxels begin")
    layout = _Layout(order, version, shape, dtype, int(offset))
    if most is not None and layout.end > most:
        what = f"the header asks for {_times(shape)} voxels ({layout.end:,} bytes) and the file can hold"
        raise refuse("size", f"{what} {most:,} at most")
    return layout


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _header(preamble: bytes, layout: _Layout, where: str, extensions: bool = True) -> Any:
    """nibabel's header, with the extensions that lie before the voxels."""
    kind: Any = nib.Nifti1Header if layout.version == 1 else nib.Nifti2Header
    first = 352 if layout.version == 1 else 544
    header = kind(preamble[: first - 4], endianness=layout.order, check=False)
    flag = preamble[first - 4 : first]
    if extensions and len(flag) == 4 and flag[0]:
        at = first
        while at < layout.offset:
            size, code = struct.unpack_from(layout.order + "2i", preamble.ljust(at + 8, b"\0"), at)
            if size < 16 or size % 16 or at + size > layout.offset:
                what = "an extension of the header runs beyond where the voxels begin"
                raise InputError("nifti-extension", what, where, "write the file again without it")
            content = preamble[at + 8 : at + size]
            header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
            at += size
    return header


def _scaling(header: Any, where: str) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means none (nifti1.h)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError("nifti-scaling", "the scaling of the values is not finite", where, "export it again")
    return slope, intercept


def _affine(header: Any, layout: _Layout, assume: bool, where: str) -> np.ndarray:
    """Voxel indices to millimetres: sform, else qform, else (when assumed) spacing alone."""

    def refuse(code: str, what: str, remedy: str) -> InputError:
        return InputError(f"nifti-{code}", what, where, remedy)

    option = "pass --assume-spacing if voxels are 1 mm where it does not say otherwise"
    sizes = np.array(header["pixdim"][1:4], np.float64)
    if not np.isfinite(sizes).all():
        raise refuse("spacing", "the voxel size is not a number", "export the file again")
    if (sizes == 0).any() and not assume:
        raise refuse("spacing", "the voxel size is 0", option)
    coded = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    if not coded and not assume:
        raise refuse("orientation", "the file does not say how it lies (sform and qform codes are 0)", option)
    header = header.copy()
    header["pixdim"][1:4] = np.where(sizes == 0, 1.0, np.abs(sizes))
    header["dim"][0] = 3  # trailing ones do not matter here
    try:
        affine = np.array(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise refuse("affine", f"the orientation cannot be made out ({error})", "export it again") from error
    affine[:3] *= _UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    if not np.isfinite(affine).all():
        raise refuse("affine", "the affine has numbers that are NaN or infinite", "export the file again")
    lengths = spacing_of(affine)
    flat = (lengths <= 0).any() or abs(
        np.linalg.det(affine[:3, :3] / np.where(lengths > 0, lengths, 1))
    ) < 1e-3
    if flat:
        raise refuse(
            "affine", "the affine is singular: some axis has no length of its own", "export it again"
        )
    return affine


def _require_finite(volume: Volume, where: str) -> None:
    stored = volume.stored
    plain = stored.dtype.kind != "f" and (volume.slope, volume.intercept) == (1.0, 0.0)
    with np.errstate(over="ignore"):  # float64 beyond float32 counts as infinite
        wrong = 0 if plain else stored.size - int(np.isfinite(volume.values()).sum())
    if wrong:
        nan = int(np.isnan(stored).sum())
        what = f"{nan:,} voxels of {stored.size:,} are NaN and {wrong - nan:,} infinite"
        raise InputError(
            "nifti-not-finite", what, where, "mend them, or pass --missing-nan if they are missing"
        )
