"""The card that every output is born with: what a tool can know of it, and `unknown` for what it cannot.

What people wrote in the card of the data (licence, source, collection, bias) goes on to what was made of it:
from the data to the model that learnt it, and from the model to what it generates.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..domains import Domain, Fitted, Survey
from ..shared.artifacts import tool_version
from ..shared.errors import InputError
from ..shared.private import statement
from .card_pages import schema
from .carding import CARD, CROISSANT, README, load, missing_cells, publish
from .manifest import NAME, read_json, sha256_of
from .schemas import blank, faults_of

UNKNOWN = "unknown"
MADE_BESIDE = (CARD, README, CROISSANT)
"""The files that describe an output."""
LISTED = 100
"""Files that a card lists; of more it names the manifest, which has the sha256 of every one."""
SCHEMA_DOMAINS = {"images": "image"}
"""What cards call a domain, where it is not the domain's own name."""
OWN = ("files", "kind", "domain", "imputation", "synthesis", "rows", "items", "name")
"""Fields that are about one data set and do not go on to another."""
HANDED = (
    *("licence", "access", "source", "doi", "citation", "contact", "missing", "demographics", "bias"),
    *("collection", "tags", "rules"),
)
"""Fields that hold for what was made of a data set too."""
NOT_FOR = ("diagnosis, treatment, or any decision about a person",)


@dataclass(frozen=True)
class Origin:
    """Where an output comes from.

    Args:
        out: name of the output.
        domain, fitted: by which it was made.
        model: sha256 of the model.
        data: name of the data that was learnt from, or that was completed.
        card: of that data, as far as there is one.
    """

    out: str
    domain: Domain[Any, Any]
    fitted: Fitted
    model: str
    data: str
    card: Mapping[str, Any]

    @property
    def named(self) -> str:
        """The data by the name and version of its card, or of its file."""
        return f"{self.card['title']} {self.card['version']}" if "title" in self.card else self.data


def card_of(data: Path) -> dict[str, Any]:
    """The card of a data set: `card.yaml` in its folder, naming it. Only fields that fit the schema; {}
    without one. A card that cannot be read stops nobody's work: `ebbtide card` tells what is wrong with it.

    Args:
        data: a table, or a folder of scans or pictures.
    """
    path = (data if data.is_dir() else data.parent) / CARD
    if not path.is_file():
        return {}
    try:
        found = load(path)
    except InputError:
        return {}
    listed = found.get("files")
    names = (
        [file.get("path") for file in listed if isinstance(file, dict)] if isinstance(listed, list) else []
    )
    return fitting(found) if data.is_dir() or data.name in names else {}


def learnt_from(data: Path, survey: Survey) -> dict[str, Any]:
    """What a model says of the data that it learns from: name, sha256, size, and its card, if any."""
    card = card_of(data)
    about = {"data": data.name, "data_sha256": survey.sha256, "items": survey.items}
    return {**about, "card": card} if card else about


