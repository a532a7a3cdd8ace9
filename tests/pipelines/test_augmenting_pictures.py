"""`ebbtide augment` of pictures: synthetic ones in the classes' folders, a proof on held-out ones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ebbtide.domains.images.writing import read_provenance
from ebbtide.pipelines import augmenting_pictures
from ebbtide.pipelines.augmenting_pictures import shifted
from ebbtide.pipelines.carding import card, load
from ebbtide.pipelines.cli import main

PLAN = """domain: images
seed: 0
size: 12
model: {steps: 3, widths: [8, 12], attention: [], batch_size: 8, components: 2, folds: 2, sampler_steps: 3}
"""


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def stripes(root: Path, counts: dict[str, int], seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        axis = 0 if name == "across" else 1
        for i in range(count):
            wave = 128 + 100 * np.sin(np.arange(12) * rng.uniform(0.5, 2))
            pixels = np.repeat(np.expand_dims(wave, 1 - axis), 12, 1 - axis) + rng.normal(0, 5, (12, 12))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(real pictures, what was made of them): 14 across, 6 along, balanced."""
    torch.set_default_dtype(torch.float32)
    work = tmp_path_factory.mktemp("pictures")
    real = stripes(work / "real", {"across": 14, "along": 6}, 0)
    held = stripes(work / "held", {"across": 10, "along": 10}, 1)
    (work / "plan.yaml").write_text(PLAN)
    words = ["--plan", str(work / "plan.yaml"), "--device", "cpu", "--quiet"]
    assert main(["train", str(real), "-o", str(work / "model"), *words]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmenting_pictures, "STEPS", 12)
        patch.setattr(augmenting_pictures, "SEEDS", 2)
        words = ["augment", str(real), "-o", str(work / "out"), "--model", str(work / "model")]
        assert main([*words, "--balance", "class", "--holdout", str(held), "--quiet"]) == 0
    return real, work / "out"


def test_real_pictures_keep_their_bytes_and_classes_are_balanced(made: tuple[Path, Path]) -> None:
    real, out = made
    for path in real.rglob("*.png"):
        assert (out / path.relative_to(real)).read_bytes() == path.read_bytes()
    assert not list((out / "across").glob("synthetic_*"))
    new = sorted((out / "along").glob("synthetic_*.png"))
    assert len(new) == 8
    told = read_provenance(new[0])
    assert told["kind"] == "SYNTHETIC" and json.loads(told["condition"]) == {"class": "along"}


def test_contents_card_and_manifest_tell_which_are_synthetic(made: tuple[Path, Path]) -> None:
    _, out = made
    rows = list(csv.DictReader((out / "contents.csv").open()))
    assert len(rows) == 28 and sum(row["synthetic"] == "1" for row in rows) == 8
    assert all(("synthetic_" in row["file_name"]) == (row["synthetic"] == "1") for row in rows)
    assert card(out).faults == ()
    found = load(out / "card.yaml")
    assert found["kind"] == "augmented" and found["domain"] == "image"
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["drawn"] == counts["synthetic"] + counts["near_copies_dropped"] >= 8


def test_the_proof_is_on_held_out_pictures(made: tuple[Path, Path]) -> None:
    proof = json.loads((made[1] / "proof.json").read_text())
    assert set(proof["scores"]) == {"nothing added", "moved pictures", "Ebbtide"}
    assert proof["measure"] == "accuracy" and proof["repeats"] == 2
    assert 0 <= proof["scores"]["Ebbtide"]["small network"]["accuracy"][0] <= 1
    assert (made[1] / "proof.png").read_bytes()[:4] == b"\x89PNG"


def test_moved_pictures_are_of_the_class_and_nearly_the_same() -> None:
    x = torch.arange(4.0)[:, None, None, None] + torch.zeros(4, 1, 12, 12)
    y = torch.tensor([0, 0, 1, 1])
    moved = shifted(x, y, torch.tensor([1, 1, 0]), 0)
    assert moved.shape == (3, 1, 12, 12)
    assert set(moved[:2].unique().tolist()) <= {2.0, 3.0} and set(moved[2:].unique().tolist()) <= {0.0, 1.0}


def test_what_cannot_be_is_told(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    real, out = made
    flat = out.parent / "flat"
    flat.mkdir()
    for k, path in enumerate(real.rglob("*.png")):
        shutil.copyfile(path, flat / f"{k}.png")
    words = ["augment", str(flat), "-o", str(out.parent / "x"), "--balance", "class"]
    assert main(words) == 2
    assert "not-balanceable" in capsys.readouterr().err
