"""Does what a prompt asks for appear? Three shapes in four colours on two sides, said in three ways.

    python benchmarks/captions.py WORK [--pictures 2000] [--steps 4000] [--count 8]

Pictures of 16 x 16 pixels are drawn into WORK with a `metadata.csv`, a model is trained with `recommended`
settings, and asked for all 24 things at guidance 1 and 3. A template matcher, which is right on 300 of 300
drawn pictures, says what colour, shape and side each sample has. A third of the captions names no side.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ebbtide.domains.images.collection import collect
from ebbtide.domains.images.model import FittedImages, recommended
from ebbtide.shared.noise import Keys

SIZE = 16
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 70), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES, SIDES = ("square", "circle", "triangle"), ("left", "right")
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]


def drawn(shape: str, side: str, across: float, down: float, radius: float) -> np.ndarray:
    """(16, 16) bool, the inside of a shape centred `across` within its half."""
    dx = np.abs(COLUMNS - (across + (8 if side == "right" else 0) - 0.5))
    dy = ROWS - down
    if shape == "square":
        return np.asarray(np.maximum(dx, np.abs(dy)) <= 0.9 * radius)
    if shape == "circle":
        return np.asarray(dx**2 + dy**2 <= radius**2)
    return np.asarray((np.abs(dy) <= radius) & (dx <= (dy + radius) / 2))


def draw(folder: Path, count: int) -> None:
    """Pictures and their captions."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for k in range(count):
        shape, side, colour = rng.choice(SHAPES), rng.choice(SIDES), str(rng.choice(list(COLOURS)))
        inside = drawn(shape, side, rng.uniform(3.7, 4.3), rng.uniform(4, 11), rng.uniform(2.5, 3.6))
        pixels = np.full((SIZE, SIZE, 3), rng.integers(10, 30), float)
        pixels[inside] = COLOURS[colour]
        pixels += rng.normal(0, 4, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k:05d}.png")
        said = (f"a {colour} {shape} on the {side}", f"{colour} {shape}, {side}", f"a {colour} {shape}")
        rows.append((f"{k:05d}.png", said[int(rng.integers(3))]))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])


TEMPLATES = [
    (shape, side, drawn(shape, side, across, down, radius).ravel().astype(float))
    for shape in SHAPES
    for side in SIDES
    for radius in np.arange(2.4, 3.8, 0.2)
    for across in np.arange(3.2, 4.9, 0.25)
    for down in np.arange(3.5, 12, 0.25)
]
MATRIX = np.stack([template for *_, template in TEMPLATES])


def seen(pixels: np.ndarray) -> tuple[str, str, str]:
    """Colour, shape and side; empty where nothing bright is seen."""
    bright = pixels.max(-1) > 110
    if bright.sum() < 5:
        return "", "", ""
    mean = pixels[bright].mean(0)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
    flat = bright.ravel().astype(float)
    shape, side, _ = TEMPLATES[int((2 * (MATRIX @ flat) / (MATRIX.sum(1) + flat.sum())).argmax())]
    return colour, shape, side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--count", type=int, default=8)
    told = parser.parse_args()
    data, folder = told.work / "shapes", told.work / "model"
    if not data.exists():
        draw(data, told.pictures)
    if not folder.exists():
        pictures = collect(data)
        settings = replace(recommended((3, SIZE, SIZE), len(pictures), captions=True), steps=told.steps)
        work = told.work / "training"
        FittedImages.fit(pictures, settings=settings, folder=work, resume=True, device="cpu").save(folder)
    fitted = FittedImages.load(folder)
    print("| guidance | colour | shape | side | all three |\n|---|---|---|---|---|")
    for guidance in (1.0, 3.0):
        hits = []
        for wanted in ((c, s, at) for c in COLOURS for s in SHAPES for at in SIDES):
            keys = Keys.range(5, told.count)
            prompt = f"a {wanted[0]} {wanted[1]} on the {wanted[2]}"
            made = fitted.generate(keys, fitted.condition(keys, {}, prompt), guidance=guidance)
            for pixels in made:
                right = [a == b for a, b in zip(seen(pixels), wanted, strict=True)]
                hits.append([*right, all(right)])
        shares = " | ".join(f"{100 * share:.0f} %" for share in np.mean(hits, 0))
        print(f"| {guidance:g} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
