"""Labels (column names, categories) as plain JSON."""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd


def pack(value: Hashable) -> Any:
    """A label (column name, category) as plain JSON, or TypeError when it has no plain form.

    Example:
        >>> pack(("a", 1)), unpack(pack(("a", 1)))
        ({'tuple': ['a', 1]}, ('a', 1))
    """
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return value if np.isfinite(value) else {"float": repr(value)}
        case bytes():
            return {"bytes": value.hex()}
        case tuple():
            return {"tuple": [pack(v) for v in value]}
        case Decimal():
            return {"decimal": str(value)}
        case pd.Timestamp():
            return {
                "timestamp": value.isoformat(),
                "unit": value.unit,
                "tz": None if value.tz is None else str(value.tz),
            }
        case pd.Timedelta():
            return {"timedelta": value.isoformat(), "unit": value.unit}
        case dt.datetime():
            return {"datetime": value.isoformat()}
        case dt.date():
            return {"date": value.isoformat()}
        case dt.time():
            return {"time": value.isoformat()}
    raise TypeError(f"a label of type {type(value).__name__} has no plain form")


def unpack(data: Any) -> Any:
    """The label that `pack` wrote."""
    if not isinstance(data, dict):
        return data
    match next(iter(data.items())):
        case "float", text:
            return float(text)
        case "bytes", text:
            return bytes.fromhex(text)
        case "tuple", parts:
            return tuple(unpack(p) for p in parts)
        case "decimal", text:
            return Decimal(text)
        case "timestamp", text:
            stamp = pd.Timestamp(text).as_unit(data["unit"])
            return stamp if data["tz"] is None else stamp.tz_convert(data["tz"])
        case "timedelta", text:
            return pd.Timedelta(text).as_unit(data["unit"])
        case "datetime", text:
            return dt.datetime.fromisoformat(text)
        case "date", text:
            return dt.date.fromisoformat(text)
        case "time", text:
            return dt.time.fromisoformat(text)
    raise ValueError(f"not a packed label: {sorted(data)}")
