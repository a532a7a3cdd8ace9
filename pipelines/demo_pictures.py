"""The demo's pictures: the truth, what was left of it, and what came back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..domains.tabular.preview import FILLED, INK, OBSERVED, figure, plain

if TYPE_CHECKING:
    from .demo import Trial

RESTORED, TRUTH = "1_what_came_back.png", "2_truth_and_intervals.png"
DISTRIBUTIONS, ERRORS = "3_distributions.png", "4_errors.png"
SPECIES = {"Adelie": "#e07a3f", "Chinstrap": "#8e5aa8", "Gentoo": "#2a8c82"}
X, Y = "bill_length_mm", "bill_depth_mm"
LABELS = {
    "bill_length_mm": "bill length (mm)",
    "bill_depth_mm": "bill depth (mm)",
    "flipper_length_mm": "flipper length (mm)",
    "body_mass_g": "body mass (g)",
}


def draw_all(trial: Trial, scores: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Write the four pictures."""
    came_back(trial, folder / RESTORED)
    truth_and_intervals(trial, folder / TRUTH)
    distributions(trial, folder / DISTRIBUTIONS)
    errors(scores, folder / ERRORS)


def came_back(trial: Trial, picture: Path) -> None:
    """Bill length against depth by species: truth, what is left, filled by means, filled by one draw."""
    from matplotlib.lines import Line2D

    made = figure(15, 4.5)
    touched = trial.holes[[X, Y, "species"]].any(axis=1) | trial.given[[X, Y, "species"]].isna().any(axis=1)
    panels = [
        ("the truth", trial.truth, None),
        ("with holes: penguins that can still be drawn", trial.given, None),
        ("holes filled with the mean", trial.filled["mean / mode"], touched),
        ("holes filled by Ebbtide (one draw)", trial.draws[0], touched),
    ]
    axes_in_row: Any = made.subplots(1, 4, sharex=True, sharey=True)
    for axes, (title, frame, marked) in zip(axes_in_row, panels, strict=True):
        for species, color in SPECIES.items():
            of = (frame["species"] == species) & frame[[X, Y]].notna().all(axis=1)
            old = of if marked is None else of & ~marked
            axes.scatter(
                frame[X][old], frame[Y][old], s=13, color=color, alpha=0.75, linewidths=0, label=species
            )
            if marked is not None:
                new = of & marked
                axes.scatter(
                    frame[X][new], frame[Y][new], s=17, facecolors="none", edgecolors=color, linewidths=0.9
                )
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(LABELS[X], fontsize=9, color=INK)
        plain(axes)
    axes_in_row[0].set_ylabel(LABELS[Y], fontsize=9, color=INK)
    ring = Line2D([], [], marker="o", linestyle="", markerfacecolor="none", markeredgecolor=INK, markersize=5)
    dots, names = axes_in_row[0].get_legend_handles_labels()
    made.legend(
        [*dots, ring],
        [*names, "a penguin with a filled cell"],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    made.savefig(picture, format="png")


def truth_and_intervals(trial: Trial, picture: Path) -> None:
    """Each hidden number against what was filled in for it, with its 90 % interval."""
    made = figure(15, 4.1)
    axes_in_row: Any = made.subplots(1, len(trial.numbers))
    ours = trial.filled["Ebbtide"]
    for axes, name in zip(axes_in_row, trial.numbers, strict=True):
        at = trial.holes[name].to_numpy()
        truth, filled = trial.truth[name][at].to_numpy(float), ours[name][at].to_numpy(float)
        low, high = trial.lower[name][at].to_numpy(float), trial.upper[name][at].to_numpy(float)
        inside = (low <= truth) & (truth <= high)
        ends = [min(truth.min(), low.min()), max(truth.max(), high.max())]
        axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=1)
        for part, color in ((inside, OBSERVED), (~inside, FILLED)):
            axes.vlines(truth[part], low[part], high[part], color=color, linewidth=1.1, alpha=0.6, zorder=2)
            axes.plot(truth[part], filled[part], ".", color=color, markersize=5, zorder=3)
        axes.set_title(
            f"{LABELS[name]}\n{inside.sum()} of {len(truth)} intervals hold the truth", fontsize=10
        )
        axes.set_xlabel("truth", fontsize=9, color=INK)
        plain(axes)
    axes_in_row[0].set_ylabel("filled in, with its 90 % interval", fontsize=9, color=INK)
    made.savefig(picture, format="png")


