"""What a body is before it's sealed: inline JSON in canonical form, base64 in its one spelling, RFC 7396 merges.

Canonical JSON here is: UTF-8, no insignificant white space, object names sorted by their code points, numbers as IEEE
754 doubles or 64-bit integers in their shortest form. A number that can't be kept exactly is refused, never rounded; so
is an object that has a name twice, since one of the values would be lost.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from typing import Any, Final

import orjson

from app.errors import BadRequest, InvalidRequest, NumberNotRepresentable

_LONG_NUMBER: Final = re.compile(rb"[0-9.eE+-]{16,}|[0-9][eE][+-]?[0-9]{3}")
_MAX_DEPTH: Final = 100
_MALFORMED: Final = "A JSON value is not well-formed, or nested more than 254 levels deep."


def canonical(raw: bytes | memoryview) -> bytes:
    """JSON text in canonical form. Raises ``BadRequest`` or ``NumberNotRepresentable``; the errors hold no content."""
    try:
        if _LONG_NUMBER.search(raw):
            _check_numbers(bytes(raw))
        text = orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        raise BadRequest(_MALFORMED) from None
    _check_names(bytes(raw), text)
    return text


def _check_names(raw: bytes, text: bytes) -> None:
    """Refuse an object with the same name twice (RFC 7493 section 2.3).

    Canonical form keeps the number of quotation marks, unless a member went or one was written as an escape; only then
    is the whole value looked through.
    """
    if raw.count(b'"') == text.count(b'"') and b"\\u0022" not in raw:
        return
    try:
        json.loads(raw, object_pairs_hook=_distinct)
    except RecursionError:
        raise BadRequest(_MALFORMED) from None


def _distinct(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        raise BadRequest("An object in a JSON value has the same name twice (RFC 7493 section 2.3).")
    return found


def _check_numbers(raw: bytes) -> None:
    """Refuse numbers that a double or a 64-bit integer doesn't hold. Only bodies with long runs of digits come here."""
    try:
        json.loads(raw, parse_int=_exact_integer, parse_float=_exact_float)
    except (ValueError, RecursionError):
        raise BadRequest(_MALFORMED) from None


def _exact_integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise NumberNotRepresentable
    return int(text)


def _exact_float(text: str) -> float:
    value = float(text)
    digits = re.sub(r"[eE].*", "", text).replace(".", "").lstrip("-0").rstrip("0")
    if value in {float("inf"), float("-inf")} or (value == 0 and digits) or len(digits) > 17:
        raise NumberNotRepresentable
    return value


def parse(raw: bytes) -> Any:
    """The value of stored JSON, which was kept byte for byte. Raises ``InvalidRequest`` where it has no canonical form:
    merged, it would be stored as something else.
    """
    try:
        return orjson.loads(canonical(raw))
    except NumberNotRepresentable as error:
        raise NumberNotRepresentable(f"The stored object can't be merged: put it whole. {error.detail}") from None
    except BadRequest as error:
        raise InvalidRequest(f"The stored object can't be merged: put it whole. {error.detail}") from None


def dump(value: Any) -> bytes:
    """A merged value in canonical form. Raises ``InvalidRequest`` where it is nested too deeply."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        raise InvalidRequest("The merged object would be nested more than 254 levels deep.") from None


def is_json(raw: bytes) -> bool:
    """Whether bytes are one well-formed JSON text, so that they may stand in an envelope as they are."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def merge(target: Any, patch: Any, depth: int = 0) -> Any:
    """RFC 7396 section 2. Raises ``BadRequest`` beyond 100 levels."""
    if depth > _MAX_DEPTH:
        raise BadRequest("The patch is nested too deeply.")
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value, depth + 1)
    return result


def from_base64(text: str, pointer: str) -> bytes:
    """Strict RFC 4648 section 4: padded, no stray characters, no stray bits."""
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        raw = None
    if raw is None or b64encode(raw).decode() != text:
        raise InvalidRequest("A base64 value is not in its canonical form (RFC 4648 section 4, padded).", pointer)
    return raw


def to_base64(raw: bytes) -> str:
    return b64encode(raw).decode()


def patch(raw: bytes | memoryview) -> Any:
    """A merge patch, parsed. Raises as ``canonical`` does."""
    return orjson.loads(canonical(raw))
