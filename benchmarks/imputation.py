"""Fill in missing cells of real tables, side by side with what people use today.

    python benchmarks/imputation.py DATA [--tables letter california] [--masks 0 1 2] [--kinds MCAR] [--fresh]
    python benchmarks/imputation.py --report

The protocol is DiffPuter's (Zhang et al., ICLR 2025): `np.random.seed(1234)`; 70 % of the shuffled rows
train, the rest test; 30 % of all cells hidden; numbers are measured z-scored by the observed training cells,
MAE and RMSE pooled over hidden cells of the number columns; categories by accuracy pooled over hidden cells;
the target column is not modelled. Where DATA holds the published masks (Adult, Default), they are used.

Seconds are for fitting and filling the test part (a chain fills the training part while it fits; Ebbtide does
so on demand, which is not counted). Every method runs in a process of its own, one after the other, with two
threads; `knn` takes its neighbours from 5,000 random training rows where there are more than 15,000 (every
pair of rows is compared). Results are appended to `benchmarks/results/imputation.jsonl` as they come, and
what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results" / "imputation.jsonl"
METHODS = ("mean", "knn", "ridge", "trees", "ebbtide")
BIG = ("adult", "default", "letter", "california")
KNN_ROWS, KNN_SAMPLE = 15_000, 5_000  # a table of more rows lends its neighbours from a sample of these
SMALL = ("concrete", "wine", "energy", "penguins")
PUBLISHED = {  # out of sample, MCAR 30 %: MAE, RMSE x 100
    "DiffPuter": {
        "california": (33.47, 54.18),
        "letter": (30.69, 47.74),
        "adult": (49.14, 91.31),
        "default": (24.63, 70.50),
    },
    "ReMasker": {
        "california": (33.97, 52.96),
        "letter": (34.03, 48.60),
        "adult": (49.27, 90.38),
        "default": (37.02, 76.94),
    },
}


@dataclass(frozen=True)
class Part:
    """Rows of a table: numbers z-scored by the observed training cells, category codes, what is hidden."""

    numbers: np.ndarray
    codes: np.ndarray
    hidden_numbers: np.ndarray
    hidden_codes: np.ndarray

    @property
    def holes(self) -> np.ndarray:
        """(n, p) numbers with NaN where hidden or missing."""
        return np.where(self.hidden_numbers, np.nan, self.numbers)

    @property
    def gaps(self) -> np.ndarray:
        """(n, q) codes with -1 where hidden or missing."""
        return np.where(self.hidden_codes, -1, self.codes).astype(np.int32)


def load(data: Path, name: str, kind: str, mask: int) -> tuple[Part, Part, list[int]]:
    """Train part, test part and the number of levels of each category column."""
    tables = data / "tabular"
    columns: dict[str, list[int]] | None = None
    if name in BIG:
        columns = json.loads((tables / "columns" / f"{name}.json").read_text())
    if name in ("adult", "default", "letter"):
        train, test = (pd.read_csv(tables / name / f"{part}.csv") for part in ("train", "test"))
        whole, cut = pd.concat([train, test], ignore_index=True), len(train)
    else:
        if name == "california":
            whole = pd.read_csv(tables / name / f"{name}.csv").dropna().reset_index(drop=True)
        elif name == "penguins":
            whole = pd.read_csv(tables / "penguins.csv", na_values=["."])
        else:
            whole = pd.read_csv(tables / f"uci_{name}.txt", sep=r"\s+", header=None)
        order = np.arange(len(whole))
        np.random.seed(1234)
        np.random.shuffle(order)
        whole, cut = whole.iloc[order].reset_index(drop=True), int(0.7 * len(whole))
    hidden = _masks(tables / name, whole.shape, cut, kind, mask)
    numeric = (
        columns["num_col_idx"]
        if columns
        else [j for j in range(whole.shape[1]) if pd.api.types.is_numeric_dtype(whole.dtypes.iloc[j])]
    )
    categories = columns["cat_col_idx"] if columns else [j for j in range(whole.shape[1]) if j not in numeric]
    numbers = whole.iloc[:, numeric].to_numpy(float)
    seen = np.where(hidden[:cut, numeric], np.nan, numbers[:cut])
    numbers = (numbers - np.nanmean(seen, 0)) / np.nanstd(seen, 0)
    coded = [pd.factorize(whole.iloc[:, j], sort=True) for j in categories]
    codes = np.stack([c for c, _ in coded], 1) if coded else np.zeros((len(whole), 0), int)
    parts = [
        Part(numbers[rows], codes[rows], hidden[rows][:, numeric], hidden[rows][:, categories])
        for rows in (slice(0, cut), slice(cut, None))
    ]
    return parts[0], parts[1], [len(levels) for _, levels in coded]


def _masks(folder: Path, shape: tuple[int, int], cut: int, kind: str, mask: int) -> np.ndarray:
    """(n, columns) True where hidden."""
    packed = folder / "masks_rate30_packed.npz"
    if packed.exists():
        held = np.load(packed)
        own = next(name.split("__")[0] for name in held if name.startswith(kind))  # MNAR has a longer name
        names = [f"{own}__{part}_mask_{mask}" for part in ("train", "test")]
        return np.concatenate(
            [np.unpackbits(held[n], axis=1)[:, : int(held[f"{n}__cols"])].astype(bool) for n in names]
        )
    if kind != "MCAR":
        raise SystemExit(f"{folder.name}: only MCAR masks can be made")
    order = np.arange(shape[0])
    np.random.seed(1234)
    np.random.shuffle(order)  # the masks follow the split in the same stream
    for _ in range(mask + 1):
        train, test = np.random.rand(cut, shape[1]) < 0.3, np.random.rand(shape[0] - cut, shape[1]) < 0.3
    return np.concatenate([train, test])


# ------------------------------------------------------------------------------------------------ methods


def run_peer(method: str, train: Part, test: Part, seed: int) -> dict[str, np.ndarray]:
    """Numbers and codes of train and test by a scikit-learn imputer; codes join as z-scored numbers."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
    from sklearn.linear_model import BayesianRidge

    p, took = train.numbers.shape[1], 0.0
    codes = np.where(train.gaps < 0, np.nan, train.gaps)
    centre, scale = np.nanmean(codes, 0), np.nanstd(codes, 0)
    scale = np.where(scale > 0, scale, 1)

    def joined(part: Part) -> np.ndarray:
        return np.hstack([part.holes, (np.where(part.gaps < 0, np.nan, part.gaps) - centre) / scale])

    if method == "mean":
        most = SimpleImputer(strategy="most_frequent")
        filled = [SimpleImputer().fit(train.holes).transform(part.holes) for part in (train, test)]
        modes = [
            most.fit(joined(train)[:, p:]).transform(joined(part)[:, p:])
            if train.codes.shape[1]
            else joined(part)[:, p:]
            for part in (train, test)
        ]
        made = [np.hstack(pair) for pair in zip(filled, modes, strict=True)]
    else:
        imputer = {
            "knn": lambda: KNNImputer(n_neighbors=5),
            "ridge": lambda: IterativeImputer(BayesianRidge(), max_iter=10, random_state=seed),
            "trees": lambda: IterativeImputer(
                ExtraTreesRegressor(40, min_samples_leaf=3, n_jobs=2, random_state=seed),
                max_iter=4,
                tol=0,
                random_state=seed,
                skip_complete=True,
            ),
        }[method]()
        start = time.perf_counter()
        if method == "knn":
            known = joined(train)
            if len(known) > KNN_ROWS:
                known = known[np.random.default_rng(seed).permutation(len(known))[:KNN_SAMPLE]]
            imputer.fit(known)
        made = [imputer.transform(joined(train)) if method == "knn" else imputer.fit_transform(joined(train))]
        if method == "knn":
            start = time.perf_counter()  # only the chains need the training table to be filled
        made.append(imputer.transform(joined(test)))
        took = time.perf_counter() - start
    out = {"seconds": np.array(took)}
    for part, values in zip(("in", "out"), made, strict=True):
        out[f"{part}.mean"] = values[:, :p]
        out[f"{part}.codes"] = np.rint(values[:, p:] * scale + centre)
    return out


