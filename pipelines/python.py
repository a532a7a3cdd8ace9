"""The verbs as Python functions: the domain is recognised from the data, as on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..domains import Wish
from .generating import Generated
from .generating import generate as generate_from
from .options import GridWords, TableWords, domain_for, domain_of
from .training import TrainedModel
from .training import train as train_on


def train(
    data: Path | str,
    out: Path | str,
    *,
    condition: Sequence[str] = (),
    plan: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    only: Literal["impute", "generate"] | None = None,
    constraints: Sequence[str] = (),
    text_encoder: Path | str | None = None,
) -> TrainedModel:
    """Learn from a table, a folder of scans or a folder of pictures, and save a model.

    Args:
        data: what to learn from.
        out: the model folder to make.
        condition: covariates that a model of scans is to be told: ["age", "sex"].
        plan: a YAML file by `ebbtide plan`, edited.
        seed: same seed, same model.
        device: auto, cpu or cuda.
        resume: go on with a training that was stopped.
        overwrite: replace a model.
        only: tables: train for one verb alone; None is both.
        constraints: tables: what must hold in every generated row: ["start<=end", "together(city,country)"].
        text_encoder: pictures: a folder of a CLIP or T5 text encoder that reads the captions.

    Raises:
        InputError: bad data, output that exists; a ValueError in one line with what to do.
    """
    table = TableWords(only=only, constraints=tuple(constraints))
    encoder = None if text_encoder is None else Path(text_encoder)
    grid = GridWords(condition=",".join(condition) or None, text_encoder=encoder)
    domain, told = domain_for(data, table, grid)
    return train_on(
        data,
        out,
        domain=domain,
        plan=plan,
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
        options=told,
    )


def generate(
    model: Path | str,
    out: Path | str,
    count: int = 16,
    *,
    condition: Mapping[str, object] | None = None,
    prompt: str | None = None,
    negative: str | None = None,
    like: Sequence[Path | str] = (),
    strength: float = 0.5,
    guidance: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    segmentation: Path | str | None = None,
    constraints: Sequence[str] = (),
    complete: bool = False,
    format: Literal["", "csv", "tsv", "parquet", "xlsx"] = "",
    text_encoder: Path | str | None = None,
) -> Generated:
    """Make synthetic data, marked as synthetic.

    Args:
        model: a model folder, or the name of a bundled model ("brain-t1").
        out: the folder to make.
        count: how many.
        condition: what of: {"age": "55..70", "sex": "F"}; "*" is as in training.
        prompt, negative: of pictures: a text to follow, and one to be led away from.
        like: of pictures: one to vary, or two to pass between.
        strength: in (0, 1], how far from the one.
        guidance: how strongly to follow condition and text; where left out 3 for text, 2 for classes of
            pictures, else 1.
        steps: denoising steps.
        seed: sample i depends on (seed, i) alone.
        overwrite: replace `out`.
        segmentation: scans: a folder of label maps to make images for, in turn.
        constraints: tables: what must hold in every row: ["start<=end", "age>=18", "total=fare+tip"].
        complete: tables: no missing cells.
        format: tables: of the file; CSV by default, Parquet from a million rows.
        text_encoder: pictures: where the text encoder lies now that the model was trained with.

    Raises:
        InputError: no such model; one that does not know the condition; output that exists.
    """
    maps, encoder = (None if path is None else Path(path) for path in (segmentation, text_encoder))
    folder, domain = domain_of(model, maps, encoder)
    words = {name: str(value) for name, value in (condition or {}).items()}
    wish = Wish(
        count,
        seed,
        words,
        guidance,
        steps,
        constraints=tuple(constraints),
        complete=complete,
        format=format,
        prompt=prompt,
        negative=negative,
        like=tuple(str(path) for path in like),
        strength=strength,
    )
    return generate_from(folder, out, domain=domain, wish=wish, overwrite=overwrite)
