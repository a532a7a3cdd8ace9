"""The report on scans and pictures: what their domain measured, beside real data, and what may be shared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ebbtide.domains import Comparison, Figure, Measures
from ebbtide.domains.tabular import TabularDomain
from ebbtide.pipelines.evaluating import evaluate
from ebbtide.pipelines.report import NEVER
from ebbtide.shared.errors import Fault, InputError

REAL_PICTURE, SHARED_PICTURE = b"\x89PNG real faces", b"\x89PNG montage"
FOUND = Comparison(
    "held-out scans",
    {
        "fidelity": [Figure("precision", 0.812345, 0.9, 1.0, "Synthetic scans lie where real ones are.")],
        "privacy": [
            Figure("copies", 0.25, float("nan"), None, "Scans nearer to a training scan than new ones are.")
        ],
    },
    {
        "fidelity": (
            "Like the real scans, with visible differences",
            ["Precision is 0.81; of real ones 0.90."],
        ),
        "privacy": ("No leak found", ["No leak found by this attack at this power."]),
        "utility": ("Usefulness was not measured", ["There are no labels to learn."]),
    },
    pictures={"Intensities": SHARED_PICTURE},
    internal={"Nearest pairs": REAL_PICTURE},
    facts={"features": "random network", "threshold": 0.123456789, "counts": {"real": 5, "synthetic": 4}},
    faults=(Fault("few", "20 scans say little", "SYNTHETIC", "make more", "warning"),),
)


@dataclass
class Fake:
    """A domain that has measured already."""

    found: Comparison = FOUND
    name: str = "mri"
    things: str = "volumes"
    seen: dict[str, Any] = field(default_factory=dict)

    def measure(
        self,
        real: Path,
        synthetic: Path,
        holdout: Path | None,
        *,
        seed: int,
        fitted: Any = None,
        progress: Any = None,
    ) -> Comparison:
        self.seen = {"real": real, "synthetic": synthetic, "holdout": holdout, "seed": seed, "fitted": fitted}
        return self.found

    def load(self, folder: Path) -> str:
        return f"model of {folder.name}"


def judged(folder: Path, domain: Any, **more: Any) -> tuple[dict[str, Any], Mapping[str, str]]:
    for name in ("real", "made", "held"):
        (folder / name).mkdir(exist_ok=True)
    done = evaluate(folder / "real", folder / "made", folder / "out", domain=domain, overwrite=True, **more)
    pages = {name: (folder / "out" / f"report_{name}.html").read_text() for name in ("share", "internal")}
    assert json.loads((folder / "out" / "report.json").read_text()) == done.facts
    return done.facts, pages


def test_a_domain_that_measures_is_known_as_such() -> None:
    assert isinstance(Fake(), Measures) and not isinstance(TabularDomain(), Measures)


def test_every_figure_stands_beside_that_of_real_data(tmp_path: Path) -> None:
    facts, pages = judged(tmp_path, Fake())
    assert facts["figures"]["fidelity"][0] == {
        "name": "precision",
        "synthetic": 0.812,
        "reference": 0.9,
        "best": 1.0,
        "meaning": "Synthetic scans lie where real ones are.",
    }
    row = re.search(r"<tr><td>precision</td>(.*?)</tr>", pages["share"])
    assert row and re.findall(r"<td>(.*?)</td>", row[1])[:3] == ["0.812", "0.9", "1"]
    assert "<th>held-out scans</th>" in pages["share"]


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    facts, pages = judged(tmp_path, Fake())
    assert facts["figures"]["privacy"][0]["reference"] is None
    assert "<td>0.25</td><td>n/a</td><td></td>" in pages["share"]
    assert facts["verdict"]["utility"]["level"] == "none"
    assert "Usefulness was not measured. There are no labels to learn." in pages["share"]
    facts, _ = judged(tmp_path, Fake(replace(FOUND, verdict={}, figures={})))
    assert {found["title"] for found in facts["verdict"].values()} == {"Not assessed"}


def test_only_the_internal_page_shows_real_items(tmp_path: Path) -> None:
    from base64 import b64encode

    _, pages = judged(tmp_path, Fake())
    real, shared = b64encode(REAL_PICTURE).decode(), b64encode(SHARED_PICTURE).decode()
    assert real not in pages["share"] and real in pages["internal"]
    assert shared in pages["share"] and shared in pages["internal"]
    assert "INTERNAL" in pages["internal"] and "INTERNAL" not in pages["share"]


def test_a_page_needs_nothing_else_and_promises_nothing(tmp_path: Path) -> None:
    _, pages = judged(tmp_path, Fake())
    for text in pages.values():
        assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text) and "<script" not in text
        said = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text).lower()
        assert not [word for word in NEVER if word in said]
        for part in ("fidelity", "utility", "privacy", "method"):
            assert f'<h2 id="{part}">' in text
    assert "<b>No leak found</b>" in pages["share"] and "20 scans say little" in pages["share"]


def test_how_it_was_measured_is_told_and_rounded(tmp_path: Path) -> None:
    facts, pages = judged(tmp_path, Fake(), holdout=tmp_path / "held", seed=5)
    assert facts["measured"]["threshold"] == 0.123 and "0.123456" not in pages["internal"]
    assert "random network" in pages["share"] and "real: 5; synthetic: 4" in pages["share"]
    assert facts["about"]["holdout"] == "held" and "seed 5" in pages["share"]


def test_the_model_is_handed_to_the_domain_and_named(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text('{"model": {"sha256": "%s"}}' % ("a" * 64))
    (tmp_path / "m").mkdir()
    domain = Fake()
    facts, pages = judged(tmp_path, domain, model=tmp_path / "m", seed=3)
    assert domain.seen["fitted"] == "model of m" and domain.seen["seed"] == 3
    assert facts["about"]["model_sha256"] == "a" * 64 and "model aaaaaaaaaaaa" in pages["share"]


def test_levels_may_colour_the_verdict(tmp_path: Path) -> None:
    facts, pages = judged(tmp_path, Fake(replace(FOUND, facts={"levels": {"privacy": "bad"}})))
    assert facts["verdict"]["privacy"]["level"] == "bad" and 'class="verdict bad"' in pages["share"]
    assert "levels" not in facts["measured"]


def test_a_domain_that_cannot_judge_says_so(tmp_path: Path) -> None:
    class Silent:
        name, things = "sounds", "recordings"

    with pytest.raises(InputError, match=r"cannot-evaluate.*recordings"):
        judged(tmp_path, Silent())
    assert not (tmp_path / "out").exists()
