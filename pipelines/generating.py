"""`ebbtide generate MODEL -n 16 -o OUT`: synthetic data in the domain's own format, marked as such.

Sample i depends on the seed, on i and on what was wished alone: 16 of 100 are the first 16 of 1,000. What is
finished survives an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..domains import Domain, Fitted, Wish
from ..shared.artifacts import tool_version
from ..shared.errors import Fault, InputError
from ..shared.files import locked, refuse_existing
from .manifest import NAME, manifest, model_sha256, sha256_of, write_json
from .work import Work

Progress = Callable[[str, float], None]
AT_A_TIME = 16
"""Samples in a unit of work: what an interruption loses at most."""


@dataclass(frozen=True)
class Generated:
    """What a run left behind.

    Args:
        folder: the output.
        files: names of what is in it.
        counts: how many were made.
        lines: the same in plain words.
        warnings: what a user should know before trusting them.
    """

    folder: Path
    files: tuple[str, ...]
    counts: Mapping[str, Any]
    lines: tuple[str, ...]
    warnings: tuple[Fault, ...] = ()


def generate(
    model: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    wish: Wish,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Generated:
    """Make synthetic data.

    Args:
        model: a model folder.
        out: a folder that does not exist yet.
        domain: the model's.
        wish: how many, of what.
        overwrite: replace `out`, and throw away an unfinished run of another wish.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: no such model; one that cannot generate, or not what is wished; output that exists.
    """
    model, out = Path(model), Path(out)
    report = progress or (lambda stage, fraction: None)
    if wish.count < 1:
        raise InputError("count", f"{wish.count} samples", "-n", "ask for at least 1")
    refuse_existing(out, overwrite)
    digest, fitted = model_sha256(model), domain.load(model)
    if "generate" not in fitted.can:
        raise InputError(
            "cannot-generate", "this model fills in, and does not generate", str(model), "see `ebbtide info`"
        )
    _require_able(fitted, wish, model)
    given = [sha256_of(Path(path)) for path in wish.like]
    work, starts = Work(out), list(range(0, wish.count, AT_A_TIME))
    with locked(out):
        work.begin({"model": digest, "wish": asdict(wish), "like": given}, 2**24, overwrite)
        try:
            _make(work, domain, fitted, wish, starts, report)
            return _finish(work, domain, fitted, wish, starts, model, digest)
        except BaseException:
            work.put_away()
            raise


def _require_able(fitted: Fitted, wish: Wish, model: Path) -> None:
    """Raises InputError where the wish asks for what the model cannot do, or for a file that is not there."""
    if (wish.prompt or wish.negative) and "prompt" not in fitted.can:
        remedy = "train on pictures with captions (metadata.csv), or ask by --condition"
        raise InputError("prompt", "this model knows no text", str(model), remedy)
    if wish.like and "vary" not in fitted.can:
        raise InputError("like", "this model does not vary what is given", str(model), "leave --like away")
    if len(wish.like) > 2:
        raise InputError(
            "like", "there are more than two", "--like", "give one to vary, or two ends of a way"
        )
    for path in wish.like:
        if not Path(path).is_file():
            raise InputError("file-not-found", "there is no such file", path, "check the path")


def _make(
    work: Work, domain: Domain[Any, Any], fitted: Fitted, wish: Wish, starts: list[int], report: Progress
) -> None:
    for start in work.missing(starts):
        end = min(start + AT_A_TIME, wish.count)

        def unit(folder: Path, start: int = start, end: int = end) -> Mapping[str, Any]:
            return domain.generate(
                fitted,
                wish,
                start,
                end,
                folder,
                lambda label, share: report(label, (start + share * (end - start)) / wish.count),
            )

        work.do(start, unit)


def _finish(
    work: Work,
    domain: Domain[Any, Any],
    fitted: Fitted,
    wish: Wish,
    starts: list[int],
    model: Path,
    digest: str,
) -> Generated:
    made = list[str]()
    doubts = _doubts(work, starts)
    facts = {
        "synthetic": True,
        "made_by": f"ebbtide {tool_version()}",
        "model_sha256": digest,
        "seed": wish.seed,
        "condition": dict(wish.condition),
        "guidance": wish.guidance,
        **_asked(wish),
        "note": "SYNTHETIC. Not a measurement of anybody. Not for diagnosis.",
    }

    def build(whole: Path) -> None:
        parts = [work.part(start) for start in starts]
        made.extend(domain.publish(fitted, wish, parts, whole, facts))
        written = manifest(
            "generate",
            data={},
            model={"name": model.name, "sha256": digest, **fitted.about},
            options=asdict(wish),
            counts={"generated": wish.count},
            warnings=(*fitted.warnings, *doubts),
            files={name: sha256_of(whole / name) for name in made},
        )
        write_json(whole / NAME, written | {"note": facts["note"]})

    work.finish(build)
    shown = [name for name in made if "/" not in name]
    lines = [f"Generated {wish.count:,} {domain.things}.", f"Wrote {', '.join([*shown, NAME])} in {work.out}"]
    return Generated(
        work.out, (*made, NAME), {"generated": wish.count}, tuple(lines), (*fitted.warnings, *doubts)
    )


def _asked(wish: Wish) -> dict[str, Any]:
    """What was asked for beside a condition; of files their names."""
    names = [Path(path).name for path in wish.like]
    asked = {"prompt": wish.prompt, "negative": wish.negative, "like": ", ".join(names)}
    if len(names) == 1:
        asked["strength"] = str(wish.strength)
    return {name: words for name, words in asked.items() if words}


def _doubts(work: Work, starts: list[int]) -> list[Fault]:
    """How the wish goes beyond training, each once."""
    told = [Fault(**fault) for counts in work.counts(starts) for fault in counts.get("doubts", [])]
    return list(dict.fromkeys(told))
