"""Pictures through the real command line: check, plan, train, info, generate, impute."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ebbtide.domains.images.collection import collect
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


@pytest.fixture(scope="module")
def captioned(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same pictures with captions; three steps teach it nothing."""
    torch.set_default_dtype(torch.float32)
    work = tmp_path_factory.mktemp("captioned")
    rows = ["file_name,caption"]
    for file in sorted(folder.glob("*/*.png")):
        (work / file.parent.name).mkdir(exist_ok=True)
        (work / file.parent.name / file.name).write_bytes(file.read_bytes())
        rows.append(f"{file.parent.name}/{file.name},a wave {file.parent.name}")
    (work / "metadata.csv").write_text("\n".join(rows))
    words = ["train", str(work), "-o", str(work / "model"), "--plan", str(model.parent / "plan.yaml")]
    assert main([*words, "--device", "cpu", "--quiet"]) == 0
    return work / "model"


def texts(path: Path) -> dict[str, str]:
    """What a PNG says of itself."""
    return dict(Image.open(path).text)  # type: ignore[attr-defined]


def test_a_prompt_is_followed_and_kept(
    captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    words = ["generate", str(captioned), "-n", "3", "-o", str(out), "--prompt", "a wave along, purple"]
    assert main([*words, "--negative", "across", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any(fault["code"] == "prompt-words" and "purple" in fault["what"] for fault in warnings)
    said = texts(out / "synthetic_000002.png")
    assert said["ebbtide:prompt"] == "a wave along, purple" and said["ebbtide:negative"] == "across"
    assert said["ebbtide:guidance"] == "3.0" and said["ebbtide:model"] and said["ebbtide:seed"] == "0"
    assert texts(out / "contact_sheet.png")["ebbtide:model"] == said["ebbtide:model"]
    # What was made is itself a set of pictures with captions, the sheet not among them.
    assert main(["check", str(out)]) == 0
    found = collect(out)
    assert found.names == tuple(f"synthetic_{k:06d}.png" for k in range(3))
    assert found.captions == ("a wave along, purple",) * 3
    with_none = ["generate", str(captioned), "-n", "3", "-o", str(tmp_path / "none"), "--quiet"]
    assert main(with_none) == 0
    assert not np.array_equal(pixels(out / found.names[0]), pixels(tmp_path / "none" / found.names[0]))


def test_a_picture_is_varied_and_two_are_passed_between(model: Path, folder: Path, tmp_path: Path) -> None:
    first, second = folder / "along" / "00.png", folder / "across" / "00.png"
    words = ["generate", str(model), "-n", "3", "--quiet", "--like", str(first)]
    away = []
    for strength in ("0.02", "0.9"):
        out = tmp_path / strength
        assert main([*words, "-o", str(out), "--strength", strength]) == 0
        made = [pixels(out / f"synthetic_{k:06d}.png").astype(float) for k in range(3)]
        away.append(np.abs(np.stack(made) - pixels(first)).mean())
        assert texts(out / "synthetic_000001.png")["ebbtide:like"] == "00.png"
    assert away[0] < 5 < away[1]
    out = tmp_path / "between"
    assert main([*words, "-o", str(out), "--like", str(second)]) == 0
    ends = [pixels(out / f"synthetic_{k:06d}.png").astype(float) for k in (0, 2)]
    assert all(np.abs(end - pixels(f)).mean() < 40 for end, f in zip(ends, (first, second), strict=True))
    assert not np.array_equal(*ends)


def test_pictures_are_enlarged_and_known_pixels_kept(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "small"
    data.mkdir()
    Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6) * 7).save(data / "a.png")
    words = ["impute", str(data), "--model", str(model), "--draws", "2", "--all-draws", "1", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "out"), "--fill", "enlarge:2"]) == 0
    large = pixels(tmp_path / "out" / "a.png")
    assert collect(tmp_path / "out").names == ("a.png",)  # masks and spreads are no pictures of the set
    assert large.shape == (12, 12) and np.array_equal(large[::2, ::2], pixels(data / "a.png"))
    model_sha = hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()
    for name in ("a.png", "masks/a.png", "spread/a.png", "draw_000/a.png", "preview.png"):
        said = texts(tmp_path / "out" / name)
        assert said["ebbtide:kind"] == "FILLED" and said["ebbtide:model"] == model_sha


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_info_and_check(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    assert (
        "--like PICTURE" in out
        and "--prompt" not in out
        and "12 x 12 pixels, grey" in out
        and "class: across, along" in out
    )
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
        (["generate", "{model}", "-o", "{out}", "--prompt", "a wave"], "prompt"),
        (["generate", "{captioned}", "-o", "{out}", "--prompt", "zebra"], "prompt-unknown"),
        (
            ["generate", "{captioned}", "-o", "{out}", "--negative", "wave", "--guidance", "1"],
            "negative",
        ),
        (["generate", "{model}", "-o", "{out}", "--like", "nowhere.png"], "file-not-found"),
        (["generate", "{model}", "-o", "{out}", "--like", "{picture}", "--strength", "2"], "strength"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}", "--fill", "half:inside"], "fill"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}", "--fill", "box:0-40,1"], "hole-outside"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}"], "nothing-to-fill"),
        (["train", "{folder}", "-o", "{out}", "--spacing", "2"], "other-domain"),
    ],
)
def test_slips_get_one_line(
    model: Path,
    captioned: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: str,
) -> None:
    given = {"model": str(model), "folder": str(folder), "out": str(tmp_path / "out")}
    given |= {"captioned": str(captioned), "picture": str(folder / "along" / "00.png")}
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
