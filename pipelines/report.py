"""The report on a synthetic table: its figures as plain JSON, its verdict in words, and one HTML file.

What may be shared is made of `facts` alone, in which every figure is an aggregate and rounded. Words that
promise more than a test can show are never used: "no leak found by these attacks at this power".
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ..domains.tabular.measures import Assessment, Fidelity, Privacy
from ..domains.tabular.measures.inference import Attack
from ..domains.tabular.measures.intervals import ALPHA, Rate
from ..domains.tabular.measures.learners import Usefulness
from ..domains.tabular.measures.membership import EVERYBODY, Membership

DIGITS = 3
"""Decimals of every figure."""
NEVER = ("anonym", "gdpr", "safe", "guaranteed", "risk-free")
"""Words that no report says (a test looks)."""
WORST = 10
"""Pairs of columns listed."""


def rounded(value: float) -> float | None:
    """A figure as it is published; None for what is not a number."""
    return round(float(value), DIGITS) + 0.0 if np.isfinite(value) else None


def rate_facts(rate: Rate) -> dict[str, Any]:
    """A rate with its interval."""
    return {
        "share": rounded(rate.share),
        "low": rounded(rate.low),
        "high": rounded(rate.high),
        "of": rate.trials,
    }


# ------------------------------------------------------------------------------------------------- figures


def fidelity_facts(found: Assessment) -> dict[str, Any]:
    """Every figure of likeness as [synthetic, reference]."""
    a, b = found.synthetic, found.reference

    def both(of: Any) -> list[float | None]:
        return [rounded(of(a)), rounded(of(b))]

    measures = {
        "single columns": (lambda f: np.mean(list(f.shape.values())), 1.0),
        "pairs of columns": (lambda f: np.mean(list(f.trend.values() or [1.0])), 1.0),
        "classifier, boosted trees: AUC": (lambda f: f.boosting.auc, 0.5),
        "classifier, boosted trees: detection score": (lambda f: f.boosting.score, 1.0),
        "classifier, logistic regression: AUC": (lambda f: f.logistic.auc, 0.5),
        "classifier, logistic regression: detection score": (lambda f: f.logistic.score, 1.0),
        "alpha-precision": (lambda f: f.alpha_beta.alpha_precision, 1.0),
        "beta-recall": (lambda f: f.alpha_beta.beta_recall, 1.0),
        "precision": (lambda f: f.prdc.precision, 1.0),
        "recall": (lambda f: f.prdc.recall, 1.0),
        "density": (lambda f: f.prdc.density, 1.0),
        "coverage": (lambda f: f.prdc.coverage, 1.0),
        "pattern of missing cells": (lambda f: f.patterns, 1.0),
    }
    rules = ("any_rule", "out_of_range", "unseen_level", "too_precise")
    pairs = sorted(a.trend, key=lambda pair: a.trend[pair] - b.trend.get(pair, 1.0))[:WORST]
    return {
        "measures": {name: {"values": both(of), "best": best} for name, (of, best) in measures.items()},
        "columns": {name: both(lambda f, name=name: f.shape[name]) for name in a.shape},
        "missing": {name: both(lambda f, name=name: f.missing[name]) for name in a.missing},
        "worst_pairs": {
            " and ".join(pair): [rounded(a.trend[pair]), rounded(b.trend.get(pair, np.nan))] for pair in pairs
        },
        "rules": {rule: [_rule(a, rule), _rule(b, rule)] for rule in rules},
        "rows_compared": {"neighbours": a.rows, "classifier": a.boosting.rows},
    }


def _rule(found: Fidelity, rule: str) -> float | None:
    return None if found.violations is None else rounded(getattr(found.violations, rule))


def utility_facts(useful: Usefulness) -> dict[str, Any]:
    """One target."""
    return {
        "target": useful.target,
        "measure": useful.measure,
        "values": [rounded(useful.synthetic), rounded(useful.real)],
        "agreement": rounded(useful.agreement),
        "important": [[name, rounded(real), rounded(made)] for name, real, made in useful.important],
        "trained": list(useful.trained),
        "tested": useful.tested,
    }


def privacy_facts(found: Privacy) -> dict[str, Any]:
    """Every attack; never which row."""
    p = dict(zip((test[0] for test in found.tests()), found.adjusted, strict=True))
    copies = found.copies
    names = iter(test[0] for test in found.tests()[1:])
    return {
        "attacks": found.n_attacks,
        "tests": len(found.adjusted),
        "leaks": found.leaks,
        "copies": {
            **{
                name: rate_facts(getattr(copies, name))
                for name in ("exact", "exact_holdout", "near_training", "near_holdout", "holdout_flagged")
            },
            "expected": rounded(copies.expected),
            "p": rounded(p["copies of training rows"]),
            "planted": {sort: rate_facts(rate) for sort, rate in copies.hit_rates.items()},
            "detector_sees": copies.sees,
            "smallest": rounded(copies.smallest),
        },
        "membership": [_membership_facts(m, p[next(names)]) for m in found.membership],
        "inference": [_attack_facts(a, p[next(names)]) for a in found.attacks],
        "smoke_alarm": rate_facts(found.closer),
    }


def _membership_facts(found: Membership, p: float) -> dict[str, Any]:
    return {
        "name": found.name,
        "group": found.group,
        "auc": {
            "value": rounded(found.area.value),
            "low": rounded(found.area.low),
            "high": rounded(found.area.high),
        },
        "caught": [
            {
                "false_alarms": caught.false_alarms,
                "resolved": caught.resolved,
                "found": rate_facts(caught.found),
                "alarms": rate_facts(caught.alarms),
            }
            for caught in found.caught
        ],
        "p": rounded(p),
        "leak": p < ALPHA,
        "smallest_auc": rounded(found.smallest_area),
        "smallest_rate": rounded(found.smallest_rate),
    }


def _attack_facts(found: Attack, p: float) -> dict[str, Any]:
    return {
        "name": found.name,
        "about": found.about,
        **{sort: rate_facts(getattr(found, sort)) for sort in ("attack", "control", "baseline")},
        "risk": rounded(found.risk),
        "p": rounded(p),
        "leak": p < ALPHA,
        "smallest": rounded(found.smallest),
    }


def facts_of(found: Assessment) -> dict[str, Any]:
    """All figures of a report, rounded, as plain JSON."""
    made = {
        "rows": dict(found.rows),
        "reference": found.reference_name,
        "fidelity": fidelity_facts(found),
        "utility": {
            "targets": [utility_facts(one) for one in found.useful],
            "chosen": found.target_reason,
        },
        "privacy": None if found.privacy is None else privacy_facts(found.privacy),
        "privacy_not_assessed": found.privacy_reason,
    }
    return {"verdict": verdict(made), **made}


# ------------------------------------------------------------------------------------------------- verdict


def verdict(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each part a level ("good", "look", "bad" or "none") and plain sentences."""
    return {
        "privacy": _privacy_verdict(facts["privacy"], facts["privacy_not_assessed"]),
        "fidelity": _fidelity_verdict(facts["fidelity"]["measures"], facts["reference"]),
        "utility": _utility_verdict(facts["utility"]["targets"]),
    }


