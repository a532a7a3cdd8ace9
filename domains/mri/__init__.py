"""MRI volumes: NIfTI, BIDS and DICOM to and from model space."""
