"""`ebbtide train --only generate` and `generate` on a table: files, marks, formats, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ebbtide.domains import Wish
from ebbtide.domains.tabular import TableOptions, TabularDomain
from ebbtide.domains.tabular.generator import GeneratorSettings
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.generating import generate
from ebbtide.pipelines.training import train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generating")
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"x": rng.normal(size=200).round(2), "y": rng.choice(["=a", "b"], 200), "k": range(200)}
    )
    frame.to_csv(folder / "table.csv", index=False)
    settings = GeneratorSettings(width=16, depth=1, steps=10)
    domain = TabularDomain(TableOptions(only="generate", generator=settings, kinds={"k": "id"}))
    train(folder / "table.csv", folder / "model", domain=domain)
    return folder / "model"


def test_a_table_comes_with_its_picture_and_manifest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(model), "-n", "40", "-o", str(tmp_path / "out"), "--seed", "3", "--json"]
    assert main([*words, "--condition", "y=b,x=0..", "--constraint", "x<=1"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"generated": 40}
    made = pd.read_csv(tmp_path / "out" / "synthetic.csv")
    assert (
        made["x"].between(0, 1).all()
        and (made["y"] == "b").all()
        and made["k"].tolist()[:2] == ["S000000001", "S000000002"]
    )
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["note"].startswith("SYNTHETIC") and told["options"]["constraints"] == ["x<=1"]
    assert set(told["files"]) == {"synthetic.csv", "columns.png"}
    assert (tmp_path / "out" / "columns.png").read_bytes()[1:4] == b"PNG"


def test_pieces_make_the_same_table_and_parquet_says_synthetic(model: Path, tmp_path: Path) -> None:
    for size in (7, 1000):
        domain = TabularDomain(made_at_once=size)
        generate(model, tmp_path / str(size), domain=domain, wish=Wish(30, format="parquet"))
    files = [pq.read_table(tmp_path / str(size) / "synthetic.parquet") for size in (7, 1000)]
    assert files[0].equals(files[1]) and files[0].num_rows == 30
    assert json.loads(files[0].schema.metadata[b"ebbtide"])["synthetic"] is True


def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "out", domain=TabularDomain(), wish=Wish(50))
    cells = pd.read_csv(tmp_path / "out" / "synthetic.csv")["y"]
    assert set(cells) == {"'=a", "b"}


def test_what_is_not_modelled_is_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(model), "-n", "4", "-o", str(tmp_path / "out"), "--condition"]
    assert main([*words, "yy=b"]) == 2
    error = capsys.readouterr().err
    assert "condition-unknown" in error and "did you mean y?" in error
    assert (
        main(["impute", str(model.parent / "table.csv"), "-o", str(tmp_path / "o"), "--model", str(model)])
        == 2
    )
    assert "cannot-impute" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
