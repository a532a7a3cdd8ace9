"""What is wrong with a set of pictures, all of it at once, before any work is done on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shared.errors import Fault, InputError
from .collection import Collection, collect
from .pictures import Picture

Progress = Callable[[str, float], None]
NAMED = 50
"""Damaged files that are named one by one; the rest are counted."""
FEW = 100
"""Pictures below which a model is likely to learn them by heart."""
FEW_OF_A_CLASS, IMBALANCE = 10, 10
OUTLIER = 4
"""Times that a picture's shorter side may be below or above the median's."""
_SUFFIX = {"JPEG": {".jpg", ".jpeg"}, "TIFF": {".tif", ".tiff"}}


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture that was read."""

    index: int
    name: str
    size: tuple[int, int]
    mode: str
    bits: int
    converted: str
    frames: int
    mislabelled: bool
    blank: bool
    digest: bytes


def check(path: Path | str, *, progress: Progress | None = None, **options: Any) -> list[Fault]:
    """Every fault of a set of pictures, errors first. Every picture is decoded.

    Args:
        path: as for `collect`.
        progress: told what is done and how far it is.
        options: of `collect`.
    """
    faults: list[Fault] = []
    try:
        collection = collect(path, **options)
    except InputError as error:
        faults.append(error.fault)
        if not error.fault.code.startswith("metadata"):
            return faults
        try:  # a table that cannot be read hides no damaged picture
            collection = collect(path, **options, table=False)
        except InputError as second:
            return [*faults, second.fault]
    faults += collection.faults
    seen, damaged = read_all(collection, progress)
    faults += [*named(damaged), *of_kinds(seen, collection.path), *of_sizes(seen, collection.path)]
    faults += [*of_copies(seen, collection), *of_classes(collection), *of_number(collection)]
    return sorted(faults, key=lambda fault: fault.severity != "error")


def read_all(collection: Collection, progress: Progress | None = None) -> tuple[list[Seen], list[Fault]]:
    """(what was read, a fault for each picture that could not be)."""
    seen, damaged = [], []
    for index, name in enumerate(collection.names):
        try:
            seen.append(_seen(index, name, collection.read(index)))
        except InputError as error:
            damaged.append(error.fault)
        if progress is not None and index % 50 == 0:
            progress("reading pictures", index / len(collection))
    return seen, damaged


def _seen(index: int, name: str, picture: Picture) -> Seen:
    pixels, stored = picture.pixels, str(picture.info.get("format", ""))
    suffix = Path(name).suffix.lower()
    known = _SUFFIX.get(stored, {f".{stored.lower()}"})
    form = repr((pixels.shape, picture.bits)).encode()
    digest = hashlib.blake2b(form + pixels.tobytes(), digest_size=16).digest()
    return Seen(
        index,
        name,
        picture.size,
        picture.mode,
        picture.bits,
        str(picture.info.get("converted", "")),
        int(picture.info.get("frames", 1)),
        bool(stored and suffix) and suffix not in known,
        bool((pixels == pixels[:1, :1]).all()),
        digest,
    )


def _warning(code: str, what: str, where: str, remedy: str = "") -> Fault:
    return Fault(code, what, where, remedy, "warning")


def _some(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    held = list(names)
    more = f" and {len(held) - most} more" if len(held) > most else ""
    return ", ".join(held[:most]) + more


def _counted(words: Iterable[str]) -> str:
    """ "3 palette, 1 CMYK": how often each occurs, the most frequent first."""
    counts = Counter(words)
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda p: (-p[1], p[0])))


def named(damaged: Sequence[Fault]) -> list[Fault]:
    """Damaged files one by one, and a count of those beyond the first."""
    rest = Counter(fault.code for fault in damaged[NAMED:])
    left = [
        Fault(code, f"{count} more files like this", "", "mend the ones that are named, and check again")
        for code, count in rest.items()
    ]
    return [*damaged[:NAMED], *left]


