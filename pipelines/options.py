"""What is typed on the command line about a data set, turned into the domain that answers for it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shared.errors import InputError

if TYPE_CHECKING:
    from ..domains import Domain
    from ..domains.images import ImageDomain
    from ..domains.mri import MriDomain
    from ..domains.tabular import TabularDomain
    from ..domains.tabular.private import PrivacySettings

SCANS = (".nii", ".nii.gz", ".dcm", ".ima")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npz")


@dataclass(frozen=True)
class TableWords:
    """What was said about a table, as it was typed.

    Args:
        missing: codes separated by commas: "?,-999".
        kinds: "column=kind", each.
        columns: names separated by commas: fill only these.
        key: a column that names the rows.
        header, delimiter, encoding, decimal, sheet: how the file is written; None: as seen in it.
        only: train for one verb alone, impute or generate.
        constraints: what must hold in every generated row.
        epsilon, delta: of differential privacy; None is without.
        ranges: a YAML file that declares what the columns may hold, which that needs.
    """

    missing: str | None = None
    kinds: Sequence[str] = ()
    columns: str | None = None
    key: str | None = None
    header: bool | None = None
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    sheet: str | None = None
    only: str | None = None
    constraints: Sequence[str] = ()
    epsilon: float | None = None
    delta: float | None = None
    ranges: Path | None = None


@dataclass(frozen=True)
class GridWords:
    """What was said about scans or pictures, as it was typed.

    Args:
        fill: what to fill; see `domains.mri.holes` and `domains.images.holes`.
        size: side of the model's pictures, in pixels.
        mirror: show mirrored pictures in training.
        text_encoder: a folder of a frozen one, for the captions of pictures.
        modalities, condition: names separated by commas.
        spacing: millimetres of the model's grid.
        covariates, segmentation: where they lie, when not beside the images.
        assume_spacing, missing_nan, faces: what else to allow.
    """

    fill: Sequence[str] = ()
    size: int | None = None
    mirror: bool = False
    text_encoder: Path | None = None
    modalities: str | None = None
    condition: str | None = None
    spacing: float | None = None
    covariates: Path | None = None
    segmentation: Path | None = None
    assume_spacing: bool = False
    missing_nan: bool = False
    faces: bool = False


def domain_for(
    data: Path | str,
    table: TableWords | None = None,
    grid: GridWords | None = None,
) -> tuple[Domain[Any, Any], dict[str, Any]]:
    """The domain of a data set with what the user said about it, and that as plain JSON for the manifest.

    Args:
        data: a table (CSV, TSV, Parquet, Excel), scans (NIfTI, BIDS, DICOM) or pictures (PNG, JPEG, ...).
        table, grid: what was said, for either case.

    Raises:
        InputError: there is nothing at `data`, or nothing that a domain reads; words that cannot be read, or
            that are about another kind of data.
    """
    path, table, grid = Path(data), table or TableWords(), grid or GridWords()
    match recognised(path):
        case "tabular":
            _refuse(grid, GridWords(), "scans and pictures", path)
            return _tabular(table)
        case "mri":
            _refuse(table, TableWords(), "tables", path)
            _refuse(grid, replace(grid, size=None, mirror=False, text_encoder=None), "pictures", path)
            return _mri(grid)
        case _:
            _refuse(table, TableWords(), "tables", path)
            of_pictures = GridWords(grid.fill, grid.size, grid.mirror, grid.text_encoder)
            _refuse(grid, of_pictures, "scans", path)
            return _images(grid)


def recognised(path: Path) -> str:
    """The domain of what lies at `path`, by the names of the files.

    Raises:
        InputError: nothing there, or nothing that a domain reads.
    """
    if not path.exists():
        raise InputError("file-not-found", "there is no such file", str(path), "check the path")
    names = [path.name] if path.is_file() else _names(path)
    lower = [name.lower() for name in names]
    if any(name.endswith(SCANS) for name in lower) or (path.is_dir() and _holds_dicom(path, names)):
        return "mri"
    if any(name.endswith(PICTURES) for name in lower):
        return "images"
    if path.is_file():
        return "tabular"
    raise InputError(
        "no-domain",
        "this folder holds no scans and no pictures, and a folder is not a table",
        str(path),
        "give a CSV, TSV, Parquet or Excel file, or a folder of NIfTI, DICOM, PNG or JPEG",
    )


def _names(folder: Path, most: int = 2000) -> list[str]:
    """Names of files in a folder and below, the first of them."""
    return [str(file.relative_to(folder)) for file in islice(folder.rglob("*"), most) if file.is_file()]


def _holds_dicom(folder: Path, names: Sequence[str]) -> bool:
    """Whether one of the first files without a suffix is DICOM, by its magic number."""
    for name in [n for n in names if not Path(n).suffix or Path(n).suffix[1:].isdigit()][:5]:
        with (folder / name).open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
    return False


def _refuse(words: object, allowed: object, kind: str, path: Path) -> None:
    """Refuse words that are about another kind of data."""
    for field in fields(words):  # type: ignore[arg-type]
        if getattr(words, field.name) != getattr(allowed, field.name):
            option = "--" + field.name.replace("_", "-")
            raise InputError("other-domain", f"{option} is about {kind}", str(path), f"leave {option} away")


def _images(words: GridWords) -> tuple[ImageDomain, dict[str, Any]]:
    from ..domains.images import ImageDomain, ImageOptions, parse_holes

    encoder = words.text_encoder
    options = ImageOptions(
        size=words.size, mirror=words.mirror, holes=parse_holes(words.fill), text_encoder=encoder
    )
    told: dict[str, Any] = {"size": words.size, "mirror": words.mirror, "fill": list(words.fill)}
    if encoder is not None:
        from ..domains.images.text_encoder import open_text_encoder

        told["text_encoder"] = open_text_encoder(encoder).identity.sha256  # the same folder may change
    return ImageDomain(options), told


def _mri(words: GridWords) -> tuple[MriDomain, dict[str, Any]]:
    from ..domains.mri import MriDomain, ScanOptions, parse_holes

    told: dict[str, Any] = {
        field.name: getattr(words, field.name)
        for field in fields(words)
        if field.name not in ("fill", "size", "mirror", "text_encoder")
    }
    told |= {"modalities": parse_list(words.modalities), "condition": parse_list(words.condition) or []}
    options = ScanOptions(
        modalities=None if told["modalities"] is None else tuple(told["modalities"]),
        conditions=tuple(told["condition"]),
        segmentation=words.segmentation,
        covariates=words.covariates,
        spacing=words.spacing,
        holes=parse_holes(words.fill),
        assume_spacing=words.assume_spacing,
        missing_nan=words.missing_nan,
        faces=words.faces,
    )
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}
    return MriDomain(options), plain | {"fill": list(words.fill)}


def _tabular(words: TableWords) -> tuple[TabularDomain, dict[str, Any]]:
    from ..domains.tabular import TableOptions, TabularDomain

    told: dict[str, Any] = {
        "missing": parse_missing(words.missing),
        "kinds": parse_kinds(words.kinds),
        "columns": parse_list(words.columns),
        "key": words.key,
        "header": words.header,
        "delimiter": words.delimiter,
        "encoding": words.encoding,
        "decimal": words.decimal,
        "sheet": words.sheet,
        "only": words.only,
        "constraints": list(words.constraints),
    }
    private = _private(words)
    options = {**told, "missing": tuple(told["missing"]), "constraints": tuple(words.constraints)}
    options["columns"] = None if told["columns"] is None else tuple(told["columns"])
    if private is not None:
        options["private"] = private
        told |= {"epsilon": words.epsilon, "delta": words.delta, "ranges": str(words.ranges)}
    return TabularDomain(TableOptions(**options)), told


def _private(words: TableWords) -> PrivacySettings | None:
    """What was said of differential privacy.

    Raises:
        InputError: epsilon without declared ranges, or these without it.
    """
    if words.epsilon is None and words.ranges is None and words.delta is None:
        return None
    if words.epsilon is None:
        what = "delta and declared ranges are for differential privacy"
        raise InputError("no-epsilon", what, "--ranges, --delta", "add --epsilon 3")
    if words.ranges is None:
        what = "with differential privacy, what the columns may hold is declared and never looked up"
        raise InputError("no-ranges", what, "--epsilon", "write a YAML file and add --ranges FILE")
    from ..domains.tabular.declared import Declaration
    from ..domains.tabular.private import PrivacySettings
    from ..shared.private import require_opacus

    require_opacus()
    if words.kinds:
        what = "with differential privacy the kinds of columns are declared with their ranges"
        raise InputError("private-kinds", what, "--kinds", "leave it away")
    if words.only != "generate":
        what = "only a model that generates can be trained with differential privacy"
        raise InputError("private-verb", what, "--epsilon", "add --only generate")
    return PrivacySettings(words.epsilon, Declaration.read(words.ranges), words.delta)


def model_folder(model: Path | str) -> Path:
    """The folder of a model.

    Args:
        model: the folder itself, or the name of a bundled model.

    Raises:
        InputError: no such model.
    """
    from ..data_cards import bundled

    folder, names = Path(model), bundled()
    if folder.exists():
        return folder
    if str(model) not in names:
        near = difflib.get_close_matches(str(model), list(names), n=1)
        known = f"bundled are {', '.join(sorted(names))}" if names else "check the path"
        advice = f"did you mean {near[0]}?" if near else known
        raise InputError("model-missing", "there is no model here", str(model), advice)
    return names[str(model)]


def domain_of(
    model: Path | str, segmentation: Path | None = None, text_encoder: Path | None = None
) -> tuple[Path, Domain[Any, Any]]:
    """The folder of a model, and the domain that reads it.

    Args:
        model: a model folder, or the name of a bundled model.
        segmentation: label maps that scans are to be made for.
        text_encoder: the folder of the one that a model of pictures was trained with.

    Raises:
        InputError: no such model; label maps or a text encoder for one that has no use for them.
    """
    from ..shared.artifacts import model_config

    folder = model_folder(model)
    kind = str(model_config(folder).get("format", "")).partition("/")[0]
    if kind != "ebbtide-images" and text_encoder is not None:
        raise InputError("other-domain", "--text-encoder is about pictures", str(model), "leave it away")
    if kind == "ebbtide-mri":
        from ..domains.mri import MriDomain, ScanOptions

        return folder, MriDomain(ScanOptions(segmentation=segmentation))
    if segmentation is not None:
        raise InputError("other-domain", "--segmentation is about scans", str(model), "leave it away")
    if kind == "ebbtide-images":
        from ..domains.images import ImageDomain, ImageOptions

        return folder, ImageDomain(ImageOptions(text_encoder=text_encoder))
    from ..domains.tabular import TabularDomain

    return folder, TabularDomain()


def parse_list(text: str | None) -> list[str] | None:
    """Words separated by commas; None for None.

    Example:
        >>> parse_list("age, sex")
        ['age', 'sex']
    """
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def parse_missing(text: str | None) -> list[str]:
    """Missing codes separated by commas.

    Example:
        >>> parse_missing("?,-999")
        ['?', '-999']
    """
    return parse_list(text) or []


def parse_kinds(pairs: Sequence[str]) -> dict[str, str]:
    """Pairs "column=kind", several in one text separated by commas.

    Example:
        >>> parse_kinds(["zip=category,day=datetime:%d/%m/%Y", "a=b=integer"])
        {'zip': 'category', 'day': 'datetime:%d/%m/%Y', 'a=b': 'integer'}
    """
    found = {}
    for pair in (part for text in pairs for part in text.split(",")):
        name, sign, kind = pair.rpartition("=")
        if not sign or not name.strip():
            raise InputError("kinds", f"{pair!r} is not column=kind", "--kinds", "write --kinds zip=category")
        found[name.strip()] = kind.strip()
    return found


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """A shard i/n, i from 1; None for None.

    Example:
        >>> parse_shard("2/7")
        (2, 7)
    """
    if text is None:
        return None
    if not (found := re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)):
        raise InputError(
            "shard", f"{text!r} is not i/n", "--shard", "write 2/7 for the second of seven parts"
        )
    return int(found[1]), int(found[2])
