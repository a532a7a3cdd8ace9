"""DICOM series to volumes: slices in order along their normal, with every gap named.

Only files with one frame and pixels that need no codec are read (RLE is pydicom's own); for the rest
`dcm2niix` makes NIfTI. Geometry: DICOM PS3.3, C.7.6.2.1.1 (image position and orientation, in LPS).
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import InputError
from .headers import new_header
from .names import MODALITIES, UNKNOWN
from .nifti import Volume

_PLAIN = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
}  # fmt: skip
"""Transfer syntaxes without a codec: implicit, explicit (both orders), deflated, and RLE."""
_TAGS = [
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip
_EVEN = 0.02  # of the step between slices; more is unevenness, and half a step more a gap


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Args:
        number: of the series, as the scanner counts. modality: from its description, or `image`.
        files: in one folder; not in the order of the slices.
    """

    number: int
    modality: str
    files: tuple[Path, ...]


def find_series(files: Sequence[Path]) -> list[Series]:
    """Sort files into series, by folder and series; files that are not images are left out."""
    pydicom = _pydicom(files[0])
    found: dict[tuple[Path, str], list[tuple[Path, Any]]] = defaultdict(list)
    for file in files:
        try:
            data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        except (pydicom.errors.InvalidDicomError, OSError):
            continue
        if "Rows" in data and "SeriesInstanceUID" in data:
            found[file.parent, str(data.SeriesInstanceUID)].append((file, data))
    series = []
    for members in found.values():
        first = members[0][1]
        series.append(
            Series(
                int(first.get("SeriesNumber") or 0), _modality(first), tuple(sorted(f for f, _ in members))
            )
        )
    return sorted(series, key=lambda s: (s.files[0].parent, s.number, s.files[0]))


def read_series_of(path: Path) -> Volume:
    """The series that a file belongs to, with the files of the same folder.

    Raises:
        InputError: one of `dicom-*`, or `no-dicom` when pydicom is not installed.
    """
    siblings = [file for file in sorted(path.parent.iterdir()) if is_dicom(file)]
    if not is_dicom(path):
        raise InputError("dicom-not-dicom", "this is neither NIfTI nor DICOM", str(path), "give images")
    return next(read_series(series) for series in find_series(siblings) if path in series.files)


def read_series(series: Series) -> Volume:
    """All slices of a series as one volume; errors as in `read_series_of`."""
    where = str(series.files[0].parent)
    slices = [_slice(file, where) for file in series.files]
    _require_alike(slices, where)
    across, down, normal = _directions(slices[0])
    depth = np.array([np.dot(_numbers(s, "ImagePositionPatient"), normal) for s in slices])
    order = np.argsort(depth, kind="stable")
    slices, files = [slices[i] for i in order], [series.files[i] for i in order]
    _require_even(depth[order], files, where)
    first, last = (_numbers(s, "ImagePositionPatient") for s in (slices[0], slices[-1]))
    step = (last - first) / (len(slices) - 1) if len(slices) > 1 else normal * _thickness(slices[0], where)
    rows, columns = _numbers(slices[0], "PixelSpacing")
    affine = np.eye(4)
    affine[:3] = np.stack([across * columns, down * rows, step, first], 1)
    affine[:2] *= -1  # left and posterior to right and anterior
    stored, slope, intercept = _pixels(slices, files)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9):
        raise _refuse("geometry", "position, orientation or spacing of the slices is not valid", where)
    header = new_header(stored.shape, stored.dtype, affine)
    return Volume(stored, slope, intercept, affine, header, series.files[0])


def is_dicom(file: Path) -> bool:
    """Whether a file has DICOM's mark."""
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _pydicom(path: Path) -> Any:
    try:
        return importlib.import_module("pydicom")
    except ImportError as error:
        remedy = "pip install 'ebbtide[dicom]'"
        raise InputError("no-dicom", "pydicom is needed to read DICOM", str(path.parent), remedy) from error


def _refuse(code: str, what: str, where: str, remedy: str = "convert the series with dcm2niix") -> InputError:
    return InputError(f"dicom-{code}", what, where, remedy)


def _modality(data: Any) -> str:
    """From the words of the description; contrast agents and other words are not guessed at."""
    text = f"{data.get('SeriesDescription', '')} {data.get('ProtocolName', '')}".lower()
    return next((MODALITIES[word] for word in re.findall(r"[a-z0-9]+", text) if word in MODALITIES), UNKNOWN)


