"""`ebbtide distil` through the real command line, on a model of pictures that three steps made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ebbtide.domains.images.collection import collect
from ebbtide.domains.images.model import FittedImages
from ebbtide.pipelines.cli import main
from ebbtide.shared.data import NOTHING
from ebbtide.shared.errors import InputError
from ebbtide.shared.grids import GridSettings
from ebbtide.shared.noise import Keys

SMALL = GridSettings(
    steps=3, widths=(8, 12), attention=(), batch_size=8, components=2, folds=2, sampler_steps=3
)


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight pictures, dark and bright, and what is written of each."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = ["file_name,caption"]
    for name, level in (("dark", 60), ("bright", 190)):
        (root / name).mkdir()
        for i in range(8):
            pixels = level + rng.normal(0, 20, (8, 8))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,a {name} thing")
    (root / "captions.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_default_dtype(torch.float32)
    made = tmp_path_factory.mktemp("work") / "model"
    FittedImages.fit(collect(folder), settings=SMALL, device="cpu").save(made)
    return made


@pytest.fixture(scope="module")
def fast(teacher: Path) -> Path:
    torch.set_default_dtype(torch.float32)
    made = teacher.parent / "fast"
    assert main(["distil", str(teacher), "-o", str(made), "--paths", "96", "--device", "cpu", "--quiet"]) == 0
    return made


def test_it_says_what_it_is_and_draws_by_its_steps(
    teacher: Path, fast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not fast.with_name("fast.training").exists()
    capsys.readouterr()
    assert main(["info", str(fast), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["can"] == ["generate"]
    assert told["about"]["distilled"]["calls"] == 2 and told["about"]["distilled"]["paths"] == 96
    assert told["about"]["distilled"]["from"] == FittedImages.load(teacher).sha256
    assert any(line.startswith("distilled") for line in told["description"])
    words = ["generate", str(fast), "-n", "4", "--condition", "class=bright", "--device", "cpu", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("synthetic_*.png"))) == 4
    assert main([*words, "-o", str(tmp_path / "other"), "--steps", "5"]) == 2
    assert "knows no others" in capsys.readouterr().err
    assert main(["impute", str(tmp_path / "out"), "-o", str(tmp_path / "filled"), "--model", str(fast)]) == 2


def test_the_student_draws_as_its_teacher_does(teacher: Path, fast: Path) -> None:
    """From the same noise: a network that three steps trained hardly departs from the centre."""
    keys = Keys.range(0, 32)
    many = FittedImages.load(teacher).generate(keys, NOTHING, steps=40)
    few = FittedImages.load(fast).generate(keys, NOTHING)
    assert np.corrcoef(many.ravel(), few.ravel())[0, 1] > 0.95


def test_the_same_command_makes_the_same_model_and_a_stopped_one_goes_on(
    teacher: Path, fast: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = fast.with_name("again")
    words = ["distil", str(teacher), "-o", str(again), "--paths", "96", "--device", "cpu", "--quiet"]

    def stopped(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("ebbtide.shared.grids.distilling.distil", stopped)
        assert main(words) != 0
    assert list((fast.with_name("again.training") / "checkpoints" / "paths").iterdir())
    capsys.readouterr()
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--steps", "3", "--resume"]) == 2
    assert main([*words, "--resume"]) == 0
    assert (again / "weights.safetensors").read_bytes() == (fast / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "told"),
    [(["--steps", "9"], "1 ... 8"), (["--paths", "3"], "too few")],
)
def test_refuses_what_cannot_be(
    teacher: Path, tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distil", str(teacher), "-o", str(tmp_path / "fast"), *more]) == 2
    assert told in capsys.readouterr().err


def test_refuses_models_of_scans_and_those_that_are_fast_already(
    fast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distil", "brain-t1", "-o", str(tmp_path / "one")]) == 2
    assert "only those of pictures" in capsys.readouterr().err
    assert main(["distil", str(fast), "-o", str(tmp_path / "two"), "--device", "cpu"]) == 2
    assert "distilled before" in capsys.readouterr().err


def test_captions_are_taught_by_those_of_a_set(folder: Path, tmp_path: Path) -> None:
    (folder / "captions.csv").rename(folder / "metadata.csv")
    told = collect(folder)
    fitted = FittedImages.fit(told, settings=SMALL, device="cpu")
    with pytest.raises(InputError, match="captions or numbers"):
        fitted.distilled(None, paths=64, device="cpu")
    fast = fitted.distilled(told, paths=64, guidance=2.0, device="cpu")
    assert fast.can == ("generate", "prompt") and fast.about["distilled"]["guidance"] == 2.0
    keys = Keys.range(0, 3)
    asked = fast.condition(keys, {}, "a dark thing")
    # Its guidance is its own: another one that is asked for changes nothing.
    assert np.array_equal(fast.generate(keys, asked, guidance=3.0), fast.generate(keys, asked))
    with pytest.raises(InputError, match="led away"):
        fast.generate(keys, asked, guidance=3.0, negative="bright")
