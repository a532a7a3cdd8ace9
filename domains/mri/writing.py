"""Volumes to NIfTI: filled ones as the input was, bit by bit; synthetic ones marked as what they are.

The same voxels give the same bytes: gzip carries no time. Every file is whole or absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.artifacts import json_bytes, tool_version
from ...shared.files import replace_atomically, write_bytes
from .compressed import deflate
from .headers import bytes_of, extended, new_header
from .intensity import as_dtype
from .nifti import Volume, stem_of

COMMENT = 6
"""The code of a NIfTI header extension that holds plain text."""
_BIDS = "1.10.0"
_README = """# SYNTHETIC volumes

Made by a model; no one was scanned. Not for diagnosis. Each file says so in its header and in the JSON beside
it, with the model and the seed that it was made from; `participants.tsv` holds what was asked for.
"""


def write_filled(volume: Volume, filled: np.ndarray, mask: np.ndarray, path: Path) -> int:
    """Write a volume with new values where `mask` is; all other numbers and the header stay as they were.

    Args:
        volume: the input.
        filled: (X, Y, Z) values in the image's own unit (scaled); read within the mask alone.
        mask: (X, Y, Z) bool.
        path: `.nii` or `.nii.gz`.

    Returns:
        How many filled values the stored type cannot hold; they are clipped. Where it holds integers, all are
        rounded.

    Raises:
        ValueError: shapes differ, or a filled value is not finite.
    """
    if not volume.shape == filled.shape == mask.shape:
        raise ValueError(f"shapes differ: {volume.shape}, {filled.shape}, mask {mask.shape}")
    wanted = (filled[mask].astype(np.float64) - volume.intercept) / volume.slope
    if not np.isfinite(wanted).all():
        raise ValueError("filled values must be finite")
    kind = volume.stored.dtype
    limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    rounded = wanted if kind.kind == "f" else np.rint(wanted)
    clipped = int(((rounded < limits.min) | (rounded > limits.max)).sum())
    stored = volume.stored.copy(order="F")
    stored[mask] = as_dtype(wanted, kind)
    _save(_preamble(volume, stored), stored, path)
    return clipped


def write_map(
    volume: Volume, array: np.ndarray, path: Path, dtype: str = "float32", described: str = ""
) -> None:
    """Write an array that lies on the grid of a volume (a mask, a standard deviation), with its geometry.

    Args:
        array: (X, Y, Z). dtype: of the file; integers are rounded and clipped.
        described: goes into the header, at most 79 characters of ASCII.
    """
    if array.shape != volume.shape:
        raise ValueError(f"the map has the shape {array.shape} and the volume {volume.shape}")
    header = volume.header.copy()
    header.extensions.clear()  # they are about the image, and may name a person
    header.set_data_shape(array.shape)
    kind = np.dtype(dtype)
    header.set_data_dtype(kind)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["cal_min"], header["cal_max"] = 0.0, 0.0
    for text in ("descrip", "db_name", "aux_file", "intent_name"):
        if text in header.keys():  # noqa: SIM118 - nibabel's header iterates over something else
            header[text] = b""
    header["descrip"] = described.encode("ascii", "replace")[:79]
    stored = as_dtype(np.asarray(array), kind)
    _save(bytes_of(header), stored.astype(kind.newbyteorder(header.endianness)), path)


def write_synthetic(array: np.ndarray, affine: np.ndarray, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a generated volume, marked SYNTHETIC in its header (text and extension) and in a JSON beside it.

    Args:
        array: (X, Y, Z) in the type to be written. affine: (4, 4) to millimetres in RAS.
        path: `.nii` or `.nii.gz`; the JSON gets the same name.
        facts: JSON-able: seed, sha256 of the model, what was asked for.
    """
    told = {"SYNTHETIC": True, "GeneratedBy": f"ebbtide {tool_version()}", **facts}
    text = json.dumps(told, sort_keys=True, allow_nan=False)
    header = new_header(array.shape, array.dtype, affine, f"SYNTHETIC, ebbtide {tool_version()}")
    header = extended(header, COMMENT, text.encode())
    _save(bytes_of(header), array.astype(array.dtype.newbyteorder("<")), path)
    _write(path.with_name(stem_of(path) + ".json"), json_bytes(told, str(path)))


@dataclass(frozen=True)
class Synthetic:
    """One generated subject.

    Args:
        images: by modality, (X, Y, Z) each.
        conditions: what was asked for.
        labels: its segmentation, integers, if it was made from one.
        facts: of this subject alone (its seed).
    """

    images: Mapping[str, np.ndarray]
    conditions: Mapping[str, float | str | None] = field(default_factory=dict)
    labels: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_bids(
    folder: Path,
    subjects: Iterable[Synthetic],
    affine: np.ndarray,
    facts: Mapping[str, Any],
    *,
    name: str = "Synthetic MRI volumes",
    start: int = 1,
) -> list[str]:
    """Write generated subjects as a BIDS derivative: `sub-syn0001/anat/sub-syn0001_T1w.nii.gz` and so on.

    Args:
        folder: made if need be. subjects: may be a generator; one is held at a time.
        affine: of all volumes. facts: of all of them, as in `write_synthetic`.
        start: the first subject's number.

    Returns:
        The names of the files, relative to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    for number, subject in enumerate(subjects, start):
        label = f"sub-syn{number:04d}"
        anatomy = folder / label / "anat"
        anatomy.mkdir(parents=True, exist_ok=True)
        asked = {"conditions": dict(subject.conditions)} if subject.conditions else {}
        told = {**facts, **subject.facts, **asked}
        images = dict(subject.images)
        if subject.labels is not None:
            images["dseg"] = subject.labels
        for modality, array in images.items():
            path = anatomy / f"{label}_{_suffix(modality)}.nii.gz"
            write_synthetic(array, affine, path, told)
            names += [_inside(folder, path), _inside(folder, path.with_name(stem_of(path) + ".json"))]
        rows.append({"participant_id": label, **subject.conditions})
    description = {
        "Name": name,
        "BIDSVersion": _BIDS,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "ebbtide", "Version": tool_version(), "Description": "SYNTHETIC", **facts}],
    }
    _write(folder / "dataset_description.json", json_bytes(description, str(folder)))
    _write(folder / "participants.tsv", _tsv(rows).encode())
    _write(folder / "README.md", _README.encode())
    return [*names, "dataset_description.json", "participants.tsv", "README.md"]


def _preamble(volume: Volume, stored: np.ndarray) -> bytes:
    if volume.preamble:
        return volume.preamble
    header = volume.header.copy()
    header["scl_slope"], header["scl_inter"] = volume.slope, volume.intercept
    header.set_data_dtype(stored.dtype)
    return bytes_of(header)


def _save(preamble: bytes, stored: np.ndarray, path: Path) -> None:
    data = preamble + stored.tobytes(order="F")
    _write(path, deflate(data) if path.name.lower().endswith(".gz") else data)


def _write(path: Path, data: bytes) -> None:
    with replace_atomically(path) as partial:
        write_bytes(partial, data)


def _suffix(modality: str) -> str:
    """A modality as BIDS allows it in a name: letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", modality) or "image"


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _tsv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["participant_id"]

    def cell(value: Any) -> str:
        text = "n/a" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
        return re.sub(r"\s+", " ", text)

    lines = [columns, *([cell(row.get(name)) for name in columns] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)
