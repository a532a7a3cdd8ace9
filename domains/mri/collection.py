"""What lies in a folder: subjects, their images by modality, segmentations, covariates. No voxel is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Names
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...shared.errors import InputError
from .covariates import Value, read_covariates, tables_in
from .dicom import find_series, is_dicom, read_series_of
from .names import (
    SEGMENTATION,
    UNKNOWN,
    Name,
    bids_name,
    is_images_folder,
    modality_named,
    nnunet_name,
    plain_name,
)
from .nifti import Volume, is_nifti, read_volume, stem_of

Read = Callable[[Path], Volume]
"""How one image is read; `read_image` is one."""
_ASIDE = frozenset(["derivatives", "sourcedata", "code", "stimuli", "phenotype", "logs"])


@dataclass(frozen=True)
class Subject:
    """One subject (or one session of one).

    Args:
        name: as the files name it.
        images: by modality; the path of a NIfTI file, or of one file of a DICOM series.
        segmentation: the label map, if there is one.
        covariates: by column; numbers, text, or None where missing.
    """

    name: str
    images: Mapping[str, Path]
    segmentation: Path | None = None
    covariates: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """A data set.

    Args:
        path: the folder or file.
        layout: "bids", "decathlon", "plain", "dicom" or "file".
        subjects: in the order of their names.
        notes: sentences on what was assumed or left out.
    """

    path: Path
    layout: str
    subjects: tuple[Subject, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.subjects)

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.subjects)

    @property
    def modalities(self) -> tuple[str, ...]:
        """All that occur, those of most subjects first."""
        counts: dict[str, int] = defaultdict(int)
        for subject in self.subjects:
            for modality in subject.images:
                counts[modality] += 1
        return tuple(sorted(counts, key=lambda name: (-counts[name], name)))

    @property
    def covariates(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(dict.fromkeys(name for subject in self.subjects for name in subject.covariates))

    def subset(self, names: Names[str]) -> Collection:
        """The subjects of these names alone."""
        wanted = set(names)
        return replace(self, subjects=tuple(s for s in self.subjects if s.name in wanted))


def collect(
    path: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    segmentation: Path | str | None = None,
    covariates: Path | str | None = None,
) -> Collection:
    """Find out what lies at `path`.

    Args:
        path: a folder (BIDS, Decathlon, plain NIfTI, DICOM series) or one file.
        modalities: keep these alone, in this order.
        segmentation: a folder of label maps named like the images, when it is not beside them.
        covariates: a TSV or CSV whose first column names the subjects, when it is not beside them.

    Raises:
        InputError: `mri-nothing` when there is no image; or a fault of the table of covariates.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("not-found", "there is no such file or folder", str(path), "check the path")
    layout, subjects, notes = _found(path)
    if modalities is not None:
        wanted = [modality_named(name) for name in modalities]
        _require_known(wanted, subjects, path)
        kept = ((s, {m: s.images[m] for m in wanted if m in s.images}) for s in subjects)
        subjects = [replace(s, images=images) for s, images in kept if images]
    if segmentation is not None:
        subjects = _with_segmentations(subjects, Path(segmentation))
    subjects, more = _with_covariates(subjects, path, None if covariates is None else Path(covariates))
    subjects.sort(key=lambda s: s.name)
    return Collection(path, layout, tuple(subjects), (*notes, *more))


def read_image(path: Path, *, assume_spacing: bool = False, missing_nan: bool = False) -> Volume:
    """One image of a subject: NIfTI, or the DICOM series that the file belongs to."""
    if is_dicom(path):
        return read_series_of(path)
    return read_volume(path, assume_spacing=assume_spacing, missing_nan=missing_nan)


def read_subject(subject: Subject, read: Read = read_image) -> dict[str, Volume]:
    """All images of a subject, by modality."""
    return {modality: read(path) for modality, path in subject.images.items()}


def _found(path: Path) -> tuple[str, list[Subject], list[str]]:
    """Layout, subjects, and notes."""
    if path.is_file():
        if is_nifti(path) or not is_dicom(path):  # of what is neither, the reader will say what it is
            name = plain_name(path, path.parent)
            return "file", [Subject(stem_of(path), {name.modality or UNKNOWN: path})], []
        return "dicom", _dicom([path], path.parent), []
    files = sorted(_walk(path))
    images = [file for file in files if is_nifti(file)]
    if not images:
        others = [file for file in files if is_dicom(file)]
        if others:
            return "dicom", _dicom(others, path), []
        what = f"no NIfTI or DICOM file is in this folder ({len(files)} files of other kinds)"
        raise InputError("mri-nothing", what, str(path), "give a folder of .nii.gz, BIDS or DICOM")
    folders = {part.name.lower() for part in path.iterdir() if part.is_dir()}
    if (path / "dataset_description.json").exists() or any(
        file.parent.name == "anat" and file.name.startswith("sub-") for file in images
    ):
        anatomy = [file for file in images if file.parent.name == "anat"]
        return "bids", *_grouped(anatomy or images, bids_name, path)
    if "imagestr" in folders:
        inside = [file for file in images if file.parent.name.lower() in ("imagestr", "labelstr")]
        aside = len(images) - len(inside)
        notes = [f"{aside} files outside imagesTr and labelsTr are left out"] if aside else []
        layout, (subjects, more) = "decathlon", _grouped(inside, nnunet_name, path)
        return layout, subjects, notes + more
    layout = "decathlon" if "images" in folders and SEGMENTATION & folders else "plain"
    if is_images_folder(path.name):
        images += _beside(path, images)
        return layout, *_grouped(images, lambda file: plain_name(file, path.parent), path.parent)
    return layout, *_grouped(images, lambda file: plain_name(file, path), path)


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below, but hidden ones and what BIDS keeps aside."""
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name.lower() not in _ASIDE:
                yield from _walk(entry)
        else:
            yield entry


def _beside(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Segmentations of the same names in a sister folder."""
    stems = {stem_of(file) for file in images}
    sisters = [f for f in folder.parent.iterdir() if f.is_dir() and f.name.lower() in SEGMENTATION]
    found = [file for sister in sisters for file in sorted(_walk(sister)) if is_nifti(file)]
    return [
        file for file in found if stem_of(file) in stems or plain_name(file, folder.parent).subject in stems
    ]


