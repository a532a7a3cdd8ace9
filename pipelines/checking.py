"""`ebbtide check DATA`: every fault at once, before any work is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..domains import Domain
from ..shared.errors import Fault


@dataclass(frozen=True)
class Checked:
    """What was found.

    Args:
        data: what was looked at.
        faults: errors first.
    """

    data: Path
    faults: tuple[Fault, ...]

    @property
    def exit_code(self) -> int:
        """2 when something must be mended, 0 when nothing must."""
        return 2 if any(fault.severity == "error" for fault in self.faults) else 0

    @property
    def lines(self) -> list[str]:
        """A line for each fault, and one that sums up."""
        count = Counter(fault.severity for fault in self.faults)
        told = [f"{fault.severity}: {fault}" for fault in self.faults]
        if not self.faults:
            return [f"{self.data}: no fault found"]
        return [
            *told,
            f"{self.data}: {_counted(count['error'], 'error')}, {_counted(count['warning'], 'warning')}",
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {"data": str(self.data), "faults": [asdict(fault) for fault in self.faults]}


def check(data: Path | str, *, domain: Domain[Any, Any]) -> Checked:
    """Look at all of a data set and list what is wrong with it, or may be."""
    return Checked(Path(data), tuple(domain.check(Path(data))))


def _counted(number: int, what: str) -> str:
    """1 error, 2 errors."""
    return f"{number} {what}" + ("" if number == 1 else "s")
