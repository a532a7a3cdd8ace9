"""Holes of pictures filled by a model, and what is kept of each: itself, its mask, its spread, its draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...shared.data import Encoded
from ...shared.errors import InputError
from ...shared.noise import key_of
from .. import Request
from .collection import Collection
from .holes import Holes
from .model import FittedImages
from .pictures import Picture
from .space import Placed
from .writing import Provenance, require_kept, write_png


def fill_pictures(
    fitted: FittedImages, pictures: Collection, holes: Holes, request: Request, folder: Path
) -> dict[str, Any]:
    """Fill some pictures and write them into `folder`. Gives counts, as JSON; a damaged picture is named in
    them, and the work goes on."""
    failed, ready = [], []
    for index, name in enumerate(pictures.names):
        try:
            picture, hidden = holes.of(pictures.read(index), name)
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
    condition = fitted.space.conditions.of(pictures.subset(rows))
    items = torch.tensor([key_of("picture", pictures.names[index]) for index in rows])
    draws, mean = fitted.draw(known, condition, items, request.seed, request.draws)
    for place, (index, picture, hidden, placed) in enumerate(ready):
        every = np.stack([fitted.space.decode(draw[place], placed.frame) for draw in draws])
        middle = fitted.space.decode(mean[place], placed.frame)
        chosen = {"mean": middle, "sample": every[0]}.get(request.statistic)
        chosen = _median(every) if chosen is None else chosen
        one = _Filled(pictures.names[index], picture, hidden, chosen, every, fitted.sha256)
        counts["filled"].append(one.write(folder, request))
    return counts


@dataclass(frozen=True, eq=False)
class _Filled:
    """One picture with its holes filled."""

    name: str
    picture: Picture
    hidden: np.ndarray
    pixels: np.ndarray
    draws: np.ndarray
    model: str

    def write(self, folder: Path, request: Request) -> dict[str, Any]:
        """The picture, its mask, its spread and some draws; give the counts."""
        stem = Path(self.name).with_suffix("").as_posix().replace("/", "_")
        require_kept(self.pixels, self.picture.pixels, self.hidden, self.name)
        about = Provenance("FILLED", request.seed, stem, model=self.model, more={"shows": request.statistic})
        write_png(self.pixels, folder / f"{stem}.png", about)
        mask = replace(about, more={"shows": "mask of what was filled"})
        write_png(self.hidden[..., None].astype(np.uint8) * 255, folder / "masks" / f"{stem}.png", mask)
        spread = self.draws.astype(np.float64).std(0).mean(-1, keepdims=True)
        top = np.iinfo(self.pixels.dtype).max
        scatter = replace(about, more={"shows": "standard deviation of the draws"})
        write_png((spread / top * 255).round().astype(np.uint8), folder / "spread" / f"{stem}.png", scatter)
        for place, draw in enumerate(self.draws[: request.all_draws]):
            one = replace(about, draw=place, more={"shows": "draw"})
            write_png(draw, folder / f"draw_{place:03d}" / f"{stem}.png", one)
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
