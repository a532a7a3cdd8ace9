"""What figures of synthetic scans come to, in words and pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...shared.errors import Fault
from .. import Figure
from .comparable import Ground, Scans
from .copied import CopySearch
from .membership import Membership
from .preview import Picture, montage

TRUSTED = 20
"""Scans of a kind, below which figures mean little."""
SHOWN = 4  # scans in a picture, of each kind


def told_fidelity(
    p: float, differing: Sequence[tuple[str, float]], figures: Sequence[Figure], count: int
) -> tuple[str, list[str]]:
    apart = p < 0.01
    title = (
        "Synthetic scans can be told from real ones" if apart else "Not told from real ones by these features"
    )
    said = [
        f"Regrouping real and synthetic scans at random sets them as far apart in {100 * p:.1f} % of trials."
    ]
    far = [f"{name} ({z:+.1f} sd)" for name, z in differing if abs(z) > 0.5]
    if far:
        said.append(f"What differs most on average: {', '.join(far)}.")
    likeness = next(f for f in figures if "MS-SSIM" in f.name)
    if likeness.synthetic is not None and likeness.reference:
        ratio = likeness.synthetic / likeness.reference
        word = (
            "within 10 % of"
            if abs(ratio - 1) <= 0.1
            else "more alike than"
            if ratio > 1
            else "less alike than"
        )
        said.append(f"Scans among themselves are {word} the real ones' likeness ({ratio:.2f} times).")
    if count < TRUSTED:
        said.append(f"{count} synthetic scans are few: only coarse faults show.")
    return title, said


def told_utility(figures: Sequence[Figure]) -> tuple[str, list[str]]:
    if not figures:
        why = "No covariate is known of enough scans in all sets (ten or more, not all the same)."
        return "Not assessed", [why, "Train a model with --condition and generate with --condition NAME=*."]
    said = [
        f"{f.name}: correlation {f.synthetic:.2f} if learnt on synthetic scans, {f.reference:.2f} on real."
        for f in figures
    ]
    return "What scans tell of covariates", said


def told_privacy(
    found: CopySearch, count: int, held: bool, known: Membership | None
) -> tuple[str, list[str]]:
    flagged = int(found.copies.flagged.sum())
    said = []
    if found.power < 0.95:
        title = "The search for copies is too weak on these scans"
        said.append(f"It found {100 * found.power:.0f} % of the planted copies only.")
    elif flagged:
        title = f"{flagged} of {count} synthetic scans are copies of real ones"
        said.append("Do not release them; retrain with fewer steps or more subjects.")
    else:
        title = "No copy found by this search"
        said.append(f"It found {100 * found.power:.0f} % of the planted copies.")
    if known is not None and known.told:
        title += ", but the model knows those it was trained on" if not flagged else ""
        said.append(f"It fills them in better than others (area {known.area:.2f}): do not hand it out.")
    elif known is not None:
        said.append(f"The model fills in its training scans no better than others (area {known.area:.2f}).")
    if not held:
        said.append(
            "Without --holdout it is not known whether the model leans toward those it was trained on."
        )
    said.append(
        "Whole scans are compared, and a copied part is not found: that no copy was found does not prove "
        "that nobody can be recognised."
    )
    return title, said


def faults_of(train: Scans, fake: Scans, found: CopySearch) -> tuple[Fault, ...]:
    faults = []
    for kind, scans in (("real", train), ("synthetic", fake)):
        if len(scans) < TRUSTED:
            what = f"{len(scans)} {kind} scans: figures of fewer than {TRUSTED} mean little"
            faults.append(Fault("few-scans", what, "", "give more", "warning"))
    if found.twins:
        what = f"{found.twins} real scans are as near to another real one as copies are"
        advice = "keep one scan of each person, or all of them on one side of every split"
        faults.append(Fault("twins", what, "", advice, "warning"))
    if found.held is not None and (seen := int((found.held < found.copies.threshold).sum())):
        what = f"{seen} held-out scans are as near to a real one as copies are"
        faults.append(Fault("holdout-seen", what, "", "hold out people whom the model never saw", "warning"))
    return tuple(faults)


def pictured(
    train: Scans, fake: Scans, found: CopySearch, ground: Ground
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Of synthetic scans alone, without those that are copies; and beside real ones, for those who may see
    them."""
    affine = ground.space.affine
    clean = (~found.copies.flagged).nonzero()[:, 0].tolist()
    shown = [(fake.volumes[i, 0].numpy(), affine) for i in clean[: 3 * SHOWN]]
    share = {"Synthetic scans": _drawn(shown, "SYNTHETIC. Not for diagnosis.")} if shown else {}
    rows = [
        (scans.volumes[i, 0].numpy(), affine)
        for scans in (train, fake)
        for i in range(min(SHOWN, len(scans)))
    ]
    titles = [
        kind for kind, scans in (("real", train), ("SYNTHETIC", fake)) for _ in range(min(SHOWN, len(scans)))
    ]
    near = found.copies.distances.argsort()[: SHOWN // 2].tolist()
    pairs, words = [], []
    for i in near:
        whom = int(found.copies.positions[i])
        pairs += [(fake.volumes[i, 0].numpy(), affine), (train.volumes[whom, 0].numpy(), affine)]
        word = "copy" if found.copies.flagged[i] else "near"
        words += [f"{fake.names[i]}, {word}: {float(found.copies.distances[i]):.2f}", "the nearest real scan"]
    internal = {
        "Real scans above, synthetic ones below": _drawn(
            rows, "Shows real people: do not share.", titles, rows=-(-len(rows) // SHOWN)
        ),
        "The synthetic scans nearest to a real one, beside it": _drawn(
            pairs, "Shows real people: do not share.", words, rows=len(near)
        ),
    }
    return share, internal


def _drawn(
    volumes: Sequence[Picture], heading: str, titles: Sequence[str] | None = None, rows: int | None = None
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "montage.png"
        montage(volumes, path, titles=titles, rows=rows, heading=heading)
        return path.read_bytes()