def fitting(card: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a card that fit the schema and may go on."""
    known = schema()["properties"]
    return {
        key: value
        for key, value in card.items()
        if key in known and key not in OWN and not blank(value) and not faults_of(value, known[key], key)
    }


def model_card(model: Path, fitted: Fitted) -> dict[str, Any]:
    """The card of what a model learnt from: kept in the model, or beside it as MODEL.yaml (bundled ones)."""
    kept = fitted.about.get("card")
    beside = model.with_name(model.name + ".yaml")
    return fitting(kept) if isinstance(kept, Mapping) else fitting(load(beside)) if beside.is_file() else {}


# ------------------------------------------------------------------------------------------------- the cards


def imputed(
    folder: Path, origin: Origin, *, draws: int, shown: str, filled: int, mask: str, files: Sequence[str]
) -> list[str]:
    """Card, README and Croissant file of a completed data set.

    Args:
        folder: holds the files and the manifest.
        draws, shown, filled, mask: as in the schema's `imputation`.
        files: what the card lists.
    """
    told = origin.card
    made = {
        **_common(folder, origin, "imputed", files),
        "title": f"{told.get('title', origin.data)}, completed",
        "description": f"{origin.named} with {filled:,} missing values filled in by a model. "
        f"{told.get('description', '')}".strip(),
        "source": told.get("source", origin.data),
        "people": told.get("people", UNKNOWN),
        "split": told.get("split", UNKNOWN),
        "intended_use": [
            *told.get("intended_use", []),
            "analyses that carry how unsure the filled values are (the draws, Rubin's rules)",
        ],
        "forbidden_use": [*NOT_FOR, "taking filled values for measured ones", *told.get("forbidden_use", [])],
        "personal_data": told.get("personal_data", UNKNOWN),
        "deidentification": told.get("deidentification", UNKNOWN),
        "changes": f"{filled:,} missing values were filled in; all others are as they were, bit for bit. "
        f"{told.get('changes', '')}".strip(),
        "limitations": ["Why values are missing is not known to the model.", *_limits(origin)],
        "imputation": {
            "tool": f"ebbtide {tool_version()}",
            "model_sha256": origin.model,
            "draws": draws,
            "shown": shown,
            "filled": filled,
            "mask": mask,
        },
    }
    return _written(folder, made)


def synthetic(
    folder: Path, origin: Origin, synthesis: Mapping[str, Any], count: int, files: Sequence[str]
) -> list[str]:
    """Card, README and Croissant file of a generated data set.

    Args:
        synthesis: conditions, sampler, seed, rejected and what was measured; what lacks is said to lack.
        count: how many rows, volumes or pictures.
    """
    told, things = origin.card, origin.domain.things
    made = {
        **_common(folder, origin, "synthetic", files),
        "title": f"Synthetic {things} like {told.get('title', origin.data)}",
        "description": f"{count:,} synthetic {things}, generated by a model of {origin.named}.",
        "source": told.get("source", origin.data),
        "people": "none",
        "split": UNKNOWN,
        "collection": _drawn(told),
        "intended_use": _uses(),
        "forbidden_use": _misuses(told),
        "personal_data": "of nobody by design; a model may repeat parts of what it learnt: see privacy. It "
        f"learnt from: {told.get('personal_data', UNKNOWN)}",
        "deidentification": f"made anew. Of what was learnt from: {told.get('deidentification', UNKNOWN)}",
        "changes": "none since it was generated",
        "limitations": _limits(origin),
        "synthesis": _synthesis(origin, synthesis),
    }
    return _written(folder, made)


def augmented(
    folder: Path,
    origin: Origin,
    synthesis: Mapping[str, Any],
    mark: str,
    counts: tuple[int, int],
    files: Sequence[str],
    column: str = "",
) -> list[str]:
    """Card, README and Croissant file of real data with synthetic data added.

    Args:
        synthesis: as for `synthetic`.
        mark: how synthetic items are told from real ones.
        column: of a table, the column that tells it.
        counts: of real and of synthetic items.
    """
    told, things = origin.card, origin.domain.things
    common = _common(folder, origin, "augmented", files)
    if column:
        common["columns"][column] = {"kind": "boolean", "missing": 0, "description": "1: synthetic, 0: real"}
    made = {
        **common,
        "title": f"{told.get('title', origin.data)}, augmented",
        "description": f"The {counts[0]:,} {things} of {origin.named} and {counts[1]:,} synthetic ones, told "
        f"apart by {mark}. {told.get('description', '')}".strip(),
        "source": told.get("source", origin.data),
        "people": told.get("people", UNKNOWN),
        "split": told.get("split", UNKNOWN),
        "intended_use": ["training a model, to be tested on real data alone"],
        "forbidden_use": [*_misuses(told), "testing or validating a model on the synthetic part"],
        "personal_data": f"that of the real part: {told.get('personal_data', UNKNOWN)}",
        "deidentification": told.get("deidentification", UNKNOWN),
        "changes": f"{counts[1]:,} synthetic {things} were added, told apart by {mark}",
        "limitations": [
            "The real part is as personal as it was: this set is not a synthetic one.",
            *_limits(origin),
        ],
        "synthesis": _synthesis(origin, synthesis),
    }
    return _written(folder, made)


def _common(folder: Path, origin: Origin, kind: str, files: Sequence[str]) -> dict[str, Any]:
    """What all cards have: handed on, counted, or unknown."""
    manifest = read_json(folder / NAME)
    required, properties = schema()["required"], schema()["properties"]
    unknown = {key: _unknown(properties[key]) for key in required if key not in OWN}
    listed = list(files) if len(files) <= LISTED else [NAME]
    domain = SCHEMA_DOMAINS.get(origin.domain.name, origin.domain.name)
    return {
        "name": slug(origin.out),
        **unknown,
        **{key: origin.card[key] for key in HANDED if key in origin.card},
        "version": "1.0.0",
        "domain": domain,
        "kind": kind,
        "published": manifest["created"][:10],
        "maintenance": "none planned; it can be made again from its manifest",
        "files": [_file(folder, name) for name in listed],
        **_contents(folder, origin, domain, files),
    }


def _unknown(field: Mapping[str, Any]) -> Any:
    """`unknown`, in the shape of a field."""
    if field.get("type") == "array":
        return [UNKNOWN]
    if field.get("type") == "object":
        return dict.fromkeys(field["required"], UNKNOWN)
    return UNKNOWN


def slug(name: str) -> str:
    """A name as cards allow it.

    Example:
        >>> slug("My Out (2)"), slug("...")
        ('my-out--2-', 'data')
    """
    return (
        "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in name.lower()).lstrip("-_.")
        or "data"
    )


def _file(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return {"path": name, "sha256": sha256_of(path), "bytes": path.stat().st_size}


def _drawn(told: Mapping[str, Any]) -> dict[str, Any]:
    learnt = told.get("collection", {})
    return {
        "where": f"nowhere: it was computed. Learnt from: {learnt.get('where', UNKNOWN)}",
        "when": f"when it was computed. Learnt from: {learnt.get('when', UNKNOWN)}",
        "how": "Drawn from a generative model by reverse diffusion; nobody and nothing was measured.",
        "ethics": f"of what was learnt from: {learnt.get('ethics', UNKNOWN)}",
        "inclusion": f"of what was learnt from: {learnt.get('inclusion', UNKNOWN)}",
    }


def _uses() -> list[str]:
    return [
        "developing and testing software, teaching, demonstrations",
        "enlarging a training set, where the gain was measured on real held-out data",
    ]


def _misuses(told: Mapping[str, Any]) -> list[str]:
    return [
        *NOT_FOR,
        "conclusions about the world that real data do not confirm",
        "finding out who was learnt from",
        *told.get("forbidden_use", []),
    ]


def _limits(origin: Origin) -> list[str]:
    return [
        *(f"{fault.what} ({fault.where})" for fault in origin.fitted.warnings),
        *origin.card.get("limitations", []),
    ]


def _synthesis(origin: Origin, given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tool": f"ebbtide {tool_version()}",
        "model_sha256": origin.model,
        "trained_on": origin.named,
        "trained_people": origin.card.get("people", UNKNOWN),
        "conditions": "none",
        "sampler": sampler(origin.fitted, None),
        "rejected": "none",
        "fidelity": "not measured; `ebbtide evaluate REAL SYNTHETIC` does",
        "utility": "not measured; `ebbtide evaluate REAL SYNTHETIC` does",
        "privacy": "not assessed; `ebbtide evaluate REAL SYNTHETIC --holdout OTHERS` does",
        "differential_privacy": statement(origin.fitted.about),
        **given,
    }


def sampler(fitted: Fitted, steps: int | None) -> str:
    """How it was drawn, in words."""
    if "generator" in fitted.about:
        return "absorbing-state diffusion over the columns, one after the other"
    settings = fitted.about.get("settings")
    own = settings.get("sampler_steps") if isinstance(settings, Mapping) else None
    steps = steps or own
    return f"reverse diffusion, {steps} steps" if steps else "reverse diffusion, the model's own steps"


# -------------------------------------------------------------------------------------------------- contents


def _contents(folder: Path, origin: Origin, domain: str, files: Sequence[str]) -> dict[str, Any]:
    """Rows and columns of a table; number and look of volumes or pictures."""
    told = origin.card
    if domain == "tabular":
        rows, columns = table_columns(folder / files[0], origin)
        return {"rows": rows, "columns": columns, "missing": _missing(origin)}
    wanted = (".nii", ".nii.gz") if domain == "mri" else (".png",)
    items = [name for name in files if name.endswith(wanted)]
    look = _unknown(schema()["properties"][domain]) | dict(told.get(domain, {}))
    if items:
        look |= (_scan if domain == "mri" else _picture)(folder / items[0])
    return {"items": len(items), domain: look}


def table_columns(table: Path, origin: Origin) -> tuple[int, dict[str, Any]]:
    """Rows of a table, and its columns with their missing cells; what the data's card says of them stays."""
    codec, known = origin.fitted.codec, origin.card.get("columns", {})  # type: ignore[attr-defined]
    domain: Any = origin.domain
    source = domain.open(table)
    codec = copy.copy(codec)
    codec.columns_ = tuple(column for column in codec.columns_ if column.label in source.columns)
    rows, missing = missing_cells(source, codec)
    columns = {}
    for column in codec.columns_:
        kept = {
            k: v
            for k, v in known.get(column.name, {}).items()
            if k in ("unit", "description", "range", "role")
        }
        columns[column.name] = {"kind": column.kind, "missing": missing[column.name], **kept}
        if column.is_category:
            columns[column.name]["levels"] = column.distinct
    return rows, columns


def _missing(origin: Origin) -> dict[str, Any]:
    """How missing cells are written: as the data's card has it, or as the model was told."""
    codes = origin.fitted.codec.missing  # type: ignore[attr-defined]
    codes = [] if isinstance(codes, Mapping) else [str(code) for code in codes]
    known = {
        "written_as": " or ".join(["empty cells", *codes]),
        "mechanism": UNKNOWN,
        **({"codes": codes} if codes else {}),
    }
    return {**known, **origin.card.get("missing", {})}


def _scan(path: Path) -> dict[str, Any]:
    """Resolution and orientation of a NIfTI file."""
    import nibabel

    nib: Any = nibabel  # its functions have no types
    image = nib.load(path)
    shape, size = (" x ".join(f"{n:.4g}" for n in of[:3]) for of in (image.shape, image.header.get_zooms()))
    codes = "".join(code or "?" for code in nib.aff2axcodes(image.affine))
    return {"resolution": f"{shape} voxels of {size} mm (the first of them)", "orientation": codes}


def _picture(path: Path) -> dict[str, Any]:
    """Resolution of a picture."""
    from PIL import Image

    with Image.open(path) as image:
        return {"resolution": f"{image.width} x {image.height} pixels (the first of them)"}


def _written(folder: Path, card: Mapping[str, Any]) -> list[str]:
    """The card and what is made of it; a README that the domain wrote stays, below the card's."""
    own = folder / README
    text = own.read_text(encoding="utf-8") if own.is_file() else ""
    beneath = re.sub(r"^#", "##", text, flags=re.MULTILINE)
    written = publish(folder, card, beneath=beneath, overwrite=True)
    return [Path(path).name for path in written]
