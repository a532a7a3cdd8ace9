"""New NIfTI headers, for volumes that did not come from a NIfTI file."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np

SCANNER = 1
"""NIfTI's code for coordinates that are some scanner's millimetres."""


def new_header(shape: Sequence[int], dtype: np.dtype[Any], affine: np.ndarray, described: str = "") -> Any:
    """A NIfTI-1 header (2 where a side has more than 32767 voxels) with real geometry in both forms.

    Args:
        affine: (4, 4) voxels to millimetres in RAS; it goes into sform and, without its shear, into qform.
        described: at most 79 characters of ASCII.
    """
    kind: Any = nib.Nifti1Header if max(shape) < 2**15 else nib.Nifti2Header
    header = kind(endianness="<")
    header.set_data_dtype(dtype.newbyteorder("<"))
    header.set_data_shape(tuple(shape))
    header.set_qform(affine, SCANNER)
    header.set_sform(affine, SCANNER)
    header.set_xyzt_units("mm")
    header["descrip"] = described.encode("ascii", "replace")[:79]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    return header


def extended(header: Any, code: int, content: bytes) -> Any:
    """A copy of a header with an extension."""
    header = header.copy()
    header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
    return header


def bytes_of(header: Any) -> bytes:
    """The bytes of a single file before its voxels: header, extensions, padding."""
    header = header.copy()
    header["vox_offset"] = 0  # nibabel then makes room for the extensions
    out = BytesIO()
    header.write_to(out)
    return out.getvalue().ljust(header.single_vox_offset, b"\0")
