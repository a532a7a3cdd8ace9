"""Generate real tables anew, and measure how like them the rows are, beside simple ways and published ones.

    python benchmarks/generation.py DATA [--tables adult] [--methods ebbtide copula marginals] [--seeds 0 1]
    python benchmarks/generation.py DATA --methods ctgan tvae --peer-python PATH [--peer-epochs 300]
    python benchmarks/generation.py --report

The protocol is TabDiff's (Shi et al., ICLR 2025), on the split of the DiffPuter benchmark: a method learns
from the train split, generates as many rows, and these are compared with the train split; the test split
is used for the AUC and the DCR share alone. Measures are Ebbtide's own, equal to SDMetrics' and
synthcity's formulas (tested): Shape and Trend as errors in %; C2ST = SDMetrics' detection score (1 cannot
be told apart) by scikit-learn's histogram gradient boosting, where the papers have XGBoost, and by
logistic regression; alpha-precision and beta-recall on 8,000 rows; AUC on the test split of boosting that
was trained on synthetic rows; DCR, the share of synthetic rows nearer to the train split than to as many
test rows (TabDiff trains anew on halves for it; here 50 % is ideal too, but the model is the same). `real`
is the test split in the place of synthetic rows: what a perfect generator gets. `ctgan` and `tvae` are run by
the Python of another environment (see `generation_peers.py`), with their own defaults.

A seed is of training and sampling both. Results are appended to `benchmarks/results/generation.jsonl`;
what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FOLDER = Path(__file__).parent / "results"
RESULTS = FOLDER / "generation.jsonl"
NEIGHBOURS = 8_000
Measures = dict[str, Any]
Method = Callable[[pd.DataFrame, dict[str, str], int], tuple[pd.DataFrame, Measures]]
# As `NAMES`, with XGBoost, and seconds of training on a GPU: Shi et al. 2025 (Shape, Trend, AUC), and the
# runs of the TabPC paper (the rest).
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "adult": {
        "TabDiff": (0.63, 1.49, 0.841, 0.990, 0.986, 0.526, 0.912, 0.549, 11605),
        "TabSyn": (0.81, 1.93, 0.794, 0.987, 0.990, 0.480, 0.909, 0.507, 3083),
        "TabPC": (0.58, 1.44, 0.855, None, 0.996, 0.500, 0.916, None, 272),
        "TabDDPM": (1.75, 3.01, None, None, None, None, 0.907, None, 2956),
        "CTGAN": (16.84, 20.23, 0.000, None, None, None, 0.886, None, None),
    },
    "default": {
        "TabDiff": (1.24, 2.55, 0.591, 0.970, 0.987, 0.515, 0.763, 0.522, 13899),
        "TabSyn": (1.01, 2.81, 0.402, 0.946, 0.987, 0.460, 0.763, 0.508, 3439),
        "TabPC": (0.54, 5.04, 0.262, None, 0.995, 0.449, 0.744, None, 78),
        "TabDDPM": (1.57, 4.89, None, None, None, None, 0.758, None, 2951),
        "CTGAN": (16.83, 26.95, 0.000, None, None, None, 0.696, None, None),
    },
}
NAMES = ("shape", "trend", "boosting", "logistic", "alpha", "beta", "auc", "dcr", "train_s")


def load(data: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], str]:
    """Train split, test split, kinds of the columns, and the target."""
    folder = data / "tabular"
    told = json.loads((folder / "columns" / f"{name}.json").read_text())
    train, test = (
        pd.read_csv(folder / name / f"{part}.csv", skipinitialspace=True) for part in ("train", "test")
    )
    labels = list(train.columns)
    test.columns = pd.Index(labels)
    kinds = {labels[k]: "category" for k in [*told["cat_col_idx"], *told["target_col_idx"]]}
    return train, test, kinds, str(labels[told["target_col_idx"][0]])


def ebbtide(train: pd.DataFrame, kinds: dict[str, str], seed: int) -> tuple[pd.DataFrame, Measures]:
    """As `ebbtide train --only generate` does it."""
    from ebbtide.domains.tabular.fitted import FittedTable

    begun = time.process_time(), time.monotonic()
    fitted = FittedTable.fit(train, kinds=kinds, verbs=("generate",), seed=seed)
    trained = time.process_time(), time.monotonic()
    rows = fitted.generate(len(train), seed)
    assert fitted.generator is not None
    size = sum(tensor.nbytes for tensor in fitted.generator.state()[1].values()) / 2**20
    return rows, {
        "train_s": trained[0] - begun[0],
        "train_wall_s": trained[1] - begun[1],
        "sample_s": time.process_time() - trained[0],
        "model_mb": size,
    }


def private(
    train: pd.DataFrame, kinds: dict[str, str], seed: int, epsilon: float = 3.0
) -> tuple[pd.DataFrame, Measures]:
    """As `ebbtide train --only generate --epsilon E --ranges ranges/adult.yaml` does it. The seed is of
    the first weights and of the rows that are drawn; the noise is never the same twice."""
    from ebbtide.domains.tabular.declared import Declaration
    from ebbtide.domains.tabular.fitted import FittedTable
    from ebbtide.domains.tabular.private import PrivacySettings

    begun = time.process_time()
    asked = PrivacySettings(epsilon, Declaration.read(Path(__file__).parent / "ranges" / "adult.yaml"))
    fitted = FittedTable.fit(train, verbs=("generate",), private=asked, seed=seed)
    trained = time.process_time()
    rows = fitted.generate(len(train), seed)
    spent = fitted.about["differential_privacy"]
    return rows, {
        "train_s": trained - begun,
        "sample_s": time.process_time() - trained,
        **{name: float(spent[name]) for name in ("spent", "delta", "noise_multiplier", "steps")},
    }


def marginals(train: pd.DataFrame, kinds: dict[str, str], seed: int) -> tuple[pd.DataFrame, Measures]:
    """Each column drawn anew by itself: the law of the columns is right, and nothing hangs together."""
    rng, begun = np.random.default_rng([seed, 1]), time.process_time()
    drawn = {c: train[c].to_numpy()[rng.integers(len(train), size=len(train))] for c in train.columns}
    return pd.DataFrame(drawn), {"train_s": 0.0, "sample_s": time.process_time() - begun}


def copula(train: pd.DataFrame, kinds: dict[str, str], seed: int) -> tuple[pd.DataFrame, Measures]:
    """A Gaussian copula: every column has its own law, and normal scores of the ranks hang together linearly.
    Levels of a category are ranked by frequency, and equal values spread over their ranks at random."""
    from scipy.special import ndtr, ndtri

    rng, begun, n = np.random.default_rng([seed, 2]), time.process_time(), len(train)
    scores, inverse = [], []
    for name in train.columns:
        values = train[name]
        if name in kinds:
            order = {level: k for k, level in enumerate(values.value_counts().index)}
            codes = values.map(order).to_numpy(np.float64)
        else:
            codes = values.to_numpy(np.float64)
        rank = np.lexsort((rng.random(n), codes)).argsort()
        scores.append(ndtri((rank + 0.5) / n))
        inverse.append(values.to_numpy()[np.argsort(codes, kind="stable")])
    normal = rng.multivariate_normal(np.zeros(len(scores)), np.corrcoef(scores), n, method="cholesky")
    trained = time.process_time()
    place = np.minimum((ndtr(normal) * n).astype(int), n - 1)
    drawn = {name: inverse[k][place[:, k]] for k, name in enumerate(train.columns)}
    return pd.DataFrame(drawn), {"train_s": trained - begun, "sample_s": time.process_time() - trained}


def peer(
    train: pd.DataFrame, kinds: dict[str, str], seed: int, *, method: str, python: str, epochs: int
) -> tuple[pd.DataFrame, Measures]:
    """CTGAN or TVAE, by the Python of an environment that has them."""
    script = str(Path(__file__).with_name("generation_peers.py"))
    with tempfile.TemporaryDirectory() as folder:
        learn, rows = Path(folder) / "train.csv", Path(folder) / "rows.csv"
        train.to_csv(learn, index=False)
        options = ["--epochs", str(epochs), "--seed", str(seed), "--categories", *_categories(train, kinds)]
        done = subprocess.run(
            [python, script, method, str(learn), str(rows), *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        made = pd.read_csv(rows, keep_default_na=False).astype(train.dtypes.to_dict())
    return made, json.loads(done.stdout.splitlines()[-1])


def _categories(train: pd.DataFrame, kinds: dict[str, str]) -> list[str]:
    """What is not a number: what the benchmark calls so, and text."""
    return [name for name in train.columns if name in kinds or train[name].dtype.kind not in "iuf"]


METHODS: dict[str, Method] = {
    "ebbtide": ebbtide,
    "copula": copula,
    "marginals": marginals,
    **{f"epsilon {epsilon}": partial(private, epsilon=float(epsilon)) for epsilon in (1, 3, 8)},
}


def measure(
    train: pd.DataFrame, rows: pd.DataFrame, test: pd.DataFrame, kinds: dict[str, str], target: str, seed: int
) -> Measures:
    """All figures of synthetic rows."""
    from ebbtide.domains.tabular.measures.copies import closer_to_training
    from ebbtide.domains.tabular.measures.fidelity import mean, shape, trend
    from ebbtide.domains.tabular.measures.learners import two_sample, usefulness
    from ebbtide.domains.tabular.measures.manifold import alpha_beta
    from ebbtide.domains.tabular.measures.pair import encode_pair, some, take
    from ebbtide.domains.tabular.measures.spaces import Space

    pair = encode_pair(train, rows, test, kinds=dict(kinds))
    rng, most = np.random.default_rng(seed), len(train)
    space = Space.of(pair, "range")
    real, other = (space.points(take(t, some(t, NEIGHBOURS, rng))) for t in (pair.real, pair.synthetic))
    near, useful = alpha_beta(real, other), usefulness(pair, target, most, seed)
    dcr = closer_to_training(pair, seed)
    return {
        "shape": 100 * (1 - mean(shape(pair, pair.synthetic))),
        "trend": 100 * (1 - mean(trend(pair, pair.synthetic))),
        "boosting": two_sample(pair, pair.synthetic, "boosting", most, seed).score,
        "logistic": two_sample(pair, pair.synthetic, "logistic", most, seed).score,
        "alpha": near.alpha_precision,
        "beta": near.beta_recall,
        "auc": float("nan") if useful is None else useful.synthetic,
        "auc_real": float("nan") if useful is None else useful.real,
        "dcr": dcr.share,
    }


def run(
    data: Path, name: str, method: str, seed: int, keep: Path | None, peers: Mapping[str, Method]
) -> dict[str, Any]:
    """One method on one table."""
    train, test, kinds, target = load(data, name)
    if method == "real":
        rows, took = test, {"train_s": 0.0, "sample_s": 0.0}
    else:
        rows, took = {**METHODS, **peers}[method](train, kinds, seed)
    if keep is not None:
        rows.to_csv(keep / f"{name}_{method}_{seed}.csv", index=False)
    figures = measure(train, rows, test, kinds, target, seed)
    if method == "real":  # the test split cannot be judged on itself
        figures |= {"auc": figures["auc_real"], "dcr": float("nan")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"table": name, "method": method, "seed": seed, **took, **figures, "memory_gb": peak}


def report(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    heads = [
        "Shape error %",
        "Trend error %",
        "C2ST boosting",
        "C2ST logistic",
        "alpha-precision",
        "beta-recall",
        "AUC",
        "DCR share",
        "training, s",
    ]
    digits = (2, 2, 3, 3, 3, 3, 3, 3, 0)
    lines = ["# Generating tables", ""]
    for table in dict.fromkeys(one["table"] for one in found):
        lines += [f"## {table}", "", f"| | seeds | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
        mine = [one for one in found if one["table"] == table]
        for method in dict.fromkeys(one["method"] for one in mine):
            runs = [one for one in mine if one["method"] == method]
            cells = [_spread([one[key] for one in runs], d) for key, d in zip(NAMES, digits, strict=True)]
            lines.append(f"| {method} | {len(runs)} | {' | '.join(cells)} |")
        for method, values in PUBLISHED.get(table, {}).items():
            cells = ["" if v is None else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)]
            lines.append(f"| {method}, published | | {' | '.join(cells)} |")
        real = [one["auc_real"] for one in mine]
        ours = [one for one in mine if one["method"] == "ebbtide"]
        lines += ["", f"AUC of boosting trained on the real train split: {_spread(real, 3)}."]
        if ours:
            lines.append(
                f"Ebbtide: {_spread([one['sample_s'] for one in ours], 0)} s of a core to generate the rows, "
                f"{_spread([one['model_mb'] for one in ours], 1)} MB of model, "
                f"{max(one['memory_gb'] for one in ours):.1f} GB at the peak, the measures included."
            )
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    """Mean and, of several, the standard deviation; nothing of what was not measured."""
    if np.isnan(values).any():
        return ""
    told = f"{np.mean(values):.{digits}f}"
    return told if len(values) < 2 else f"{told} ± {np.std(values, ddof=1):.{digits}f}"


def main() -> None:
    """Run what is asked for and lacks; then write the report."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("data", type=Path, nargs="?")
    words.add_argument("--tables", nargs="+", default=["adult", "default"])
    words.add_argument("--methods", nargs="+", default=["real", "ebbtide", "copula", "marginals"])
    words.add_argument("--seeds", nargs="+", type=int, default=[0])
    words.add_argument("--keep", type=Path, help="a folder for the synthetic tables")
    words.add_argument("--peer-python", help="of an environment with ctgan, for ctgan and tvae")
    words.add_argument("--peer-epochs", type=int, default=300)
    words.add_argument("--report", action="store_true")
    given = words.parse_args()
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    own = {"python": given.peer_python, "epochs": given.peer_epochs}
    peers: dict[str, Method] = {}
    if given.peer_python:
        peers = {name: partial(peer, method=name, **own) for name in ("ctgan", "tvae")}
    if unknown := set(given.methods) - {"real", *METHODS, *peers}:
        words.error(f"{', '.join(sorted(unknown))}: no such method (ctgan and tvae need --peer-python)")
    if given.data is not None:
        have = {(one["table"], one["method"], one["seed"]) for one in found}
        wanted = [(t, m, s) for t in given.tables for m in given.methods for s in given.seeds]
        for table, method, seed in wanted:
            if (table, method, seed) in have:
                continue
            one = run(given.data, table, method, seed, given.keep, peers)
            print(json.dumps(one), flush=True)
            found.append(one)
            with RESULTS.open("a") as file:
                file.write(json.dumps(one) + "\n")
    (FOLDER / "generation.md").write_text(report(found), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
