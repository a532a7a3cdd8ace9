"""Ebbtide: generate and complete data by reverse diffusion.

    >>> import ebbtide
    >>> ebbtide.__version__.count(".")
    2

Each name is loaded when it is first used, so that `import ebbtide` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebbtide.pipelines.estimator import TabularImputer as TabularImputer
    from ebbtide.pipelines.frames import Imputation as Imputation
    from ebbtide.pipelines.frames import impute as impute
    from ebbtide.pipelines.oversampling import Augment as Augment
    from ebbtide.pipelines.oversampling import Oversampler as Oversampler
    from ebbtide.pipelines.pooling import Pooled as Pooled
    from ebbtide.pipelines.pooling import pool as pool
    from ebbtide.pipelines.python import generate as generate
    from ebbtide.pipelines.python import train as train

__version__ = "0.1.0"

_HOMES = {
    "Augment": "ebbtide.pipelines.oversampling",
    "Imputation": "ebbtide.pipelines.frames",
    "Oversampler": "ebbtide.pipelines.oversampling",
    "Pooled": "ebbtide.pipelines.pooling",
    "TabularImputer": "ebbtide.pipelines.estimator",
    "generate": "ebbtide.pipelines.python",
    "impute": "ebbtide.pipelines.frames",
    "pool": "ebbtide.pipelines.pooling",
    "train": "ebbtide.pipelines.python",
}

__all__ = [
    "Augment",
    "Imputation",
    "Oversampler",
    "Pooled",
    "TabularImputer",
    "__version__",
    "generate",
    "impute",
    "pool",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
