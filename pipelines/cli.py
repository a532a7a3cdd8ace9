"""The command line. A verb is a thin function: what was typed goes to a pipeline, what came back is shown.

Nothing heavy is imported until a verb runs, so `ebbtide --help` answers at once. What all verbs share is in
`shell`, what they show with in `console`.
"""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from .console import Console
from .options import GridWords, TableWords
from .shell import TERMINATED, Run, attempt, group, verb, verb_fault

app = typer.Typer(
    name="ebbtide",
    help="Generate and complete data by reverse diffusion.",
    epilog="`ebbtide VERB --help` explains one verb. Exit codes: 0 done, 1 failed, 2 bad input.",
    subcommand_metavar="VERB ...",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    suggest_commands=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ebbtide import __version__

        print(f"ebbtide {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Generate and complete data by reverse diffusion."""


Text = str | None
TextEncoder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Pictures: a CLIP or T5 that reads the captions.", hidden=True),
]


@group
def _table(
    *,
    missing: Annotated[Text, typer.Option(metavar="CODES", help='Mean "missing": "?,-999".')] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=KIND", help="Where seen wrongly.")
    ] = None,
    key: Annotated[Text, typer.Option(metavar="COLUMN", help="Names the rows, in any order.")] = None,
    header: Annotated[bool | None, typer.Option(help="Whether line 1 names columns.", hidden=True)] = None,
    delimiter: Annotated[
        Text, typer.Option(metavar="SIGN", help="Between the cells of a CSV.", hidden=True)
    ] = None,
    encoding: Annotated[Text, typer.Option(metavar="NAME", help="Of a CSV's text.", hidden=True)] = None,
    decimal: Annotated[Text, typer.Option(metavar="SIGN", help="Decimal sign of a CSV.", hidden=True)] = None,
    sheet: Annotated[Text, typer.Option(metavar="NAME", help="Of an Excel file.", hidden=True)] = None,
) -> TableWords:
    """The options that say how to read a table; None means as seen in the file."""
    return TableWords(missing, tuple(kinds or ()), None, key, header, delimiter, encoding, decimal, sheet)


@group
def _grids(
    *,
    modalities: Annotated[
        Text, typer.Option(metavar="NAMES", help='Scans: only these: "T1w,FLAIR".', hidden=True)
    ] = None,
    condition: Annotated[
        Text, typer.Option(metavar="NAMES", help='Scans: tell the model these: "age,sex".')
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="PIXELS", min=4, help="Pictures: side.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Mirrored too.", hidden=True)] = False,
    text_encoder: TextEncoder = None,
    spacing: Annotated[float | None, typer.Option(metavar="MM", help="Scans: of the model's grid.")] = None,
    covariates: Annotated[
        Path | None, typer.Option(metavar="TSV", help="Scans: of the subjects.", hidden=True)
    ] = None,
    segmentation: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Scans: label maps.", hidden=True)
    ] = None,
    assume_spacing: Annotated[
        bool, typer.Option("--assume-spacing", help="Scans: accept files that lack it.", hidden=True)
    ] = False,
    missing_nan: Annotated[
        bool, typer.Option("--missing-nan", help="Scans: voxels without a number are missing.", hidden=True)
    ] = False,
) -> GridWords:
    """The options that say how to read scans and pictures."""
    return GridWords(
        (),
        size,
        mirror,
        text_encoder,
        modalities,
        condition,
        spacing,
        covariates,
        segmentation,
        assume_spacing,
        missing_nan,
    )


