"""`ebbtide augment` of scans: synthetic ones with label maps beside real ones, a proof on held-out ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from ebbtide.domains.mri import segmenting
from ebbtide.domains.mri.collection import collect
from ebbtide.domains.mri.model import FittedScans
from ebbtide.domains.mri.segmenting import Pairs, dice, learn
from ebbtide.pipelines import augmenting_scans
from ebbtide.pipelines.cli import main
from ebbtide.shared.grids import GridSettings

TINY = GridSettings(
    widths=(8, 12), components=3, folds=2, steps=4, batch_size=4, held_out=0.2, sampler_steps=4, patience=None
)
SIZE = (16, 20, 16)


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball amid noise, and its label map: 1 above, 2 below."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    middle, radius = rng.uniform(-0.15, 0.15, 3), rng.uniform(0.4, 0.6)
    inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2 < radius**2
    labels = np.where(inside, np.where(z > middle[2], 1, 2), 0)
    values = 60 + 80 * (labels == 1) + 40 * (labels == 2) + rng.normal(0, 8, SIZE)
    return values.clip(0, 255), labels


def folder_of(root: Path, seeds: range) -> Path:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for seed in seeds:
        for kind, values in zip(("images", "labels"), scene(seed), strict=True):
            image = nib.Nifti1Image(values.astype(np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
            nib.save(image, root / kind / f"case_{seed:03d}.nii.gz")
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train`, `rest` and `model`."""
    torch.set_default_dtype(torch.float32)
    work = tmp_path_factory.mktemp("augmented scans")
    folder_of(work / "train", range(10))
    folder_of(work / "rest", range(50, 54))
    FittedScans.fit(list(collect(work / "train")), settings=TINY, device="cpu").save(work / "model")
    return work


def run(work: Path, out: Path, *more: str) -> int:
    return main(
        ["augment", str(work / "train"), "-o", str(out), "--model", str(work / "model"), "--quiet", *more]
    )


@pytest.fixture(scope="module")
def made(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "augmented"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmenting_scans, "SEEDS", 2)
        patch.setattr(segmenting.learn, "__kwdefaults__", segmenting.learn.__kwdefaults__ | {"steps": 3})
        assert run(work, out, "--factor", "1.5", "--holdout", str(work / "rest")) == 0
    return out


def test_real_scans_keep_their_bytes_and_synthetic_ones_have_label_maps(work: Path, made: Path) -> None:
    for kind in ("images", "labels"):
        for file in (work / "train" / kind).iterdir():
            assert (made / kind / file.name).read_bytes() == file.read_bytes()
    with (made / "contents.csv").open() as file:
        rows = list(csv.DictReader(file))
    synthetic = [row for row in rows if row["synthetic"] == "1"]
    assert len(rows) == 15 and len(synthetic) == 5
    for row in synthetic:
        image, labels = nib.load(made / row["file_name"]), nib.load(made / row["label_map"])
        assert image.shape == labels.shape and np.array_equal(image.affine, labels.affine)
        assert b"SYNTHETIC" in image.header["descrip"].tobytes() + labels.header["descrip"].tobytes()
        assert set(np.unique(labels.dataobj)) <= {0, 1, 2} and np.asarray(labels.dataobj).any()
    again = collect(made)  # a data set to train on
    assert len(again) == 15 and all(subject.segmentation for subject in again)
    told = json.loads((made / "manifest.json").read_text())
    assert told["counts"]["synthetic"] == 5 and "SYNTHETIC" in told["note"]
    assert (made / "card.yaml").is_file()


def test_the_proof_is_dice_on_held_out_scans(made: Path) -> None:
    proof = json.loads((made / "proof.json").read_text())
    assert set(proof["scores"]) == {"nothing added", "moved and toned scans", "Ebbtide"}
    assert proof["measure"] == "Dice" and proof["best_classical"] == "moved and toned scans"
    assert (made / "proof.png").read_bytes()[:4] == b"\x89PNG"


def test_varied_scans_keep_the_label_maps_of_the_real_ones(work: Path, tmp_path: Path) -> None:
    assert run(work, tmp_path / "varied", "--vary", "0.3", "--factor", "1.3") == 0
    real = {np.asarray(nib.load(f).dataobj).tobytes() for f in (work / "train" / "labels").iterdir()}
    for file in sorted((tmp_path / "varied" / "labels").glob("synthetic_*.nii.gz")):
        labels = np.asarray(nib.load(file).dataobj)
        grid = labels[tuple(slice(0, n) for n in SIZE)]
        assert labels.shape == SIZE and grid.tobytes() in real


def test_what_cannot_be_done_is_said(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, tmp_path / "a", "--balance", "age") == 2
    assert "scans have no classes" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (work / "rest" / "images").iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    assert run(work, tmp_path / "b", "--holdout", str(bare), "--factor", "1.2") == 2
    assert "no label maps" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_the_network_finds_labels_and_dice_is_what_it_says() -> None:
    scenes = [scene(seed) for seed in range(12)]
    images = torch.stack([torch.from_numpy(image).float()[None] / 60 - 1.5 for image, _ in scenes])
    labels = torch.stack([torch.from_numpy(labels) for _, labels in scenes])
    pairs = Pairs(images, labels)
    network = learn([pairs.rows(torch.arange(8))], (1, 2), steps=60, seed=0)
    found = dice(network, pairs.rows(torch.arange(8, 12)), (1, 2))
    assert found.shape == (4,) and found.mean() > 0.8

    class Truth(torch.nn.Module):
        """Says label 1 for everything that has one."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            known = labels[:1] > 0
            return torch.stack([~known, known, torch.zeros_like(known)], 1).float()

    one, two = (int((labels[0] == value).sum()) for value in (1, 2))
    assert dice(Truth(), pairs.rows(torch.arange(1)), (1, 2))[0] == pytest.approx(
        0.5 * (2 * one / (one + two + one))
    )
