"""Cross-check: what is stored against what the log says was sealed.

Who can write rows can't forge a ciphertext, but he can put an old row back whole, or delete one. Its version, the
turn's number or the container's commit number then contradicts the log, whose leaves he can't change. Nor can he take
an event out of the answers to ``object=…``: the index of objects is held against the events, both ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson

from app.services.audit_events import entry_of
from app.store import audit_check as rows
from app.store.audit_check import Range
from app.store.audit_pool import AuditPool
from app.store.audit_tree import Connection

EVERY: Final = 1000
"""Containers that are held in memory at one time, with what the log says of them."""
ERASED: Final = frozenset({"session.delete", "retention.expire", "privacy.erasure"})
SURPLUS: Final = 1000
"""Rows of the index, and places in the log, that are named at most."""
REMOVED_TURNS: Final = frozenset({"turns.pop", "turns.clear"})


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` tells what differs; ``expected`` is the log's word, ``stored`` the database's."""

    kind: str
    container: str
    item: str = ""
    expected: str = ""
    stored: str = ""


@dataclass(slots=True)
class _Expected:
    """A container as its events leave it."""

    objects: dict[str, str] = field(default_factory=dict)
    commit: int = 0
    turns: int = 0
    removed: set[int] = field(default_factory=set)
    erased: bool = False


@dataclass(slots=True)
class Report:
    containers: int = 0
    events: int = 0
    complete: bool = True
    """Whether the log is stored from its first leaf on: if not, what it doesn't know isn't a finding."""
    findings: list[Finding] = field(default_factory=list)


class _Log:
    """Collects events by container and replays each in the order of its commits."""

    def __init__(self) -> None:
        self._steps: dict[str, list[tuple[int, int, dict[str, Any]]]] = {}
        self.events = 0

    def add(self, event: dict[str, Any]) -> None:
        erased = event["action"] in ERASED and event.get("detail", {}).get("step") != "requested"
        if "commit" in event or erased:
            self.events += 1
            kept: dict[str, Any] = {
                name: event[name] for name in ("action", "objects", "turns", "commit") if name in event
            }
            last = (1 << 60) if erased else event["commit"]
            self._steps.setdefault(event["container"], []).append((last, self.events, kept))

    def replay(self) -> dict[str, _Expected]:
        return {
            container: _replayed(sorted(steps, key=lambda step: step[:2])) for container, steps in self._steps.items()
        }


def _replayed(steps: Iterable[tuple[int, int, dict[str, Any]]]) -> _Expected:
    expected = _Expected()
    for _, _, event in steps:
        if event["action"] in ERASED:
            expected.erased = True
            continue
        expected.commit = max(expected.commit, event["commit"])
        for item, version in event.get("objects", ()):
            if expected.objects.get(item) == version:  # a deletion names what it deleted, a seal a fresh version
                del expected.objects[item]
            else:
                expected.objects[item] = version
        for first, last in event.get("turns", ()):
            if event["action"] in REMOVED_TURNS:
                expected.removed.update(range(first, last + 1))
            expected.turns = max(expected.turns, last)
    return expected


async def cross_check(pool: AuditPool, tenant: UUID, region: str, every: int = EVERY) -> Report:
    """One snapshot of a tenant's rows and log, ``every`` containers at a time. Reads ids and numbers; opens nothing."""
    report = Report()
    async with pool.transaction(tenant, snapshot=True) as tx:
        connection = tx.connection
        report.complete = await rows.first_leaf(connection, tenant) in {0, None}
        tail = [(row["container"], entry_of(row, region)[0]) for row in await rows.tail(connection, tenant)]
        for within in await rows.ranges(connection, tenant, every):
            await _check_range(connection, tenant, within, tail, report)
        await _check_index(connection, tenant, report)
        await _check_dropped(connection, tenant, report)
    return report


async def _check_dropped(connection: Connection, tenant: UUID, report: Report) -> None:
    """The last range that retention dropped is named by an event: it goes only after that range, with a later one."""
    said = [orjson.loads(entry).get("detail", {}) for entry in await rows.retention_events(connection, tenant)]
    told = {(detail.get("epoch"), detail.get("end")) for detail in said}
    for row in await rows.dropped_to(connection, tenant):
        if (row["epoch"], row["beyond"]) not in told:
            place = f"leaves before {row['beyond']} of epoch {row['epoch']}"
            report.findings.append(Finding("dropped-unknown", "", place, "no event says so", "dropped"))


