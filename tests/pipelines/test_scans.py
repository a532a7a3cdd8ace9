"""Scans through the real command line, as a newcomer types it: check, plan, train, info, generate, impute."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from ebbtide.pipelines.cli import main

SMALL = {"steps": 3, "widths": [8, 12], "batch_size": 2, "components": 2, "folds": 2, "sampler_steps": 3}


def brain(seed: int) -> np.ndarray:
    """An ellipsoid with some texture, zero all around."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 20, 18)), indexing="ij")
    texture = 120 + 60 * np.sin(rng.uniform(4, 7) * x) * np.cos(rng.uniform(4, 7) * y + z)
    return np.where(x**2 + y**2 + z**2 < 0.6, texture, 0)


def save(path: Path, values: np.ndarray, dtype: str = "u1") -> Path:
    """LPS axes, an oblique shift, one scaling: what writing must bring back."""
    affine = np.diag([-2.0, -2.0, 2.5, 1.0])
    affine[:3, 3] = [31, 40, -12]
    image = nib.Nifti1Image(values.astype(dtype), affine)
    image.header["descrip"] = b"a scanner's words"
    nib.save(image, path)
    return path


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    for i in range(11):
        save(root / f"s{i:02d}.nii.gz", brain(i))
    rows = "\n".join(f"s{i:02d}\t{30 + 3 * i}\t{'FM'[i % 2]}" for i in range(11))
    (root / "participants.tsv").write_text(f"participant_id\tage\tsex\n{rows}\n")
    return root


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned, edited and trained through the command line."""
    torch.set_default_dtype(torch.float32)
    work = tmp_path_factory.mktemp("work")
    plan = work / "plan.yaml"
    assert main(["plan", str(folder), "-o", str(plan), "--condition", "age,sex", "--quiet"]) == 0
    written = yaml.safe_load(plan.read_text())
    assert written["domain"] == "mri" and written["conditions"] == ["age", "sex"]
    assert set(written["estimate"]) == {"minutes", "memory_mb", "disk_mb"}
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


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The one JSON document on stdout."""
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_info_says_what_it_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    assert "a model of volumes" in out and "age: 31.5 to 58.5" in out and "sex: F, M" in out
    assert "ebbtide generate" in out


