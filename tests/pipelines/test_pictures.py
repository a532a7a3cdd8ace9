"""Pictures through the real command line: check, plan, train, info, generate, impute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ebbtide.pipelines.cli import main

SMALL = {"steps": 3, "widths": [8, 12], "attention": [], "batch_size": 8, "components": 2, "folds": 2,
         "sampler_steps": 3}  # fmt: skip


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve pictures: stripes across and along."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, axis in (("across", 0), ("along", 1)):
        (root / name).mkdir()
        for i in range(12):
            wave = 128 + 100 * np.sin(np.arange(12) * rng.uniform(0.5, 2))
            pixels = np.repeat(np.expand_dims(wave, 1 - axis), 12, 1 - axis) + rng.normal(0, 5, (12, 12))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_default_dtype(torch.float32)
    work = tmp_path_factory.mktemp("work")
    plan = work / "plan.yaml"
    assert main(["plan", str(folder), "-o", str(plan), "--quiet"]) == 0
    written = yaml.safe_load(plan.read_text())
    assert written["domain"] == "images" and written["size"] == 12 and written["channels"] == 1
    written["model"] |= SMALL
    plan.write_text(yaml.safe_dump(written))
    words = [
        "train",
        str(folder),
        "-o",
        str(work / "model"),
        "--plan",
        str(plan),
        "--device",
        "cpu",
        "--quiet",
    ]
    assert main(words) == 0
    return work / "model"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_info_and_check(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    assert "12 x 12 pixels, grey" in out and "class: across, along" in out
    assert main(["check", str(folder)]) == 0


def test_what_is_generated_says_so(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    words = ["generate", str(model), "-n", "18", "-o", str(out), "--condition", "class=along", "--quiet"]
    assert main(words) == 0
    made = sorted(out.glob("synthetic_*.png"))
    assert len(made) == 18 and pixels(made[0]).shape == (12, 12)
    image = Image.open(made[17])
    assert image.text["ebbtide:kind"] == "SYNTHETIC" and image.text["ebbtide:item"] == "17"  # type: ignore[attr-defined]
    assert (out / "contact_sheet.png").is_file()
    assert json.loads((out / "manifest.json").read_text())["counts"] == {"generated": 18}
    words[3], words[5] = "2", str(tmp_path / "two")
    assert main(words) == 0
    assert np.array_equal(pixels(tmp_path / "two" / "synthetic_000001.png"), pixels(made[1]))


def test_what_is_filled_leaves_all_else_alone(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "filled"
    words = ["impute", str(folder), "-o", str(out), "--model", str(model), "--draws", "3", "--quiet"]
    assert main([*words, "--fill", "half:right"]) == 0
    before, after = pixels(folder / "along" / "03.png"), pixels(out / "along_03.png")
    assert np.array_equal(before[:, :6], after[:, :6]) and not np.array_equal(before[:, 6:], after[:, 6:])
    assert (pixels(out / "masks" / "along_03.png") > 0).sum() == 72
    assert not pixels(out / "spread" / "along_03.png")[:, :6].any()
    assert (out / "preview.png").is_file() and len(list(out.glob("*.png"))) == 25


def test_a_border_makes_pictures_larger_within_what_the_model_sees(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "small"
    data.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(data / "a.png")
    words = ["impute", str(data), "--model", str(model), "--draws", "2", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "out"), "--fill", "border:2"]) == 0
    assert pixels(tmp_path / "out" / "a.png").shape == (12, 12)
    assert np.array_equal(pixels(tmp_path / "out" / "a.png")[2:10, 2:10], pixels(data / "a.png"))


def test_a_damaged_picture_is_named_and_the_rest_is_done(model: Path, folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("00", "01"):
        (data / f"{name}.png").write_bytes((folder / "along" / f"{name}.png").read_bytes())
    (data / "01.png").write_bytes((data / "01.png").read_bytes()[:60])
    out = tmp_path / "out"
    words = ["impute", str(data), "-o", str(out), "--model", str(model), "--draws", "1", "--quiet"]
    assert main([*words, "--fill", "box:0-3,0-3"]) == 1
    assert "01.png" in (out / "failed.tsv").read_text() and (out / "00.png").is_file()


@pytest.mark.parametrize(
    "words, code",
    [
        (["generate", "{model}", "-o", "{out}", "--condition", "class=alone"], "condition-class"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}", "--fill", "half:inside"], "fill"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}", "--fill", "box:0-40,1"], "hole-outside"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}"], "nothing-to-fill"),
        (["train", "{folder}", "-o", "{out}", "--spacing", "2"], "other-domain"),
    ],
)
def test_slips_get_one_line(
    model: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: str,
) -> None:
    given = {"model": str(model), "folder": str(folder), "out": str(tmp_path / "out")}
    exit_code = main([word.format(**given) for word in [*words, "--json"]])
    document = json.loads(capsys.readouterr().out)
    if code == "hole-outside":  # every picture is too small for the box: each is named
        assert exit_code == 1 and document["summary"]["failed"] == 24
    else:
        assert exit_code == 2 and document["error"]["code"] == code
        assert not (tmp_path / "out").exists()


def test_the_same_from_python(model: Path, folder: Path, tmp_path: Path) -> None:
    import ebbtide

    trained = ebbtide.train(folder, tmp_path / "model", plan=model.parent / "plan.yaml", device="cpu")
    assert trained.things == "pictures" and trained.about["items"] == 24
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == (
        model / "weights.safetensors"
    ).read_bytes()
    made = ebbtide.generate(model, tmp_path / "made", 2, condition={"class": "along"})
    assert made.counts == {"generated": 2} and "synthetic_000001.png" in made.files