async def _check_index(connection: Connection, tenant: UUID, report: Report) -> None:
    """What no leaf covers: the index of objects, and the order of sealing."""
    wanted: list[tuple[Any, ...]] = []

    async def look() -> None:
        for row in await rows.not_indexed(connection, tenant, wanted) if wanted else ():
            report.findings.append(Finding("index-missing", "", str(row["object"]), f"event {row['id']}", "nothing"))
        wanted.clear()

    async for row in rows.naming_events(connection, tenant):
        named = {item for item, _ in orjson.loads(row["entry"]).get("objects", ())}
        wanted += [(UUID(item), row["time"], row["id"], row["sealed_at"]) for item in named]
        if len(wanted) >= EVERY:
            await look()
    await look()
    for row in await rows.surplus_index(connection, tenant, SURPLUS):
        report.findings.append(Finding("index-surplus", "", str(row["object"]), "nothing", f"event {row['id']}"))
    for row in await rows.sealed_out_of_order(connection, tenant, SURPLUS):
        place = f"leaf {row['leaf']} of epoch {row['epoch']}"
        report.findings.append(Finding("sealed-order", "", place, "between its neighbours", str(row["sealed_at"])))


async def _check_range(
    connection: Connection, tenant: UUID, within: Range, tail: list[tuple[UUID, dict[str, Any]]], report: Report
) -> None:
    log, (first, beyond) = _Log(), within
    async for entry in rows.sealing_events(connection, tenant, within):
        log.add(orjson.loads(entry))
    for container, event in tail:
        if (first is None or container >= first) and (beyond is None or container < beyond):
            log.add(event)
    stored = {str(row["id"]): row for row in await rows.containers(connection, tenant, within)}
    objects: dict[str, dict[str, str]] = {}
    for row in await rows.objects(connection, tenant, within):
        objects.setdefault(str(row["container_id"]), {})[str(row["id"])] = str(row["version"])
    turns: dict[str, dict[int, bool]] = {}
    for row in await rows.turns(connection, tenant, within):
        turns.setdefault(str(row["container_id"]), {})[row["number"]] = row["living"]
    expected = log.replay()
    report.events += log.events
    report.containers += len(stored)
    for name in sorted(stored.keys() | expected.keys()):
        found = _container(name, expected.get(name), stored.get(name), complete=report.complete)
        if not found and name in stored and name in expected:
            wanted = expected[name]
            found = _objects(name, wanted, objects.get(name, {}), complete=report.complete)
            found += _turns(name, wanted, stored[name]["turn_head"], turns.get(name, {}))
        report.findings += found


def _container(container: str, expected: _Expected | None, stored: Any, *, complete: bool) -> list[Finding]:
    if expected is None:
        return [Finding("container-unknown", container)] if complete else []
    if expected.erased:
        return [Finding("container-back", container, "", "erased", "stored")] if stored is not None else []
    if stored is None:
        return [Finding("container-missing", container, "", f"commit {expected.commit}", "nothing")]
    if stored["commit_number"] != expected.commit:
        return [Finding("commit-number", container, "", str(expected.commit), str(stored["commit_number"]))]
    return []


def _objects(container: str, expected: _Expected, stored: dict[str, str], *, complete: bool) -> list[Finding]:
    found = []
    for item in sorted(expected.objects.keys() | stored.keys()):
        wanted, version = expected.objects.get(item), stored.get(item)
        if wanted is None and not complete:
            continue
        if wanted != version:
            kind = "object-missing" if version is None else "object-back" if wanted is None else "object-version"
            found.append(Finding(kind, container, item, wanted or "nothing", version or "nothing"))
    return found


def _turns(container: str, expected: _Expected, head: int, stored: dict[int, bool]) -> list[Finding]:
    found = []
    if expected.turns and head != expected.turns + 1:
        found.append(Finding("turn-head", container, "", str(expected.turns + 1), str(head)))
    for number in range(1, expected.turns + 1):
        if number not in stored:
            found.append(Finding("turn-missing", container, str(number), "stored", "nothing"))
        elif stored[number] and number in expected.removed:
            found.append(Finding("turn-back", container, str(number), "removed", "stored"))
        elif not stored[number] and number not in expected.removed:
            found.append(Finding("turn-removed", container, str(number), "stored", "removed"))
    found += [
        Finding("turn-unknown", container, str(number), "nothing", "stored")
        for number in sorted(stored)
        if number > expected.turns and expected.turns
    ]
    return found
