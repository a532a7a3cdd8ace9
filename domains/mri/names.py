"""What file and folder names say: subject, session, modality, or that a file is a segmentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .nifti import stem_of

MODALITIES = {
    "t1": "T1w", "t1w": "T1w", "mprage": "T1w", "spgr": "T1w", "t2": "T2w", "t2w": "T2w",
    "flair": "FLAIR", "t2f": "FLAIR", "pd": "PDw", "pdw": "PDw", "t1ce": "T1ce",
    "t1c": "T1ce", "t1gd": "T1ce", "t1n": "T1w",
    "inplanet1": "inplaneT1", "inplanet2": "inplaneT2", "t2star": "T2star", "t2starw": "T2starw",
    "swi": "SWI", "mra": "MRA", "angio": "angio", "dwi": "DWI", "adc": "ADC", "cbf": "CBF", "uni": "UNIT1",
    "unit1": "UNIT1",
    "inv1": "inv1", "inv2": "inv2", "t1map": "T1map", "t2map": "T2map", "mp2rage": "MP2RAGE", "hbv": "HBV",
}  # fmt: skip
"""Names of modalities in use (lower case), and one name for each, as BIDS has it where it has one."""
SEGMENTATION = frozenset(
    ["seg", "dseg", "label", "labels", "labelstr", "segmentation", "segmentations", "segs", "mask", "masks",
     "annotations", "aseg", "groundtruth", "gt"]
)  # fmt: skip
UNKNOWN = "image"
"""The modality of images whose names do not tell."""
_IMAGES = frozenset(["images", "imagestr", "image", "anat", "nifti", "nii", "data", "scans", "volumes"])


class Name(NamedTuple):
    """What a path says of one file.

    Args:
        subject: the subject's name (with the session, where there is one).
        modality: None for a segmentation.
        told: whether the modality was in the name, rather than assumed.
    """

    subject: str
    modality: str | None
    told: bool


def modality_named(word: str) -> str:
    """The one name of a modality; a word that is not known stays as it is."""
    return MODALITIES.get(word.lower(), word)


def plain_name(path: Path, root: Path) -> Name:
    """Of a file in other folders: `sub01_T1w.nii.gz`, `t1/sub01.nii.gz`, `sub01/flair.nii.gz`."""
    folders = [part.lower() for part in path.relative_to(root).parts[:-1]]
    in_segmentations = bool(SEGMENTATION & set(folders))
    by_folder = next((MODALITIES[f] for f in reversed(folders) if f in MODALITIES), None)
    subject, word = _split(stem_of(path))
    if not subject:  # the whole name is a modality: the folder is the subject
        subject = path.parent.name if path.parent != root else stem_of(path)
    if in_segmentations or word in SEGMENTATION:
        if word in SEGMENTATION:
            subject = _split(subject)[0] or subject if _split(subject)[1] in MODALITIES else subject
        elif word is None:
            subject = stem_of(path)
        return Name(subject, None, True)
    if word is not None:
        return Name(subject, MODALITIES[word], True)
    return Name(stem_of(path), by_folder or UNKNOWN, by_folder is not None)


def bids_name(path: Path) -> Name | None:
    """Of a file in a BIDS `anat` folder: `sub-01_ses-02_run-1_T1w.nii.gz`; None when it is not one."""
    parts = stem_of(path).split("_")
    entities = dict(part.split("-", 1) for part in parts[:-1] if "-" in part)
    if "sub" not in entities:
        return None
    subject = "_".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)
    suffix = parts[-1]
    return Name(subject, None if suffix.lower() in SEGMENTATION else modality_named(suffix), True)


def nnunet_name(path: Path) -> Name:
    """Of a file in `imagesTr` or `labelsTr`: `case_0001.nii.gz`, the last four digits count modalities."""
    stem = stem_of(path)
    if path.parent.name.lower() in SEGMENTATION:
        return Name(stem, None, True)
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    return Name(match[1], f"channel{int(match[2])}", True) if match else Name(stem, UNKNOWN, False)


def key_of(name: str) -> str:
    """A subject's name as it is compared with a table's first column: without `sub-` and session."""
    return re.sub(r"_ses-[^_]+$", "", name).removeprefix("sub-")


def is_images_folder(name: str) -> bool:
    """Whether a folder's name says that it holds the images, and that other things lie beside it."""
    return name.lower() in _IMAGES or name.lower() in MODALITIES


def _split(stem: str) -> tuple[str, str | None]:
    """A stem without its last word, and that word in lower case, when it names a modality or segmentation."""
    match = re.fullmatch(r"(?:(.*)[_\-. ])?([A-Za-z0-9]+)", stem)
    if match and (match[2].lower() in MODALITIES or match[2].lower() in SEGMENTATION):
        return match[1] or "", match[2].lower()
    return stem, None