def _privacy_verdict(found: Mapping[str, Any] | None, why_not: str) -> dict[str, Any]:
    if found is None:
        advice = "Give people who were held out before training: --holdout."
        return {"level": "none", "title": "Privacy cannot be assessed", "words": [why_not, advice]}
    blind = _blind_words(found["copies"])
    leaks, tests = found["leaks"], found["tests"]
    if leaks:
        more = f"; and {len(leaks) - 4} more" if len(leaks) > 4 else ""
        words = [f"{len(leaks)} of {tests} tests found a leak: {'; '.join(leaks[:4])}{more}."]
        words += ["Treat the synthetic table like the real one.", *blind]
        return {
            "level": "bad",
            "title": "The synthetic table gives away people of the real one",
            "words": words,
        }
    words = [f"No leak found by these {found['attacks']} attacks ({tests} tests) at this power."]
    words += [*_power_words(found), *blind]
    return {"level": "look" if blind else "good", "title": "No leak found", "words": words}


def _blind_words(copies: Mapping[str, Any]) -> list[str]:
    if copies["detector_sees"]:
        return []
    worst = min(rate["share"] for rate in list(copies["planted"].values())[:2])
    how = "is nearly blind in this table" if worst < 0.5 else "misses some copies in this table"
    return [
        f"The detector of copies {how}: of copies that were planted to try it, "
        f"it found {percent(worst)} of one sort (95 % are wanted)."
    ]


def _power_words(found: Mapping[str, Any]) -> list[str]:
    whole = next(m for m in found["membership"] if m["group"] == EVERYBODY)
    return [
        "The smallest leaks that would have been seen, four times in five: copies of "
        f"{percent(found['copies']['smallest'])} of the synthetic rows; a membership attack with an AUC of "
        f"{whole['smallest_auc']:.2f}, or one that finds {percent(whole['smallest_rate'])} of the training "
        "people at 1 % false alarms. Smaller leaks, and other attacks, may exist."
    ]


def _fidelity_verdict(measures: Mapping[str, Any], reference: str) -> dict[str, Any]:
    columns, pairs = measures["single columns"]["values"], measures["pairs of columns"]["values"]
    auc = measures["classifier, boosted trees: AUC"]["values"]
    close = columns[0] >= columns[1] - 0.03 and pairs[0] >= pairs[1] - 0.05
    level = "good" if close and auc[0] <= 0.7 else "look" if auc[0] <= 0.9 else "bad"
    title = {
        "good": "Close to the real table",
        "look": "Like the real table, with visible differences",
        "bad": "Easily told from the real table",
    }[level]
    words = [
        f"Single columns agree to {percent(columns[0])} ({reference}: {percent(columns[1])}), pairs of "
        f"columns to {percent(pairs[0])} ({percent(pairs[1])}).",
        "Shown a real and a synthetic row, a trained classifier picks the synthetic one "
        f"{100 * auc[0]:.0f} times in 100 (50 is guessing; {reference}: {100 * auc[1]:.0f}).",
    ]
    if auc[0] < 0.45:
        words.append(
            "Well below 50 means that rows of both tables are twins: look at the copies under Privacy."
        )
    return {"level": level, "title": title, "words": words}


