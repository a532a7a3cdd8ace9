"""Pictures as a domain: what the pipelines ask of any data, answered for images and their classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...shared.errors import Fault, InputError
from ...shared.noise import Keys
from .. import Comparison, Planned, Progress, Request, Survey, Unit, Wish
from . import plans
from .checking import check
from .collection import SHEET, Collection, collect, looks_like_pictures
from .comparing import compare
from .filling import fill_pictures
from .metadata import NAME as METADATA
from .metadata import write_metadata
from .model import FittedImages
from .options import ImageOptions
from .pictures import read_picture
from .sheets import Completion, before_after, contact_sheet
from .writing import Provenance, write_png

UNTOLD = ImageOptions()
PER_UNIT = 16
"""Pictures in a unit of work."""
SHOWN, MOST_SHOWN = 6, 64
"""Pictures in a sheet of what was filled, and of what was generated."""


@dataclass(frozen=True)
class ImageSurvey(Survey):
    """A set of pictures seen once."""

    collection: Collection | None = None


@dataclass(frozen=True)
class ImageDomain:
    """Pictures, with what the user said about them."""

    options: ImageOptions = UNTOLD
    name: str = "images"
    things: str = "pictures"
    made_at_once: int = 16

    @staticmethod
    def sniff(path: Path) -> bool:
        """Whether pictures lie there."""
        return looks_like_pictures(path)

    def check(self, path: Path) -> list[Fault]:
        """Every fault of the pictures, errors before warnings."""
        return check(path)

    def survey(self, path: Path, progress: Progress | None = None) -> ImageSurvey:
        """Find the pictures, and name the data by all their bytes."""
        found = collect(path)
        if not len(found):
            raise InputError("image-none", "there is no picture", str(path), "give a folder of pictures")
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*"))
        facts = {"layout": found.kind, "classes": list(found.class_names), "bytes": size}
        return ImageSurvey(len(found), found.digest(), PER_UNIT, facts, (), found.faults, found)

    def sample(
        self, path: Path, survey: Survey, limit: int, seed: int, progress: Progress | None = None
    ) -> Collection:
        """At most `limit` pictures to learn from."""
        found = _collection(survey)
        if len(found) <= limit:
            return found
        order = Keys.range(seed, len(found)).uniform((), "sample").argsort()[:limit]
        return found.subset(sorted(order.tolist()))

    def units(self, path: Path, survey: Survey, first: int, last: int) -> Iterator[Unit[Collection]]:
        """Pictures first ... last - 1, some at a time."""
        found = _collection(survey)
        for start in range(first, last, PER_UNIT):
            end = min(start + PER_UNIT, last)
            yield Unit(start, end - start, found.subset(list(range(start, end))))

    def fit(
        self,
        raw: Collection,
        *,
        seed: int,
        about: Mapping[str, Any],
        survey: Survey | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
        verbs: Sequence[str] | None = None,
    ) -> FittedImages:
        """Learn the space and the denoiser."""
        o = self.options
        return FittedImages.fit(
            raw,
            size=o.size,
            channels=o.channels,
            mirror=o.mirror,
            augment=o.augment,
            text_encoder=o.text_encoder,
            settings=o.settings,
            seed=seed,
            about=about,
            folder=folder,
            resume=resume,
            device=device,
            progress=progress,
        )

    @property
    def plan_keys(self) -> tuple[str, ...]:
        return plans.KEYS

    def plan(
        self, path: Path, survey: Survey, sample: Collection, seed: int, progress: Progress | None = None
    ) -> Planned:
        """Size, channels, the model, and what a short probe says of them."""
        options, estimate, seen = plans.decided(self.options, sample, seed, progress)
        return Planned(ImageDomain(options), plans.written(options), estimate, (f"{path.name}: {seen}",))

    def follow(self, found: Mapping[str, Any], where: Path) -> ImageDomain:
        """With the options of a plan; those that were said stay."""
        return ImageDomain(plans.followed(found, where, self.options))

    def load(self, folder: Path) -> FittedImages:
        """Read a model folder; the text encoder that it was trained with is looked for where it was said to
        lie."""
        fitted, encoder = FittedImages.load(folder), self.options.text_encoder
        return fitted if encoder is None else fitted.reading_by(encoder)

    # ---------------------------------------------------------------------------------------------- fill

    def fill(
        self, fitted: FittedImages, survey: Survey, unit: Unit[Collection], request: Request, folder: Path
    ) -> dict[str, Any]:
        """Fill the holes of some pictures; a damaged one is named in the counts, and the work goes on."""
        return fill_pictures(fitted, unit.raw, self.options.holes, request, folder)

    def assemble(
        self,
        path: Path,
        fitted: FittedImages,
        survey: Survey,
        parts: Mapping[int, Path],
        end: int,
        out: Path,
        request: Request,
        progress: Progress | None = None,
    ) -> list[str]:
        """Completed pictures, and masks and spreads in folders of their own."""
        made, failed, filled = [], [], 0
        for part in parts.values():
            counts = json.loads((part / "counts.json").read_text())
            failed += counts["failed"]
            filled += len(counts["filled"])
            for file in sorted(part.rglob("*.png")):
                name = file.relative_to(part)
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, out / name)
                made.append(name.as_posix())
        if not filled and not failed:
            raise InputError(
                "nothing-to-fill",
                "no pixel was said to be filled",
                str(path),
                "say what with --fill: a mask, box:10-20,5-9, half:right, border:8, enlarge:2, transparent",
            )
        if failed:
            lines = ["picture\twhy", *(f"{one['picture']}\t{one['why']}" for one in failed)]
            (out / "failed.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            made.append("failed.tsv")
        return made

    def preview(self, path: Path, fitted: FittedImages, parts: Sequence[Path], picture: Path) -> None:
        """What was observed, some draws, their mean and their spread."""
        shown: list[Completion] = []
        for part in parts:
            for file in sorted(part.glob("*.npz"))[: SHOWN - len(shown)]:
                with np.load(file, allow_pickle=False) as held:
                    shown.append(Completion(held["original"], held["hidden"], held["draws"]))
        if shown:
            about = Provenance("FILLED", 0, "sheet", model=fitted.sha256)
            before_after(shown, picture, heading="Filled in: estimates, not photographs", about=about)
        else:
            contact_sheet([np.full((28, 28, 1), 255, np.uint8)], picture, heading="Nothing was filled in")

    def summary(self, counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The counts of all units in one."""
        filled = [one for unit in counts for one in unit["filled"]]
        return {
            "pictures": sum(unit["pictures"] for unit in counts),
            "filled": len(filled),
            "pixels_filled": sum(one["pixels"] for one in filled),
            "failed": sum(len(unit["failed"]) for unit in counts),
        }

    def tell(self, counted: Mapping[str, Any]) -> list[str]:
        """The summary in plain words."""
        lines = [
            f"Filled {counted['pixels_filled']:,} pixels in {counted['filled']:,} of {counted['pictures']:,} "
            "pictures; all others are as they were, bit for bit."
        ]
        if counted["failed"]:
            lines.append(f"{counted['failed']:,} pictures could not be filled: see failed.tsv")
        return lines

    # ------------------------------------------------------------------------------------------- measure

    def measure(
        self,
        real: Path,
        synthetic: Path,
        holdout: Path | None = None,
        *,
        seed: int,
        fitted: FittedImages | None = None,
        progress: Progress | None = None,
    ) -> Comparison:
        """Fidelity, utility and copies of synthetic pictures; see `comparing.compare`.

        Raises:
            InputError: no pictures there, too few of them, or a damaged one.
        """
        found = [None if path is None else collect(path) for path in (real, synthetic, holdout)]
        assert found[0] is not None and found[1] is not None
        return compare(found[0], found[1], found[2], seed=seed, progress=progress)

    # ------------------------------------------------------------------------------------------ generate

    def generate(
        self,
        fitted: FittedImages,
        wish: Wish,
        first: int,
        last: int,
        folder: Path,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Pictures first ... last - 1; of `wish.like` variations of one picture, or what lies between two.

        Raises:
            InputError: words that the model does not know, a damaged picture, a strength that cannot be.
        """
        conditions = fitted.space.conditions
        doubts = [*conditions.prompted(wish.prompt), *conditions.prompted(wish.negative)]
        doubts += conditions.beyond(wish.condition)
        guidance = fitted.guidance if wish.guidance is None else wish.guidance
        if wish.negative and guidance <= 1:
            what = "a negative prompt does nothing without guidance"
            raise InputError("negative", what, "--negative", "add --guidance 3, say")
        if fitted.model.jumps and guidance != 1 and not wish.prompt:
            what = "a distilled model is guided as it was when it was made, and not otherwise"
            doubts.append(Fault("guidance", what, "--guidance", "distil again with it", "warning"))
        like = [read_picture(Path(path)) for path in wish.like]
        keys = Keys.range(wish.seed, last - first, start=first)
        condition = fitted.condition(keys, wish.condition, wish.prompt, draw=not like)
        if len(like) == 2:
            places = (torch.arange(first, last) / max(wish.count - 1, 1)).float()
            made = fitted.between(
                (like[0], like[1]), places, keys, condition, steps=wish.steps, progress=progress
            )
        else:
            made = fitted.generate(
                keys,
                condition,
                guidance=guidance,
                negative=wish.negative,
                steps=wish.steps,
                like=like,
                strength=wish.strength,
                progress=progress,
            )
        np.save(folder / "pictures.npy", made, allow_pickle=False)
        return {
            "first": first,
            "classes": conditions.names_of(condition, len(keys)),
            "warnings": [asdict(fault) for fault in doubts],
        }

    def publish(
        self,
        fitted: FittedImages,
        wish: Wish,
        parts: Sequence[Path],
        out: Path,
        facts: Mapping[str, Any],
    ) -> list[str]:
        """PNG files that say what they are, a table of what each was asked to be, and a contact sheet of the
        first."""
        made: list[str] = []
        rows: list[dict[str, str]] = []
        shown = [(read_picture(Path(path)).pixels, "given") for path in wish.like]
        told = {
            name: str(facts[name])
            for name in ("prompt", "negative", "guidance", "like", "strength")
            if facts.get(name)
        }
        for part in parts:
            counts = json.loads((part / "counts.json").read_text())
            for place, pixels in enumerate(np.load(part / "pictures.npy", allow_pickle=False)):
                label = counts["classes"][place]
                item, condition = counts["first"] + place, dict(wish.condition)
                condition |= {"class": label} if label else {}
                about = Provenance(
                    "SYNTHETIC", wish.seed, item, model=facts["model_sha256"], condition=condition, more=told
                )
                name = f"synthetic_{item:06d}.png"
                write_png(pixels, out / name, about)
                made.append(name)
                rows.append({"file_name": name, "label": label, "caption": wish.prompt or ""})
                if len(shown) < MOST_SHOWN:
                    shown.append((pixels, label or str(item)))
        write_metadata(rows, out / METADATA)
        heading = " · ".join(["SYNTHETIC", *([repr(wish.prompt)] if wish.prompt else [])])
        about = Provenance("SYNTHETIC", wish.seed, "sheet", model=facts["model_sha256"], more=told)
        titles = [title for _, title in shown]
        contact_sheet([tile for tile, _ in shown], out / SHEET, titles, heading=heading, about=about)
        return [*made, METADATA, SHEET]


def _collection(survey: Survey) -> Collection:
    if not isinstance(survey, ImageSurvey) or survey.collection is None:
        raise TypeError("expected the survey of a set of pictures")
    return survey.collection
