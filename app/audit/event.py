"""The audit event and its one encoding, the leaf entry.

A leaf entry is the event's canonical JSON (RFC 8785, JCS) restricted to strings, integers below 2^53 in magnitude,
booleans, arrays and objects: no floats, no null (an absent field is left out), ASCII field names. A line of an export
is the leaf entry itself, so an auditor hashes lines: leaf = SHA-256(0x00 || line without its newline), RFC 9162
section 2.1.1. ``docs/format-audit.md`` is the page for readers; a test holds it against ``FIELDS``.

Errors name the field and never its value.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from app.audit.actions import ACTIONS
from app.identity import Kind, Purpose, Role

__all__ = [
    "ACTIONS",
    "FIELDS",
    "SALT_BYTES",
    "VERSION",
    "EventError",
    "commitment",
    "decode",
    "encode",
    "format_time",
    "leaf_hash",
    "to_ocsf",
]

VERSION = 1
MAX_ENTRY_BYTES = 1 << 20
MAX_INTEGER = (1 << 53) - 1  # RFC 7493 section 2.2: what every JSON reader keeps exactly
SALT_BYTES = 16
OUTCOMES = ("allowed", "denied", "failed")
REQUIRED = ("v", "id", "time", "tenant", "region", "writer", "seq", "action", "outcome")


class EventError(ValueError):
    """Not a version 1 event, or not its canonical bytes."""


Rule = Callable[[Any], object]


class Field(NamedTuple):
    """``rule`` is truthy for an allowed value and falsy or a TypeError otherwise; the rest is for readers."""

    rule: Rule
    shape: str
    meaning: str


def _matches(pattern: str) -> Rule:
    return re.compile(pattern, re.ASCII).fullmatch


def _one_of(values: Iterable[str]) -> Rule:
    return frozenset(map(str, values)).__contains__


def _integer(low: int = 0) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= MAX_INTEGER


_HEX = "[0-9a-f]"
_uuid = _matches(rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}")
_uuid7 = _matches(rf"{_HEX}{{8}}-{_HEX}{{4}}-7{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}")
_code = _matches(r"[a-z0-9][a-z0-9._-]{0,63}")
_printable = _matches(r"[\x21-\x7e]{1,2048}")
_commitment = _matches(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")  # the last character carries 4 bits: one spelling only
_time_shape = _matches(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z")
_context_name = _matches(r"[\x20-\x7e]{1,256}")
_detail_name = _matches(r"[a-z][a-z0-9_]{0,63}")
_number = _integer(-MAX_INTEGER)
_count = _integer(0)
_positive = _integer(1)


def _time(value: Any) -> object:
    if not _time_shape(value):
        return False
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return False


def _pairs(value: Any, rule: Rule) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (list, tuple)) and len(item) == 2 and rule(item[0]) and rule(item[1]) for item in value
    )


def _objects(value: Any) -> bool:
    return _pairs(value, _uuid)


def _turns(value: Any) -> bool:
    return _pairs(value, _count) and all(first <= last for first, last in value)


def _strings(value: Any) -> bool:
    return isinstance(value, dict) and all(_context_name(k) and isinstance(v, str) for k, v in value.items())


def _detail(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _detail_name(k) and (isinstance(v, str) or _number(v)) for k, v in value.items()
    )


_UUID_SHAPE = "UUID, lower case"
_CODE_SHAPE = "a-z 0-9 . _ -, at most 64"
_PRINTABLE_SHAPE = "printable ASCII without spaces, at most 2,048"
_COMMITMENT_SHAPE = "43 characters base64url"
_COUNT_SHAPE = "integer from 0"

FIELDS: Mapping[str, Field] = {
    "v": Field(lambda value: type(value) is int and value == VERSION, "the integer 1", "Format of the event."),
    "id": Field(_uuid7, "UUIDv7, lower case", "The event's id."),
    "time": Field(_time, "RFC 3339, UTC, 6 decimals, Z", "When the key use was authorised."),
    "tenant": Field(_uuid, _UUID_SHAPE, "Whose log this is; the nil UUID in the cell's own log."),
    "region": Field(_matches(r"[a-z0-9][a-z0-9-]{0,63}"), "a-z 0-9 -, at most 64", "The tenant's region."),
    "writer": Field(_uuid, _UUID_SHAPE, "The worker process that wrote the event."),
    "seq": Field(_positive, "integer from 1", "Gap-free number per writer and tenant."),
    "action": Field(_one_of(ACTIONS), "one of the actions below", "What was done or asked for."),
    "outcome": Field(_one_of(OUTCOMES), "allowed, denied or failed", "How it was decided or how it ended."),
    "reason": Field(_code, _CODE_SHAPE, "Why not; present exactly when the outcome isn't allowed."),
    "principal": Field(_uuid, _UUID_SHAPE, "Who called."),
    "api_key": Field(_uuid, _UUID_SHAPE, "The id of the API key that the caller showed."),
    "role": Field(_one_of(Role), "runtime, admin, auditor or operator", "The API key's role."),
    "purpose": Field(
        _one_of(Purpose), "serve, subject-access, tenant-export or maintenance", "What the context was opened for."
    ),
    "container": Field(_uuid, _UUID_SHAPE, "The container."),
    "kind": Field(_one_of(Kind), "session, subject or app", "The container's kind."),
    "objects": Field(_objects, "array of [object id, version]", "Every object and version opened, sealed or deleted."),
    "turns": Field(_turns, "array of [from, to], both included", "Every turn opened, sealed or removed."),
    "commit": Field(_count, _COUNT_SHAPE, "The container's commit number after the action."),
    "kek": Field(_printable, _PRINTABLE_SHAPE, "URI of the key-encryption key."),
    "kek_version": Field(_printable, _PRINTABLE_SHAPE, "Its version, where the provider names one."),
    "trk": Field(_count, _COUNT_SHAPE, "Generation of the tenant root key."),
    "ck": Field(_count, _COUNT_SHAPE, "Generation of the container key."),
    "lease_ms": Field(_count, _COUNT_SHAPE, "Age of the lease on the cached key, in milliseconds."),
    "grace": Field(lambda value: value is True, "true", "The lease had ended; the tenant's opt-in grace served."),
    "intent": Field(_uuid7, "UUIDv7, lower case", "In key.outcome: the id of its key.intent event."),
    "kms_request_id": Field(_printable, _PRINTABLE_SHAPE, "The provider's own id of the call."),
    "kms_ms": Field(_count, _COUNT_SHAPE, "Duration of the call, in milliseconds."),
    "kms_error": Field(_printable, _PRINTABLE_SHAPE, "The provider's error code or our class of it."),
    "encryption_context": Field(_strings, "object of strings", "The encryption context that the provider was given."),
    "trace": Field(_matches(rf"(?!0{{32}}){_HEX}{{32}}"), "32 hex digits", "W3C trace id."),
    "request": Field(_matches(r"[A-Za-z0-9._:-]{1,128}"), "A-Z a-z 0-9 . _ : -, at most 128", "Our id of the request."),
    "source": Field(_commitment, _COMMITMENT_SHAPE, "Salted commitment of the caller's address."),
    "actor": Field(_commitment, _COMMITMENT_SHAPE, "Salted commitment of a free-text actor name."),
    "detail": Field(_detail, "object of strings and integers", "States, counts and ids particular to the action."),
}

_RULES = {name: field.rule for name, field in FIELDS.items()}
# Within the allowed values orjson writes exactly RFC 8785: its escapes are those of section 3.2.2.2, and for ASCII
# names the order by UTF-16 code units of section 3.2.3 is that of the bytes. A property test holds it to that.
_SORTED = orjson.OPT_SORT_KEYS


def encode(event: Mapping[str, Any]) -> bytes:
    """The leaf entry of ``event``. Raises EventError for anything that isn't a version 1 event."""
    _check(event)
    try:
        entry = orjson.dumps(event if isinstance(event, dict) else dict(event), option=_SORTED)
    except orjson.JSONEncodeError:
        raise EventError("a string is not Unicode text (RFC 8785 section 3.2.2.2: lone surrogate)") from None
    if len(entry) > MAX_ENTRY_BYTES:
        raise EventError(f"the event is larger than {MAX_ENTRY_BYTES} bytes")
    return entry


