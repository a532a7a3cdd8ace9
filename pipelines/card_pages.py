"""What is made of a data card: a README with Hugging Face front matter, a Croissant file; and blank cards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .schemas import Schema, blank

MADE = "<!-- made by `ebbtide card` from card.yaml: edit that file instead -->"
CROISSANT = "http://mlcommons.org/croissant/1.1"
RAI = "http://mlcommons.org/croissant/RAI/1.0"
MEDIA = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".parquet": "application/x-parquet",
    ".json": "application/json",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".gz": "application/gzip",
    ".zip": "application/zip",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
TYPES = {
    "number": "sc:Float",
    "duration": "sc:Float",
    "integer": "sc:Integer",
    "boolean": "sc:Text",
    "datetime": "sc:Date",
}
"""Of Croissant fields by kind; text for all others. Booleans may be any two words."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def schema() -> Schema:
    """The schema of cards."""
    path = files("ebbtide.data_cards").joinpath("schema/card.schema.json")
    found: Schema = json.loads(path.read_text(encoding="utf-8"))
    return found


# -------------------------------------------------------------------------------------------------- README


def front_matter(card: Mapping[str, Any]) -> dict[str, Any]:
    """What Hugging Face reads at the top of a README."""
    n = int(card.get("rows", card.get("items", 0)))
    size = next((word for most, word in SIZES if n < most), "n>1M")
    licence = str(card["licence"]).lower()
    tables = [f["path"] for f in card["files"] if Path(f["path"]).suffix in (".csv", ".tsv", ".parquet")]
    made: dict[str, Any] = {
        "pretty_name": card["title"],
        "license": licence if re.fullmatch(r"[a-z0-9.-]+", licence) else "other",
        "size_categories": [size],
        "tags": [card["domain"], card["kind"], *card.get("tags", [])],
    }
    if card["kind"] != "real":
        made["source_datasets"] = [card.get("synthesis", {}).get("trained_on", card["source"])]
    if card["domain"] == "tabular" and tables:
        # Beside a completed table lie tables of other columns: its mask and its spread.
        shown = tables[:1] if card["kind"] == "imputed" else tables
        made["configs"] = [{"config_name": "default", "data_files": shown}]
    return made


def readme(card: Mapping[str, Any]) -> str:
    """README.md of a card."""
    from jinja2 import Environment, StrictUndefined

    template = files("ebbtide.pipelines").joinpath("templates/card.md").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ").strip()
    filled = {key: value for key, value in card.items() if not blank(value)}
    front = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True, width=10**6)
    made: str = environment.from_string(template).render(card=filled, front=front, made=MADE)
    return re.sub(r"\n{3,}", "\n\n", made).rstrip() + "\n"