Data = Annotated[Path, typer.Argument(metavar="DATA", help="A table, or a folder of scans or pictures.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="A new folder for the results.")]
Rows = Annotated[int, typer.Option(metavar="N", min=1, help="Rows to learn from, at most.")]
Statistic = Literal["mean", "median", "mode", "sample"]
Verb = Literal["impute", "generate"]
Constraint = Annotated[
    list[str] | None, typer.Option(metavar="RULE", help='Tables: "start<=end", "total=fare+tip", ...')
]


@verb(app)
def impute(
    data: Data,
    run: Run,
    table: TableWords,
    grid: GridWords,
    *,
    output: Output,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Trained before, or bundled; else one is now.")
    ] = None,
    draws: Annotated[int, typer.Option(metavar="N", help="How many times a cell is drawn.")] = 20,
    all_draws: Annotated[int, typer.Option(metavar="N", help="Completed tables to write.")] = 0,
    statistic: Annotated[
        Statistic, typer.Option(metavar="NAME", help="mean, median, mode or sample.")
    ] = "mean",
    columns: Annotated[
        Text, typer.Option(metavar="NAMES", help='Fill only these: "age,sex".', hidden=True)
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="A mask, box:9-20,5-9, half:right, thick:2:3, ..."),
    ] = None,
    faces: Annotated[
        bool, typer.Option("--faces", help="Scans: put a removed face back.", hidden=True)
    ] = False,
    rows: Rows = 50_000,
    shard: Annotated[Text, typer.Option(metavar="I/N", help="Do the I-th of N parts.", hidden=True)] = None,
) -> int:
    """Fill in what is missing, and say what was filled and how surely."""
    from .imputing import impute_file
    from .options import domain_for, parse_shard

    grid = replace(grid, fill=tuple(fill or ()), faces=faces)
    domain, told = domain_for(data, replace(table, columns=columns), grid)
    with run.console.progress() as progress:
        done = impute_file(
            data,
            output,
            domain=domain,
            model=model,
            draws=draws,
            all_draws=all_draws,
            statistic=statistic,
            seed=run.seed,
            shard=parse_shard(shard),
            rows=rows,
            device=run.device,
            overwrite=run.overwrite,
            options=told,
            progress=progress,
        )
    run.console.warn(*done.warnings)
    run.console.result({"verb": "impute", **vars(done)}, *done.lines)
    return done.exit_code


@verb(app)
def check(data: Data, run: Run, table: TableWords, grid: GridWords) -> int:
    """List everything that is wrong with the data, or may be. Exit code 2: something must be mended."""
    from .checking import check
    from .options import domain_for

    domain, _ = domain_for(data, table, grid)
    found = check(data, domain=domain)
    run.console.result({"verb": "check", "ok": found.exit_code == 0, **found.facts}, *found.lines)
    return found.exit_code


@verb(app)
def plan(
    data: Data,
    run: Run,
    table: TableWords,
    grid: GridWords,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="YAML", help="The file to make.")],
    rows: Rows = 50_000,
) -> None:
    """Look at the data, decide how to train on it, and write that down to be read and edited."""
    from .options import domain_for
    from .planning import plan

    domain, _ = domain_for(data, table, grid)
    with run.console.progress() as progress:
        done = plan(
            data,
            output,
            domain=domain,
            rows=rows,
            seed=run.seed,
            overwrite=run.overwrite,
            progress=progress,
        )
    facts = {"rows": done.rows, "estimate": done.estimate}
    run.console.result({"verb": "plan", "plan": output, **facts}, *done.lines)


@verb(app)
def train(
    data: Data,
    run: Run,
    table: TableWords,
    grid: GridWords,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL", help="The model folder to make.")
    ],
    rows: Rows = 50_000,
    plan: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Written by `ebbtide plan`, and edited.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    only: Annotated[
        Verb | None, typer.Option(metavar="VERB", help="Tables: impute or generate alone.")
    ] = None,
    constraint: Constraint = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="Tables: differential privacy (needs --ranges).")
    ] = None,
    delta: Annotated[float | None, typer.Option(metavar="D", help="Of it.", hidden=True)] = None,
    ranges: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Declares what columns may hold.", hidden=True)
    ] = None,
) -> None:
    """Learn from data, and leave a model that fills in and generates the like."""
    from .options import domain_for
    from .training import train

    table = replace(table, only=only, constraints=tuple(constraint or ()))
    domain, told = domain_for(data, replace(table, epsilon=epsilon, delta=delta, ranges=ranges), grid)
    with run.console.progress() as progress:
        done = train(
            data,
            output,
            domain=domain,
            seed=run.seed,
            rows=rows,
            device=run.device,
            plan=plan,
            resume=resume,
            overwrite=run.overwrite,
            options=told,
            progress=progress,
        )
    run.console.warn(*done.warnings)
    run.console.result({"verb": "train", **vars(done)}, *done.lines)