def test_what_is_generated_lies_in_space_and_says_that_it_is_synthetic(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    words = ["generate", str(model), "-n", "3", "-o", str(out), "--condition", "age=40..50,sex=f", "--quiet"]
    assert main(words) == 0
    path = out / "sub-syn0003" / "anat" / "sub-syn0003_image.nii.gz"
    image = nib.load(path)
    assert np.allclose(image.header.get_zooms(), (2, 2, 2.5)) and image.shape == (16, 20, 20)
    assert image.get_data_dtype() == np.uint8 and b"SYNTHETIC" in image.header["descrip"].tobytes()
    told = json.loads(path.with_name("sub-syn0003_image.json").read_text())
    assert told["SYNTHETIC"] and told["seed"] == 0 and 40 <= told["conditions"]["age"] <= 50
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    rows = (out / "participants.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["participant_id", "age", "sex"] and len(rows) == 4
    assert (out / "montage.png").read_bytes()[:4] == b"\x89PNG"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["command"] == "generate" and manifest["model"]["items"] == 11

    # sample 0 is the same alone
    assert main([*words[:3], "1", "-o", str(tmp_path / "one"), *words[6:]]) == 0
    first = "sub-syn0001/anat/sub-syn0001_image.nii.gz"
    a, b = (nib.load(folder / first).get_fdata() for folder in (out, tmp_path / "one"))
    assert np.array_equal(a, b)


def test_what_is_filled_leaves_all_else_alone(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "filled"
    words = ["impute", str(folder), "-o", str(out), "--model", str(model), "--draws", "2", "--all-draws", "1"]
    assert main([*words, "--fill", "box:5-9,6-11,7-9", "--json"]) == 0
    document = said(capsys)
    assert document["summary"] == {
        "subjects": 11, "images": 11, "filled": 11 * 90, "face": 0, "beyond": 0, "failed": 0,
    }  # fmt: skip
    before, after = folder / "s03.nii.gz", out / "s03_filled.nii.gz"
    a, b = nib.load(before), nib.load(after)
    mask = np.asarray(nib.load(out / "s03_mask.nii.gz").dataobj).astype(bool)
    x, y = np.asarray(a.dataobj), np.asarray(b.dataobj)
    assert mask.sum() == 90 and mask[5:10, 6:12, 7:10].all()
    assert x.dtype == y.dtype and np.array_equal(x[~mask], y[~mask]) and not np.array_equal(x[mask], y[mask])
    # the header is the same, byte for byte
    assert gzip.decompress(before.read_bytes())[:352] == gzip.decompress(after.read_bytes())[:352]
    assert (np.asarray(nib.load(out / "s03_std.nii.gz").dataobj)[mask] > 0).all()
    assert (out / "s03_draw000.nii.gz").is_file() and (out / "preview.png").is_file()
    assert "s03\timage" in (out / "filled.tsv").read_text()
    # each subject is the same when it is filled alone
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "s03.nii.gz").write_bytes(before.read_bytes())
    (tmp_path / "alone" / "participants.tsv").write_bytes((folder / "participants.tsv").read_bytes())
    words[1:4] = [str(tmp_path / "alone"), "-o", str(tmp_path / "one")]
    assert main([*words, "--fill", "box:5-9,6-11,7-9", "--quiet"]) == 0
    assert (tmp_path / "one" / "s03_filled.nii.gz").read_bytes() == after.read_bytes()


def test_a_damaged_file_is_named_and_the_rest_is_done(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("s00", "s01"):
        (data / f"{name}.nii.gz").write_bytes((folder / f"{name}.nii.gz").read_bytes())
    damaged = bytearray((data / "s01.nii.gz").read_bytes())
    damaged[len(damaged) // 2] ^= 16
    (data / "s01.nii.gz").write_bytes(damaged)
    assert main(["check", str(data)]) == 2
    assert "s01.nii.gz" in capsys.readouterr().out
    out = tmp_path / "out"
    words = ["impute", str(data), "-o", str(out), "--model", str(model), "--draws", "1"]
    assert main([*words, "--fill", "slices:2:8"]) == 1
    assert "could not be filled" in capsys.readouterr().out
    assert "s01" in (out / "failed.tsv").read_text() and (out / "s00_filled.nii.gz").is_file()


@pytest.mark.parametrize(
    "words, code",
    [
        (["generate", "{model}", "-o", "{out}", "--condition", "agee=4"], "condition-unknown"),
        (["generate", "{model}", "-o", "{out}", "-n", "0"], "count"),
        (["generate", "hippocampos", "-o", "{out}"], "model-missing"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}", "--fill", "box:1"], "fill"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}", "--missing", "?"], "other-domain"),
        (["impute", "{folder}", "-o", "{out}", "--model", "{model}"], "nothing-to-fill"),
        (["train", "{folder}", "-o", "{out}", "--condition", "weight"], "covariate-unknown"),
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
    assert main([word.format(**given) for word in [*words, "--json"]]) == 2
    document = said(capsys)
    assert document["error"]["code"] == code  # type: ignore[index]
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans that do not say how they lie, with voxels that are not numbers, and label maps alike."""
    root = tmp_path_factory.mktemp("odd")
    for i in range(5):
        values = brain(i).astype("f4")
        values[6:9, 8:11, 8] = np.nan
        for name, array in ((f"p{i}_T1w.nii.gz", values), (f"p{i}_dseg.nii.gz", brain(i) > 120)):
            image = nib.Nifti1Image(array.astype("f4" if "T1w" in name else "u1"), np.diag([2.0, 2, 2.5, 1]))
            image.set_sform(None, 0)
            image.set_qform(None, 0)
            nib.save(image, root / name)
    return root


ALLOW = ["--assume-spacing", "--missing-nan"]


def test_what_is_allowed_is_allowed_by_every_verb(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FAULTS 6 and 7: refused by each verb, unless the user says otherwise."""
    plan, model = tmp_path / "plan.yaml", tmp_path / "model"
    refused = [["plan", str(odd), "-o", str(plan)], ["train", str(odd), "-o", str(model)]]
    for words in refused:
        for more, code in (([], "nifti-orientation"), (ALLOW[:1], "nifti-not-finite")):
            assert main([*words, *more, "--json"]) == 2
            assert said_code(capsys) == code, (words, more)
        assert not plan.exists() and not model.exists()
    assert main(["check", str(odd), *ALLOW, "--quiet"]) == 0
    assert main([*refused[0], *ALLOW, "--quiet"]) == 0
    written = yaml.safe_load(plan.read_text())
    assert written["assume_spacing"] and written["missing_nan"] and written["labels"]
    written["model"] |= SMALL
    plan.write_text(yaml.safe_dump(written))
    words = ["train", str(odd), "-o", str(model), "--plan", str(plan), "--device", "cpu", "--json"]
    capsys.readouterr()
    assert main(words) == 0  # what the plan allows need not be said again
    about = said(capsys)["about"]
    assert about["assume_spacing"] and about["missing_nan"] and about["items"] == 5  # type: ignore[index]
    fill = ["impute", str(odd), "-o", str(tmp_path / "out"), "--model", str(model), "--draws", "1"]
    assert main([*fill, *ALLOW, "--json"]) == 0
    assert said(capsys)["summary"]["filled"] == 5 * 9  # type: ignore[index]
    filled = np.asarray(nib.load(tmp_path / "out" / "p2_T1w_filled.nii.gz").dataobj)
    assert np.isfinite(filled).all()
    assert not (tmp_path / "out" / "p2_T1w_std.nii.gz").exists()  # one draw has no spread


def said_code(capsys: pytest.CaptureFixture[str]) -> str:
    """The code of the one error."""
    return str(said(capsys)["error"]["code"])  # type: ignore[index]


def test_large_scans_are_learnt_through_windows_in_one_pose(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are lines of the plan; what is filled comes back where the scan lies, all else bit for bit."""
    plan, made = tmp_path / "plan.yaml", tmp_path / "model"
    assert main(["plan", str(folder), "-o", str(plan), "--quiet"]) == 0
    written = yaml.safe_load(plan.read_text())
    assert written["pose"] is False and written["model"]["patch"] is None
    written |= {"pose": True, "model": written["model"] | SMALL | {"patch": 9}}
    plan.write_text(yaml.safe_dump(written))
    train = ["train", str(folder), "-o", str(made), "--plan", str(plan), "--device", "cpu"]
    assert main(train) == 2
    assert "multiple of 2" in capsys.readouterr().err
    written["model"]["patch"] = 8
    plan.write_text(yaml.safe_dump(written))
    assert main([*train, "--quiet"]) == 0
    config = json.loads((made / "config.json").read_text())
    assert config["model"]["settings"]["patch"] == 8 and config["space"]["pose"]["modalities"] == ["image"]
    out = tmp_path / "made"
    assert main(["generate", str(made), "-n", "2", "-o", str(out), "--quiet"]) == 0
    assert len(list(out.rglob("*.nii.gz"))) == 2 and (out / "montage.png").stat().st_size > 1000
    alone, filled = tmp_path / "one", tmp_path / "filled"
    alone.mkdir()
    own = nib.load(save(alone / "s03.nii.gz", brain(3)))
    words = ["--fill", "box:6-9,8-11,7-10", "--draws", "2", "--model", str(made)]
    assert main(["impute", str(alone), "-o", str(filled), *words, "--quiet"]) == 0
    mask = np.asarray(nib.load(filled / "s03_mask.nii.gz").dataobj) > 0
    back = nib.load(filled / "s03_filled.nii.gz")
    assert mask.sum() == 64 and np.array_equal(back.affine, own.affine)
    assert np.array_equal(np.asarray(back.dataobj)[~mask], np.asarray(own.dataobj)[~mask])


def test_a_plan_names_a_machine_that_there_is(model: Path, folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("domain: mri\npreset: 3gb\n")
    assert main(["train", str(folder), "-o", str(tmp_path / "m"), "--plan", str(plan), "--quiet"]) == 2


def test_a_wish_beyond_the_training_is_warned_of(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, (words, warned) in enumerate(
        (("age=95", 1), ("age=40..95", 1), ("age=40..50", 0), ("age=*", 0))
    ):
        out = tmp_path / str(place)
        made = ["generate", str(model), "-n", "1", "-o", str(out), "--steps", "1", "--json"]
        assert main([*made, "--condition", words]) == 0
        codes = [fault["code"] for fault in said(capsys)["warnings"]]  # type: ignore[attr-defined]
        assert codes.count("condition-beyond") == warned, words
        held = json.loads((out / "manifest.json").read_text())["warnings"]
        assert [fault["code"] for fault in held] == codes


def test_a_bundled_model_is_named_wherever_a_model_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["impute", str(folder / "s00.nii.gz"), "-o", str(tmp_path / "out"), "--fill", "box:6-8,8-10,7-9"]
    assert main([*words, "--model", "brain-t1", "--draws", "1", "--quiet"]) == 0
    assert (tmp_path / "out" / "s00_T1w_filled.nii.gz").is_file()
    capsys.readouterr()
    assert main([*words, "--overwrite", "--model", "brain-t2", "--quiet"]) == 2
    assert "did you mean brain-t1?" in capsys.readouterr().err
