"""The demo hides cells of a real table, fills them and tells how near it came."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from ebbtide.pipelines import demo as demo_module
from ebbtide.pipelines.demo import by_features, demo, hide, peers, penguins
from ebbtide.shared.errors import InputError


@pytest.mark.usefixtures("gaussian")
def test_the_demo_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: peer for name, peer in peers(0).items() if name != "extra-trees chain"}
    monkeypatch.setattr(demo_module, "peers", lambda seed: quick)
    made = demo(tmp_path / "demo", models=False)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"report.html", "scores.json", "penguins_with_holes.csv", "imputed"} <= names
    assert sum(name.endswith(".png") for name in names) == 4
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page
    assert set(made.scores) == {"Ebbtide", "mean / mode", "5 nearest neighbours"}
    assert made.scores["Ebbtide"]["rmse"] < made.scores["mean / mode"]["rmse"]
    assert 0.8 < made.scores["Ebbtide"]["coverage"] <= 1
    assert any("RMSE" in line for line in made.lines)
    with pytest.raises(InputError, match="output-exists"):
        demo(tmp_path / "demo")


def test_cells_are_hidden_with_equal_chance_and_the_same_each_time() -> None:
    truth = penguins()
    holes = hide(truth, 0)
    assert holes.equals(hide(truth, 0)) and not holes.equals(hide(truth, 1))
    assert not (holes & truth.isna()).any().any()
    assert holes.to_numpy()[truth.notna()].mean() == pytest.approx(0.3, abs=4.5 * (0.21 / 2389) ** 0.5)


def test_the_comparison_leaves_known_cells_alone() -> None:
    from sklearn.impute import SimpleImputer

    given = penguins()
    made = by_features(SimpleImputer(), given)
    assert made.notna().all().all()
    assert (made.where(given.notna()) == given)[given.notna()].where(given.notna(), True).all().all()
    assert made["sex"][given["sex"].isna()].unique().tolist() == [given["sex"].mode()[0]]
    assert np.isclose(made["body_mass_g"][3], given["body_mass_g"].mean())


def test_the_card_tells_of_the_very_file() -> None:
    folder = files("ebbtide.data_cards").joinpath("penguins")
    card = yaml.safe_load(folder.joinpath("card.yaml").read_text())
    data = folder.joinpath("penguins.csv").read_bytes()
    assert hashlib.sha256(data).hexdigest() == card["files"][0]["sha256"]
    assert len(data) == card["files"][0]["bytes"]
    table = penguins()
    assert len(table) == card["rows"] and list(table.columns) == list(card["columns"])
    assert {name: int(count) for name, count in table.isna().sum().items()} == {
        name: column["missing"] for name, column in card["columns"].items()
    }
