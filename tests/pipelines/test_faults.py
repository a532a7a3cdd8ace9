"""Bad input and faults, through the real command line: the numbers are the rows of FAULTS.md."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ebbtide.pipelines.cli import main

Run = tuple[int, str, str]


@pytest.fixture
def ebbtide(gaussian: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command line in this process with the quick model; gives exit code, stdout and stderr."""
    from ebbtide.domains.tabular import domain as domain_module

    monkeypatch.setattr(domain_module, "preview", lambda fitted, parts, picture: picture.write_bytes(b""))
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    yield run
    signal.signal(signal.SIGTERM, before)


def table(folder: Path, rows: int = 60, **columns: list[object]) -> Path:
    """A CSV of two numbers and a category with some empty cells, and more columns."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=rows).round(3),
            "b": rng.normal(size=rows).round(3),
            "c": rng.choice(["x", "y"], rows),
        }
    )
    frame.loc[2:5, "a"] = np.nan
    frame.loc[4:7, "c"] = None
    for name, cells in columns.items():
        frame[name] = (cells * rows)[:rows]
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def one_line(run: Run, code: int, *words: str) -> None:
    """The command stopped with `code` and one line on stderr that holds all `words`."""
    assert run[0] == code, run
    assert run[2].count("\n") == 1 and "Traceback" not in run[2], run[2]
    for word in words:
        assert word in run[2], (word, run[2])


def test_13_a_column_without_a_cell_is_kept_and_told(ebbtide, tmp_path: Path) -> None:
    code, _, err = ebbtide("impute", table(tmp_path, empty=[None]), "-o", tmp_path / "out")
    made = pd.read_csv(tmp_path / "out/table.imputed.csv")
    assert code == 0 and made.shape == (60, 4) and made["empty"].isna().all()
    assert "column-empty" in err and "'empty'" in err


def test_14_infinity_and_text_in_numbers_name_column_rows_and_count(ebbtide, tmp_path: Path) -> None:
    numbers: list[object] = [float(k) / 7 for k in range(60)]
    numbers[9], numbers[12] = "12 mg", "secret"
    run = ebbtide("impute", table(tmp_path, d=numbers), "-o", tmp_path / "out")
    one_line(run, 2, "'d'", "10", "13")
    assert "secret" not in run[2] and not (tmp_path / "out").exists()
    frame = pd.read_csv(table(tmp_path)).assign(e=1.5)
    frame.loc[[3, 8], "e"] = np.inf
    frame.to_parquet(tmp_path / "t.parquet")
    one_line(
        ebbtide("impute", tmp_path / "t.parquet", "-o", tmp_path / "out"), 2, "inf", "'e'", "4, 9", "2 in all"
    )


def test_15_columns_that_differ_from_training(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    assert ebbtide("train", path, "-o", tmp_path / "model")[0] == 0
    frame = pd.read_csv(path)
    frame[["c", "b", "a"]].to_csv(tmp_path / "reordered.csv", index=False)
    frame.drop(columns="b").assign(z=1).to_csv(tmp_path / "other.csv", index=False)
    frame.assign(c=["never seen"] * 5 + list(frame["c"][5:])).to_csv(tmp_path / "unseen.csv", index=False)
    model = ("--model", tmp_path / "model")
    assert ebbtide("impute", tmp_path / "reordered.csv", "-o", tmp_path / "o1", *model)[0] == 0
    assert list(pd.read_csv(tmp_path / "o1/reordered.imputed.csv")) == ["c", "b", "a"]
    one_line(ebbtide("impute", tmp_path / "other.csv", "-o", tmp_path / "o2", *model), 2, "'b'", "'z'")
    code, out, _ = ebbtide("impute", tmp_path / "unseen.csv", "-o", tmp_path / "o3", *model)
    assert code == 0 and "5 cells hold a category that training never saw" in out
    assert (pd.read_csv(tmp_path / "o3/unseen.imputed.csv")["c"][:5] == "never seen").all()


def test_16_na_stays_text_unless_named(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path, country=["NA", "DE", "ZA"])
    code, out, _ = ebbtide("check", path)
    assert code == 0 and "missing-code" in out and "--missing" in out
    code, out, _ = ebbtide("impute", path, "-o", tmp_path / "kept")
    assert code == 0 and "country        20 cells hold a word that often stands for missing" in out
    kept = pd.read_csv(tmp_path / "kept/table.imputed.csv", keep_default_na=False)
    assert (kept["country"] == "NA").sum() == 20
    code, out, _ = ebbtide("impute", path, "-o", tmp_path / "named", "--missing", "NA")
    assert code == 0 and "20 filled" in out and "often stands" not in out
    named = pd.read_csv(tmp_path / "named/table.imputed.csv", keep_default_na=False)
    assert (named["country"] == "NA").sum() == 0


def test_17_ids_stay_as_they_are(ebbtide, tmp_path: Path) -> None:
    ids: list[object] = [f"{k:05d}" for k in range(60)]
    big: list[object] = [str(9007199254740993 + 2 * k) if k % 3 else "" for k in range(60)]
    path = table(tmp_path, patient_id=ids, big=big)
    assert ebbtide("impute", path, "-o", tmp_path / "out")[0] == 0
    before, after = (pd.read_csv(p, dtype=str) for p in (path, tmp_path / "out/table.imputed.csv"))
    pd.testing.assert_frame_equal(before[["patient_id", "big"]], after[["patient_id", "big"]])


def test_18_a_short_row_is_an_error_with_its_number(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    lines = path.read_text().splitlines()
    lines[8] = lines[8].rpartition(",")[0]
    path.write_text("\n".join(lines))
    one_line(ebbtide("impute", path, "-o", tmp_path / "out"), 2, "row-length", "row 8")
    code, out, _ = ebbtide("check", path, "--json")
    assert code == 2 and "row-length" in json.loads(out)["faults"][0]["code"]
    path.write_text("a;b\n" + "\n".join(f"{k},5;{k},25" for k in range(40)) + "\n;1,5\n")
    assert ebbtide("impute", path, "-o", tmp_path / "semicolons")[0] == 0
    manifest = json.loads((tmp_path / "semicolons/manifest.json").read_text())
    assert any("semicolons" in note for note in manifest["assumed"])
    assert any("decimal comma" in note for note in manifest["assumed"])


def test_19_formulas_that_were_observed_are_untouched(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path, d=["=1+1", "plain", "-x"])
    assert ebbtide("impute", path, "-o", tmp_path / "out")[0] == 0
    assert (pd.read_csv(tmp_path / "out/table.imputed.csv")["d"] == pd.read_csv(path)["d"]).all()


def test_20_many_levels(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path, rows=3000, zone=[f"zone {k}" for k in range(900)] + [None])
    assert ebbtide("impute", path, "-o", tmp_path / "out", "--draws", 2)[0] == 0
    assert pd.read_csv(tmp_path / "out/table.imputed.csv")["zone"].notna().all()


def test_21_only_safetensors_and_json_are_read(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    assert ebbtide("train", path, "-o", tmp_path / "model")[0] == 0
    (tmp_path / "model/extra.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    one_line(
        ebbtide("impute", path, "-o", tmp_path / "out", "--model", tmp_path / "model"), 2, "model-refused"
    )
    (tmp_path / "model/extra.pkl").unlink()
    weights = tmp_path / "model/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    one_line(ebbtide("info", tmp_path / "model"), 2, "model-refused")


def test_22_a_plan_is_plain_yaml_with_known_keys(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    (tmp_path / "plan.yaml").write_text("rowz: 5\n")
    run = ebbtide("train", path, "-o", tmp_path / "model", "--plan", tmp_path / "plan.yaml")
    one_line(run, 2, "plan-key", "did you mean rows")
    (tmp_path / "plan.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    run = ebbtide("train", path, "-o", tmp_path / "model", "--plan", tmp_path / "plan.yaml")
    one_line(run, 2, "plan-yaml", "line 1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_23_a_read_only_folder(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    run = ebbtide("impute", path, "-o", tmp_path / "closed/out")
    assert run[0] in (1, 2) and run[2].count("\n") == 1


def test_25_few_rows_are_warned_of(ebbtide, tmp_path: Path) -> None:
    code, _, err = ebbtide("impute", table(tmp_path, rows=12), "-o", tmp_path / "out")
    assert code == 0 and "few-rows" in err and "memorise" in err
    path = tmp_path / "constant.csv"
    path.write_text("a,b\n" + "1.5,x\n" * 20 + ",x\n")
    assert ebbtide("impute", path, "-o", tmp_path / "same")[0] == 0
    assert (pd.read_csv(tmp_path / "same/constant.imputed.csv")["a"] == 1.5).all()


def test_26_output_that_exists_is_refused(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    for verb in ("impute", "train"):
        assert ebbtide(verb, path, "-o", tmp_path / verb)[0] == 0
        one_line(ebbtide(verb, path, "-o", tmp_path / verb), 2, "output-exists", "--overwrite")
        assert ebbtide(verb, path, "-o", tmp_path / verb, "--overwrite")[0] == 0
    config = tmp_path / "train/config.json"
    config.write_text(config.read_text().replace("ebbtide-table/2", "ebbtide-table/9"))
    one_line(ebbtide("info", tmp_path / "train"), 2, "model-refused")


def test_28_names_are_neither_modelled_nor_printed(ebbtide, tmp_path: Path) -> None:
    names = [f"Ada Lovelace {k}" for k in range(60)]
    path = table(tmp_path, surname=[*names], remark=["long free text, as dictated", "other words", None])
    code, out, err = ebbtide("impute", path, "-o", tmp_path / "out", "--all-draws", 2)
    assert code == 0 and "Lovelace" not in out + err
    for file in ("manifest.json", "model/config.json", "model/manifest.json"):
        assert "Lovelace" not in (tmp_path / "out" / file).read_text()
    made = pd.read_csv(tmp_path / "out/table.imputed.csv")
    assert (made["surname"] == names).all()


def test_bad_keys_and_words_are_one_line(ebbtide, tmp_path: Path) -> None:
    path = table(tmp_path)
    out = ("-o", tmp_path / "out")
    one_line(ebbtide("impute", path, *out, "--key", "c"), 2, "key-missing", "row 5")
    one_line(ebbtide("impute", path, *out, "--key", "nobody"), 2, "key-unknown")
    one_line(ebbtide("impute", path, *out, "--shard", "2 of 3"), 2, "--shard")
    one_line(ebbtide("impute", path, *out, "--kinds", "a:number"), 2, "--kinds")
    one_line(ebbtide("impute", path, *out, "--columns", "aa"), 2, "column-unknown")
    one_line(ebbtide("impute", tmp_path / "none.csv", *out), 2, "file-not-found")
    one_line(ebbtide("impute", tmp_path, *out), 2, "no-domain")
    assert not (tmp_path / "out").exists()


QUICK = """
rows: 200
model: {trees: [1], folds: 2, copies: 1, steps: 6000, width: 16, depth: 1, head_width: 16, head_depth: 1}
"""


def train_for(seconds: float | None, folder: Path, name: str, *words: str) -> int:
    """Train with the real model in a process of its own; end it by SIGTERM or SIGKILL after `seconds`."""
    begin = "from ebbtide.pipelines.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", begin, "train", str(folder / "table.csv"), "-o", str(folder / name)]
    command += ["--plan", str(folder / "plan.yaml"), "--device", "cpu", "--quiet", *words]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if seconds is None:
        return process.wait(300)
    deadline = time.monotonic() + 120
    while not (folder / f"{name}.training/checkpoints").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM if "--resume" in words else signal.SIGKILL)
    return process.wait(60)


@pytest.mark.slow
def test_23_a_training_killed_three_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    table(tmp_path, rows=200)
    (tmp_path / "plan.yaml").write_text(QUICK)
    assert train_for(None, tmp_path, "straight") == 0
    assert train_for(0.3, tmp_path, "killed") == -signal.SIGKILL
    assert train_for(0.3, tmp_path, "killed", "--resume") in (143, 0)
    assert train_for(0.3, tmp_path, "killed", "--resume") in (143, 0, 2)  # 2: it was finished already
    if not (tmp_path / "killed").exists():
        assert train_for(None, tmp_path, "killed", "--resume") == 0
    for name in ("weights.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
