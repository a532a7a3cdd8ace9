"""`ebbtide augment` for scans: the real ones with synthetic ones, and their label maps, beside them.

The proof needs label maps and `--holdout`, scans that the model never saw: MONAI's U-Net learns to find the
labels from the real scans as they are, from these moved and toned in the classical way, and from these and
the synthetic ones, both changed in that way too; it is tried on the held-out scans.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..domains.mri import MriDomain
from ..domains.mri.collection import Collection, Subject, collect
from ..domains.mri.model import FittedScans
from ..domains.mri.names import UNKNOWN
from ..domains.mri.nifti import is_nifti
from ..domains.mri.segmenting import Pairs, dice, learn
from ..domains.mri.writing import write_synthetic
from ..domains.tabular.measures.downstream import NOTHING, Proof
from ..shared.covariates import Fact
from ..shared.errors import InputError
from ..shared.files import require_space
from ..shared.noise import Keys
from . import output_cards
from .sieving import Kept, drawn_apart, threshold

if TYPE_CHECKING:
    from .augmenting import Asked, Augmented

Progress = Callable[[str, float], None]
MOVED, NETWORK, OURS = "moved and toned scans", "MONAI U-Net", "Ebbtide"
SEEDS = 3
"""Downstream networks for each repeat of the proof."""
CONTENTS = "contents.csv"


def augment_scans(
    data: Path,
    folder: Path,
    out: Path,
    domain: MriDomain,
    asked: Asked,
    model: Path | str | None,
    holdout: Path | str | None,
    device: str,
    options: Mapping[str, Any],
    tell: Progress,
) -> Augmented:
    """Fill `folder` with real and synthetic scans; see `augmenting.augment`.

    Args:
        out: what it will be called.
        holdout: for the proof; None proves nothing.

    Raises:
        InputError: classes to balance, which scans have none of; DICOM; a proof without label maps.
    """
    from .augmenting import finish, given_or_trained

    if asked.balance is not None:
        raise InputError("not-balanceable", "scans have no classes", "--balance", "say --factor 2 instead")
    survey: Any = domain.survey(data, tell)
    real: Collection = survey.collection
    _require_nifti(real)
    count = int(asked.wanted(np.array([len(real)])).sum())
    if not count:
        raise InputError("nothing-to-add", "no scan is to be added", "--factor", "ask for more than 1")
    require_space(folder, 3 * survey.facts["bytes"] + 2**22)
    fitted, digest = given_or_trained(domain, data, survey, asked, model, device, tell)
    proving = holdout is not None and asked.repeats > 0
    tested = _with_labels(fitted, real, Path(holdout)) if proving and holdout is not None else []
    makes = _Maker(fitted, real, asked, domain)
    made = makes.made(count, tell)
    files = list(_write(folder, real, makes, made, digest))
    proof = prove(makes, made, tested, asked, tell) if proving else None
    total = {
        "real": len(real),
        "synthetic": len(made.items),
        "drawn": made.drawn,
        "near_copies_dropped": made.copies,
    }
    maps = "with label maps " if fitted.labels else ""
    lines = [
        f"{total['real']:,} real scans, {total['synthetic']:,} synthetic ones {maps}added (synthetic_*).",
        f"Of {made.drawn:,} that were made {made.copies:,} were near copies and dropped.",
    ]
    if proof is None:
        lines.append("Whether they help was not measured: --holdout SCANS does, where there are label maps.")
    how = "new label maps" if fitted.labels else "as in training"
    return finish(
        folder,
        out,
        output_cards.Origin(out.name, domain, fitted, digest, data.name, output_cards.card_of(data)),
        survey,
        {**options, **vars(asked)},
        total,
        files,
        proof,
        note="Files called synthetic_* are",
        mark="their names (synthetic_*), an extension of their headers, and contents.csv",
        card={
            "conditions": how if asked.vary is None else "scans of DATA, varied",
            "sampler": output_cards.sampler(fitted, None),
        },
        lines=lines,
    )


def _require_nifti(real: Collection) -> None:
    for subject in real:
        for path in subject.images.values():
            if not is_nifti(path):
                what = "scans are augmented from NIfTI files alone"
                raise InputError("dicom", what, str(path), "convert them, by dcm2niix for example")


class _Maker:
    """Makes samples by number: each depends on the seed and its number alone."""

    def __init__(self, fitted: FittedScans, real: Collection, asked: Asked, domain: MriDomain) -> None:
        self.fitted, self.real, self.asked, self.domain = fitted, real, asked, domain
        self.read = domain.options.read
        self.pairs = encoded(fitted, list(real), self.read)

    def made(self, count: int, tell: Progress) -> Kept[Tensor]:
        """`count` samples that are no near copies."""
        points = _points(self.pairs.images)
        return drawn_apart(
            self.drawn,
            _points,
            points,
            threshold(points),
            count,
            at_once=self.domain.made_at_once,
            progress=lambda share: tell("making scans", share),
        )

    def drawn(self, start: int, count: int) -> Tensor:
        """(count, C, *S) samples, new ones or scans of the data varied."""
        keys = Keys.range(self.asked.seed, count, start=start)
        facts, labels = self.facts(keys), self.labels(keys)
        if self.asked.vary is None:
            return self.fitted.generate(keys, facts, labels=labels)
        like = self.pairs.images[self.chosen(keys)]
        return self.fitted.generate(keys, facts, labels=labels, like=like, strength=self.asked.vary)

    def keys(self, items: np.ndarray) -> Keys:
        """Of samples by their numbers."""
        return Keys(self.asked.seed, torch.from_numpy(items), torch.zeros(len(items), dtype=torch.int64))

    def chosen(self, keys: Keys) -> Tensor:
        """(B,) which scan a sample varies."""
        return (keys.uniform((), "which scan to vary") * len(self.real)).long()

    def facts(self, keys: Keys) -> list[dict[str, Fact]]:
        """Covariates as in training, or those of the scan that is varied."""
        if self.asked.vary is None:
            return self.fitted.covariates.asked(dict.fromkeys(self.fitted.covariates.names, "*"), keys)
        known = self.fitted.covariates.names
        rows = (self.real.subjects[place].covariates for place in self.chosen(keys).tolist())
        return [{name: row.get(name) for name in known} for row in rows]

    def labels(self, keys: Keys) -> Tensor | None:
        """(B, *S) label maps, new ones or those of the scans that are varied."""
        if self.fitted.shapes is None:
            return None
        return (
            self.fitted.shapes.draw(keys) if self.asked.vary is None else self.pairs.labels[self.chosen(keys)]
        )


def encoded(fitted: FittedScans, subjects: Sequence[Subject], read: Any) -> Pairs:
    """Scans and label maps in model space; a label map is blank where there is none."""
    scans = [fitted.encode(subject, read=read) for subject in subjects]
    blank = torch.zeros(1, *fitted.space.size, dtype=torch.int64)
    maps = [blank if scan.labels is None else scan.labels.long() for scan in scans]
    return Pairs(torch.cat([scan.known.values for scan in scans]), torch.cat(maps))


def _points(values: Tensor) -> Tensor:
    """(n, D) scans as points: means of blocks of four voxels."""
    return F.avg_pool3d(values, 4, ceil_mode=True, count_include_pad=False).flatten(1)


def _write(folder: Path, real: Collection, makes: _Maker, made: Kept[Tensor], digest: str) -> Iterator[str]:
    """Copy the real scans, write the synthetic ones and the table of both; gives their names."""
    fitted, rows = makes.fitted, list[tuple[str, str, str, int]]()
    for kind in ("images", "labels") if fitted.labels else ("images",):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for subject in real:
        label = ""
        if fitted.labels and subject.segmentation is not None:
            label = _copy(subject.segmentation, folder / "labels" / subject.name)
        for modality, path in subject.images.items():
            name = _copy(path, folder / "images" / _stem(subject.name, modality))
            rows.append((f"images/{name}", f"labels/{label}" if label else "", modality, 0))
    box, affine = fitted.frame
    for items, samples in made.batches:
        keys = makes.keys(items)
        facts, labels = makes.facts(keys), makes.labels(keys)
        for place, item in enumerate(items.tolist()):
            stem = f"synthetic_{item:06d}"
            told = {"seed": makes.asked.seed, "sample": item, "model_sha256": digest}
            told |= {"conditions": facts[place]} if facts[place] else {}
            label = ""
            if labels is not None:
                label = f"labels/{stem}.nii.gz"
                values = labels[place].numpy()[box]
                small = values.astype(np.min_scalar_type(max(fitted.labels)))
                write_synthetic(small, affine, folder / label, told)
            for modality, array in fitted.images(samples[place]).items():
                name = f"images/{_stem(stem, modality)}.nii.gz"
                write_synthetic(array, affine, folder / name, told)
                rows.append((name, label, modality, 1))
    with (folder / CONTENTS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "label_map", "modality", "synthetic"))
        writer.writerows(rows)
    yield from dict.fromkeys(name for row in rows for name in row[:2] if name)
    yield CONTENTS


def _stem(name: str, modality: str) -> str:
    return name if modality == UNKNOWN else f"{name}_{modality}"


def _copy(path: Path, target: Path) -> str:
    """Copy a NIfTI file byte for byte to `target` and its own suffix; gives the new name."""
    suffix = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    name = target.name + suffix
    (target.parent / name).write_bytes(path.read_bytes())
    return name


# ----------------------------------------------------------------------------------------------- the proof


def _with_labels(fitted: FittedScans, real: Collection, holdout: Path) -> list[Subject]:
    """The held-out subjects that the proof is made on.

    Raises:
        InputError: no label maps, there or in the data.
    """
    tested = [subject for subject in collect(holdout) if subject.segmentation is not None]
    if not fitted.labels or not tested or not any(subject.segmentation for subject in real):
        what = "there are no label maps to be found again"
        raise InputError("no-labels", what, str(holdout), "give scans with label maps, here and in DATA")
    return tested


def prove(
    makes: _Maker, made: Kept[Tensor], tested: Sequence[Subject], asked: Asked, tell: Progress
) -> Proof:
    """A segmentation network from the real scans alone, from these changed in the classical way, and from
    these and synthetic ones; Dice on each held-out scan, the mean of several seeds."""
    fitted = makes.fitted
    with_maps = [place for place, subject in enumerate(makes.real) if subject.segmentation is not None]
    test = encoded(fitted, tested, makes.read)
    real = makes.pairs.rows(torch.tensor(with_maps))
    labels = makes.labels(makes.keys(made.items))
    assert labels is not None
    synthetic = Pairs(fitted.seen(torch.cat([samples for _, samples in made.batches])), labels)
    scores: dict[str, list[np.ndarray]] = {NOTHING: [], MOVED: [], OURS: []}
    seeds = range(asked.seed, asked.seed + SEEDS * asked.repeats)
    done, trainings = 0, len(seeds) * len(scores)
    for seed in seeds:
        for way in scores:
            tell("proof", done / trainings)
            sets = [real, synthetic] if way == OURS else [real]
            network = learn(sets, fitted.labels, classical=way != NOTHING, seed=seed)
            scores[way].append(dice(network, test, fitted.labels))
            done += 1
    tell("proof", 1.0)
    means = {way: {NETWORK: {"Dice": np.mean(found, axis=0)}} for way, found in scores.items()}
    counts = {way: float(len(labels)) if way == OURS else 0.0 for way in scores}
    return Proof("label maps", "Dice", means, OURS, (MOVED,), 1, len(seeds), counts)
