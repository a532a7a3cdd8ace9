"""MRI volumes: NIfTI, BIDS and DICOM to and from model space; filled in, generated, checked."""

from .domain import MriDomain, ScanOptions
from .holes import parse_holes

__all__ = ["MriDomain", "ScanOptions", "parse_holes"]
