"""The demo's second part: volumes from a bundled model, and a hole in one of them filled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ..data_cards import bundled
from ..domains import Wish
from ..domains.mri import MriDomain, ScanOptions, parse_holes
from .generating import generate
from .imputing import impute_file

Progress = Callable[[str, float], None]
MODEL, COUNT, DRAWS, HOLE = "brain-t1", 4, 5, "box:16-25,20-29,18-27"
GENERATED, FILLED = "brains", "brain_filled"
PICTURES = {f"{GENERATED}/montage.png": "5_generated", f"{FILLED}/preview.png": "6_hole"}
"""Where the pictures lie -> what the report calls them."""


def scans(work: Path, seed: int, progress: Progress) -> None:
    """Generate volumes into `work/brains`, hide a cube of 40 mm in the first, and fill it into
    `work/brain_filled`."""
    folder = bundled()[MODEL]
    wish = Wish(COUNT, seed, {"age": "50..70"})
    generate(folder, work / GENERATED, domain=MriDomain(), wish=wish, progress=progress)
    source = work / "brain"
    source.mkdir()
    first = next((work / GENERATED).rglob("*.nii.gz"))
    shutil.copyfile(first, source / "synthetic.nii.gz")
    impute_file(
        source,
        work / FILLED,
        domain=MriDomain(ScanOptions(holes=parse_holes([HOLE]))),
        model=folder,
        draws=DRAWS,
        seed=seed,
        progress=progress,
    )
