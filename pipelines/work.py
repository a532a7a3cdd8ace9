"""Work in progress: finished units are kept, the whole appears by one rename.

Work lives in `OUT.partial`: a state file that tells one run from another, what was made on the way (a model),
and a folder for each finished unit. Running the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.artifacts import swap_in
from ..shared.errors import InputError
from ..shared.files import explained, flush_to_disk, partial_of, remove, require_space
from .manifest import read_json, write_json


def read_back(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts` as they will be when read from their JSON."""
    back: dict[str, Any] = json.loads(json.dumps(facts))
    return back


@dataclass(frozen=True)
class Work:
    """One run's work.

    Args:
        out: the folder to make; the caller holds its lock.
    """

    out: Path

    @property
    def folder(self) -> Path:
        """Where the work lives until it is whole."""
        return partial_of(self.out)

    @property
    def whole(self) -> Path:
        """What will get the name of `out`."""
        return self.folder / "whole"

    def part(self, start: int) -> Path:
        """The folder of the unit that begins at item `start`."""
        return self.folder / "parts" / f"{start:012d}"

    def begin(self, state: Mapping[str, Any], size: int, overwrite: bool) -> None:
        """Make the working folder, or recognise the unfinished work of the same run in it.

        Args:
            state: what tells this run from another, as plain JSON.
            size: bytes that the work may take, about.
            overwrite: throw away the unfinished work of another run.

        Raises:
            InputError: `unfinished-work`.
        """
        held = self.folder / "state.json"
        if self.folder.exists() and any(self.folder.iterdir()):
            if held.is_file() and read_json(held) == read_back(state):
                return
            if self.worth_keeping and not overwrite:
                raise InputError(
                    "unfinished-work",
                    "an unfinished run with other data, options or model lies here",
                    str(self.folder),
                    "repeat that command to finish it, or pass --overwrite to throw it away",
                )
            remove(self.folder)
        require_space(self.out.parent, size)
        with explained(self.folder):
            (self.folder / "parts").mkdir(parents=True)
        write_json(held, state)

    @property
    def worth_keeping(self) -> bool:
        """Whether there is a model, part of a training or a finished unit."""
        held = (path for name in ("model", "training", "parts") for path in self.folder.glob(f"{name}/*"))
        return any(path.suffix != ".partial" for path in held)

    def missing(self, starts: Iterable[int]) -> list[int]:
        """The units that are not finished yet."""
        return [start for start in starts if not self.part(start).is_dir()]

    def do(self, start: int, unit: Callable[[Path], Mapping[str, Any]]) -> None:
        """One unit becomes a folder, whole or not at all; `unit` fills it and gives its counts."""
        part = self.part(start)
        partial = partial_of(part)
        with explained(part):
            remove(partial)
            partial.mkdir()
            write_json(partial / "counts.json", unit(partial))
            os.rename(partial, part)

    def counts(self, starts: Iterable[int]) -> list[dict[str, Any]]:
        """What each unit counted."""
        return [read_json(self.part(start) / "counts.json") for start in starts]

    def finish(self, build: Callable[[Path], None]) -> None:
        """`build` fills the whole; then it gets its name and the work is put away."""
        with explained(self.out):
            remove(self.whole)
            self.whole.mkdir()
            build(self.whole)
            flush_to_disk(self.whole)
            swap_in(self.whole, self.out)
            remove(self.folder)

    def put_away(self) -> None:
        """After a failure: keep only what is worth keeping."""
        if not self.worth_keeping:
            remove(self.folder)
