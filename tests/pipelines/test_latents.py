"""Models in latents through the real command line: the plan asks for them, other commands need not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ebbtide.pipelines.cli import main

TINY = {
    "steps": 3,
    "widths": [8],
    "attention": [],
    "batch_size": 4,
    "components": 2,
    "folds": 2,
    "sampler_steps": 3,
    "latent": 2,
    "latent_widths": [4, 8],
    "latent_steps": 3,
    "latent_crop": 8,
}


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def trained(data: Path, work: Path, *more: str) -> Path:
    """A model whose plan was edited to ask for latents."""
    plan = work / "plan.yaml"
    assert main(["plan", str(data), "-o", str(plan), "--quiet", *more]) == 0
    written: dict[str, Any] = yaml.safe_load(plan.read_text())
    assert written["model"]["latent"] == 0  # the pictures and scans of this test are small
    assert "# latent:" in plan.read_text()
    written["model"] |= TINY
    plan.write_text(yaml.safe_dump(written))
    words = ["train", str(data), "-o", str(work / "model"), "--plan", str(plan)]
    assert main([*words, "--device", "cpu", "--quiet"]) == 0
    assert not (work / "model.training").exists()
    return work / "model"


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for name in ("bright", "dark"):
        (data / name).mkdir(parents=True)
        for i in range(6):
            pixels = (200 if name == "bright" else 50) + rng.normal(0, 12, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data / name / f"{i}.png")
    model = trained(data, tmp_path)
    assert main(["info", str(model)]) == 0
    assert "latents     2 x 8 x 8, of an autoencoder" in capsys.readouterr().out
    made = [tmp_path / "made", tmp_path / "again"]
    for out, count in zip(made, ("3", "2"), strict=True):
        words = ["generate", str(model), "-n", count, "-o", str(out), "--condition", "class=dark", "--quiet"]
        assert main(words) == 0
    files = [folder / "synthetic_000001.png" for folder in made]
    assert np.array_equal(*(np.asarray(Image.open(file)) for file in files))
    assert np.asarray(Image.open(files[0])).shape == (16, 16, 3)
    words = ["impute", str(data), "-o", str(tmp_path / "filled"), "--model", str(model), "--draws", "2"]
    assert main([*words, "--fill", "half:right", "--quiet"]) == 0
    filled = sorted((tmp_path / "filled").glob("*.png"))
    whole = [file for file in filled if file.name.startswith(("bright_", "dark_"))]
    assert len(whole) == 12
    for file in whole:
        name, _, rest = file.name.partition("_")
        pixels, given = (np.asarray(Image.open(one)) for one in (file, data / name / rest))
        assert np.array_equal(pixels[:, :8], given[:, :8])
        assert not np.array_equal(pixels[:, 8:], given[:, 8:])
    pair = [str(data / name / "0.png") for name in ("bright", "dark")]
    words = ["generate", str(model), "-n", "3", "-o", str(tmp_path / "between"), "--quiet"]
    assert main([*words, "--like", pair[0], "--like", pair[1]]) == 0


def test_scans(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(5):
        rng = np.random.default_rng(i)
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 14, 12)), indexing="ij")
        values = np.where(x**2 + y**2 + z**2 < 0.8, 120 + 60 * np.sin(rng.uniform(4, 7) * x), 0)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(values.astype("u1"), affine), data / f"s{i}_T1w.nii.gz")
    model = trained(data, tmp_path, "--spacing", "2")
    held = json.loads((model / "config.json").read_text())["model"]
    assert held["latent"]["form"]["shape"][0] == 1 and held["form"]["shape"][0] == 2
    words = ["generate", str(model), "-n", "2", "-o", str(tmp_path / "made"), "--quiet"]
    assert main(words) == 0
    assert len(list((tmp_path / "made").rglob("*.nii.gz"))) == 2
    words = ["impute", str(data), "-o", str(tmp_path / "filled"), "--model", str(model), "--draws", "2"]
    assert main([*words, "--fill", "box:3-8,3-8,3-8", "--quiet"]) == 0
    for mask in (tmp_path / "filled").rglob("*_mask.nii.gz"):
        hole = np.asarray(nib.load(mask).dataobj) > 0
        name = mask.name.removesuffix("_mask.nii.gz")
        given = np.asarray(nib.load(data / f"{name}.nii.gz").dataobj)
        made = np.asarray(nib.load(mask.with_name(f"{name}_filled.nii.gz")).dataobj)
        assert hole.any() and np.array_equal(made[~hole], given[~hole])
    assert len(list((tmp_path / "filled").rglob("*_filled.nii.gz"))) == 5
