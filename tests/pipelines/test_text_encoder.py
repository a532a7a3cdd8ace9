"""A frozen text encoder through the real command line: train, info, generate, impute, distil, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ebbtide.pipelines.cli import main

SMALL = {"steps": 3, "widths": [8, 12], "attention": [1], "batch_size": 8, "components": 2, "folds": 2,
         "sampler_steps": 3}  # fmt: skip


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve grey pictures, captioned but for one."""
    root, rng, rows = tmp_path / "photos", np.random.default_rng(0), ["file_name,caption"]
    root.mkdir()
    for k in range(12):
        pixels = np.full((8, 8), 200 * (k % 2) + 20) + rng.integers(0, 20, (8, 8))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{k:02d}.png")
        rows.append(
            f"{k:02d}.png,{'' if k == 5 else 'a red square' if k % 2 else 'a blue square on the left'}"
        )
    (root / "metadata.csv").write_text("\n".join(rows))
    return root


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, object]]:
    """Exit code and document of a command."""
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def error(document: dict[str, object]) -> tuple[str, str]:
    found = document["error"]
    assert isinstance(found, dict)
    return found["code"], f"{found['what']}; {found['remedy']}"


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("synthetic_*.png"))])


def planned(photos: Path, encoder: Path, out: Path) -> Path:
    assert main(["plan", str(photos), "-o", str(out), "--text-encoder", str(encoder), "--quiet"]) == 0
    plan = yaml.safe_load(out.read_text())
    assert plan["text_encoder"] == str(encoder)
    plan["model"] |= SMALL
    out.write_text(yaml.safe_dump(plan))
    return out


def test_from_captions_to_pictures(
    photos: Path,
    tiny_encoder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, other = tiny_encoder("T5"), tiny_encoder("T5", seed=1)
    plan, model = planned(photos, encoder, tmp_path / "plan.yaml"), tmp_path / "model"
    assert main(["train", str(photos), "-o", str(model), "--plan", str(plan), "--quiet"]) == 0
    written = json.loads((model / "config.json").read_text())
    named = written["space"]["conditions"]["frozen"]["encoder"]
    assert named["kind"] == "T5" and named["named"] == str(encoder) and len(named["sha256"]) == 64
    assert sum(file.stat().st_size for file in model.iterdir()) < 300_000

    code, told = said(capsys, "info", model)
    lines = " ".join(map(str, told["description"]))  # type: ignore[arg-type]
    assert code == 0 and "prompt" in told["can"] and "T5 of 16 numbers a token" in lines  # type: ignore[operator]

    # The folder is found where it lay, and known where it lies now.
    asked = ["--prompt", "a red square", "--negative", "blue", "-n", "2", "--quiet"]
    assert main(["generate", str(model), "-o", str(tmp_path / "one"), *asked]) == 0
    moved = Path(shutil.move(encoder, tmp_path / "moved"))
    code, told = said(capsys, "generate", model, "-o", tmp_path / "two", *asked)
    assert (
        code == 2 and error(told)[0] == "text-encoder-missing" and "--text-encoder FOLDER" in error(told)[1]
    )
    code, told = said(capsys, "generate", model, "-o", tmp_path / "two", *asked, "--text-encoder", other)
    assert code == 2 and error(told)[0] == "text-encoder-differs" and "give that one" in error(told)[1]
    assert not (tmp_path / "two").exists()
    again = ["generate", str(model), "-o", str(tmp_path / "two"), *asked, "--text-encoder", str(moved)]
    assert main(again) == 0
    assert np.array_equal(pixels(tmp_path / "one"), pixels(tmp_path / "two"))
    assert (
        "moved" not in (tmp_path / "two" / "manifest.json").read_text()
    )  # no path of the machine goes along

    # What asks for no text needs no encoder, even where transformers is not installed.
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["generate", str(model), "-o", str(tmp_path / "none"), "-n", "2", "--quiet"]) == 0
    assert not np.array_equal(pixels(tmp_path / "none"), pixels(tmp_path / "two"))
    again[3] = str(tmp_path / "three")
    code, told = said(capsys, *again[:-1], moved)
    assert code == 2 and error(told) == (
        "no-transformers",
        'a text encoder is read through transformers, which is not installed; pip install "ebbtide[text]"',
    )
    code, told = said(capsys, "train", photos, "-o", tmp_path / "new", "--text-encoder", moved)
    assert code == 2 and error(told)[0] == "no-transformers"


def test_filled_and_distilled_with_captions(
    photos: Path, tiny_encoder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tiny_encoder("CLIP")
    plan, model = planned(photos, encoder, tmp_path / "plan.yaml"), tmp_path / "model"
    assert main(["train", str(photos), "-o", str(model), "--plan", str(plan), "--quiet"]) == 0
    moved = shutil.move(encoder, tmp_path / "moved")
    words = ["impute", str(photos), "--model", str(model), "--fill", "half:right", "--draws", "2", "--quiet"]
    code, told = said(capsys, *words, "-o", tmp_path / "filled")
    assert code == 2 and error(told)[0] == "text-encoder-missing"
    assert main([*words, "-o", str(tmp_path / "filled"), "--text-encoder", moved]) == 0
    assert len(list((tmp_path / "filled").glob("[0-9]*.png"))) == 12

    words = ["distil", str(model), "-o", str(tmp_path / "fast"), "--paths", "64", "--quiet"]
    code, told = said(capsys, *words)
    assert code == 2 and error(told)[0] == "conditions"
    assert main([*words, "--data", str(photos), "--text-encoder", moved]) == 0
    asked = ["--prompt", "a red square", "-n", "2", "--text-encoder", moved, "--quiet"]
    assert main(["generate", str(tmp_path / "fast"), "-o", str(tmp_path / "made"), *asked]) == 0


def test_where_it_does_not_belong(
    photos: Path, tiny_encoder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tiny_encoder("CLIP")
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" + "1,2\n" * 30)
    code, told = said(capsys, "train", table, "-o", tmp_path / "m", "--text-encoder", encoder)
    assert code == 2 and error(told) == (
        "other-domain",
        "--text-encoder is about scans and pictures; leave --text-encoder away",
    )
    code, told = said(capsys, "generate", "brain-t1", "-o", tmp_path / "m", "--text-encoder", encoder)
    assert code == 2 and error(told)[0] == "other-domain"
    code, told = said(capsys, "generate", "fashion-mnist", "-o", tmp_path / "m", "--text-encoder", encoder)
    assert code == 2 and error(told)[0] == "other-encoder"
    (photos / "metadata.csv").unlink()
    code, told = said(capsys, "train", photos, "-o", tmp_path / "m", "--text-encoder", encoder)
    assert code == 2 and error(told)[0] == "no-captions" and "metadata.csv" in error(told)[1]
    code, told = said(capsys, "train", photos, "-o", tmp_path / "m", "--text-encoder", tmp_path / "nowhere")
    assert code == 2 and error(told)[0] == "text-encoder"
