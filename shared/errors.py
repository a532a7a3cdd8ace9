"""Errors and faults that a person can act on: a code, what, where, what was expected, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """One thing found wrong with an input.

    Args:
        code: short and stable, for searching and for `--json` ("csv-row-length").
        what: what is wrong, with the expectation, in one clause. Never a cell's value, only where it is.
        where: file, row, column, as far as they apply ("data.csv, row 17").
        remedy: what the user should do.
        severity: an error stops the work; a warning is told and goes on.
    """

    code: str
    what: str
    where: str = ""
    remedy: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.remedy}" if self.remedy else ""
        return f"{self.code}: {place}{self.what}{advice}"


class EbbtideError(Exception):
    """A failure that is explained in one line. Exit code 1."""

    exit_code = 1

    def __init__(self, code: str, what: str, where: str = "", remedy: str = "") -> None:
        self.fault = Fault(code, what, where, remedy)
        super().__init__(str(self.fault))


class InputError(EbbtideError, ValueError):
    """Bad input: the user can mend it. Exit code 2. A ValueError too, as scikit-learn expects."""

    exit_code = 2
