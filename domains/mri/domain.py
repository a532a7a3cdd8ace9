"""MRI volumes as a domain: what the pipelines ask of any data, answered for subjects and their images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import Fault, InputError
from ...shared.noise import Keys
from .. import Comparison, Planned, Progress, Request, Survey, Unit, Wish
from . import plans
from .checking import check
from .collection import Collection, Subject, collect, read_subject
from .filling import FilledImage, fill_subject, picture_of
from .measuring import measured
from .model import FittedScans
from .nifti import Volume
from .options import ScanOptions
from .preview import before_after, montage
from .writing import Synthetic, write_bids, write_filled, write_map

UNTOLD = ScanOptions()
MOST_SHOWN = 12
"""Subjects in a picture of what was generated."""


@dataclass(frozen=True)
class ScanSurvey(Survey):
    """A collection seen once, without its voxels."""

    collection: Collection | None = None


@dataclass(frozen=True)
class MriDomain:
    """Scans, with what the user said about them."""

    options: ScanOptions = UNTOLD
    name: str = "mri"
    things: str = "volumes"
    made_at_once: int = 16

    def found(self, path: Path) -> Collection:
        """The subjects that lie at `path`."""
        o = self.options
        return collect(path, modalities=o.modalities, segmentation=o.segmentation, covariates=o.covariates)

    def read(self, subject: Subject) -> dict[str, Volume]:
        """The images of a subject, by modality, verified."""
        return read_subject(subject, self.options.read)

    def check(self, path: Path) -> list[Fault]:
        """Every fault of the scans, errors before warnings."""
        o = self.options
        return check(
            path,
            modalities=o.modalities,
            segmentation=o.segmentation,
            covariates=o.covariates,
            assume_spacing=o.assume_spacing,
            missing_nan=o.missing_nan,
        )

    def survey(self, path: Path, progress: Progress | None = None) -> ScanSurvey:
        """Find the subjects, and name the data by the bytes of all their files."""
        found = self.found(path)
        digest, size = hashlib.sha256(), 0
        files = [(s.name, image) for s in found for image in (*s.images.values(), s.segmentation) if image]
        for place, (name, image) in enumerate(files):
            if progress is not None:
                progress("looking", place / len(files))
            with image.open("rb") as file:
                own = hashlib.file_digest(file, "sha256").digest()
            digest.update(name.encode() + b"\0" + own)
            size += image.stat().st_size
        facts = {"layout": found.layout, "modalities": list(found.modalities), "bytes": size}
        return ScanSurvey(len(found), digest.hexdigest(), 1, facts, found.notes, (), found)

    def sample(
        self, path: Path, survey: Survey, limit: int, seed: int, progress: Progress | None = None
    ) -> list[Subject]:
        """At most `limit` subjects to learn from."""
        subjects = list(_collection(survey))
        if len(subjects) <= limit:
            return subjects
        order = Keys.range(seed, len(subjects)).uniform((), "sample").argsort()[:limit]
        return [subjects[i] for i in sorted(order.tolist())]

    def units(self, path: Path, survey: Survey, first: int, last: int) -> Iterator[Unit[list[Subject]]]:
        """Subjects first ... last - 1, one at a time."""
        for place, subject in enumerate(list(_collection(survey))[first:last], first):
            yield Unit(place, 1, [subject])

    def fit(
        self,
        raw: list[Subject],
        *,
        seed: int,
        about: Mapping[str, Any],
        survey: Survey | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
        verbs: Sequence[str] | None = None,
    ) -> FittedScans:
        """Learn the space and the denoiser."""
        o = self.options
        return FittedScans.fit(
            raw,
            spacing=o.spacing,
            modalities=o.modalities,
            pose=o.pose,
            labels=o.labels,
            conditions=o.conditions,
            settings=o.settings,
            preset=o.preset,
            seed=seed,
            about={**about, "assume_spacing": o.assume_spacing, "missing_nan": o.missing_nan},
            read=o.read,
            folder=folder,
            resume=resume,
            device=device,
            progress=progress,
        )

    @property
    def plan_keys(self) -> tuple[str, ...]:
        return plans.KEYS

    def plan(
        self,
        path: Path,
        survey: Survey,
        sample: list[Subject],
        seed: int,
        progress: Progress | None = None,
    ) -> Planned:
        """Grid, conditions, the model, and what a short probe says of them."""
        planned = plans.decided(self.options, sample, progress)
        options, lines = planned.options, (f"{path.name}: {planned.seen}",)
        return Planned(MriDomain(options), plans.written(options), planned.estimate, lines)

    def follow(self, found: Mapping[str, Any], where: Path) -> MriDomain:
        """With the options of a plan; those that were said stay."""
        return MriDomain(plans.followed(found, where, self.options))

    def load(self, folder: Path) -> FittedScans:
        """Read a model folder."""
        return FittedScans.load(folder)

    # ---------------------------------------------------------------------------------------------- fill

    def fill(
        self,
        fitted: FittedScans,
        survey: Survey,
        unit: Unit[list[Subject]],
        request: Request,
        folder: Path,
    ) -> dict[str, Any]:
        """Fill the holes of one subject; a damaged one is named in the counts, and the work goes on."""
        subject, o = unit.raw[0], self.options
        counts: dict[str, Any] = {"subject": subject.name, "images": []}
        try:
            filled = fill_subject(fitted, subject, self.read(subject), o.holes, request, o.faces, o.read)
        except InputError as error:
            return counts | {"failed": str(error.fault)}
        counts["images"] = [write_image(subject, image, request, folder) for image in filled]
        if filled:
            np.savez(folder / "shown.npz", **picture_of(filled[0]))  # type: ignore[arg-type]
        return counts

    def assemble(
        self,
        path: Path,
        fitted: FittedScans,
        survey: Survey,
        parts: Mapping[int, Path],
        end: int,
        out: Path,
        request: Request,
        progress: Progress | None = None,
    ) -> list[str]:
        """Completed images, masks and spreads, and a table of what was filled."""
        made, counts = [], [json.loads((part / "counts.json").read_text()) for part in parts.values()]
        if not any(one["images"] or "failed" in one for one in counts):
            raise InputError(
                "nothing-to-fill",
                "no voxel was said to be filled, and no modality is missing",
                str(path),
                "say what with --fill: a mask, box:10-20,5-9,0-7, slices:2:3,7-9, thick:2:3, bad-slices",
            )
        for part in parts.values():
            for file in sorted(part.glob("*.nii.gz")):
                shutil.copyfile(file, out / file.name)
                made.append(file.name)
        rows = [{"subject": one["subject"], **image} for one in counts for image in one["images"]]
        _write_rows(rows, out / "filled.tsv")
        failed = [{"subject": one["subject"], "why": one["failed"]} for one in counts if "failed" in one]
        if failed:
            _write_rows(failed, out / "failed.tsv")
            made.append("failed.tsv")
        return [*made, "filled.tsv"]

    def preview(self, path: Path, fitted: FittedScans, parts: Sequence[Path], picture: Path) -> None:
        """The first subject that had holes, before and after, with the spread of the draws."""
        for part in parts:
            if (part / "shown.npz").is_file():
                with np.load(part / "shown.npz", allow_pickle=False) as held:
                    before_after(picture, **dict(held), heading="Filled in: an estimate, not a measurement")
                return
        montage([], picture, heading="Nothing was filled in")

    def summary(self, counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The counts of all subjects in one."""
        images = [image for one in counts for image in one["images"]]
        return {
            "subjects": len(counts),
            "images": len(images),
            "filled": sum(image["filled"] for image in images),
            "face": sum(image["face"] for image in images),
            "beyond": sum(image["beyond"] for image in images),
            "failed": sum("failed" in one for one in counts),
        }

    def tell(self, counted: Mapping[str, Any]) -> list[str]:
        """The summary in plain words."""
        lines = [
            f"Filled {counted['filled']:,} voxels in {counted['images']:,} image(s) of "
            f"{counted['subjects']:,} subject(s); all others are as they were, bit for bit."
        ]
        if counted["face"]:
            lines.append(
                f"{counted['face']:,} voxels were left empty: a face was removed there. --faces fills them."
            )
        if counted["beyond"]:
            lines.append(f"{counted['beyond']:,} voxels lie beyond the model's grid and were left.")
        if counted["failed"]:
            lines.append(f"{counted['failed']:,} subject(s) could not be filled: see failed.tsv")
        return lines

    # ------------------------------------------------------------------------------------------ generate

    def generate(
        self,
        fitted: FittedScans,
        wish: Wish,
        first: int,
        last: int,
        folder: Path,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Samples first ... last - 1 in model space, with the facts they were made for."""
        keys = Keys.range(wish.seed, last - first, start=first)
        facts = fitted.covariates.asked(wish.condition, keys)
        labels = self.label_maps(fitted, keys)
        guidance = fitted.guidance if wish.guidance is None else wish.guidance
        samples = fitted.generate(
            keys, facts, labels=labels, guidance=guidance, steps=wish.steps, progress=progress
        )
        np.save(folder / "samples.npy", samples.numpy(), allow_pickle=False)
        if labels is not None:
            np.save(folder / "labels.npy", _small(labels), allow_pickle=False)
        unlike = [asdict(fault) for fault in fitted.covariates.unlike(wish.condition)]
        return {"first": first, "facts": facts, "warnings": unlike}

    def label_maps(self, fitted: FittedScans, keys: Keys) -> Tensor | None:
        """(B, *S) label maps to make images for: those of `--segmentation` in turn, or newly drawn ones; None
        of a model that knows no labels.

        Raises:
            InputError: label maps for a model that knows no labels, or with others.
        """
        given = self.options.segmentation
        if fitted.shapes is None:
            if given is not None:
                raise InputError(
                    "no-labels",
                    "this model was trained without label maps",
                    "--segmentation",
                    "leave it out, or train a model on scans with their label maps",
                )
            return None
        if given is None:
            return fitted.shapes.draw(keys)
        # A folder of label maps alone is a collection of them.
        files = [next(iter(subject.images.values())) for subject in collect(given)]
        chosen = [files[item % len(files)] for item in keys.items.tolist()]
        placed = {file: fitted.placed(self.options.read(file)) for file in dict.fromkeys(chosen)}
        return torch.stack([placed[file] for file in chosen])

    def publish(
        self,
        fitted: FittedScans,
        wish: Wish,
        parts: Sequence[Path],
        out: Path,
        facts: Mapping[str, Any],
    ) -> list[str]:
        """A BIDS derivative, and a montage of the first subjects."""
        box, affine = fitted.frame
        first = list(_samples(parts[:1]))[:MOST_SHOWN]
        shown = [(next(iter(fitted.images(one).values())), affine) for _, one, _ in first]
        subjects = (
            Synthetic(fitted.images(sample), told, None if labels is None else labels[box], {"sample": place})
            for place, (told, sample, labels) in enumerate(_samples(parts))
        )
        made = write_bids(out, subjects, affine, facts)
        maps = [None if labels is None else labels[box] for _, _, labels in first]
        montage(shown, out / "montage.png", heading="SYNTHETIC. Not for diagnosis.", labels=maps)
        return [*made, "montage.png"]

    # ------------------------------------------------------------------------------------------- measure

    def measure(
        self,
        real: Path,
        synthetic: Path,
        holdout: Path | None,
        *,
        seed: int,
        fitted: FittedScans | None = None,
        progress: Progress | None = None,
    ) -> Comparison:
        """Synthetic scans beside the real ones they were made from; see `measuring`."""
        return measured(
            list(self.found(real)),
            list(collect(synthetic)),
            None if holdout is None else list(collect(holdout)),
            seed=seed,
            read=self.options.read,
            fitted=fitted,
            progress=progress,
        )


def write_image(subject: Subject, image: FilledImage, request: Request, folder: Path) -> dict[str, Any]:
    """Write one filled image and what is beside it; give the counts."""
    name = subject.name if image.modality == "image" else f"{subject.name}_{image.modality}"
    clipped = write_filled(image.volume, image.values, image.mask, folder / f"{name}_filled.nii.gz")
    write_map(image.volume, image.mask, folder / f"{name}_mask.nii.gz", "uint8", "1 where filled in")
    if len(image.draws) > 1:  # one draw does not tell how sure it is; zeros would say: certain
        path = folder / f"{name}_std.nii.gz"
        write_map(image.volume, image.std, path, "float32", "standard deviation of draws")
    for place, draw in enumerate(image.draws[: request.all_draws]):
        write_filled(image.volume, draw, image.mask, folder / f"{name}_draw{place:03d}.nii.gz")
    filled = int(image.mask.sum())
    return {
        "modality": image.modality,
        "voxels": int(image.mask.size),
        "filled": filled,
        "measured": image.measured,
        "face": image.face,
        "beyond": image.beyond,
        "clipped": clipped,
        "mean_std": round(float(image.std[image.mask].mean()), 6) if filled else 0.0,
    }


def _small(labels: Tensor) -> np.ndarray:
    """Label maps in the smallest type of whole numbers that holds them."""
    return labels.numpy().astype(np.min_scalar_type(max(int(labels.max()), 0)))


def _samples(parts: Sequence[Path]) -> Iterator[tuple[dict[str, Any], Tensor, np.ndarray | None]]:
    """(facts, sample, label map) of all that was generated, in order."""
    for part in parts:
        facts = json.loads((part / "counts.json").read_text())["facts"]
        samples = torch.from_numpy(np.load(part / "samples.npy", allow_pickle=False))
        held = part / "labels.npy"
        maps = np.load(held, allow_pickle=False) if held.is_file() else [None] * len(facts)
        yield from zip(facts, samples, maps, strict=True)


def _write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A TSV of rows that all have the same columns."""
    lines = ["\t".join(rows[0])] if rows else ["subject"]
    lines += ["\t".join(str(value) for value in row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _collection(survey: Survey) -> Collection:
    if not isinstance(survey, ScanSurvey) or survey.collection is None:
        raise TypeError("expected the survey of a collection of scans")
    return survey.collection
