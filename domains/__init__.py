"""A domain turns raw data into (values, observed, condition) and back. The pipelines know a domain only
by this.

Tables are one domain, MRI volumes another, images a third. Each is one object with the verbs of `Domain`; a
pipeline works through a data set in units (a row group of a table, one volume, one image), so that
memory stays
bounded and finished units survive an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from ..shared.errors import Fault

Progress = Callable[[str, float], None]
Statistic = Literal["mean", "median", "mode", "sample"]
Raw = TypeVar("Raw")


@dataclass(frozen=True)
class Survey:
    """What one pass over a data set tells, before any work is done.

    Args:
        items: how many rows, volumes or images.
        sha256: of the data's bytes: a run goes on only with the same data.
        per_unit: items that are worked on at a time.
        facts: what a manifest should say about the data (JSON-able; never a cell's value).
        assumed: sentences on what was assumed (delimiter, encoding, sheet).
        faults: warnings; an error is raised instead.
    """

    items: int
    sha256: str
    per_unit: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Unit(Generic[Raw]):
    """A piece of a data set: `items` of them from position `start` on."""

    start: int
    items: int
    raw: Raw


@dataclass(frozen=True)
class Request:
    """What is asked of an imputation.

    Args:
        draws: how many times each missing part is drawn.
        statistic: what the completed data shows of the draws.
        seed: of the draws.
        all_draws: how many completed data sets are written, one for each of the first draws.
    """

    draws: int = 20
    statistic: Statistic = "mean"
    seed: int = 0
    all_draws: int = 0


@dataclass(frozen=True)
class Wish:
    """What is asked of a generation.

    Args:
        count: how many.
        seed: sample i depends on (seed, i) and the wish alone.
        condition: name -> words, "70", "60..80" or "F"; what is not named is left to the model.
        guidance: how strongly to follow the condition; 1 is as trained, None as is usual for the model.
        steps: denoising steps; None is the model's own.
        constraints: tables: what holds in every row ("start<=end").
        complete: tables: without missing cells.
        format: tables: suffix of the file to write; empty chooses by the number of rows.
        prompt, negative: text to follow and to be led away from, by models that `can` "prompt".
        like: files: one to be varied, or two to pass between, by models that `can` "vary".
        strength: in (0, 1], how far from `like`.
    """

    count: int
    seed: int = 0
    condition: Mapping[str, str] = field(default_factory=dict)
    guidance: float | None = None
    steps: int | None = None
    constraints: tuple[str, ...] = ()
    complete: bool = False
    format: str = ""
    prompt: str | None = None
    negative: str | None = None
    like: tuple[str, ...] = ()
    strength: float = 0.5


@dataclass(frozen=True)
class Planned:
    """How a domain would train.

    Args:
        domain: with all its options decided.
        text: those options as YAML, with remarks.
        estimate: minutes, memory_mb, disk_mb.
        lines: what was seen, for a person.
    """

    domain: Domain[Any, Any]
    text: str
    estimate: Mapping[str, float]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One number of a comparison, beside the same number for real data.

    Args:
        name: what is measured, in words.
        synthetic, reference: of the synthetic data, and of real data that takes its place (held-out
            items, or one half of the real ones against the other); None where it cannot be told.
        best: what a perfect copy of the law would have; None where the reference says it.
        meaning: one sentence for a reader who is not a statistician.
    """

    name: str
    synthetic: float | None
    reference: float | None
    best: float | None
    meaning: str


@dataclass(frozen=True)
class Comparison:
    """Synthetic data beside the real data that it was made from.

    Args:
        reference: what the reference figures are of, in words.
        figures: by part: "fidelity", "utility", "privacy"; a part that cannot be assessed has none.
        verdict: by part, a title and sentences; says why a part could not be assessed.
        pictures: by caption, PNG bytes that show nobody real.
        internal: by caption, PNG bytes that show real items beside their nearest synthetic ones.
        facts: how it was measured (JSON-able): counts, features, thresholds, seeds.
        faults: warnings.
    """

    reference: str
    figures: Mapping[str, Sequence[Figure]]
    verdict: Mapping[str, tuple[str, Sequence[str]]]
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    internal: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


class Fitted(Protocol):
    """An encoding and a model, as `train` leaves them behind."""

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON-able facts: what it was trained on, when, by which version."""

    @property
    def warnings(self) -> Sequence[Fault]:
        """What a user should know before trusting it."""

    @property
    def can(self) -> Sequence[str]:
        """The verbs that it serves: impute, generate; and what `generate` can be asked for beside a
        condition: prompt, vary."""

    @property
    def guidance(self) -> float:
        """How strongly `generate` follows a condition unless it is told; 1 is as trained."""

    @property
    def description(self) -> Sequence[str]:
        """Lines for `info`: what it models, item by item."""

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the model folder."""


FittedT = TypeVar("FittedT", bound=Fitted)


class Domain(Protocol[Raw, FittedT]):
    """One kind of data: its files, its encoding, its models, its pictures."""

    @property
    def name(self) -> str:
        """The domain's own ("tabular")."""

    @property
    def things(self) -> str:
        """What its items are called ("rows")."""

    @property
    def made_at_once(self) -> int:
        """How many are generated in a unit of work: what an interruption loses at most."""

    def check(self, path: Path) -> list[Fault]:
        """Every fault of the data at once."""

    def survey(self, path: Path, progress: Progress | None = None) -> Survey:
        """One pass over the data. Raises InputError at the first fault that must be mended."""

    def sample(
        self, path: Path, survey: Survey, limit: int, seed: int, progress: Progress | None = None
    ) -> Raw:
        """At most `limit` items to learn from, chosen by the seed and not by the order of the items."""

    def units(self, path: Path, survey: Survey, first: int, last: int) -> Iterator[Unit[Raw]]:
        """Items first ... last - 1 in order, `survey.per_unit` at a time."""

    def fit(
        self,
        raw: Raw,
        *,
        seed: int,
        about: Mapping[str, Any],
        survey: Survey | None = None,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
        verbs: Sequence[str] | None = None,
    ) -> FittedT:
        """Learn the encoding and the model from observed parts alone; `folder` keeps checkpoints. `verbs` are
        what it must serve, where that saves time; None is all that it can."""

    @property
    def plan_keys(self) -> Sequence[str]:
        """The keys that a plan of this domain holds, beside those of every plan."""

    def plan(
        self, path: Path, survey: Survey, sample: Raw, seed: int, progress: Progress | None = None
    ) -> Planned:
        """Decide how to train on `sample`, and estimate what it takes by a short probe."""

    def follow(self, found: Mapping[str, Any], where: Path) -> Domain[Raw, FittedT]:
        """This domain with the options of a plan; those that were said stay. `where` is for errors."""

    def load(self, folder: Path) -> FittedT:
        """Read a model folder."""

    def fill(
        self, fitted: FittedT, survey: Survey, unit: Unit[Raw], request: Request, folder: Path
    ) -> dict[str, Any]:
        """Fill one unit and keep what was drawn in `folder` (which exists and is empty). Gives counts,
        as JSON."""

    def assemble(
        self,
        path: Path,
        fitted: FittedT,
        survey: Survey,
        parts: Mapping[int, Path],
        end: int,
        out: Path,
        request: Request,
        progress: Progress | None = None,
    ) -> list[str]:
        """Write the completed data and what is beside it into `out`, from the data and the finished parts
        (start of the unit -> its folder), up to item `end`. Gives the names of the files made."""

    def preview(self, path: Path, fitted: FittedT, parts: Sequence[Path], picture: Path) -> None:
        """A picture (PNG) of finished parts: what was observed beside what was filled."""

    def summary(self, counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The counts of all units in one."""

    def tell(self, counted: Mapping[str, Any]) -> list[str]:
        """The summary in plain words, a line each."""

    def generate(
        self,
        fitted: FittedT,
        wish: Wish,
        first: int,
        last: int,
        folder: Path,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Make samples first ... last - 1 and keep them in `folder` (which exists and is empty). Gives
        counts, as JSON; under "warnings", the fields of faults that a user should know of.

        Raises:
            InputError: the model cannot generate, or not what is wished.
        """

    def publish(
        self, fitted: FittedT, wish: Wish, parts: Sequence[Path], out: Path, facts: Mapping[str, Any]
    ) -> list[str]:
        """Write what was generated, with a picture of it, into `out`, each file marked as synthetic with
        `facts`. Gives the names of the files made."""


@runtime_checkable
class Measures(Protocol):
    """A domain that compares synthetic data with real data. (Tables have a report of their own.)"""

    def measure(
        self,
        real: Path,
        synthetic: Path,
        holdout: Path | None,
        *,
        seed: int,
        fitted: Any = None,
        progress: Progress | None = None,
    ) -> Comparison:
        """Judge `synthetic` beside `real`, and beside `holdout`: items that no model has seen.

        Args:
            seed: of every random choice.
            fitted: the model that made `synthetic`, for attacks that look into it.
        """