def decode(line: bytes) -> dict[str, Any]:
    """The event in a leaf entry. Refuses bytes that ``encode`` would not have made: spaces, order, duplicates."""
    if len(line) > MAX_ENTRY_BYTES:
        raise EventError(f"the line is larger than {MAX_ENTRY_BYTES} bytes")
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        # The error carries the document, which must not travel on.
        raise EventError("the line is not JSON in UTF-8") from None
    if not isinstance(event, dict):
        raise EventError("the line is not a JSON object")
    if encode(event) != line:
        raise EventError("the line is not in canonical form (RFC 8785)")
    return event


def _check(event: Mapping[str, Any]) -> None:
    for name in REQUIRED:
        if name not in event:
            raise EventError(f"the field {name} is missing")
    name = ""
    try:
        for name, value in event.items():
            if not _RULES[name](value):
                raise EventError(f"the field {name} is not {FIELDS[name].shape}")
    except KeyError:
        raise EventError("there is a field that version 1 doesn't have") from None
    except TypeError:
        raise EventError(f"the field {name} has a wrong type: it is {FIELDS[name].shape}") from None
    if ("reason" in event) == (event["outcome"] == "allowed"):
        raise EventError("the field reason is present exactly when the outcome is denied or failed")


def leaf_hash(entry: bytes) -> bytes:
    """RFC 9162 section 2.1.1: SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def commitment(value: str, salt: bytes) -> str:
    """base64url(SHA-256(salt || value)), 43 characters. ``salt`` is ``SALT_BYTES`` random bytes, fresh for each value.

    The salt's length is fixed, because otherwise bytes could move between salt and value and one commitment would
    open to two values. Once value and salt are erased from the side table, nothing about the value can be learnt.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has exactly {SALT_BYTES} bytes")
    return urlsafe_b64encode(hashlib.sha256(salt + value.encode()).digest()).rstrip(b"=").decode()


