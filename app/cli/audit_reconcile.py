"""Holding an audit export against the customer's own cloud log. Pure: events and records in, differences out.

A call to a KMS stands in our log as a ``key.intent`` before it and a ``key.outcome`` after it, and in the customer's
cloud as one record. They are joined by the provider's request id; where we crashed before the outcome, by the intent's
id, which travels in the call (AWS: end of the user agent; Azure: client request id).

Clouds deliver their logs late and exports end somewhere: what stands near an edge is ``pending``, never a difference.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
AWS_USES: Final = frozenset(
    {"Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "DescribeKey"}
)
AZURE_USES: Final = frozenset({"KeyWrap", "KeyUnwrap", "KeyEncrypt", "KeyDecrypt", "KeyGet"})


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the cloud saw it. ``ids``: the request id and everything in it that may be an intent's id."""

    time: datetime
    operation: str
    key: str
    who: str
    request: str
    ids: frozenset[str]


@dataclass(slots=True)
class Differences:
    """``unexplained``: in the cloud, not in our log. ``unseen``: in our log, not in the cloud. ``open``: intents
    without an outcome whose call the cloud doesn't show either. ``pending``: too near an edge to judge.
    """

    matched: int = 0
    pending: int = 0
    unexplained: list[dict[str, str]] = field(default_factory=list)
    unseen: list[dict[str, str]] = field(default_factory=list)
    open: list[dict[str, str]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.unexplained or self.unseen)


def cloudtrail(path: Path) -> Iterator[Call]:
    """KMS calls of a CloudTrail file (JSON with ``Records``, plain or gzip). Raises ValueError."""
    for record in _records(path, "Records"):
        if record.get("eventSource") != "kms.amazonaws.com" or record.get("eventName") not in AWS_USES:
            continue
        resources = [item.get("ARN", "") for item in record.get("resources") or ()]
        key = next((arn for arn in resources if ":key/" in arn), "")
        request = str(record.get("requestID", ""))
        found = UUID.findall(str(record.get("userAgent", "")))
        who = (record.get("userIdentity") or {}).get("arn", "")
        yield Call(_time(record["eventTime"]), record["eventName"], key, who, request, frozenset({request, *found}))


def key_vault(path: Path) -> Iterator[Call]:
    """Key uses of a Key Vault log (``records``, an array, or a record a line; plain or gzip). Raises ValueError."""
    for record in _records(path, "records"):
        properties = record.get("properties") or {}
        if record.get("category", "AuditEvent") != "AuditEvent" or record.get("operationName") not in AZURE_USES:
            continue
        request = str(properties.get("requestId") or record.get("correlationId") or "")
        ids = {
            str(value).lower()
            for value in (request, record.get("correlationId"), properties.get("clientRequestId"))
            if value
        }
        claim = (record.get("identity") or {}).get("claim") or {}
        who = str(claim.get("appid") or claim.get("oid") or "")
        key = str(properties.get("id") or properties.get("requestUri") or "")
        yield Call(_time(record["time"]), record["operationName"], key, who, request, frozenset({request, *ids}))


def events_of(path: Path) -> Iterator[dict[str, Any]]:
    """The events of an export, without verifying them: run ``confide audit verify`` first. Raises ValueError."""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"{"):
                yield json.loads(line)


def reconcile(
    events: Iterable[dict[str, Any]], calls: Iterable[Call], *, prefix: str, key: str | None, delay: timedelta
) -> Differences:
    """``prefix``: how this cloud's KEKs begin; ``key``: only this KEK; ``delay``: how late the cloud may deliver."""
    intents: dict[str, dict[str, Any]] = {}
    outcomes: dict[str, dict[str, Any]] = {}
    answered: set[str] = set()
    first = last = None
    for event in events:
        time = _time(event["time"])
        first, last = min(first or time, time), max(last or time, time)
        kek = event.get("kek", "")
        if not kek.startswith(prefix) or (key is not None and kek != key):
            continue
        if event.get("encryption_context", {}).get("confide:half", "customer") != "customer":
            continue
        if event["action"] == "key.intent":
            intents[event["id"]] = event
        elif event["action"] == "key.outcome":
            answered.add(event.get("intent", ""))
            if "kms_request_id" in event:
                outcomes[event["kms_request_id"].lower()] = event
    found = Differences()
    seen, newest = _join(calls, intents, outcomes, found, (first, last), key, delay)
    edge = newest - delay if newest is not None else None
    for request, event in outcomes.items():
        if request not in seen and event.get("intent", "") not in seen:
            _late(found.unseen, found, event, edge)
    for ident, event in intents.items():
        if ident not in answered and ident not in seen:
            _late(found.open, found, event, edge)
    return found


def _join(
    calls: Iterable[Call],
    intents: dict[str, dict[str, Any]],
    outcomes: dict[str, dict[str, Any]],
    found: Differences,
    period: tuple[datetime | None, datetime | None],
    key: str | None,
    delay: timedelta,
) -> tuple[set[str], datetime | None]:
    """Ids of ours that a call showed, and the newest call's time."""
    seen: set[str] = set()
    newest: datetime | None = None
    for call in calls:
        newest = max(newest or call.time, call.time)
        if key is not None and call.key and not _same_key(call.key, key):
            continue
        ours = {one.lower() for one in call.ids} & (outcomes.keys() | intents.keys())
        if ours:
            found.matched += 1
            seen |= ours
        elif (
            period[0] is None
            or period[1] is None
            or not period[0] <= call.time <= period[1] - min(delay, timedelta(minutes=1))
        ):
            found.pending += 1  # outside what the export holds
        else:
            found.unexplained.append(
                {
                    "time": call.time.isoformat(),
                    "operation": call.operation,
                    "request_id": call.request,
                    "key": call.key,
                    "who": call.who,
                }
            )
    return seen, newest


def _same_key(seen: str, key: str) -> bool:
    return seen.rstrip("/").startswith(key.rstrip("/")) or key.startswith(seen)


def _late(into: list[dict[str, str]], found: Differences, event: dict[str, Any], edge: datetime | None) -> None:
    """List a difference, unless the cloud may still deliver it."""
    if edge is None or _time(event["time"]) > edge:
        found.pending += 1
        return
    into.append(
        {
            "time": event["time"],
            "event": event["id"],
            "request_id": event.get("kms_request_id", ""),
            "operation": str(event.get("detail", {}).get("operation", "")),
            "key": event.get("kek", ""),
        }
    )


def _records(path: Path, name: str) -> Iterator[dict[str, Any]]:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    try:
        loaded = json.loads(data)
    except ValueError:
        loaded = [json.loads(line) for line in data.splitlines() if line.strip()]
    records = loaded.get(name, [loaded]) if isinstance(loaded, dict) else loaded
    for record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{path}: not a log of that kind")
        yield from record[name] if isinstance(record.get(name), list) else [record]


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text))
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
