"""Closed schemas: every fault of a document at once, by name. The part of JSON Schema that cards use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..shared.errors import Fault

Schema = Mapping[str, Any]
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
WORDS = {
    "object": "keys with values",
    "array": "a list",
    "string": "text (put it in quotes)",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def faults_of(document: Any, schema: Schema, where: str) -> list[Fault]:
    """What is wrong with a document: keys that are not known, blanks, wrong types and values.

    Args:
        document: plain data, as YAML or JSON gives it.
        schema: `type`, `enum`, `const`, `anyOf`, `required`, `properties`, `additionalProperties`, `items`,
            `minItems`, `maxItems`, `minLength`, `minimum`, `pattern`, and `allOf` of `if` / `then`.
        where: named in the faults; the path of keys is added to it.

    Example:
        >>> schema = {"properties": {"age": {"type": "integer"}}, "additionalProperties": False}
        >>> [str(fault) for fault in faults_of({"aeg": 3}, schema, "card.yaml")]
        ["card-key: card.yaml: there is no key 'aeg' in a card; did you mean age?"]
    """
    return list(_faults(document, schema, where))


def blank(value: Any) -> bool:
    """Whether nothing was filled in: null, empty text, an empty list or object, or a list of such.

    Example:
        >>> blank(None), blank("  "), blank([None]), blank(0), blank("unknown")
        (True, True, True, False, False)
    """
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return all(blank(item) for item in value)
    return value is None or value == {}


def _faults(value: Any, schema: Schema, where: str) -> Iterator[Fault]:
    if "anyOf" in schema:
        if not any(not faults_of(value, choice, where) for choice in schema["anyOf"]):
            yield _wrong(where, schema, f"must be {' or '.join(map(_expected, schema['anyOf']))}")
        return
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield _wrong(where, schema, f"must be {_expected(schema)}")
        return
    if "const" in schema and value != schema["const"]:
        yield _wrong(where, schema, f"must be {_expected(schema)}")
    if "enum" in schema and value not in schema["enum"]:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in schema["enum"]], n=1)
        yield _wrong(
            where, schema, f"must be {_expected(schema)}", f"did you mean {near[0]}?" if near else ""
        )
    if isinstance(value, str):
        yield from _text_faults(value, schema, where)
    if isinstance(value, int | float) and "minimum" in schema and value < schema["minimum"]:
        yield _wrong(where, schema, f"must be at least {schema['minimum']}")
    if isinstance(value, list):
        yield from _list_faults(value, schema, where)
    if isinstance(value, dict):
        yield from _object_faults(value, schema, where)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _text_faults(value: str, schema: Schema, where: str) -> Iterator[Fault]:
    if len(value.strip()) < schema.get("minLength", 0):
        yield _blank(where, schema)
    elif "pattern" in schema and not re.search(schema["pattern"], value):
        yield _wrong(where, schema, "is not written as it must be")


def _list_faults(value: Sequence[Any], schema: Schema, where: str) -> Iterator[Fault]:
    if len(value) < schema.get("minItems", 0):
        yield _blank(where, schema)
    if len(value) > schema.get("maxItems", len(value)):
        yield _wrong(where, schema, f"must have at most {schema['maxItems']} entries")
    for at, item in enumerate(value, 1):
        yield from _faults(item, schema.get("items", {}), f"{where} ({at})")


def _object_faults(value: Mapping[str, Any], schema: Schema, where: str) -> Iterator[Fault]:
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    required = list(schema.get("required", ()))
    for rule in schema.get("allOf", ()):
        if not faults_of(value, rule["if"], where):
            required += [key for key in rule["then"]["required"] if key not in required]
    for key in required:
        if blank(value.get(key)):
            yield _blank(_under(where, key), known.get(key, {}))
    for key, item in value.items():
        if blank(item):  # an optional field that is not filled in, or told above
            continue
        if key in known:
            yield from _faults(item, known[key], _under(where, key))
        elif rest is False:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            yield Fault("card-key", f"there is no key {str(key)!r} in a card", where, advice)
        elif isinstance(rest, Mapping):
            yield from _faults(item, rest, _under(where, str(key)))


def _under(where: str, key: str) -> str:
    return f"{where}, {key}"


def _expected(schema: Schema) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join([", ".join(map(str, schema["enum"][:-1])), str(schema["enum"][-1])])
    kinds = schema["type"]
    return " or ".join(WORDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _blank(where: str, schema: Schema) -> Fault:
    means = f" ({schema['description']})" if schema.get("description") else ""
    return Fault("card-blank", f"is blank{means}", where, "fill it in, or write unknown")


def _wrong(where: str, schema: Schema, what: str, advice: str = "") -> Fault:
    return Fault("card-value", what, where, advice or str(schema.get("description", "")))