def format_time(moment: datetime) -> str:
    """``moment`` as events carry it. It must be aware; events are in UTC with exactly six decimals."""
    if moment.tzinfo is None:
        raise ValueError("an event's time needs a time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


_OCSF_READ, _OCSF_UPDATE, _OCSF_QUERY, _OCSF_WRITE, _OCSF_CREATE, _OCSF_DELETE, _OCSF_OTHER = 1, 2, 4, 5, 6, 7, 99
_OCSF_ACTIVITIES = {
    "read": _OCSF_READ,
    "load": _OCSF_READ,
    "export": _OCSF_READ,
    "update": _OCSF_UPDATE,
    "lookup": _OCSF_QUERY,
    "query": _OCSF_QUERY,
    "write": _OCSF_WRITE,
    "commit": _OCSF_WRITE,
    "append": _OCSF_WRITE,
    "create": _OCSF_CREATE,
    "branch": _OCSF_CREATE,
    "delete": _OCSF_DELETE,
    "pop": _OCSF_DELETE,
    "clear": _OCSF_DELETE,
    "erasure": _OCSF_DELETE,
    "expire": _OCSF_DELETE,
}
_OCSF_CLASS = 6005


def to_ocsf(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event as OCSF 1.3 Datastore Activity (class 6005).

    ``raw_data`` is the leaf entry, so that the converted event still verifies: leaf = SHA-256(0x00 || raw_data).
    """
    entry = encode(event)
    activity = _OCSF_ACTIVITIES.get(event["action"].rpartition(".")[2], _OCSF_OTHER)
    allowed = event["outcome"] == "allowed"
    ocsf: dict[str, Any] = {
        "class_uid": _OCSF_CLASS,
        "category_uid": _OCSF_CLASS // 1000,
        "activity_id": activity,
        "type_uid": _OCSF_CLASS * 100 + activity,
        "time": _milliseconds(event["time"]),
        "severity_id": 1 if allowed else 3,
        "status_id": 1 if allowed else 2,
        "status": "Success" if allowed else "Failure",
        "metadata": {
            "version": "1.3.0",
            "product": {"name": "Confide", "vendor_name": "Confide"},
            "uid": event["id"],
            "sequence": event["seq"],
            "tenant_uid": event["tenant"],
        },
        "actor": {"user": {"uid": event["principal"]}} if "principal" in event else {"app_name": "Confide"},
        "src_endpoint": {"uid": event["source"]} if "source" in event else {"name": "unknown"},
        "databucket": {
            "uid": event.get("container", event["tenant"]),
            "type_id": 99,
            "type": event.get("kind", "tenant"),
        },
        "cloud": {"provider": "Confide", "region": event["region"]},
        "raw_data": entry.decode(),
        "unmapped": dict(event),
    }
    if activity == _OCSF_OTHER:
        ocsf["activity_name"] = event["action"]
    if "reason" in event:
        ocsf["status_detail"] = event["reason"]
    return ocsf


def _milliseconds(time: str) -> int:
    moment = datetime.fromisoformat(time)
    return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000