def index(cards: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """README.md of a folder of cards.

    Args:
        cards: (folder, card) of each.
    """
    lines = [
        "# Data cards",
        "",
        MADE,
        "",
        "One folder for each dataset: `card.yaml` is what people edit; its README and `croissant.json` are",
        "made of it by `ebbtide card`. Blank cards are in `templates/`; what a card must hold is in",
        "`schema/card.schema.json`.",
        "",
        "| data | kind | domain | size | people | licence | personal data | version |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for folder, card in sorted(cards, key=lambda found: found[0]):
        size = f"{card['rows']:,} rows" if "rows" in card else f"{card['items']:,} items"
        cells = [card["kind"], card["domain"], size, card["people"], card["licence"], card["personal_data"]]
        shown = " | ".join(str(cell).replace("|", "\\|") for cell in [*cells, card["version"]])
        lines.append(f"| [{card['title']}]({folder}/README.md) | {shown} |")
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------- Croissant


def croissant(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card as Croissant 1.1 with the vocabulary for responsible AI (RAI 1.0)."""
    licence = card["licence"]
    made: dict[str, Any] = {
        "@context": context(),
        "@type": "sc:Dataset",
        "name": card["name"],
        "alternateName": card["title"],
        "description": card["description"],
        "conformsTo": [CROISSANT, RAI],
        "version": card["version"],
        "license": f"https://spdx.org/licenses/{licence}.html"
        if "." in licence or "-" in licence
        else licence,
        "url": card["source"],
        "citeAs": " ".join(card["citation"]),
        "keywords": [card["domain"], card["kind"], *card.get("tags", [])],
        "creator": {"@type": "sc:Organization", "name": card["contact"]},
        "distribution": [file_object(file) for file in card["files"]],
        **rai(card),
        **provenance(card),
    }
    if card["published"] != "unknown":
        made["datePublished"] = card["published"]
    tables = [f["path"] for f in card["files"] if Path(f["path"]).suffix in (".csv", ".tsv", ".parquet")]
    if card["domain"] == "tabular" and tables:
        made["recordSet"] = [record_set(card["columns"], tables[0])]
    return made


def file_object(file: Mapping[str, Any]) -> dict[str, Any]:
    """One file of the distribution."""
    return {
        "@type": "cr:FileObject",
        "@id": file["path"],
        "name": file["path"],
        "contentUrl": file["path"],
        "contentSize": f"{file['bytes']} B",
        "encodingFormat": MEDIA.get(Path(file["path"]).suffix.lower(), "application/octet-stream"),
        "sha256": file["sha256"],
    }


def record_set(columns: Mapping[str, Mapping[str, Any]], path: str) -> dict[str, Any]:
    """The columns of a table as Croissant fields."""
    fields = []
    for name, column in columns.items():
        unit = f" ({column['unit']})" if column.get("unit") else ""
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"rows/{name}",
                "name": name,
                "description": f"{column.get('description', column['kind'])}{unit}",
                "dataType": TYPES.get(column["kind"], "sc:Text"),
                "source": {"fileObject": {"@id": path}, "extract": {"column": name}},
            }
        )
    return {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": fields}


def rai(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the RAI vocabulary asks for, as far as the card has it."""
    how, missing = card["collection"], card["missing"]
    imputation = card.get("imputation")
    said = {
        "dataCollection": f"{how['how']} Where: {how['where']}. When: {how['when']}. "
        f"Included: {how['inclusion']} Ethics: {how['ethics']}",
        "dataCollectionMissingData": f"Written as {missing['written_as']}. {missing['mechanism']}",
        "dataPreprocessingProtocol": [card["changes"]],
        "dataUseCases": list(card["intended_use"]),
        "dataLimitations": [*card.get("limitations", []), *(f"Not for: {u}" for u in card["forbidden_use"])],
        "dataBiases": [card["bias"]],
        "personalSensitiveInformation": [
            card["personal_data"],
            f"De-identification: {card['deidentification']}",
        ],
        "dataReleaseMaintenancePlan": card["maintenance"],
    }
    if imputation:
        said["dataImputationProtocol"] = (
            f"{imputation['filled']} missing values were filled by {imputation['tool']} (model "
            f"{imputation['model_sha256']}), {imputation['draws']} draws each, of which the "
            f"{imputation['shown']} is shown; {imputation['mask']} says which values were filled."
        )
    return {f"rai:{name}": value for name, value in said.items()}


def provenance(card: Mapping[str, Any]) -> dict[str, Any]:
    """What generated or completed data was made from, and by what (PROV)."""
    made = card.get("synthesis") or card.get("imputation")
    if card["kind"] == "real" or not made:
        return {}
    return {
        "prov:wasDerivedFrom": made.get("trained_on", card["source"]),
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "name": f"{made['tool']}, model {made['model_sha256']}",
        },
    }


def context() -> dict[str, Any]:
    """The JSON-LD context of Croissant 1.1, as its specification prints it."""
    own = (
        "arrayShape citeAs column containedIn equivalentProperty extract field fileProperty fileObject "
        "fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path recordSet "
        "references regex repeated replace samplingRate separator source subField transform"
    )
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "sc": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/",
        "prov": "http://www.w3.org/ns/prov#",
        "conformsTo": "dct:conformsTo",
        **{name: f"cr:{name}" for name in own.split()},
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "name": {"@container": "@language"},
        "description": {"@container": "@language"},
    }


# --------------------------------------------------------------------------------------- blanks and drafts


def draft(known: Mapping[str, Any], *, domain: str, kind: str = "real") -> str:
    """A card to be filled in, as YAML: every field that it must have, with what is known and what is meant.

    Args:
        known: fields that are known already.
        domain, kind: which card.
    """
    whole = schema()
    given = {"domain": domain, "kind": kind, **known}
    required = list(whole["required"])
    for rule in whole["allOf"]:
        [(key, choice)] = rule["if"]["properties"].items()
        required += rule["then"]["required"] if given[key] == choice["const"] else []
    further = [key for key in whole["properties"] if not _elsewhere(key, required)]
    lines = [
        "# A data card. Fill in what is blank; write unknown where something is not known. Then:",
        "#   ebbtide card THIS_FILE",
        f"# Further fields: {', '.join(further)}.",
    ]
    ordered = [key for key in whole["properties"] if key in required]
    for key in ordered:
        lines += ["", *_entry(key, whole["properties"][key], given.get(key), "")]
    return "\n".join(lines) + "\n"


def _elsewhere(key: str, required: Sequence[str]) -> bool:
    return key in required or key in ("rows", "columns", "items", "image", "mri", "imputation", "synthesis")


def _entry(key: str, field: Schema, value: Any, indent: str) -> Iterator[str]:
    """One field with its meaning above it."""
    if field.get("description"):
        yield f"{indent}# {field['description']}"
    if value is None and "properties" in field:
        yield f"{indent}{one_line(key)}:"
        for inner in field["required"]:
            yield from _entry(inner, field["properties"][inner], None, indent + "  ")
    elif isinstance(value, dict):
        yield f"{indent}{one_line(key)}:"
        yield from (f"{indent}  {one_line(name)}: {one_line(item)}" for name, item in value.items())
    elif isinstance(value, list):
        yield f"{indent}{one_line(key)}:"
        yield from (f"{indent}  - {one_line(item)}" for item in value)
    else:
        yield f"{indent}{one_line(key)}:" + ("" if value is None else f" {one_line(value)}")


def one_line(value: Any) -> str:
    """A value as YAML on one line.

    Example:
        >>> one_line({"kind": "number", "missing": 0}), one_line("no"), one_line(3)
        ('{kind: number, missing: 0}', "'no'", '3')
    """
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.removesuffix("\n").removesuffix("...").strip()
