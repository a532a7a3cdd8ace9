"""`ebbtide demo`: hide a third of a real table, fill it in, and look at how near the truth it came; make a
synthetic table and judge it; make and complete scans and pictures. Offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd

from ..domains.tabular import TabularDomain
from ..shared.artifacts import swap_in
from ..shared.files import explained, locked, partial_of, refuse_existing, remove
from ..shared.noise import Keys
from .demo_models import PICTURES, REPORT, pictures, rows, scans
from .demo_pictures import DISTRIBUTIONS, ERRORS, RESTORED, TRUTH, draw_all
from .imputing import impute_file
from .manifest import write_json

Progress = Callable[[str, float], None]
HIDDEN = 0.3
DRAWS = 20
OURS = "Ebbtide"


@dataclass(frozen=True)
class Trial:
    """A table with holes whose truth is known, and what filled them.

    Args:
        truth: the complete table, as far as it was ever observed.
        holes: bool, shaped like it: known cells that were hidden.
        given: the table with the holes.
        filled: method -> completed table.
        lower, upper: ends of our 90 % intervals, numeric columns.
        draws: our single draws.
        seconds: method -> time.
    """

    truth: pd.DataFrame
    holes: pd.DataFrame
    given: pd.DataFrame
    filled: dict[str, pd.DataFrame]
    lower: pd.DataFrame
    upper: pd.DataFrame
    draws: list[pd.DataFrame]
    seconds: dict[str, float]

    @property
    def numbers(self) -> list[str]:
        """The numeric columns."""
        return list(self.truth.select_dtypes("number").columns)

    @property
    def categories(self) -> list[str]:
        """The other columns."""
        return [name for name in self.truth.columns if name not in self.numbers]


@dataclass(frozen=True)
class Demo:
    """What the demo left behind.

    Args:
        folder: pictures, tables and report.html.
        scores: method -> rmse, mae (in standard deviations), accuracy, seconds; ours also has coverage.
        lines: the same for a person.
    """

    folder: Path
    scores: Mapping[str, Mapping[str, float]]
    lines: tuple[str, ...]


def demo(
    out: Path | str = "demo",
    *,
    seed: int = 0,
    models: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Demo:
    """Run the demo on the Palmer penguins and the models that are bundled with the package.

    Args:
        out: the folder to make.
        seed: of the holes, the training and the draws.
        models: make a synthetic table, scans and pictures too.
        overwrite: replace `out`.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: `out` exists.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    with locked(out):
        work = partial_of(out)
        with explained(work):
            remove(work)
            work.mkdir(parents=True)
        tell = progress or (lambda stage, fraction: None)
        with one_thread():
            trial = run(work, seed, tell)
            verdict = rows(work, penguins(text=True), seed, tell) if models else {}
            if models:
                scans(work, seed, lambda stage, fraction: tell(f"brains: {stage}", fraction))
                pictures(work, seed, lambda stage, fraction: tell(f"clothes: {stage}", fraction))
        scores = {method: score(trial, method) for method in trial.filled}
        scores[OURS]["coverage"] = coverage(trial)
        draw_all(trial, scores, work)
        write_json(work / "scores.json", {"seed": seed, "hidden": HIDDEN, "scores": scores})
        page = report(trial, scores, verdict, work)
        (work / "report.html").write_text(page, encoding="utf-8")
        swap_in(work, out)
    lines = [
        f"{int(trial.holes.to_numpy().sum())} known cells of {len(trial.truth)} penguins were hidden "
        "and filled in.",
        "",
        *table(scores),
        "",
        "Errors are in standard deviations of each column. Open report.html, or the pictures beside it:",
        *(f"  {path}" for path in sorted(out.iterdir())),
        *([f"A synthetic table, judged: {out / REPORT}"] if models else []),
    ]
    return Demo(out, scores, tuple(lines))


def run(work: Path, seed: int, progress: Progress) -> Trial:
    """Hide cells, fill them by `impute_file`, as a user would, and by the usual methods."""
    truth = penguins()
    holes = hide(truth, seed)
    given = truth.mask(holes)
    source = work / "penguins_with_holes.csv"
    text = penguins(text=True)
    text.mask(holes).to_csv(source, index=False)
    begun = monotonic()
    imputed = work / "imputed"
    impute_file(
        source,
        imputed,
        domain=TabularDomain(),
        draws=DRAWS,
        all_draws=DRAWS,
        seed=seed,
        progress=lambda stage, fraction: progress(stage, 0.9 * fraction),
    )
    seconds = {OURS: monotonic() - begun}
    filled = {OURS: pd.read_csv(next(imputed.glob("*.imputed.csv")))}
    for number, (name, method) in enumerate(peers(seed).items()):
        progress(f"for comparison: {name}", number / 3)
        begun = monotonic()
        filled[name] = method(given)
        seconds[name] = monotonic() - begun
    spread = pd.read_csv(next(imputed.glob("*.spread.csv")))
    draws = [pd.read_csv(path) for path in sorted((imputed / "draws").glob("*.csv"))]
    numbers = truth.select_dtypes("number").columns
    ends = [
        spread[[f"{name}.{end}" for name in numbers]].set_axis(numbers, axis=1) for end in ("lower", "upper")
    ]
    return Trial(truth, holes, given, filled, ends[0], ends[1], draws, seconds)


