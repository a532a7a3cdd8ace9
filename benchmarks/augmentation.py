"""Does it help to add synthetic rows to a small real table? Beside nothing, class weights and SMOTE.

    python benchmarks/augmentation.py DATA [--tables pima titanic] [--repeats 0 1 2]
    python benchmarks/augmentation.py --report

Every table is cross-validated (5 folds, repeated); whatever makes rows (SMOTE, our two ways) sees the
training rows of a fold alone, and scores are of its test rows, which are real and which nothing saw. Two
questions are asked of the same folds: *enlarge* (synthetic rows of each class in its real share; AUC), and
*balance* (as many rows of every class; balanced accuracy, beside class weights too). Ours runs with its
defaults: real and synthetic rows are about 6,000 in all, at most ten times the table; new rows, or real rows
with half of their cells drawn anew, each written several times, with its classes in proportion to what a
pool of six models sees in it; near copies and implausible rows dropped. SMOTE is given the same number of
rows, and, as "SMOTE, fewer", what is usual: the table doubled, or the smaller classes brought to the size of
the largest. Downstream models: histogram gradient boosting, logistic regression, a forest of 200 trees.
Intervals are 95 %, corrected for what splits share (Nadeau & Bengio 2003).

Nothing was tuned on these tables. How the classes are given was chosen on samples of 500 rows of eight other
tables (Adult, Default, Letter, California, wine, concrete, NHANES, taxis), tested on up to 4,000 other rows.

Results are appended to `benchmarks/results/augmentation.jsonl`, a line for each table and repeat; what is
there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results" / "augmentation.jsonl"
PAGE = RESULTS.with_suffix(".md")
STRENGTH = 0.5
NEW, VARIED, FEWER = "Ebbtide, new rows", "Ebbtide, varied rows", "SMOTE, fewer"
TASKS = ("enlarge", "balance")
TABLES = ("pima", "titanic", "cancer", "colic")
PIMA = ["pregnancies", "glucose", "pressure", "skin", "insulin", "bmi", "pedigree", "age", "diabetes"]
# Of 28 columns of the horse colic table those that are known at admission, and the outcome.
COLIC = {0: "surgery", 1: "age", 3: "rectal", 4: "pulse", 5: "breathing", 6: "extremities", 7: "pulse_felt"}
COLIC |= {8: "mucosa", 9: "refill", 10: "pain", 11: "peristalsis", 12: "distension", 13: "tube", 16: "faeces"}
COLIC |= {17: "abdomen", 18: "cell_volume", 19: "protein", 22: "outcome"}


def load(data: Path, name: str) -> tuple[pd.DataFrame, str, dict[str, str]]:
    """A table, the column to predict, and kinds that its cells do not show."""
    tables = data / "tabular"
    if name == "pima":
        frame = pd.read_csv(tables / "pima.csv", header=None, names=PIMA)
        return frame, "diabetes", {"diabetes": "category"}
    if name == "titanic":
        frame = pd.read_csv(tables / "titanic.csv")
        kept = [
            "survived",
            "pclass",
            "sex",
            "age",
            "sibsp",
            "parch",
            "fare",
            "embarked",
        ]  # others repeat these
        return frame[kept], "survived", {"survived": "category"}
    if name == "cancer":
        from sklearn.datasets import load_breast_cancer

        found = load_breast_cancer(as_frame=True)
        return found.frame, "target", {"target": "category"}
    if name == "colic":
        frame = pd.read_csv(tables / "horse_colic.csv", header=None, na_values="?")[list(COLIC)].rename(
            columns=COLIC
        )
        number = ("rectal", "pulse", "breathing", "cell_volume", "protein")
        frame = frame.dropna(subset=["outcome"]).reset_index(drop=True)
        return frame, "outcome", {column: "category" for column in frame if column not in number}
    raise SystemExit(f"no table {name!r}")


def one(data: Path, name: str, repeat: int) -> dict[str, object]:
    """Both tasks on one table, with the folds of one repeat."""
    from ebbtide.domains.tabular.augmenting import Target, enough, place_of, wanted
    from ebbtide.domains.tabular.codec import Coded, TableCodec
    from ebbtide.domains.tabular.fitted import FittedTable
    from ebbtide.domains.tabular.measures import downstream
    from ebbtide.domains.tabular.measures.downstream import Fold, prove, smote
    from ebbtide.domains.tabular.measures.pair import Pair
    from ebbtide.domains.tabular.teaching import Teacher

    frame, target, kinds = load(data, name)
    codec = TableCodec(kinds=kinds).fit(frame)
    learnt: dict[int, tuple[FittedTable, Coded, Target, Teacher]] = {}
    dropped = {NEW: [0, 0, 0, 0], VARIED: [0, 0, 0, 0]}
    began = time.process_time()

    def learn(fold: Fold) -> tuple[FittedTable, Coded, Target, Teacher]:
        """One model and one teacher for both ways and both tasks of a fold."""
        if fold.seed not in learnt:
            verbs = ("generate", "impute")
            model = FittedTable.fit(fold.frame, kinds=kinds, verbs=verbs, seed=fold.seed)
            coded = model.codec.encode(fold.frame)
            place, _ = place_of(model.codec, target, balance=False, where=name)
            places = Pair(downstream.columns_of(model.codec), coded, coded).places
            teacher = Teacher.of(places, place, coded, fold.seed)
            learnt[fold.seed] = model, coded, Target.of(place, coded), teacher
        return learnt[fold.seed]

    def way(label: str) -> Callable[[Fold], Coded]:
        def rows(fold: Fold) -> Coded:
            model, coded, classes, teacher = learn(fold)
            vary = None if label == NEW else STRENGTH
            made = downstream.made_by(
                model, fold.frame, coded, classes, fold.counts, vary, fold.seed, teacher
            )
            for at, count in enumerate((made.drawn, made.copies, made.implausible, len(made.frame))):
                dropped[label][at] += count
            return fold.codec.encode(made.frame)

        return rows

    def fewer(balance: bool) -> Callable[[Fold], Coded]:
        def rows(fold: Fold) -> Coded:
            there = np.bincount(fold.coded.codes[:, fold.target.at], minlength=len(fold.counts))
            return smote(replace(fold, counts=wanted(there, balance=balance)))

        return rows

    found: dict[str, object] = {}
    for task in TASKS:
        balance = task == "balance"

        def counts(there: np.ndarray, balance: bool = balance) -> np.ndarray:
            return wanted(there, balance=balance, factor=enough(there, balance=balance))

        ways = {NEW: way(NEW), VARIED: way(VARIED), FEWER: fewer(balance)}
        proof = prove(frame, codec, target, ways, counts, balance=balance, seed=1000 * repeat)
        found[task] = {
            "measure": proof.measure,
            "added": {way: round(count) for way, count in proof.counts.items()},
            "scores": {
                way: {model: proof.of(way, model).round(5).tolist() for model in proof.models}
                for way in proof.scores
            },
        }
    cpu = round(time.process_time() - began, 1)
    size = {"rows": len(frame), "columns": frame.shape[1]}
    return {"table": name, "repeat": repeat, **size, "cpu": cpu, "dropped": dropped, **found}


def merged(rows: list[dict], task: str) -> dict[str, dict[str, np.ndarray]]:
    """Way -> model -> the scores of all splits of all repeats."""
    ways = rows[0][task]["scores"]
    found = {
        way: {model: np.concatenate([row[task]["scores"][way][model] for row in rows]) for model in models}
        for way, models in ways.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[0] in (NEW, VARIED)))  # ours last


def report(rows: list[dict]) -> str:
    """Markdown: scores, gains with intervals, and the mean over tables."""
    from ebbtide.domains.tabular.measures.downstream import gain

    tables = {name: [row for row in rows if row["table"] == name] for name in TABLES}
    tables = {name: held for name, held in tables.items() if held}
    lines = [__doc__.split("\n\n", 2)[2].rsplit("\n\n", 1)[0].strip(), ""]
    for task in TASKS:
        measure = rows[0][task]["measure"]
        lines += ["", f"## {task.capitalize()}: {measure}", ""]
        lines += [
            "| table | way | boosted trees | linear model | forest | mean |",
            "|---|---|---|---|---|---|",
        ]
        gains: dict[str, dict[str, object]] = {}
        for name, held in tables.items():
            scores = merged(held, task)
            means = {way: np.mean(list(models.values()), axis=0) for way, models in scores.items()}
            splits = len(next(iter(means.values())))
            for way, models in scores.items():
                cells = " | ".join(f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in models.values())
                label = f"{name}, {held[0]['rows']} x {held[0]['columns']}, {splits} splits"
                label = label if way == "nothing added" else ""
                lines.append(f"| {label} | {way} | {cells} | {means[way].mean():.3f} |")
            others = [way for way in means if way not in (NEW, VARIED)]
            best = max(others[1:], key=lambda way: means[way].mean())
            for ours in (NEW, VARIED):
                for other, label in [*zip(others, others, strict=True), (best, "the best classical way")]:
                    gains.setdefault(f"{ours} over {label}", {})[name] = gain(means[ours], means[other], 0.25)
        lines += [
            "",
            f"Gain in {measure}, mean of the three models [95 % interval]; the best classical way is",
        ]
        lines += ["chosen for each table after the fact:", ""]
        lines += ["| gain of | " + " | ".join(tables) + " | mean of the tables |"]
        lines += ["|---" * (len(tables) + 2) + "|"]
        for label, found in gains.items():
            cells = " | ".join(f"{g.mean:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in found.values())
            lines.append(f"| {label} | {cells} | {over_tables([g.mean for g in found.values()])} |")
    lines += [
        "",
        "Rows made, dropped as near copies and as implausible, and written (each several times), over all "
        "folds and both tasks:",
        "",
    ]
    lines += ["| table | way | made | near copies | implausible | written | processor seconds a fold |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, held in tables.items():
        for way in (NEW, VARIED):
            made, copies, odd, written = np.sum([row["dropped"][way] for row in held], axis=0)
            seconds = np.mean([row["cpu"] for row in held]) / 5
            lines.append(
                f"| {name} | {way} | {made:,} | {copies:,} | {odd:,} | {written:,} | {seconds:.0f} |"
            )
    return "# Augmentation\n\n" + "\n".join(lines) + "\n"


def over_tables(means: list[float]) -> str:
    """The mean over tables with its t interval (tables are the sample)."""
    from scipy.stats import t

    values = np.array(means)
    if len(values) < 2:
        return f"{values.mean():+.3f}"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"**{values.mean():+.3f}** [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]"


def main() -> None:
    """Run what is asked for and not there yet; write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--repeats", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    for repeat in [] if options.report else options.repeats:
        for name in options.tables:
            if (name, repeat) not in {(row["table"], row["repeat"]) for row in read()}:
                row = one(options.data, name, repeat)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    PAGE.write_text(report(read()))
    print(PAGE.read_text())


def read() -> list[dict]:
    """The results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


if __name__ == "__main__":
    main()