def of_kinds(seen: Sequence[Seen], where: str) -> list[Fault]:
    """Modes and depths that differ, what was converted, files of several pictures, wrong suffixes."""
    faults = []
    modes, depths = {s.mode for s in seen}, Counter(s.bits for s in seen)
    if len(modes) > 1:
        what = f"pictures are of different kinds: {_counted(s.mode for s in seen)}"
        remedy = "all are modelled as the most demanding; --channels reduces them"
        faults.append(_warning("image-modes", what, where, remedy))
    if len(depths) > 1:
        what = f"{depths[16]} pictures have 16 bits and {depths[8]} have 8"
        few = (s.name for s in seen if s.bits == min(depths, key=lambda bits: depths[bits]))
        remedy = f"make sure that their brightness means the same; the fewer are {_some(few)}"
        faults.append(_warning("image-depth-mixed", what, where, remedy))
    if converted := [s.converted for s in seen if s.converted]:
        what = f"{len(converted)} pictures are converted as they are read: {_counted(converted)}"
        faults.append(_warning("image-converted", what, where))
    for code, chosen, what in (
        (
            "image-frames",
            [s for s in seen if s.frames > 1],
            "hold several pictures; the first is read",
        ),
        ("image-suffix", [s for s in seen if s.mislabelled], "are of another format than their suffix says"),
        ("image-blank", [s for s in seen if s.blank], "are of one colour throughout"),
    ):
        if chosen:
            remedy = "look at them: " + _some(s.name for s in chosen)
            faults.append(_warning(code, f"{len(chosen)} files {what}", where, remedy))
    return faults


def of_sizes(seen: Sequence[Seen], where: str) -> list[Fault]:
    """Sizes that differ, and pictures far smaller or larger than most."""
    sizes = Counter(s.size for s in seen)
    if len(sizes) < 2:
        return []
    sides = sorted(min(s.size) for s in seen)
    middle = sides[len(sides) // 2]
    smallest, largest = (f"{h} x {w}" for h, w in (min(sizes, key=min), max(sizes, key=min)))
    what = f"there are {len(sizes)} sizes, from {smallest} to {largest}"
    remedy = "each is scaled by its shorter side and cut to its middle; --size sets the model's"
    faults = [_warning("image-sizes", what, where, remedy)]
    for code, word, chosen in (
        ("image-tiny", "smaller", [s for s in seen if min(s.size) * OUTLIER < middle]),
        ("image-huge", "larger", [s for s in seen if min(s.size) > OUTLIER * middle]),
    ):
        if chosen:
            what = f"{len(chosen)} pictures are more than {OUTLIER} times {word} than most ({middle} pixels)"
            faults.append(_warning(code, what, where, "look at them: " + _some(s.name for s in chosen)))
    return faults


def of_copies(seen: Sequence[Seen], collection: Collection) -> list[Fault]:
    """Pictures that are equal pixel for pixel, and those of them that stand in different classes."""
    groups: dict[bytes, list[Seen]] = defaultdict(list)
    for one in seen:
        groups[one.digest].append(one)
    same = [group for group in groups.values() if len(group) > 1]
    crossing = [g for g in same if len({int(collection.labels[s.index]) for s in g} - {-1}) > 1]
    faults = []
    for code, chosen, what, remedy in (
        (
            "image-copies",
            same,
            "equal others pixel for pixel",
            "keep one of each, lest it be learnt by heart",
        ),
        ("image-copies-classes", crossing, "equal others of another class", "decide which class is right"),
    ):
        if chosen:
            spare = sum(len(group) - 1 for group in chosen)
            pairs = _some((" = ".join(s.name for s in group[:2]) for group in chosen), 3)
            faults.append(_warning(code, f"{spare} pictures {what}", collection.path, f"{remedy}: {pairs}"))
    return faults


def of_classes(collection: Collection) -> list[Fault]:
    """Classes with few pictures, and classes of very different numbers."""
    if not collection.class_names:
        return []
    held = Counter(int(k) for k in collection.labels if k >= 0)
    counts = {name: held[k] for k, name in enumerate(collection.class_names)}
    fewest, most = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
    faults = []
    if few := [f"{name!r} ({count})" for name, count in counts.items() if count < FEW_OF_A_CLASS]:
        what = f"{len(few)} of {len(counts)} classes have fewer than {FEW_OF_A_CLASS} pictures"
        remedy = f"add pictures or merge classes: {_some(few)}"
        faults.append(_warning("image-class-few", what, collection.path, remedy))
    if counts[most] > IMBALANCE * counts[fewest]:
        what = f"class {most!r} has {counts[most]} pictures and {fewest!r} {counts[fewest]}"
        faults.append(_warning("image-class-imbalance", what, collection.path, "add to the smaller classes"))
    return faults


def of_number(collection: Collection) -> list[Fault]:
    """Too few pictures to learn from without learning them by heart."""
    if collection.kind == "file" or len(collection) >= FEW:
        return []
    what = f"{len(collection)} pictures are few: a model trained on them may give them back"
    return [_warning("image-few", what, collection.path, f"{FEW} or more are better; augmentation helps")]