def run_ebbtide(train: Part, test: Part, levels: list[int], seed: int, draws: int) -> dict[str, np.ndarray]:
    """The same by Ebbtide, with the median, draws and intervals too."""
    from ebbtide.domains.tabular.codec import Coded
    from ebbtide.domains.tabular.model import TableModel

    start = time.perf_counter()
    model = TableModel.fit(Coded(train.holes, train.gaps), levels, seed=seed)
    out = {}
    for name, part in (("out", test), ("in", train)):
        filled = model.fill(
            Coded(part.holes, part.gaps), np.arange(len(part.numbers)), seed=seed, draws=draws
        )
        out |= {
            f"{name}.mean": filled.mean,
            f"{name}.median": filled.median,
            f"{name}.codes": filled.mode,
            f"{name}.draws": filled.numbers,
        }
        out.setdefault("seconds", np.array(time.perf_counter() - start))
    tensors = model.state()[1].values()
    out["megabytes"] = np.array(sum(t.numel() * t.element_size() for t in tensors) / 1e6)
    return out


def measure(part: Part, made: dict[str, np.ndarray], name: str) -> dict[str, float]:
    """MAE, RMSE x 100, accuracy, and where there are draws coverage, width, CRPS and energy score."""
    at = part.hidden_numbers & ~np.isnan(part.numbers)
    found = {}
    for statistic in ("mean", "median"):
        if f"{name}.{statistic}" in made:
            error = (made[f"{name}.{statistic}"] - part.numbers)[at]
            found[f"{statistic} mae"] = 100 * float(np.abs(error).mean())
            found[f"{statistic} rmse"] = 100 * float(np.sqrt((error**2).mean()))
    coded = part.hidden_codes & (part.codes >= 0)
    if coded.any():
        found["accuracy"] = 100 * float((made[f"{name}.codes"] == part.codes)[coded].mean())
    if f"{name}.draws" in made:
        from ebbtide.domains.tabular.measures.imputed import crps, energy_score, inside
        from ebbtide.domains.tabular.model import interval

        draws = made[f"{name}.draws"]
        low, high = interval(draws)
        found["coverage"] = 100 * float(inside(low, high, part.numbers)[at].mean())
        found["width"] = float((high - low)[at].mean())
        found["crps"] = float(crps(draws[:, at], part.numbers[at]).mean())
        found["energy"] = energy_score(draws, part.numbers, at)
    return {key: round(value, 4) for key, value in found.items()}