def _slice(file: Path, where: str) -> Any:
    pydicom = _pydicom(file)
    try:
        data = pydicom.dcmread(file)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise _refuse("damaged", "the file cannot be read to its end", str(file), "copy it again") from error
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise _refuse("multiframe", "the file holds several frames (enhanced DICOM)", str(file))
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax not in _PLAIN:
        name = getattr(syntax, "name", "unknown")
        raise _refuse("codec", f"the pixels are compressed ({name})", where)
    if int(data.get("SamplesPerPixel") or 1) != 1:
        raise _refuse("colour", "the pixels are coloured", str(file), "give the series itself, not a report")
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if not data.get(tag):
            raise _refuse("geometry", f"{tag} is missing, so where the slice lies is not known", str(file))
    return data


def _numbers(data: Any, tag: str) -> np.ndarray:
    return np.array([float(v) for v in data[tag].value])


def _require_alike(slices: Sequence[Any], where: str) -> None:
    """All slices have one size, spacing and orientation."""
    first = slices[0]
    for tag, what, tolerance in (
        ("ImageOrientationPatient", "orientations", 1e-3),
        ("PixelSpacing", "pixel spacings", 1e-3),
    ):
        if any(np.abs(_numbers(s, tag) - _numbers(first, tag)).max() > tolerance for s in slices):
            raise _refuse("mixed", f"the slices have several {what} (a localizer?)", where, "leave it out")
    if len({(s.Rows, s.Columns) for s in slices}) > 1:
        raise _refuse("mixed", "the slices have several sizes", where, "leave the series out")


def _directions(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, down a column, and across the slices."""
    cosines = _numbers(data, "ImageOrientationPatient")
    across, down = cosines[:3], cosines[3:]
    return across, down, np.cross(across, down)


def _require_even(depth: np.ndarray, files: Sequence[Path], where: str) -> None:
    """Every slice follows the last at one step."""
    if len(depth) < 3:
        return
    steps = np.diff(depth)
    step = float(np.median(steps))
    if step < 1e-4 or (steps < 0.1 * step).any():
        same = int(np.argmin(steps))
        what = f"several slices lie at one place ({files[same].name} and {files[same + 1].name})"
        raise _refuse("repeated", f"{what}: echoes or times in one series", where)
    gaps = np.flatnonzero(steps > 1.5 * step)
    if gaps.size:
        at = int(gaps[0])
        missing = int(np.sum(np.round(steps[gaps] / step) - 1))
        what = f"about {missing} slices are missing, first between {files[at].name} and {files[at + 1].name}"
        raise _refuse("missing-slice", what, where, "copy the whole series again")
    if np.abs(steps - step).max() > max(_EVEN * step, 0.01):
        what = f"the slices lie unevenly, {steps.min():.3f} to {steps.max():.3f} mm apart"
        raise _refuse("uneven", what, where)


def _thickness(data: Any, where: str) -> float:
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        if float(data.get(tag) or 0) > 0:
            return float(data[tag].value)
    raise _refuse("geometry", "the thickness of the only slice is not known", where)


def _pixels(slices: Sequence[Any], files: Sequence[Path]) -> tuple[np.ndarray, float, float]:
    """(columns, rows, slices), slope and intercept; scaled already where slices differ in them."""
    planes = []
    for data, file in zip(slices, files, strict=True):
        try:
            planes.append(np.asarray(data.pixel_array).T)
        except (ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise _refuse("damaged", "the pixels cannot be read", str(file), "copy it again") from error
    scales = {
        (float(d.get("RescaleSlope", 1) or 1), float(d.get("RescaleIntercept", 0) or 0)) for d in slices
    }
    if len(scales) == 1:
        stored, (slope, intercept) = np.stack(planes, 2), scales.pop()
    else:  # each slice has a scale of its own
        pairs = [
            plane * float(d.get("RescaleSlope", 1) or 1) + float(d.get("RescaleIntercept", 0) or 0)
            for plane, d in zip(planes, slices, strict=True)
        ]
        stored, slope, intercept = np.stack(pairs, 2).astype(np.float32), 1.0, 0.0
    stored.flags.writeable = False
    return stored, slope, intercept
