"""The demo's other parts: what bundled models make and complete, and a synthetic table with its report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pandas as pd

from ..data_cards import bundled
from ..domains import Wish
from ..domains.images import ImageDomain, ImageOptions
from ..domains.images import parse_holes as picture_holes
from ..domains.mri import MriDomain, ScanOptions
from ..domains.mri import parse_holes as scan_holes
from ..domains.tabular import TableOptions, TabularDomain
from .evaluating import SHARE, evaluate
from .generating import generate
from .imputing import impute_file
from .training import train

Progress = Callable[[str, float], None]
DRAWS = 5
BRAINS, HOLE = 4, "box:16-25,20-29,18-27"
CLOTHES, HALF = 40, "half:right"
PICTURES = {
    "brains/montage.png": "5_generated",
    "brain_filled/preview.png": "6_hole",
    "clothes/contact_sheet.png": "7_clothes",
    "clothes_completed/preview.png": "8_halves",
}
"""Where the pictures lie -> what the report calls them."""
REPORT = f"synthetic_report/{SHARE}"


def scans(work: Path, seed: int, progress: Progress) -> None:
    """Generate volumes, hide a cube of 40 mm in the first, and fill it."""
    folder = bundled()["brain-t1"]
    wish = Wish(BRAINS, seed, {"age": "50..70"})
    generate(folder, work / "brains", domain=MriDomain(), wish=wish, progress=progress)
    source = work / "brain"
    source.mkdir()
    shutil.copyfile(next((work / "brains").rglob("*.nii.gz")), source / "synthetic.nii.gz")
    impute_file(
        source,
        work / "brain_filled",
        domain=MriDomain(ScanOptions(holes=scan_holes([HOLE]))),
        model=folder,
        draws=DRAWS,
        seed=seed,
        progress=progress,
    )


def pictures(work: Path, seed: int, progress: Progress) -> None:
    """Generate pictures of clothes; hide the right half of ten that the model never saw, and fill it in."""
    folder = bundled()["fashion-mnist"]
    wish = Wish(CLOTHES, seed, {"class": "*"})
    generate(folder, work / "clothes", domain=ImageDomain(), wish=wish, progress=progress)
    with as_file(files("ebbtide.data_cards").joinpath("fashion-mnist-sample")) as source:
        shutil.copytree(
            source, work / "clothes_given", ignore=shutil.ignore_patterns("*.yaml", "*.json", "*.md")
        )
    impute_file(
        work / "clothes_given",
        work / "clothes_completed",
        domain=ImageDomain(ImageOptions(holes=picture_holes([HALF]))),
        model=folder,
        draws=DRAWS,
        seed=seed,
        progress=progress,
    )


def rows(work: Path, table: pd.DataFrame, seed: int, progress: Progress) -> dict[str, Any]:
    """Make a synthetic table from two thirds of a real one, and judge it with the last third, which the model
    never sees. Gives the verdict."""
    table = table.sample(frac=1, random_state=seed)
    learnt = 2 * len(table) // 3
    real, kept = work / "real.csv", work / "kept_apart.csv"
    table[:learnt].to_csv(real, index=False)
    table[learnt:].to_csv(kept, index=False)
    domain = TabularDomain(TableOptions(only="generate"))
    train(real, work / "table_model", domain=domain, seed=seed, progress=progress)
    made = work / "synthetic"
    generate(work / "table_model", made, domain=domain, wish=Wish(learnt, seed), progress=progress)
    found = evaluate(
        real,
        made / "synthetic.csv",
        work / Path(REPORT).parent,
        domain=TabularDomain(),
        holdout=kept,
        seed=seed,
        progress=progress,
    )
    verdict: dict[str, Any] = found.facts["verdict"]
    return verdict
