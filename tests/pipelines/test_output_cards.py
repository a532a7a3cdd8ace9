"""Every output is born with a card that fits the schema and keeps what people wrote of the data."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from ebbtide.domains.tabular import TabularDomain
from ebbtide.pipelines import output_cards
from ebbtide.pipelines.card_pages import front_matter, schema
from ebbtide.pipelines.carding import KEPT, card, load
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.imputing import impute_file
from ebbtide.pipelines.output_cards import LISTED, Origin, card_of, fitting
from ebbtide.pipelines.schemas import faults_of

CARDS = Path(str(files("ebbtide.data_cards")))


@pytest.fixture
def penguins(tmp_path: Path) -> Path:
    """A table beside its card."""
    for name in ("card.yaml", "penguins.csv"):
        shutil.copyfile(CARDS / "penguins" / name, tmp_path / name)
    return tmp_path / "penguins.csv"


def completed(table: Path) -> Path:
    out = table.parent / "out"
    impute_file(table, out, domain=TabularDomain(), draws=3, overwrite=True)
    return out


def test_a_completed_table_has_a_card_that_is_right(penguins: Path, gaussian: object) -> None:
    out = completed(penguins)
    assert card(out).faults == ()  # the schema, the files' sha256, the counts of missing cells
    made = load(out / "card.yaml")
    assert made["kind"] == "imputed" and made["licence"] == "CC0-1.0" and made["people"] == "none"
    assert made["imputation"]["filled"] == 19 and made["imputation"]["mask"] == "penguins.mask.csv"
    assert made["columns"]["body_mass_g"] == {"kind": "integer", "missing": 0, "unit": "g"}
    assert made["columns"]["species"]["role"] == "target"
    assert (
        json.loads((out / "manifest.json").read_text())["model"]["sha256"]
        == made["imputation"]["model_sha256"]
    )
    protocol = json.loads((out / "croissant.json").read_text())["rai:dataImputationProtocol"]
    assert protocol.startswith("19 missing values") and made["imputation"]["model_sha256"] in protocol


def test_a_front_page_offers_the_completed_table_and_not_its_mask(penguins: Path, gaussian: object) -> None:
    front = front_matter(load(completed(penguins) / "card.yaml"))
    assert front["configs"] == [{"config_name": "default", "data_files": ["penguins.imputed.csv"]}]
    assert front["license"] == "cc0-1.0" and "imputed" in front["tags"]


@pytest.mark.parametrize(
    "text", [None, "{not yaml", "licence: 3\nfiles: [{path: penguins.csv}]\n", "files: 7"]
)
def test_without_a_good_card_what_people_know_is_unknown(
    penguins: Path, gaussian: object, text: str | None
) -> None:
    beside = penguins.with_name("card.yaml")
    beside.unlink() if text is None else beside.write_text(text)
    out = completed(penguins)
    made = load(out / "card.yaml")
    assert card(out).faults == ()
    assert made["licence"] == made["people"] == made["collection"]["ethics"] == "unknown"
    assert made["imputation"]["filled"] == 19


def test_a_card_speaks_for_the_files_that_it_names(penguins: Path) -> None:
    other = penguins.with_name("other.csv")
    shutil.copyfile(penguins, other)
    assert card_of(penguins)["licence"] == "CC0-1.0"
    assert card_of(other) == {}


def test_only_fields_that_fit_go_on() -> None:
    found = {"licence": "MIT", "people": "some", "colour": "red", "bias": " ", "kind": "real", "files": []}
    assert fitting(found) == {"licence": "MIT"}


def test_a_model_hands_the_card_of_its_data_on(penguins: Path, gaussian: object) -> None:
    model = penguins.parent / "model"
    assert main(["train", str(penguins), "-o", str(model), "--quiet"]) == 0
    fitted = TabularDomain().load(model)
    assert output_cards.model_card(model, fitted)["licence"] == "CC0-1.0"
    origin = Origin("made", TabularDomain(), fitted, "0" * 64, "penguins.csv", fitted.about["card"])
    made = _published(penguins, origin)
    assert made["synthesis"]["trained_on"] == "Palmer penguins 1.0.0" and made["people"] == "none"
    assert made["licence"] == "CC0-1.0" and made["kind"] == "synthetic"


def _published(table: Path, origin: Origin) -> dict[str, Any]:
    folder = table.parent / "made"
    folder.mkdir()
    shutil.copyfile(table, folder / "synthetic.csv")
    (folder / "manifest.json").write_text('{"created": "2026-01-31T10:00:00+00:00"}')
    output_cards.synthetic(folder, origin, {"seed": 3}, 344, ["synthetic.csv"])
    assert card(folder).faults == ()
    return load(folder / "card.yaml")


def test_an_augmented_set_does_not_pass_for_a_synthetic_one(penguins: Path, gaussian: object) -> None:
    fitted = TabularDomain().fit(TabularDomain().open(penguins).sample(100), seed=0, about={})
    folder = penguins.parent / "more"
    folder.mkdir()
    shutil.copyfile(penguins, folder / "augmented.csv")
    (folder / "manifest.json").write_text('{"created": "2026-01-31T10:00:00+00:00"}')
    origin = Origin("more", TabularDomain(), fitted, "0" * 64, "penguins.csv", card_of(penguins))
    output_cards.augmented(folder, origin, {"seed": 0}, "column `synthetic`", (300, 44), ["augmented.csv"])
    text = (folder / "README.md").read_text()
    assert "as personal as it was" in text and "No row, image or volume" not in text
    assert card(folder).faults == ()


def test_of_many_files_the_manifest_is_named(tmp_path: Path) -> None:
    class Pictures:
        name, things = "images", "pictures"

    class Fitted:
        about: ClassVar[dict[str, Any]] = {}
        warnings: tuple[Any, ...] = ()

    from PIL import Image

    Image.new("L", (6, 4)).save(tmp_path / "p.png")
    (tmp_path / "manifest.json").write_text('{"created": "2026-01-31T10:00:00+00:00"}')
    origin = Origin("many", Pictures(), Fitted(), "0" * 64, "photos", {})  # type: ignore[arg-type]
    output_cards.synthetic(tmp_path, origin, {"seed": 0}, LISTED + 1, ["p.png"] * (LISTED + 1))
    made = load(tmp_path / "card.yaml")
    assert [file["path"] for file in made["files"]] == ["manifest.json"] and made["items"] == LISTED + 1
    assert made["image"]["resolution"].startswith("6 x 4 pixels")
    assert faults_of(made, schema(), "card") == []


def test_synthetic_scans_keep_the_readme_of_their_own_below_the_card(tmp_path: Path) -> None:
    out = tmp_path / "brains"
    assert main(["generate", "brain-t1", "-n", "1", "--steps", "1", "-o", str(out), "--quiet"]) == 0
    assert card(out).faults == ()  # README made again by this
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-sa-3.0" and text.count(KEPT) == 1
    assert "no one was scanned" in text.partition(KEPT)[2]
    made = load(out / "card.yaml")
    assert made["synthesis"]["trained_people"] == 32 and made["synthesis"]["sampler"].endswith("1 steps")
    assert made["mri"]["orientation"] == "RAS" and "4 x 4 x 4 mm" in made["mri"]["resolution"]


@pytest.mark.parametrize("path", sorted((CARDS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_cards_of_bundled_models_fit_the_schema(path: Path) -> None:
    found = load(path)
    assert set(fitting(found)) == set(found) and (path.with_suffix("")).is_dir()