def _utility_verdict(targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not targets:
        return {
            "level": "none",
            "title": "Usefulness was not measured",
            "words": ["No column could be predicted."],
        }
    kept = [_kept(target) for target in targets]
    mean = float(np.mean(kept))
    level = "good" if mean >= 0.95 else "look" if mean >= 0.8 else "bad"
    title = {
        "good": "Models learn nearly the same from it",
        "look": "Models learn less from it than from real rows",
        "bad": "Models learn much less from it than from real rows",
    }[level]
    words = [
        f"Predicting {t['target']} on real people: {t['measure']} {t['values'][0]:.3f} when trained on "
        f"synthetic rows, {t['values'][1]:.3f} when trained on real ones."
        for t in targets
    ]
    return {"level": level, "title": title, "words": words}


def _kept(target: Mapping[str, Any]) -> float:
    """The share of what real rows teach beyond guessing that synthetic rows teach too, 0 to 1."""
    made, real = target["values"]
    chance = 0.5 if target["measure"] == "AUC" else 0.0
    return float(np.clip((made - chance) / (real - chance), 0, 1)) if real - chance > 0.02 else 1.0


def percent(share: float | None) -> str:
    """A share as people write it.

    Example:
        >>> percent(0.9714), percent(0.0004), percent(None)
        ('97.1 %', '0.0 %', 'n/a')
    """
    return "n/a" if share is None else f"{100 * share:.1f} %"


# ---------------------------------------------------------------------------------------------------- page


def page(
    facts: Mapping[str, Any], pictures: Mapping[str, bytes], internal: Mapping[str, Any] | None = None
) -> str:
    """One HTML file that needs nothing else.

    Args:
        facts: what `facts_of` gave, with "about" on how the report was made.
        pictures: name -> PNG.
        internal: what only those may see who may see the real table; makes the page say INTERNAL.
    """
    return rendered("report.html", facts, pictures, internal=internal, explain=EXPLAIN, rules=RULES)


def rendered(template: str, facts: Mapping[str, Any], pictures: Mapping[str, bytes], **more: Any) -> str:
    """A page that needs nothing else, from one of our templates, in the look of all reports.

    Args:
        template: its name.
        pictures: name -> PNG.
        more: what else the template asks for.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    ours = files("ebbtide.pipelines").joinpath("templates")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["figure"] = lambda value: "n/a" if value is None else f"{value:.3f}"
    environment.filters["number"] = lambda value: "n/a" if value is None else f"{value:g}"
    encoded = {name: b64encode(data).decode() for name, data in pictures.items()}
    style = Markup(ours.joinpath("report.css").read_text(encoding="utf-8"))
    source = ours.joinpath(template).read_text(encoding="utf-8")
    made: str = environment.from_string(source).render(facts=facts, pictures=encoded, style=style, **more)
    return made


RULES = {
    "any_rule": "rows that break any rule",
    "out_of_range": "a number beyond the real range",
    "unseen_level": "a category that the real table does not have",
    "too_precise": "more decimals than any real cell",
}
EXPLAIN = {
    "single columns": "mean over columns of the KS complement (numbers) and the TV complement (categories)",
    "pairs of columns": "mean over pairs of the correlation or contingency similarity",
    "classifier, boosted trees: AUC": "5-fold; one half: cannot be told apart; below: twins in both tables",
    "classifier, boosted trees: detection score": "1 - (2 max(AUC, 1/2) - 1), as SDMetrics has it",
    "classifier, logistic regression: AUC": "the same with a linear judge",
    "classifier, logistic regression: detection score": "the C2ST figure of most papers",
    "alpha-precision": "are synthetic rows typical ones, at every level of typical",
    "beta-recall": "are real rows matched by near synthetic ones, at every level",
    "precision": "synthetic rows within reach of a real one",
    "recall": "real rows within reach of a synthetic one",
    "density": "how many real neighbourhoods a synthetic row lies in; may pass 1",
    "coverage": "real neighbourhoods that hold a synthetic row",
    "pattern of missing cells": "1 - TV distance of the patterns of missing cells in a row",
}


def nearest_pairs(found: Assessment, synthetic: Sequence[int], real: Sequence[int]) -> dict[str, Any]:
    """The rows that look most like copies, for the internal page.

    Args:
        synthetic, real: position in its file of every row that took part, from 0.
    """
    pairs = found.privacy.copies.pairs if found.privacy else ()
    return {
        "pairs": [
            {"synthetic": int(synthetic[made]) + 1, "real": int(real[row]) + 1, "apart": rounded(apart)}
            for made, row, apart in pairs
        ]
    }
