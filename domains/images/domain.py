"""Pictures as a domain: what the pipelines ask of any data, answered for images and their classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...shared.data import Encoded
from ...shared.errors import Fault, InputError
from ...shared.noise import Keys, key_of
from .. import Planned, Progress, Request, Survey, Unit, Wish
from . import plans
from .checking import check
from .collection import Collection, collect, looks_like_pictures
from .model import FittedImages
from .options import ImageOptions
from .pictures import Picture
from .sheets import Completion, before_after, contact_sheet
from .space import Placed
from .writing import Provenance, require_kept, write_png

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
        """Read a model folder."""
        return FittedImages.load(folder)

    # ---------------------------------------------------------------------------------------------- fill

    def fill(
        self, fitted: FittedImages, survey: Survey, unit: Unit[Collection], request: Request, folder: Path
    ) -> dict[str, Any]:
        """Fill the holes of some pictures; a damaged one is named in the counts, and the work goes on."""
        pictures, failed, ready = unit.raw, [], []
        for index, name in enumerate(pictures.names):
            try:
                picture, hidden = self.options.holes.of(pictures.read(index), name)
                if hidden.any():
                    ready.append((index, picture, hidden, _placed(fitted, picture, hidden)))
            except InputError as error:
                failed.append({"picture": name, "why": str(error.fault)})
        counts: dict[str, Any] = {"pictures": len(pictures), "failed": failed, "filled": []}
        if not ready:
            return counts
        rows = [index for index, *_ in ready]
        known = Encoded(
            torch.stack([placed.values for *_, placed in ready]),
            torch.stack([placed.observed for *_, placed in ready]),
        )
        condition = fitted.space.conditions.encode(pictures.labels[rows], pictures.covariates[rows])
        items = torch.tensor([key_of("picture", pictures.names[index]) for index in rows])
        draws, mean = fitted.draw(known, condition, items, request.seed, request.draws)
        for place, (index, picture, hidden, placed) in enumerate(ready):
            every = np.stack([fitted.space.decode(draw[place], placed.frame) for draw in draws])
            middle = fitted.space.decode(mean[place], placed.frame)
            chosen = {"mean": middle, "sample": every[0]}.get(request.statistic)
            chosen = _median(every) if chosen is None else chosen
            one = _Filled(pictures.names[index], picture, hidden, chosen, every)
            counts["filled"].append(one.write(folder, request))
        return counts

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
            before_after(shown, picture, heading="Filled in: estimates, not photographs")
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
        """Pictures first ... last - 1."""
        keys = Keys.range(wish.seed, last - first, start=first)
        made = fitted.generate(
            keys, wish.condition, guidance=wish.guidance, steps=wish.steps, progress=progress
        )
        np.save(folder / "pictures.npy", made, allow_pickle=False)
        return {"first": first}

    def publish(
        self,
        fitted: FittedImages,
        wish: Wish,
        parts: Sequence[Path],
        out: Path,
        facts: Mapping[str, Any],
    ) -> list[str]:
        """PNG files that say what they are, and a contact sheet of the first."""
        made: list[str] = []
        shown: list[np.ndarray] = []
        for part in parts:
            first = json.loads((part / "counts.json").read_text())["first"]
            for place, pixels in enumerate(np.load(part / "pictures.npy", allow_pickle=False), first):
                about = Provenance(
                    "SYNTHETIC", wish.seed, place, model=facts["model_sha256"], condition=wish.condition
                )
                name = f"synthetic_{place:06d}.png"
                write_png(pixels, out / name, about)
                made.append(name)
                if len(shown) < MOST_SHOWN:
                    shown.append(pixels)
        contact_sheet(shown, out / "contact_sheet.png", heading="SYNTHETIC")
        return [*made, "contact_sheet.png"]


@dataclass(frozen=True, eq=False)
class _Filled:
    """One picture with its holes filled."""

    name: str
    picture: Picture
    hidden: np.ndarray
    pixels: np.ndarray
    draws: np.ndarray

    def write(self, folder: Path, request: Request) -> dict[str, Any]:
        """The picture, its mask, its spread and some draws; give the counts."""
        stem = Path(self.name).with_suffix("").as_posix().replace("/", "_")
        require_kept(self.pixels, self.picture.pixels, self.hidden, self.name)
        about = Provenance("FILLED", request.seed, stem)
        write_png(self.pixels, folder / f"{stem}.png", about)
        write_png(self.hidden[..., None].astype(np.uint8) * 255, folder / "masks" / f"{stem}.png")
        spread = self.draws.astype(np.float64).std(0).mean(-1, keepdims=True)
        top = np.iinfo(self.pixels.dtype).max
        write_png((spread / top * 255).round().astype(np.uint8), folder / "spread" / f"{stem}.png")
        for place, draw in enumerate(self.draws[: request.all_draws]):
            write_png(draw, folder / f"draw_{place:03d}" / f"{stem}.png", about)
        np.savez(
            folder / f"{stem}.npz", original=self.picture.pixels, hidden=self.hidden, draws=self.draws[:5]
        )
        return {"picture": self.name, "pixels": int(self.hidden.sum())}


def _placed(fitted: FittedImages, picture: Picture, hidden: np.ndarray) -> Placed:
    placed = fitted.space.encode(picture, hidden)
    if not placed.observed.any():
        size = " x ".join(map(str, fitted.space.shape[1:]))
        raise InputError(
            "nothing-known",
            f"at the model's {size} pixels nothing of the picture stays known",
            picture.where,
            "use a model of larger pictures, or make the picture smaller",
        )
    return placed


def _median(draws: np.ndarray) -> np.ndarray:
    """(D, H, W, C) whole numbers to one of them at each place."""
    return np.asarray(np.sort(draws, 0)[len(draws) // 2])


def _collection(survey: Survey) -> Collection:
    if not isinstance(survey, ImageSurvey) or survey.collection is None:
        raise TypeError("expected the survey of a set of pictures")
    return survey.collection
