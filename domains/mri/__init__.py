"""MRI volumes: NIfTI, BIDS and DICOM to and from model space; filled in, generated, checked."""

from .domain import MriDomain
from .holes import parse_holes
from .options import ScanOptions

__all__ = ["MriDomain", "ScanOptions", "parse_holes"]
