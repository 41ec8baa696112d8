"""Journal rows as leaf entries, quickly: what the sealer does for every event of the cell.

Nearly all events are openings and sealings whose facts differ in a few known places only (``Auditing.facts``). What
stays equal for a caller and a key state is checked once and kept as canonical JSON; an entry is then put together from
it. A row of any other kind, or with anything unexpected in it, takes the way of ``entry_of``. Both give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.audit.event import ACTIONS, FIELDS, MAX_ENTRY_BYTES, MAX_INTEGER, format_time
from app.services.audit_events import entry_of
from app.store.audit_seal import Encoded

KEPT: Final = 20_000
_STABLE: Final = frozenset({"principal", "api_key", "role", "purpose", "kek", "kek_version", "trk", "ck", "kind"})
_TAIL: Final = re.compile(
    r'(?:,"lease_ms":(0|[1-9][0-9]{0,14})(,"grace":true)?)?,"trace":"((?!0{32})[0-9a-f]{32})?",'
    r'"request":"([A-Za-z0-9._:-]{1,128})?","source":"([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])?"\}',
    re.ASCII,
)
_CODE: Final = FIELDS["reason"].rule
_NOT_ALLOWED: Final = frozenset({"denied", "failed"})


@dataclass(frozen=True, slots=True)
class _Stable:
    """The part of an event that a caller's next event has too: column values, and pieces of JSON in their order."""

    principal: str | None
    api_key: str | None
    kek: str | None
    purpose: str | None
    before_commit: str
    before_lease: str
    before_reason: str
    role: str
    trk: str


class Encoder:
    """``encode`` takes rows as ``audit_seal.unsealed`` gives them: ids and arrays of ids as text."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._in_region = f',"region":"{region}"' if FIELDS["region"].rule(region) else ""
        self._stable: dict[str, _Stable] = {}
        self._moment: datetime | None = None
        self._time = ""
        self._names: dict[UUID, str] = {}

    def encode(self, row: Any) -> Encoded:
        """Never fails: what can't be encoded becomes an event that says so."""
        return self._hot(row) or self._any(row)

    def _any(self, row: Any) -> Encoded:
        known = dict(row) | {
            "id": UUID(row["id"]),
            "objects": _items(row["objects"]),
            "versions": _items(row["versions"]),
        }
        event, entry, fault = entry_of(known, self._region)
        return Encoded.of(event, entry, fault)

    def _hot(self, row: Any) -> Encoded | None:
        """None for what has to be looked at more closely."""
        facts = row["facts"]
        end = facts.rfind(',"trace":"')
        start = facts.rfind(',"lease_ms":', 0, end)
        start = start if start > 0 else end
        tail = _TAIL.fullmatch(facts, start) if start > 0 else None
        if tail is None:
            return None
        head = facts[:start]
        stable = self._stable.get(head)
        if stable is None:
            stable = self._learn(head)
        found = _found(row)
        if stable is None or found is None:
            return None
        items, commit, container, named, reason, turns = found
        lease, grace, trace, request, source = tail.groups()
        moment, ident, action, outcome = row["time"], row["id"], row["action"], row["outcome"]
        if moment != self._moment:
            self._time, self._moment = format_time(moment), moment
        trace = "" if trace is None else f',"trace":"{trace}"'
        request = "" if request is None else f',"request":"{request}"'
        source = "" if source is None else f',"source":"{source}"'
        lease = "" if lease is None else f',"lease_ms":{lease}'
        entry = (
            f'{{"action":"{action}"{stable.before_commit}{commit}{container}{grace or ""},"id":"{ident}"'
            f'{stable.before_lease}{lease}{named},"outcome":"{outcome}"{stable.before_reason}{reason}{self._in_region}'
            f'{request}{stable.role},"seq":{row["seq"]}{source},"tenant":"{self._name(row["tenant_id"])}",'
            f'"time":"{self._time}"{trace}{stable.trk}{turns},"v":1,"writer":"{self._name(row["writer"])}"}}'
        ).encode()
        if len(entry) > MAX_ENTRY_BYTES:
            return None
        return Encoded(
            ident,
            self._time,
            action,
            outcome,
            stable.principal,
            stable.api_key,
            row["container"],
            stable.kek,
            None,
            stable.purpose,
            items,
            entry,
        )

    def _name(self, ident: UUID) -> str:
        """The text of an id that comes again and again."""
        name = self._names.get(ident)
        if name is None:
            if len(self._names) >= KEPT:
                self._names.clear()
            name = self._names[ident] = str(ident)
        return name

    def _learn(self, head: str) -> _Stable | None:
        """Check what facts begin with, once. Only what passed is kept."""
        try:
            known = orjson.loads(head + "}")
        except orjson.JSONDecodeError:
            return None
        if not known or not _STABLE.issuperset(known) or not self._in_region:
            return None
        known = {name: value for name, value in known.items() if value is not None and value != ""}
        try:
            if not all(FIELDS[name].rule(value) for name, value in known.items()):
                return None
        except TypeError:
            return None
        if len(self._stable) >= KEPT:
            self._stable.clear()
        get = known.get
        made = self._stable[head] = _Stable(
            get("principal"),
            get("api_key"),
            get("kek"),
            get("purpose"),
            _pieces(known, "api_key", "ck"),
            _pieces(known, "kek", "kek_version", "kind"),
            _pieces(known, "principal", "purpose"),
            _pieces(known, "role"),
            _pieces(known, "trk"),
        )
        return made


def _pieces(known: Mapping[str, Any], *names: str) -> str:
    return "".join(f',"{name}":{orjson.dumps(known[name]).decode()}' for name in names if name in known)


def _items(text: str | None) -> list[str] | None:
    """The ids of an array in PostgreSQL's text form."""
    return None if text is None else text[1:-1].split(",") if len(text) > 2 else []


def _found(row: Any) -> tuple[Sequence[str], str, str, str, str, str] | None:
    """What the statement knew: items, and pieces of JSON. None: look closer."""
    ident, outcome, reason = row["id"], row["outcome"], row["reason"]
    if ident[14] != "7" or ident[19] not in "89ab" or not 0 < row["seq"] <= MAX_INTEGER or row["action"] not in ACTIONS:
        return None
    if reason is not None:
        if outcome not in _NOT_ALLOWED or not _CODE(reason):
            return None
        reason = f',"reason":"{reason}"'
    elif outcome != "allowed":
        return None
    commit, container, turns = row["commit_number"], row["container"], row["turns"]
    if commit is not None and not 0 <= commit <= MAX_INTEGER:
        return None
    if turns and None not in turns and not (len(turns) == 2 and 0 <= turns[0] <= turns[1] <= MAX_INTEGER):
        return None
    items, versions, named = _items(row["objects"]) or (), _items(row["versions"]) or (), ""
    if items:
        if len(items) != len(versions) or "NULL" in items or "NULL" in versions:
            return None
        pairs = '"],["'.join([f'{item}","{version}' for item, version in zip(items, versions, strict=True)])
        named = f',"objects":[["{pairs}"]]'
    return (
        items,
        "" if commit is None else f',"commit":{commit}',
        "" if container is None else f',"container":"{container}"',
        named,
        reason or "",
        f',"turns":[[{turns[0]},{turns[1]}]]' if turns and None not in turns else "",
    )