def penguins(*, text: bool = False) -> pd.DataFrame:
    """The bundled table; with `text`, its cells as they stand in the file."""
    with files("ebbtide.data_cards").joinpath("penguins/penguins.csv").open("r", encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str if text else None)


def hide(truth: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Known cells to hide, each with the same chance, by keyed noise."""
    uniform = Keys.range(seed, len(truth)).uniform((truth.shape[1],), "demo holes").numpy()
    return pd.DataFrame(uniform < HIDDEN, index=truth.index, columns=truth.columns) & truth.notna()


# ------------------------------------------------------------------------------------------- comparison


def peers(seed: int) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
    """The usual methods of scikit-learn, on standardised numbers and one-hot levels."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    trees = ExtraTreesRegressor(40, min_samples_leaf=3, random_state=seed)
    return {
        "mean / mode": lambda given: by_features(SimpleImputer(), given),
        "5 nearest neighbours": lambda given: by_features(KNNImputer(), given),
        "extra-trees chain": lambda given: by_features(
            IterativeImputer(trees, max_iter=4, random_state=seed), given
        ),
    }


def by_features(imputer: Any, given: pd.DataFrame) -> pd.DataFrame:
    """Fill a mixed table by an imputer of numbers: levels become columns of 0 and 1, the largest wins."""
    numbers = given.select_dtypes("number")
    others = [name for name in given.columns if name not in numbers]
    scale = numbers.std()
    parts = [(numbers - numbers.mean()) / scale]
    for name in others:
        levels = pd.get_dummies(given[name], prefix=name, prefix_sep="=", dtype=float)
        parts.append(levels.mask(given[name].isna()))
    with quiet():
        values = imputer.fit_transform(pd.concat(parts, axis=1).to_numpy())
    made = given.copy()
    made[numbers.columns] = values[:, : numbers.shape[1]] * scale.to_numpy() + numbers.mean().to_numpy()
    at = numbers.shape[1]
    for name, part in zip(others, parts[1:], strict=True):
        names = np.array([column.removeprefix(f"{name}=") for column in part.columns])
        best = values[:, at : at + len(names)].argmax(1)
        made[name] = given[name].fillna(pd.Series(names[best], index=given.index))
        at += len(names)
    return made.where(given.isna(), given)


@contextmanager
def one_thread() -> Iterator[None]:
    """A network this small gains nothing from a second thread, and on a busy machine threads wait for
    each other:
    0.7 minutes with one, 5 with two on two busy cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Four rounds of a chain do not converge, as scikit-learn rightly says; here that is intended."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def score(trial: Trial, method: str) -> dict[str, float]:
    """Errors on hidden cells: of numbers in standard deviations, of categories the share that is right."""
    filled = trial.filled[method]
    scale = trial.truth[trial.numbers].std()
    error = ((filled[trial.numbers] - trial.truth[trial.numbers]) / scale).to_numpy()
    error = error[trial.holes[trial.numbers].to_numpy()]
    right = (filled[trial.categories] == trial.truth[trial.categories]).to_numpy()
    right = right[trial.holes[trial.categories].to_numpy()]
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
        "accuracy": float(right.mean()),
        "seconds": trial.seconds[method],
    }


def coverage(trial: Trial) -> float:
    """Share of hidden numbers that lie in our 90 % intervals."""
    truth = trial.truth[trial.numbers]
    inside = ((trial.lower <= truth) & (truth <= trial.upper)).to_numpy()
    return float(inside[trial.holes[trial.numbers].to_numpy()].mean())


def table(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The scores as lines of text."""
    lines = [f"{'':<22}{'RMSE':>8}{'MAE':>8}{'categories right':>19}{'90 % covers':>14}"]
    for method, found in sorted(scores.items(), key=lambda item: item[1]["rmse"]):
        covers = f"{100 * found['coverage']:.0f} %" if "coverage" in found else ""
        lines.append(
            f"{method:<22}{found['rmse']:>8.3f}{found['mae']:>8.3f}"
            f"{100 * found['accuracy']:>17.1f} %{covers:>14}"
        )
    return lines


def report(
    trial: Trial, scores: Mapping[str, Mapping[str, float]], verdict: Mapping[str, Any], work: Path
) -> str:
    """One page that needs nothing else: the pictures are in it."""
    from base64 import b64encode

    from jinja2 import Environment

    template = files("ebbtide.pipelines").joinpath("templates/demo.html").read_text(encoding="utf-8")
    shown = {
        name.removesuffix(".png"): b64encode((work / name).read_bytes()).decode()
        for name in (RESTORED, TRUTH, DISTRIBUTIONS, ERRORS)
    }
    for path, name in PICTURES.items() if verdict else ():
        shown[name] = b64encode((work / path).read_bytes()).decode()
    page: str = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            scores=sorted(scores.items(), key=lambda item: item[1]["rmse"]),
            ours=OURS,
            covered=100 * scores[OURS]["coverage"],
            cells=int(trial.holes.to_numpy().sum()),
            rows=len(trial.truth),
            pictures=shown,
            verdict=verdict,
            judged=REPORT,
        )
    )
    return page
