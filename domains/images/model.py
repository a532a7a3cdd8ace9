"""The model of a set of pictures: its space and a denoiser over the grid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...shared.artifacts import MANIFEST, read_model_of, write_model
from ...shared.data import Condition, Encoded
from ...shared.errors import Fault, InputError
from ...shared.grids import AnyModel, GridSettings, distil_model, fit_model, model_from_state
from ...shared.hiding import GridData
from ...shared.masking import Boxes, Cells, EveryKth, Half, Mixture, Pattern, Strokes
from ...shared.noise import Keys
from ...shared.schedules import start_time
from ...shared.settings import computes_bfloat16
from ...shared.training import device_of
from .augmenting import PictureAugmentation
from .collection import Collection
from .pictures import Picture
from .space import ImageSpace
from .tasks import GivenNoise, slerp, to_noise
from .text_encoder import TextEncoder, open_text_encoder

Progress = Callable[[str, float], None]
FORMAT = "ebbtide-images/1"
FEWEST = 8
"""Pictures below which there is nothing to learn."""
CLASS_GUIDANCE = 2.0
"""Of what is generated for a class."""
LATENT_FROM = 256
"""Side of the pictures from which a model works in latents."""


@dataclass(frozen=True)
class FittedImages:
    """An encoding and a denoiser, as training leaves them behind.

    Args:
        space: of the pictures, and what they can be asked to be.
        model: the denoiser.
        about: JSON-able facts.
        sha256: of the manifest of the folder that it was read from.
    """

    space: ImageSpace
    model: AnyModel
    about: Mapping[str, Any]
    sha256: str = ""

    @classmethod
    def fit(
        cls,
        pictures: Collection,
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        mirror: bool = False,
        augment: float = 0.0,
        text_encoder: Path | None = None,
        settings: GridSettings | None = None,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Self:
        """Learn a space, a centre and a network.

        Args:
            pictures: to learn from.
            size, channels: as for `ImageSpace.fit`.
            mirror: show half of them mirrored; samples are not.
            augment: chance that one is moved, and that it is toned.
            text_encoder: a folder of a frozen one, for the captions; None lets one learn with the model.
            settings: of the model; None chooses by size and number.
            folder, resume, device, progress: of the training.

        Raises:
            InputError: fewer than eight pictures, or a damaged one; `no-captions`, for a text encoder; as
                `open_text_encoder` and `FrozenCaptions.fit`.
        """
        if len(pictures) < FEWEST:
            what = f"{len(pictures)} picture(s), nothing to learn from"
            raise InputError("few-pictures", what, pictures.path, f"give {FEWEST} or more")
        tell = progress or (lambda label, fraction: None)
        encoder = None if text_encoder is None else encoder_for(pictures, text_encoder)
        space = ImageSpace.fit(
            pictures,
            size=size,
            channels=channels,
            seed=seed,
            progress=lambda label, fraction: tell(label, 0.02 * fraction),
        )
        pixels = space.pixels(pictures, lambda label, fraction: tell(label, 0.02 + 0.03 * fraction))
        parts = [space.standardised(space.scaled(some)).half() for some in pixels.split(1024)]
        if encoder is None:
            told, table = space.conditions.tabled(pictures)
        else:
            conditions, told, table = space.conditions.frozen(pictures, encoder, device_of(device), tell)
            space = replace(space, conditions=conditions)
        data = GridData(torch.cat(parts), None, told, table=table)
        captions = space.conditions.captions is not None
        settings = settings or recommended(space.shape, len(pictures), captions=captions)
        scale = (tuple(space.mean.tolist()), tuple(space.std.tolist()))
        augmentation = PictureAugmentation(*scale, 0.5 if mirror else 0.0, augment, augment)
        model, trained = fit_model(
            data,
            settings,
            pattern(),
            classes=len(space.conditions.class_names),
            words=space.conditions.words,
            augmentation=augmentation if augment or mirror else None,
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=lambda label, fraction: tell(label, 0.05 + 0.95 * fraction),
        )
        losses = [row["held_out"] for row in trained.history if row["held_out"] is not None]
        facts = {
            "items": len(pictures),
            "seed": seed,
            "settings": asdict(settings),
            "steps": trained.steps,
            "best_step": trained.best_step,
            "held_out_loss": min(losses, default=None),
        }
        if encoder is not None:
            one = encoder.identity
            facts["text_encoder"] = {"kind": one.kind, "width": one.width, "sha256": one.sha256}
        return cls(space, model, {**(about or {}), **facts})

    def distilled(
        self,
        pictures: Collection | None = None,
        *,
        steps: int = 2,
        guidance: float = 1.0,
        paths: int = 20_000,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Self:
        """A model that draws in a few calls of its network what this one draws in many, and no more.

        Args:
            pictures: whose conditions it is taught with, best those of the training; classes need none.
            steps: calls of the network for a picture.
            guidance: that it will follow conditions with.
            paths: how many of this model's it is taught.
            about: facts to keep.
            seed, folder, resume, device, progress: as for `distil_model`.

        Raises:
            InputError: `conditions`: the model takes captions or numbers, and there are no pictures; as
                `distil_model`.
        """
        conditions = self.space.conditions
        if pictures is None and (conditions.captions is not None or conditions.facts.columns):
            what = "this model takes captions or numbers, and was shown none to be taught with"
            raise InputError("conditions", what, "--data", "give the pictures that it was trained on")
        given, table = (None, None) if pictures is None else conditions.tabled(pictures)

        def told(keys: Keys) -> Condition:
            if given is None or pictures is None:
                return self.condition(keys, {})
            chosen = given[(keys.uniform((), "picture") * len(pictures)).long()]
            return chosen if table is None else table.looked_up(chosen)

        model, trained = distil_model(
            self.model,
            told,
            steps=steps,
            guidance=guidance,
            paths=paths,
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=progress,
        )
        facts = {"calls": steps, "guidance": guidance, "paths": paths, "lessons": trained.steps, "seed": seed}
        own = {name: self.about[name] for name in ("items", "seed") if name in self.about}
        settings = {**self.about.get("settings", {}), "sampler_steps": steps}
        kept = {**self.about, **(about or {}), **own, "settings": settings}
        return type(self)(self.space, model, {**kept, "distilled": {**facts, "from": self.sha256}})

    # ---------------------------------------------------------------------------------------- what it does

    def condition(
        self, keys: Keys, wish: Mapping[str, str], prompt: str | None = None, *, draw: bool = True
    ) -> Condition:
        """What B pictures are to be; a class that was not named is drawn, each as likely, if `draw` and there
        is no prompt, which may say it.

        Raises:
            InputError: as `Conditions.parse`.
        """
        condition = self.space.conditions.parse(wish, keys, prompt)
        if condition.label is None or prompt or not draw:
            return condition
        drawn = (keys.uniform((), "class") * len(self.space.conditions.class_names)).long()
        return replace(condition, label=torch.where(condition.label < 0, drawn, condition.label))

    def generate(
        self,
        keys: Keys,
        condition: Condition,
        *,
        guidance: float = 1.0,
        negative: str | None = None,
        steps: int | None = None,
        like: Sequence[Picture] = (),
        strength: float = 1.0,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(B, H, W, C) pictures.

        Args:
            keys: B of them.
            condition: of the B pictures.
            guidance: how strongly to follow it.
            negative: words to be led away from; asks for a guidance above 1.
            steps: of the sampler.
            like, strength: pictures to vary, one for all or one for each, and how far (`start_time`).

        Raises:
            InputError: as `Conditions.prompted`; `strength`.
        """
        away = None
        if self.model.jumps:
            guidance = self._own_guidance(negative)
        if negative:
            away = self.space.conditions.parse({}, keys[torch.zeros(1, dtype=torch.int64)], negative).tokens
        start, t_start = None, 1.0
        if like:
            values = torch.stack([self.space.encode(picture).values for picture in like])
            start = values.expand(len(keys), *self.space.shape)
            t_start = start_time(strength, self.model.core.denoiser.schedule)
        made = self.model.generate(
            keys,
            condition,
            guidance=guidance,
            negative=away,
            sampler=self.model.sampler(steps),
            start=start,
            t_start=t_start,
            progress=progress,
        )
        return self.space.decode_generated(made)

    def _own_guidance(self, negative: str | None) -> float:
        """What is left to guide a distilled model by: nothing, as its guidance is its own."""
        if negative:
            what = "a distilled model cannot be led away from words"
            raise InputError("negative", what, "--negative", "use the model that it was made from")
        return 1.0

    def between(
        self,
        ends: tuple[Picture, Picture],
        places: Tensor,
        keys: Keys,
        condition: Condition,
        *,
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(B, H, W, C) pictures on the way from one to another: both are followed to the noise that they come
        from, and what lies between on the sphere of likely noise is followed back.

        Args:
            ends: where the way begins and ends.
            places: (B,) in 0 ... 1, on the way.
            keys: B of them.
            condition: of the B pictures.
        """
        model, pixels = self.model.core, torch.stack([self.space.encode(end).values for end in ends])
        known = self.model.into(pixels)
        told = model.told(condition[torch.zeros(2, dtype=torch.int64)], 2).to(model.device)
        noise = to_noise(model.denoiser, known.to(model.device), told, steps=2 * (steps or 20))
        first, last = (end.expand(len(keys), *model.form.shape) for end in noise)
        sampler = model.sampler(steps)
        sampler.noise = GivenNoise(slerp(first, last, places.to(first)), keys.items)
        start = torch.zeros(len(keys), *model.form.shape)
        made = model.generate(keys, condition, sampler=sampler, start=start, progress=progress)
        return self.space.decode_generated(self.model.out(made))

    def draw(
        self, known: Encoded, condition: Condition, items: Tensor, seed: int, draws: int
    ) -> tuple[Tensor, Tensor]:
        """Ways of completing B pictures: (draws, B, C, H, W), and their mean (B, C, H, W).

        Args:
            known: (B, C, H, W).
            condition: of the B pictures.
            items: (B,) what names each picture: draw d depends on (seed, item, d) and the picture alone.
        """
        count = len(items)
        rows = torch.arange(count).repeat(draws)
        keys = Keys(seed, items[rows], torch.arange(draws).repeat_interleave(count))
        drawn = self.model.fill(known[rows], keys, condition[rows])
        mean = self.model.expected(known, Keys(seed, items, torch.zeros_like(items)), condition)
        return drawn.reshape(draws, *known.values.shape), mean

    def reading_by(self, folder: Path) -> Self:
        """With the text encoder looked for in a folder.

        Raises:
            InputError: as `Conditions.reading_by`.
        """
        conditions = self.space.conditions.reading_by(folder)
        return replace(self, space=replace(self.space, conditions=conditions))

    # --------------------------------------------------------------------------------------------- folder

    @property
    def guidance(self) -> float:
        """Classes are followed more closely than training alone brings about: samples of the bundled model
        come nearer to real pictures, and more of them are of the class that was asked for."""
        return CLASS_GUIDANCE if self.space.conditions.class_names and not self.model.jumps else 1.0

    @property
    def can(self) -> tuple[str, ...]:
        all_but_text = ("generate",) if self.model.jumps else ("generate", "impute", "vary")
        return (*all_but_text, *(["prompt"] if self.space.conditions.captions is not None else []))

    @property
    def warnings(self) -> list[Fault]:
        """What the user should know about what it was trained on."""
        count = int(self.about.get("items", 0))
        if count >= 500:
            return []
        what = f"trained on {count} pictures: samples may be copies of them"
        return [Fault("few-pictures", what, "training", "use more pictures", "warning")]

    @property
    def description(self) -> list[str]:
        """Lines for `info`."""
        channels, height, width = self.space.shape
        kind = {1: "grey", 3: "colour", 4: "colour with opacity"}[channels]
        lines = [f"pictures    {height} x {width} pixels, {kind}, {self.space.bits} bits"]
        lines += self.model.description
        if self.model.jumps:
            told = self.about.get("distilled", {})
            lines.append(
                f"distilled   to {self.model.jumps} calls of the network a picture, at guidance "
                f"{told.get('guidance', 1.0):g}, from the model {str(told.get('from', 'unknown'))[:16]}"
            )
        conditions = self.space.conditions
        if conditions.class_names:
            lines.append(f"condition   class: {', '.join(conditions.class_names[:20])}")
        for column in conditions.facts.columns:
            low, high = column.quantiles[0], column.quantiles[-1]
            lines.append(f"condition   {column.name}: {low:g} to {high:g} in training")
        if conditions.captions is not None:
            lines.append(f"condition   --prompt, {conditions.captions.described}")
        return lines

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the model folder: safetensors, JSON and a sha256 manifest; no code."""
        space, tensors = self.space.state()
        config, weights = self.model.state()
        facts = {"format": FORMAT, "space": space, "model": config, "about": dict(self.about)}
        write_model(Path(folder), facts, tensors | weights, overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model folder.

        Raises:
            InputError: not such a folder, damaged, or of a version that this one does not read.
        """
        config, tensors = read_model_of(FORMAT, folder)
        space = {name: tensor for name, tensor in tensors.items() if name.startswith("space.")}
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("space.")}
        return cls(
            ImageSpace.from_state(config["space"], space),
            model_from_state(config["model"], weights),
            dict(config["about"]),
            hashlib.sha256((Path(folder) / MANIFEST).read_bytes()).hexdigest(),
        )


def encoder_for(pictures: Collection, folder: Path) -> TextEncoder:
    """The text encoder for the captions of pictures.

    Raises:
        InputError: `no-captions`; as `open_text_encoder`.
    """
    if not any(caption and caption.strip() for caption in pictures.captions):
        what = "no picture has a caption for a text encoder to read"
        remedy = "add a metadata.csv with a column caption, or leave --text-encoder away"
        raise InputError("no-captions", what, pictures.path, remedy)
    return open_text_encoder(folder)


def pattern() -> Pattern:
    """What is hidden of a picture in training: boxes, halves, strokes, pixels, all but a coarse grid."""
    patterns = (
        Boxes(2, 0.2, 0.7),
        Half(),
        Strokes(),
        Cells(0.2, 0.9, together=True),
        EveryKth((2, 4), grid=True),
    )
    return Mixture(patterns, (3, 2, 2, 1, 2))


def recommended(shape: Sequence[int], pictures: int, *, captions: bool = False) -> GridSettings:
    """Settings for pictures (C, H, W) and so many of them, that train in an hour or less on two cores; of
    256 x 256 pixels and more in latents.

    With captions the network attends to the text one level higher too, where things have a shape; it is told
    where it is, and trained more on high noise, where a picture's layout is decided. Without the last two,
    squares of three colours on two sides, asked for by captions, had the colour that was asked for after 260
    steps, and the side by chance; with both, all had both.
    """
    pixels = int(np.prod(shape[1:]))
    latent = pixels >= LATENT_FROM**2  # a quarter of each side, packed once more
    settings = GridSettings(
        widths=(64, 128, 192),
        blocks=1,
        attention=(2,),
        levels=1 if latent or pixels <= 64**2 else 2,
        latent=4 if latent else 0,
        components=int(np.clip(pictures // 20, 2, 64)),
        reach=0.8,
        blank=0.5,
        steps=4000,
        batch_size=32,
        learning_rate=8e-4,
        precision="bf16" if computes_bfloat16() else "fp32",
        sampler_steps=18,
    )
    if not captions:
        return settings
    return replace(settings, attention=(1, 2), coordinates=True, density_mean=0.6, density_std=1.6)