def _grouped(
    files: Sequence[Path], name_of: Callable[[Path], Name | None], root: Path
) -> tuple[list[Subject], list[str]]:
    """Files to subjects, and what to say about those that do not fit."""
    named = [(file, name) for file in files if (name := name_of(file))]
    notes = (
        [f"{len(files) - len(named)} files have no subject in their name"] if len(named) < len(files) else []
    )
    named = _told_apart(named, root)
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    labels: dict[str, Path] = {}
    for file, name in named:
        place = labels if name.modality is None else images[name.subject]
        key = name.subject if name.modality is None else name.modality
        if key in place:
            notes.append(f"{file.relative_to(root)} is left out: {place[key].name} is taken for the same")
        else:
            place[key] = file
    if not images:  # a folder of segmentations alone is what the user asks for
        images = defaultdict(dict, {name: {UNKNOWN: file} for name, file in labels.items()})
        labels = {}
    without = sorted(set(labels) - set(images))
    if without:
        notes.append(f"{len(without)} segmentations have no image of their name")
    return [Subject(name, images[name], labels.get(name)) for name in images], notes


def _told_apart(named: list[tuple[Path, Name]], root: Path) -> list[tuple[Path, Name]]:
    """Files of one name in different folders (site1/001, site2/001) are different subjects."""
    folders: dict[tuple[str, str | None], set[Path]] = defaultdict(set)
    for file, name in named:
        if not name.subject.startswith("sub-"):
            folders[name.subject, name.modality].add(file.parent)
    twice = {subject for (subject, _), places in folders.items() if len(places) > 1}

    def distinct(file: Path, name: Name) -> Name:
        if name.subject not in twice:
            return name
        parts = [p for p in file.relative_to(root).parts[:-1] if p.lower() not in SEGMENTATION]
        parts = [p for p in parts if not is_images_folder(p)]
        return name._replace(subject="_".join([*parts, name.subject]))

    return [(file, distinct(file, name)) for file, name in named]


def _require_known(wanted: Sequence[str], subjects: Sequence[Subject], path: Path) -> None:
    found = sorted({modality for subject in subjects for modality in subject.images})
    missing = [name for name in wanted if name not in found]
    if missing:
        what = f"no image is {', '.join(missing)}; there is {', '.join(found)}"
        raise InputError("mri-modality", what, str(path), "name modalities that are there")


def _with_segmentations(subjects: Sequence[Subject], folder: Path) -> list[Subject]:
    if not folder.is_dir():
        raise InputError(
            "not-found", "there is no such folder of segmentations", str(folder), "check the path"
        )
    found: dict[str, Path] = {}
    for file in sorted(_walk(folder)):
        if is_nifti(file):
            found.setdefault(plain_name(file, folder).subject, file)
            found[stem_of(file)] = file

    def of(subject: Subject) -> Path | None:
        stems = [subject.name, *(stem_of(image) for image in subject.images.values())]
        return next((found[stem] for stem in stems if stem in found), subject.segmentation)

    return [replace(subject, segmentation=of(subject)) for subject in subjects]


def _with_covariates(
    subjects: Sequence[Subject], path: Path, given: Path | None
) -> tuple[list[Subject], tuple[str, ...]]:
    """Covariates from the table given, or from one beside the images that knows at least one subject."""
    names = [subject.name for subject in subjects]
    if given is not None:
        if not given.is_file():
            raise InputError(
                "not-found", "there is no such table of covariates", str(given), "check the path"
            )
        values, notes = read_covariates(given, names)
        if not values:
            what = "the first column of the table names none of the subjects"
            raise InputError(
                "covariates-match", what, str(given), "put the files' names (without .nii.gz) there"
            )
    else:
        values, notes = _table_beside(path, names)
    columns = dict.fromkeys(title for row in values.values() for title in row)
    nothing: dict[str, Value] = dict.fromkeys(columns)
    return [replace(s, covariates=values.get(s.name, nothing)) for s in subjects], notes


def _table_beside(path: Path, names: Sequence[str]) -> tuple[dict[str, dict[str, Value]], tuple[str, ...]]:
    folder = path if path.is_dir() else path.parent
    above = [folder.parent] if path.is_dir() and is_images_folder(path.name) else []
    for table in [table for place in [folder, *above] for table in tables_in(place)]:
        try:
            values, notes = read_covariates(table, names)
        except InputError as error:
            if table.name.lower() == "participants.tsv":
                raise
            return {}, (f"{table.name} is not used: {error.fault.what}",)
        if values:
            return values, (f"covariates are from {table.name}", *notes)
    return {}, ()


def _dicom(files: Sequence[Path], root: Path) -> list[Subject]:
    """A folder is a subject; series of it that are of one modality are told apart by their number."""
    found = find_series(files)
    if not found:
        raise InputError("mri-nothing", "no DICOM file here holds an image", str(root), "give a series")
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    for series in found:
        place = series.files[0].parent
        name = "_".join(place.relative_to(root).parts) or place.name
        if series.modality in images[name]:
            name = f"{name}_series{series.number}"
        images[name][series.modality] = series.files[0]
    return [Subject(name, paths) for name, paths in images.items() if paths]