@verb(app)
def distil(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Of pictures: a folder, or a bundled one.")],
    run: Run,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FAST", help="The model folder to make.")],
    steps: Annotated[int, typer.Option(metavar="N", help="Calls of the network a picture, 1 to 8.")] = 2,
    guidance: Annotated[float, typer.Option(metavar="SCALE", help="Learnt: how closely to follow.")] = 1.0,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Whose captions and numbers to learn with.")
    ] = None,
    paths: Annotated[int, typer.Option(metavar="N", help="Pictures of MODEL to learn from.")] = 20_000,
    text_encoder: TextEncoder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with one that was stopped.")] = False,
) -> None:
    """Teach a copy of a model to draw in a few calls of its network; it does nothing else."""
    from .distilling import distil
    from .options import domain_of

    folder, domain = domain_of(model, text_encoder=text_encoder)
    with run.console.progress() as progress:
        done = distil(
            folder,
            output,
            domain=domain,
            steps=steps,
            guidance=guidance,
            data=data,
            paths=paths,
            seed=run.seed,
            device=run.device,
            resume=resume,
            overwrite=run.overwrite,
            progress=progress,
        )
    run.console.result({"verb": "distil", **vars(done)}, *done.lines)


@verb(app)
def generate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder, or a bundled model: brain-t1, ..."),
    ],
    run: Run,
    *,
    count: Annotated[int, typer.Option("-n", "--count", metavar="N", help="How many.")] = 16,
    output: Output,
    condition: Annotated[
        Text, typer.Option(metavar="NAME=VALUE", help='"age=55..70,sex=F"; * is as in training.')
    ] = None,
    prompt: Annotated[Text, typer.Option(metavar="TEXT", help="Pictures: of what.")] = None,
    negative: Annotated[Text, typer.Option(metavar="TEXT", help="Pictures: but not of this.")] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Pictures: vary this one; twice: from one to the other."),
    ] = None,
    strength: Annotated[
        float, typer.Option(metavar="X", help="How far from --like: 0 (not at all) to 1.")
    ] = 0.5,
    guidance: Annotated[
        float | None, typer.Option(metavar="X", help="How strongly to follow what is asked.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Denoising steps.")] = None,
    constraint: Constraint = None,
    segmentation: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Scans: for these label maps.", hidden=True)
    ] = None,
    text_encoder: TextEncoder = None,
    complete: Annotated[bool, typer.Option("--complete", help="Tables: no missing cells.")] = False,
    format: Annotated[
        Literal["csv", "tsv", "parquet", "xlsx"] | None,
        typer.Option(metavar="NAME", help="Tables: of the file."),
    ] = None,
) -> None:
    """Make synthetic data, marked as synthetic."""
    from ..domains import Wish
    from ..shared.covariates import parse_wish
    from .generating import generate
    from .options import domain_of

    folder, domain = domain_of(model, segmentation, text_encoder)
    wish = Wish(
        count,
        run.seed,
        parse_wish(condition),
        guidance,
        steps,
        constraints=tuple(constraint or ()),
        complete=complete,
        format=format or "",
        prompt=prompt,
        negative=negative,
        like=tuple(like or ()),
        strength=strength,
    )
    with run.console.progress() as progress:
        done = generate(folder, output, domain=domain, wish=wish, overwrite=run.overwrite, progress=progress)
    run.console.warn(*done.warnings)
    run.console.result({"verb": "generate", **vars(done)}, *done.lines)


