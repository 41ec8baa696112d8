"""What JSON Schema must say beside a body's fields: which of them belong together. For the document alone.

A body's class carries such a rule as ``also``. Handlers hold to the same rules in code, with an error that says what to
do; the test of the document's truth holds both against each other. A field that is null counts as left out, as it does
in the handlers; ``present`` is for fields whose null is a value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Schema = dict[str, Any]

_NULL: Final[Schema] = {"type": "null"}
_GIVEN: Final[Schema] = {"not": _NULL}


def shape(
    *, given: Iterable[str] = (), absent: Iterable[str] = (), present: Iterable[str] = (), **fields: Schema
) -> Schema:
    """``given``: there and not null. ``absent``: not there, or null. ``fields``: further schemas of fields."""
    given, present = tuple(given), tuple(present)
    told = dict.fromkeys(given, _GIVEN) | dict.fromkeys(absent, _NULL) | fields
    required = [*given, *present]
    return {"properties": told} | ({"required": required} if required else {})


def one_of(*shapes: Schema) -> Schema:
    """Exactly one of the shapes fits."""
    return {"oneOf": list(shapes)}


def any_of(*shapes: Schema) -> Schema:
    """One of the shapes fits, or several."""
    return {"anyOf": list(shapes)}


def all_of(*schemas: Schema) -> Schema:
    return {"allOf": list(schemas)}


def exactly_one(*names: str) -> Schema:
    """One of the fields is given and the others are not."""
    return one_of(*(shape(given=(name,), absent=_others(names, name)) for name in names))


def at_most_one(*names: str) -> Schema:
    return one_of(shape(absent=names), *(shape(given=(name,), absent=_others(names, name)) for name in names))


def exactly_one_present(*names: str) -> Schema:
    """As ``exactly_one`` for fields that may be null: null is a value of theirs."""
    return one_of(*(shape(present=(name,), **{other: {"not": {}} for other in _others(names, name)}) for name in names))


def _others(names: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def with_rules(component: dict[str, Any], rule: Schema) -> dict[str, Any]:
    """A body's schema with its rule beside it, or below ``allOf`` where both say something under one word."""
    if component.keys().isdisjoint(rule):
        return component | dict(rule)
    return component | {"allOf": [*component.get("allOf", ()), dict(rule)]}
