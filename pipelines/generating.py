"""`ebbtide generate MODEL -n 16 -o OUT`: synthetic data in the domain's own format, marked as such.

Sample i depends on the seed, on i and on what was wished alone: 16 of 100 are the first 16 of 1,000. What is
finished survives an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..domains import Domain, Fitted, Wish
from ..shared.artifacts import tool_version
from ..shared.errors import Fault, InputError
from ..shared.files import locked, refuse_existing
from . import output_cards
from .carding import README
from .manifest import NAME, manifest, model_sha256, sha256_of, write_json
from .work import Work

TEXT_GUIDANCE = 3.0
"""How strongly a text is followed unless said otherwise."""
Progress = Callable[[str, float], None]
SHOWN = 10
"""Files that are named to a person."""


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
    if domain.name != "tabular" and (wish.constraints or wish.complete or wish.format):
        raise InputError("other-domain", "constraints, --complete and --format are about tables", str(model))
    _require_able(fitted, wish, model)
    if wish.guidance is None:  # a text is followed more closely than a condition
        wish = replace(wish, guidance=TEXT_GUIDANCE if wish.prompt or wish.negative else fitted.guidance)
    given = [sha256_of(Path(path)) for path in wish.like]
    work, starts = Work(out), list(range(0, wish.count, domain.made_at_once))
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
        end = min(start + domain.made_at_once, wish.count)

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
    made, faults = list[str](), list[Fault]()
    facts = {
        "synthetic": True,
        "made_by": f"ebbtide {tool_version()}",
        "model_sha256": digest,
        "seed": wish.seed,
        "condition": dict(wish.condition),
        "guidance": wish.guidance,
        "constraints": list(wish.constraints),
        **_asked(wish),
        "note": "SYNTHETIC. Not a measurement of anybody. Not for diagnosis.",
    }

    def build(whole: Path) -> None:
        parts = [work.part(start) for start in starts]
        told = (Fault(**one) for counted in work.counts(starts) for one in counted.get("warnings", []))
        faults.extend(dict.fromkeys((*fitted.warnings, *told)))
        made.extend(domain.publish(fitted, wish, parts, whole, facts))
        written = manifest(
            "generate",
            data={},
            model={"name": model.name, "sha256": digest, **fitted.about},
            options=asdict(wish),
            counts={"generated": wish.count},
            warnings=faults,
            files={name: sha256_of(whole / name) for name in made if name != README},
        )
        write_json(whole / NAME, written | {"note": facts["note"]})
        asked = [f"{k}={v}" for k, v in {**wish.condition, **_asked(wish)}.items()]
        about: dict[str, Any] = {
            "conditions": ", ".join([*asked, *wish.constraints]) or "none",
            "sampler": output_cards.sampler(fitted, wish.steps),
            "seed": wish.seed,
        }
        about["sampler"] += f", guidance {wish.guidance:g}" if wish.guidance not in (None, 1) else ""
        card = output_cards.model_card(model, fitted)
        origin = output_cards.Origin(
            work.out.name, domain, fitted, digest, str(fitted.about.get("data", model.name)), card
        )
        listed = [name for name in made if name != README]  # it is made again, below the card's
        made.extend(output_cards.synthetic(whole, origin, about, wish.count, listed))

    work.finish(build)
    names = tuple(dict.fromkeys([*made, NAME]))
    lines = [f"Generated {wish.count:,} {domain.things}.", f"Wrote {named(names)} in {work.out}"]
    return Generated(work.out, names, {"generated": wish.count}, tuple(lines), tuple(faults))


def named(names: Sequence[str]) -> str:
    """Files for a person: by name, or by number where they are many.

    Example:
        >>> named(["a.csv", "b.csv"]), named([f"{k}.png" for k in range(30)] + ["sub/x.nii"])
        ('a.csv, b.csv', '0.png, 1.png, 2.png, 3.png, ... (31 files)')
    """
    flat = [name for name in names if "/" not in name]
    return ", ".join(flat) if len(flat) <= SHOWN else f"{', '.join(flat[:4])}, ... ({len(names)} files)"


def _asked(wish: Wish) -> dict[str, Any]:
    """What was asked for beside a condition; of files their names."""
    names = [Path(path).name for path in wish.like]
    asked = {"prompt": wish.prompt, "negative": wish.negative, "like": ", ".join(names)}
    if len(names) == 1:
        asked["strength"] = str(wish.strength)
    return {name: words for name, words in asked.items() if words}