def distributions(trial: Trial, picture: Path) -> None:
    """Hidden cells: how they truly spread, how single draws do, and what means make of them."""
    made = figure(15, 3.8)
    axes_in_row: Any = made.subplots(1, len(trial.numbers) + 1, width_ratios=[1] * len(trial.numbers) + [1.1])
    for axes, name in zip(axes_in_row, trial.numbers, strict=False):
        at = trial.holes[name]
        truth = trial.truth[name][at]
        drawn = np.concatenate([draw[name][at] for draw in trial.draws])
        bins = np.linspace(trial.truth[name].min(), trial.truth[name].max(), 16)
        axes.hist(truth, bins, density=True, color=OBSERVED, label="truth")
        axes.hist(drawn, bins, density=True, histtype="step", color=FILLED, linewidth=1.8, label="our draws")
        mean = trial.filled["mean / mode"][name][at].mean()
        axes.axvline(
            mean, color=INK, linestyle="--", linewidth=1.2, label="the mean (or mode), in every hole"
        )
        axes.set_title(LABELS[name], fontsize=10)
        axes.set_yticks([])
        plain(axes)
        axes.spines["left"].set_visible(False)
    species_bars(trial, axes_in_row[-1])
    handles, labels = axes_in_row[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    made.savefig(picture, format="png")


def species_bars(trial: Trial, axes: Any) -> None:
    """Shares of the species among hidden cells: truth, draws, mode."""
    at = trial.holes["species"]
    shown = [
        (OBSERVED, [trial.truth["species"][at]]),
        (FILLED, [draw["species"][at] for draw in trial.draws]),
        (INK, [trial.filled["mean / mode"]["species"][at]]),
    ]
    height = np.arange(len(SPECIES))
    for place, (color, columns) in zip((0.27, 0, -0.27), shown, strict=True):
        share = [np.mean([(column == species).mean() for column in columns]) for species in SPECIES]
        axes.barh(height + place, share, 0.26, color=color)
    axes.set_yticks(height, list(SPECIES))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_title("species", fontsize=10)
    plain(axes)


def errors(scores: Mapping[str, Mapping[str, float]], picture: Path) -> None:
    """Bars: error of numbers and share of wrong categories, by method."""
    made = figure(10, 2.6)
    ordered = sorted(scores, key=lambda method: -scores[method]["rmse"])
    rmse = [scores[method]["rmse"] for method in ordered]
    wrong = [100 * (1 - scores[method]["accuracy"]) for method in ordered]
    measures = [
        ("error of hidden numbers (RMSE, standard deviations)", rmse, "{:.2f}"),
        ("hidden categories that are wrong", wrong, "{:.0f} %"),
    ]
    axes_in_row: Any = made.subplots(1, 2, sharey=True)
    for axes, (title, values, form) in zip(axes_in_row, measures, strict=True):
        colors = [FILLED if method == "Ebbtide" else OBSERVED for method in ordered]
        bars = axes.barh(ordered, values, 0.62, color=colors)
        axes.bar_label(bars, [form.format(value) for value in values], padding=4, fontsize=9, color=INK)
        axes.set_xlim(0, 1.15 * max(values))
        axes.set_xticks([])
        axes.set_title(title, fontsize=10, loc="left")
        plain(axes)
        axes.spines["bottom"].set_visible(False)
    made.savefig(picture, format="png")