def one(data: Path, name: str, kind: str, mask: int, method: str, draws: int = 20) -> dict[str, object]:
    """Run one method on one table; the seed is the number of the mask."""
    train, test, levels = load(data, name, kind, mask)
    if method == "ebbtide":  # imports are paid once a process, not once a table
        import lightning  # noqa: F401

        import ebbtide.domains.tabular.model  # noqa: F401
    else:
        import sklearn.ensemble  # noqa: F401
    used = time.process_time()
    made = (
        run_ebbtide(train, test, levels, mask, draws)
        if method == "ebbtide"
        else run_peer(method, train, test, mask)
    )
    row: dict[str, object] = {
        "table": name,
        "kind": kind,
        "mask": mask,
        "method": method,
        "seconds": round(float(made["seconds"]), 1),
        "cpu": round(time.process_time() - used, 1),
        "gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    if "megabytes" in made:
        row["megabytes"] = round(float(made["megabytes"]), 1)
    return row | {"in": measure(train, made, "in"), "out": measure(test, made, "out")}


# ------------------------------------------------------------------------------------------------- report


def report(rows: list[dict]) -> str:
    """Markdown tables, mean and spread over masks."""
    frame = pd.json_normalize(rows).drop_duplicates(["table", "kind", "mask", "method"], keep="last")
    lines = []
    for kind in [k for k in ("MCAR", "MAR", "MNAR") if (frame["kind"] == k).any()]:
        for table in [t for t in (*BIG, *SMALL) if ((frame["table"] == t) & (frame["kind"] == kind)).any()]:
            part = frame[(frame["table"] == table) & (frame["kind"] == kind)]
            lines += [
                "",
                f"### {table}, {kind} 30 %",
                "",
                "| method | masks | MAE / RMSE out | in sample | accuracy out / in "
                "| 90 % cover out | width | CRPS | energy | seconds | GB |",
                "|---|---|---|---|---|---|---|---|---|---|---|",
            ]
            for method in METHODS:
                mine = part[part["method"] == method]
                if mine.empty:
                    continue
                statistics = ("mean", "median") if method == "ebbtide" else ("mean",)
                for statistic in statistics:
                    lines.append(_line(method, statistic, mine))
            if kind == "MCAR":
                for peer, known in PUBLISHED.items():
                    if table in known:
                        mae, rmse = known[table]
                        lines.append(f"| {peer}, published | 10 | {mae:.2f} / {rmse:.2f} | | | | | | | | |")
    return "\n".join(lines) + "\n"


def _line(method: str, statistic: str, mine: pd.DataFrame) -> str:
    def cell(column: str, digits: int) -> str:
        if column not in mine or mine[column].isna().all():
            return ""
        values = mine[column].dropna()
        spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{spread}"

    first = statistic == "mean"
    label = f"ebbtide, {statistic}" if method == "ebbtide" else method
    errors = [
        f"{cell(f'{side}.{statistic} mae', 2)} / {cell(f'{side}.{statistic} rmse', 2)}"
        for side in ("out", "in")
    ]
    accuracy = " / ".join(c for c in (cell("out.accuracy", 1), cell("in.accuracy", 1)) if c) if first else ""
    rest = (
        [cell("out.coverage", 1), cell("out.width", 2), cell("out.crps", 3), cell("out.energy", 3)]
        if first
        else [""] * 4
    )
    cost = [cell("seconds", 0), cell("gigabytes", 2)] if first else ["", ""]
    return "| " + " | ".join([label, str(len(mine)), *errors, accuracy, *rest, *cost]) + " |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--tables", nargs="+", default=[*BIG, *SMALL], choices=[*BIG, *SMALL])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--masks", nargs="+", type=int, default=[0])
    parser.add_argument("--kinds", nargs="+", default=["MCAR"], choices=["MCAR", "MAR", "MNAR"])
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, kind, mask, method = options.one
        print(json.dumps(one(options.data, name, kind, int(mask), method)))
        return
    RESULTS.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if not options.report:
        have = {(r["table"], r["kind"], r["mask"], r["method"]) for r in done}
        for kind in options.kinds:
            for name in options.tables:
                for mask in options.masks:
                    for method in options.methods:
                        if not options.fresh and (name, kind, mask, method) in have:
                            continue
                        row = _child(options.data, name, kind, mask, method)
                        done.append(row)
                        with RESULTS.open("a") as file:
                            file.write(json.dumps(row) + "\n")
    print(report(done))


def _child(data: Path, name: str, kind: str, mask: int, method: str) -> dict:
    """One run in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, str(data), "--one", name, kind, str(mask), method]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if made.returncode:
        raise SystemExit(f"{name} {kind} {mask} {method}: {made.stderr[-2000:]}")
    row: dict = json.loads(made.stdout.splitlines()[-1])
    print(
        {key: row[key] for key in ("table", "kind", "mask", "method", "seconds", "out")},
        file=sys.stderr,
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
