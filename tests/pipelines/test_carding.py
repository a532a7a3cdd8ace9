"""`ebbtide card`: drafts with blanks, a closed schema, and pages that are made of cards."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from ebbtide.pipelines.card_pages import CROISSANT, RAI, croissant, front_matter, readme, schema
from ebbtide.pipelines.carding import card, checked, load, publish, templates
from ebbtide.pipelines.cli import main
from ebbtide.pipelines.schemas import faults_of
from ebbtide.shared.errors import InputError

CARDS = Path(str(files("ebbtide.data_cards")))
PENGUINS = load(CARDS / "penguins" / "card.yaml")


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(PENGUINS), **fields}


def told(found: dict[str, Any]) -> list[str]:
    return [str(fault) for fault in faults_of(found, schema(), "card.yaml")]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame = pd.DataFrame({"patient_id": range(900, 940), "dose": [0.5, None] * 20, "sex": ["f", "m"] * 20})
    frame.to_csv(tmp_path / "Trial 7.csv", index=False)
    return tmp_path / "Trial 7.csv"


def filled(path: Path) -> dict[str, Any]:
    """The draft at `path` with everything that is blank called unknown."""
    whole, found = schema(), load(path)
    for key in whole["required"]:
        properties = whole["properties"][key].get("properties")
        if properties and not found[key].get("path"):
            found[key] = dict.fromkeys(whole["properties"][key]["required"], "unknown")
        elif found[key] is None:
            found[key] = ["unknown"] if whole["properties"][key].get("type") == "array" else "unknown"
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return found


# -------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize("key", schema()["required"])
def test_a_blank_required_field_fails_by_its_name(key: str) -> None:
    for nothing in (None, "", "  ", []):
        faults = told(changed(**{key: nothing}))
        assert any(f.startswith(f"card-blank: card.yaml, {key}: is blank") for f in faults), (key, nothing)
    without = {k: v for k, v in PENGUINS.items() if k != key}
    assert any(f.startswith(f"card-blank: card.yaml, {key}:") for f in told(without))


def test_unknown_is_an_answer_and_blank_is_not() -> None:
    assert told(changed(people="unknown", published="unknown", contact="unknown")) == []
    assert "or write unknown" in told(changed(contact=None))[0]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"licens": "MIT"}, "there is no key 'licens' in a card; did you mean licence?"),
        ({"domain": "tabluar"}, "did you mean tabular?"),
        ({"people": "many"}, "people: must be a whole number or unknown or none"),
        ({"version": "1"}, "version: is not written as it must be"),
        ({"rows": True}, "rows: must be a whole number"),
        ({"columns": {"age": {"kind": "integer"}}}, "columns, age, missing: is blank"),
        ({"columns": {"age": {"kind": "whole", "missing": 0}}}, "columns, age, kind: must be number"),
        ({"files": [{"path": "a", "sha256": "0" * 63, "bytes": 1}]}, "files (1), sha256: is not written"),
        ({"citation": ["a", ""]}, "citation (2): is blank"),
        ({"kind": "imputed"}, "imputation: is blank"),
        ({"kind": "synthetic"}, "synthesis: is blank"),
        ({"domain": "mri"}, "mri: is blank"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in " | ".join(told(changed(**fields)))


def test_every_fault_is_told_at_once() -> None:
    assert len(told(changed(contact="", bias=None, colour="red"))) == 3


def test_the_schema_uses_nothing_that_the_validator_does_not_know() -> None:
    known = {
        "$schema",
        "title",
        "description",
        "type",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "if",
        "then",
        "required",
    }
    known |= {
        "properties",
        "additionalProperties",
        "items",
        "minItems",
        "maxItems",
        "minLength",
        "minimum",
        "pattern",
    }

    def words(found: Any) -> set[str]:
        if not isinstance(found, dict):
            return set().union(*map(words, found)) if isinstance(found, list) else set()
        inner = [words(v) for k, v in found.items() if k != "properties"]
        inner += [words(v) for v in found.get("properties", {}).values()]
        return set(found).union(*inner)

    assert words(schema()) <= known


# ------------------------------------------------------------------------------------------ what is shipped


def test_cards_of_the_project_have_no_fault_and_their_pages_are_up_to_date() -> None:
    for path in CARDS.glob("*/card.yaml"):
        found, faults = checked(path)
        assert faults == []
        assert (path.parent / "croissant.json").read_text() == json.dumps(
            croissant(found), indent=2, ensure_ascii=False
        ) + "\n"
        if (path.parent / "README.md").exists():  # in a checkout; wheels carry no pages
            assert (path.parent / "README.md").read_text(encoding="utf-8") == readme(found)


def test_templates_are_the_schema_with_blanks() -> None:
    for name, text in templates().items():
        assert (CARDS / "templates" / f"{name}.yaml").read_text(encoding="utf-8") == text
        blank = yaml.safe_load(text)
        codes = {fault.code for fault in faults_of(blank, schema(), name)}
        assert codes == {"card-blank"}
    assert "defaced" in templates()["mri"] and "trained_people" in templates()["synthetic"]


def test_croissant_follows_version_1_1_with_rai() -> None:
    found = croissant(PENGUINS)
    assert found["conformsTo"] == [CROISSANT, RAI]
    assert found["license"] == "https://spdx.org/licenses/CC0-1.0.html"
    assert found["distribution"][0]["sha256"] == PENGUINS["files"][0]["sha256"]
    fields = {f["name"]: f for f in found["recordSet"][0]["field"]}
    assert fields["body_mass_g"]["dataType"] == "sc:Integer" and "(g)" in fields["body_mass_g"]["description"]
    assert fields["sex"]["source"] == {"fileObject": {"@id": "penguins.csv"}, "extract": {"column": "sex"}}
    assert "rai:dataImputationProtocol" not in found and "prov:wasDerivedFrom" not in found
    assert "Written as empty cells" in found["rai:dataCollectionMissingData"]


def test_an_imputed_set_says_how_it_was_imputed() -> None:
    imputation = {"tool": "ebbtide 0.1.0", "model_sha256": "ab12", "draws": 20, "shown": "mean"}
    imputation |= {"filled": 19, "mask": "mask.csv"}
    found = changed(kind="imputed", imputation=imputation)
    assert told(found) == []
    said = croissant(found)["rai:dataImputationProtocol"]
    assert all(
        word in said for word in ("19 missing values", "ebbtide 0.1.0", "ab12", "20 draws", "mask.csv")
    )
    assert croissant(found)["prov:wasGeneratedBy"]["name"] == "ebbtide 0.1.0, model ab12"
    assert "19 values were filled in and are estimates" in readme(found)


def test_hugging_face_reads_the_front_matter() -> None:
    front = yaml.safe_load(readme(PENGUINS).split("---")[1])
    assert front == front_matter(PENGUINS)
    assert front["license"] == "cc0-1.0" and front["size_categories"] == ["n<1K"]
    assert front["configs"] == [{"config_name": "default", "data_files": ["penguins.csv"]}]
    assert front_matter(changed(rows=25_000))["size_categories"] == ["10K<n<100K"]


def test_a_bar_in_a_cell_does_not_break_the_page() -> None:
    assert "a \\| b" in readme(changed(access="a | b"))


# -------------------------------------------------------------------------------------------------- the verb


def test_a_draft_counts_and_leaves_blanks(table: Path) -> None:
    done = card(table)
    found = load(table.parent / "card.yaml")
    assert done.exit_code == 0 and found["name"] == "trial-7" and found["rows"] == 40
    assert found["columns"]["dose"] == {"kind": "number", "missing": 20}
    assert found["columns"]["patient_id"]["role"] == "id"
    assert found["files"][0]["path"] == "Trial 7.csv" and found["contact"] is None
    assert "contact" in done.lines[1] and "collection, where" in done.lines[1]
    text = (table.parent / "card.yaml").read_text()
    assert "900" not in text and "0.5" not in text  # counts, never cells
    with pytest.raises(InputError, match="output-exists"):
        card(table)


def test_a_filled_card_becomes_pages(table: Path) -> None:
    card(table)
    assert card(table.parent).exit_code == 2
    filled(table.parent / "card.yaml")
    done = card(table.parent)
    assert done.faults == () and {Path(file).name for file in done.written} == {"README.md", "croissant.json"}
    assert card(table.parent / "card.yaml").exit_code == 0  # what it made itself it may make again


def test_a_card_of_another_file_is_stale(table: Path) -> None:
    card(table)
    filled(table.parent / "card.yaml")
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    done = card(table.parent)
    assert [fault.code for fault in done.faults] == ["card-stale"] and "sha256:" in done.lines[0]


def test_counts_are_compared_with_the_table(table: Path) -> None:
    card(table)
    found = filled(table.parent / "card.yaml")
    found["rows"], found["columns"]["dose"]["missing"] = 41, 3
    (table.parent / "card.yaml").write_text(yaml.safe_dump(found))
    found_faults = [str(fault) for fault in card(table.parent).faults]
    assert "write 40" in found_faults[0]
    assert any("dose, missing: the column lacks 20 cells; write 20" in fault for fault in found_faults)


def test_columns_are_compared_by_name(table: Path) -> None:
    card(table)
    found = filled(table.parent / "card.yaml")
    found["columns"]["dosis"] = found["columns"].pop("dose")
    (table.parent / "card.yaml").write_text(yaml.safe_dump(found))
    assert "the table also has dose and the table has no dosis" in str(card(table.parent).faults[0])


def test_a_file_outside_of_the_folder_is_not_read(table: Path) -> None:
    card(table)
    found = filled(table.parent / "card.yaml")
    found["files"][0]["path"] = "../secret.csv"
    (table.parent / "card.yaml").write_text(yaml.safe_dump(found))
    assert [fault.code for fault in card(table.parent).faults] == ["card-file"]


def test_pages_that_people_wrote_are_left_alone(table: Path) -> None:
    card(table)
    filled(table.parent / "card.yaml")
    (table.parent / "README.md").write_text("my own words")
    with pytest.raises(InputError, match="not made of a card"):
        card(table.parent)
    assert (table.parent / "README.md").read_text() == "my own words"
    assert card(table.parent, overwrite=True).exit_code == 0


def test_a_folder_of_cards_gets_an_index(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "penguins.csv").write_bytes((CARDS / "penguins" / "penguins.csv").read_bytes())
        (tmp_path / name / "card.yaml").write_text(yaml.safe_dump(changed(title=name)))
    done = card(tmp_path)
    assert done.exit_code == 0
    text = (tmp_path / "README.md").read_text()
    assert text.index("[one](one/README.md)") < text.index("[two](two/README.md)")


def test_a_set_that_the_tool_made_is_published_with_its_card(tmp_path: Path) -> None:
    made = publish(tmp_path, PENGUINS)
    assert {Path(file).name for file in made} == {"card.yaml", "README.md", "croissant.json"}
    assert load(tmp_path / "card.yaml") == PENGUINS
    with pytest.raises(InputError, match="card-blank"):
        publish(tmp_path, changed(bias=""))


@pytest.mark.parametrize(
    "text, code",
    [("a: [", "card-yaml"), ("- 1", "card-yaml"), ("x: !!python/object:os.system {}", "card-yaml")],
)
def test_untrusted_yaml_runs_nothing(
    tmp_path: Path, text: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "card.yaml").write_text(text)
    assert main(["card", str(tmp_path / "card.yaml")]) == 2
    assert capsys.readouterr().err.startswith(code)


def test_the_command_line_checks_and_drafts(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "draft.yaml"
    assert main(["card", str(table), "-o", str(out), "--missing", "0.5"]) == 0
    assert load(out)["columns"]["dose"]["missing"] == 40
    capsys.readouterr()
    assert main(["card", str(out), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False and {fault["code"] for fault in said["faults"]} == {"card-blank"}