@verb(app)
def augment(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A table, or a folder of scans or pictures.")],
    run: Run,
    table: TableWords,
    *,
    output: Output,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Trained on DATA; else one is now.")
    ] = None,
    balance: Annotated[
        Text, typer.Option(metavar="COLUMN", help="Bring its classes to the size of the largest.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(metavar="X", help="Times as large as now; a small table: up to 10.")
    ] = None,
    vary: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Real ones, this share of each drawn anew: 0.5."),
    ] = None,
    target: Annotated[Text, typer.Option(metavar="COLUMN", help="Predicted by the proof.")] = None,
    holdout: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Scans, pictures: never seen, for the proof.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Of the proof's 5 folds.")] = 1,
    proof: Annotated[bool, typer.Option(help="Whether to prove the gain.")] = True,
) -> None:
    """Add synthetic data to a training set, and prove by cross-validation whether that helps."""
    from .augmenting import Asked, augment
    from .options import domain_for

    domain, told = domain_for(data, table)
    asked = Asked(balance, factor, vary, target, repeats=repeats if proof else 0, seed=run.seed)
    with run.console.progress() as progress:
        done = augment(
            data,
            output,
            domain=domain,
            asked=asked,
            model=model,
            holdout=holdout,
            device=run.device,
            overwrite=run.overwrite,
            options=told,
            progress=progress,
        )
    run.console.warn(*done.warnings)
    run.console.result({"verb": "augment", **vars(done)}, *done.lines)


@verb(app)
def evaluate(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="The data that it was made from.")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTHETIC", help="The data to be judged.")],
    run: Run,
    table: TableWords,
    grid: GridWords,
    *,
    output: Output,
    holdout: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Like REAL, never seen by the model.")
    ] = None,
    target: Annotated[Text, typer.Option(metavar="COLUMN", help="Predict this; else guessed.")] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="That made SYNTHETIC: attacked too.")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Rows of each, at most.")] = 20_000,
) -> None:
    """Is synthetic data like the real, useful, and does it give people away? Of what `impute` filled:
    how near it is to the truth."""
    from .evaluating import evaluate
    from .options import domain_for

    domain, _ = domain_for(real, table, grid)
    with run.console.progress() as progress:
        done = evaluate(
            real,
            synthetic,
            output,
            domain=domain,
            holdout=holdout,
            target=target,
            model=model,
            rows=rows,
            seed=run.seed,
            overwrite=run.overwrite,
            progress=progress,
        )
    run.console.warn(*done.warnings)
    run.console.result({"verb": "evaluate", "folder": done.folder, **done.facts}, *done.lines)


@verb(app)
def card(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A table, a card, or a folder of cards.")],
    run: Run,
    table: TableWords,
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="YAML", help="Where a draft goes.")
    ] = None,
) -> int:
    """Draft the data card of a table; or check cards, and make README and Croissant file of them."""
    from .carding import card

    done = card(path, table=table, out=output, overwrite=run.overwrite)
    run.console.result({"verb": "card", "ok": done.exit_code == 0, **done.facts}, *done.lines)
    return done.exit_code


@verb(app)
def info(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder, or a bundled model.")],
    run: Run,
) -> None:
    """Say what a model is, what it was trained on, and what it can do."""
    from .inspecting import info

    found = info(model)
    run.console.result({"verb": "info", **found.facts}, *found.lines)


@verb(app)
def demo(
    run: Run,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The folder to make.")] = Path(
        "demo"
    ),
) -> None:
    """Hide 30 % of a real table, fill it in, and show how near the truth it came. Offline, a few minutes."""
    from .demo import demo

    with run.console.progress() as progress:
        done = demo(output, seed=run.seed, overwrite=run.overwrite, progress=progress)
    run.console.result({"verb": "demo", "folder": done.folder, "scores": done.scores}, *done.lines)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally` and `with`, so that locks are freed and partial work is put away."""
    raise SystemExit(TERMINATED)


def main(argv: Sequence[str] | None = None) -> int:
    """The `ebbtide` command. Returns the exit code: 0 done, 1 failed, 2 bad input."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug, console = "--debug" in words, Console("json" if "--json" in words else "normal")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # meant for programmers; faults that users can mend are told as such
    signal.signal(signal.SIGTERM, _terminate)
    group = typer.main.get_group(app)
    if not words[0].startswith("-") and words[0] not in group.commands:
        console.fail(verb_fault(words[0], list(group.commands)), 2)
        return 2
    command = functools.partial(group.main, words, prog_name="ebbtide", standalone_mode=False)
    return attempt(command, console, debug=debug)
