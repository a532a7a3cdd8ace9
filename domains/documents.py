"""YAML that a person edits: safe to read, against a closed set of keys, with advice for every slip."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..shared.errors import InputError

_NAMES: dict[type, str] = {
    dict: "keys with values",
    list: "a list",
    str: "text (put it in quotes)",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
}
S = TypeVar("S")


def read_yaml(
    path: Path, kind: str = "plan", remedy: str = "mend it, or plan again", *, words: bool = False
) -> dict[Any, Any]:
    """Plain YAML that holds keys and values.

    Args:
        kind: what it is, for errors.
        words: every value as it is written, not as YAML takes it ("no" is no truth value).

    Raises:
        InputError: `KIND-yaml`, with the line.
    """
    try:
        loader = yaml.BaseLoader if words else yaml.SafeLoader
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{kind}-yaml", "this is not plain YAML", where, remedy) from error
    if not isinstance(found, dict):
        raise InputError(f"{kind}-yaml", f"a {kind} is keys with values", str(path), remedy)
    return found


def scalar(value: Any) -> str:
    """One value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def section(name: str, values: Mapping[str, Any]) -> list[str]:
    """A key that holds keys, as lines."""
    return [f"{name}:", *(f"  {word}: {scalar(value)}" for word, value in values.items())]


def closed(found: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse keys that are not known, with the nearest that is."""
    known = list(known)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError("plan-key", f"there is no key {str(key)!r} in a plan", where, advice)


def typed(found: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any, path: Path) -> Any:
    """The value of a key, or `default` where it is absent or null; refuse another type."""
    value = found.get(key)
    if value is None:
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool)):
        what = f"{key} must be {_NAMES[kinds[0]]}, not {_NAMES.get(type(value), 'what it is')}"
        raise InputError("plan-type", what, f"{path}, {key}", "mend it, or plan again")
    return value


def spoken(said: Any) -> dict[str, Any]:
    """What of some options was said: the fields of a dataclass that are not as they are by themselves."""
    default = type(said)()
    return {
        field.name: getattr(said, field.name)
        for field in fields(said)
        if getattr(said, field.name) != getattr(default, field.name)
    }


def settings_of(cls: type[S], default: S, model: Mapping[str, Any], path: Path) -> S:
    """A settings dataclass from the plan's `model`, each value of the type of its default's.

    Args:
        cls: has `from_dict`.
        default: whose types and values count.
    """
    closed(model, [field.name for field in fields(default)], f"{path}, model")  # type: ignore[arg-type]
    usual = asdict(default)  # type: ignore[call-overload]
    for word, value in model.items():
        kinds: tuple[type, ...] = {
            tuple: (list,),
            float: (int, float),
            int: (int,),
            type(None): (list,) if word == "trees" else (int, float),
        }.get(type(usual[word]), (type(usual[word]),))
        if value is None and (usual[word] is None or word == "patience"):
            continue
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual[word], bool):
            example = scalar(usual[word])
            raise InputError(
                "plan-type", f"{word} is not of the right type", f"{path}, model", f"like {example}"
            )
    made: S = cls.from_dict({**usual, **model})  # type: ignore[attr-defined]
    return made
