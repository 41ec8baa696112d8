"""Whether the reconciler sees a loss: a true record with one thing taken away must be found wanting, by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.programmes.chaos_answers import acks, shown
from tests.programmes.chaos_reconcile import reconcile
from tests.programmes.chaos_record import Attempt, Final, Intent, Record

Robbed = tuple[str, Record, str, str]
"""What was taken, the record without it, the kind of finding that it must lead to, and what that must name."""


def blindness(record: Record, chance: random.Random) -> tuple[list[str], list[str]]:
    """What was taken away and found, and what was taken away and not. ``record`` must have no finding itself."""
    found, missed = [], []
    for what, robbed, kind, name in _robberies(record, chance):
        named = any(finding.kind == kind and name in finding.text for finding in reconcile(robbed))
        (found if named else missed).append(f"{what} ({kind}: {name})")
    return found, missed


def _robberies(record: Record, chance: random.Random) -> Iterator[Robbed]:
    for robbery in (_read_event, _write_event, _object_row, _turn_row, _last_commit, _half, _second_answer):
        yield from robbery(record, chance)


def _answered(record: Record) -> list[tuple[Intent, Attempt]]:
    return [
        (intent, attempt)
        for intent in record.intents
        for attempt in intent.attempts
        if attempt.got.whole and attempt.got.status in {200, 201}
    ]


def _without(record: Record, gone: list[dict[str, Any]]) -> Record:
    ids = {event["id"] for event in gone}
    return replace(record, events=[event for event in record.events if event["id"] not in ids])


def _with_final(record: Record, final: Final) -> Record:
    return replace(record, finals=record.finals | {final.ref: final})


def _read_event(record: Record, chance: random.Random) -> Iterator[Robbed]:
    """One read's event: the log is silent about content that was released."""
    read = [(i, a) for i, a in _answered(record) if i.op in {"load", "get"} and any(s.objects for s in shown(i, a))]
    _, attempt = chance.choice(read)
    gone = [event for event in record.events if event.get("trace") == attempt.trace]
    yield "a read's event", _without(record, gone), "read-without-event", attempt.got.request


def _write_event(record: Record, chance: random.Random) -> Iterator[Robbed]:
    written = [(i, a) for i, a in _answered(record) if i.op in {"put", "append"} and i.key is None]
    if written:
        _, attempt = chance.choice(written)
        gone = [event for event in record.events if event.get("trace") == attempt.trace]
        yield "a write's event", _without(record, gone), "write-without-event", attempt.got.request


def _object_row(record: Record, chance: random.Random) -> Iterator[Robbed]:
    final = chance.choice([final for final in record.finals.values() if final.objects])
    key = chance.choice(sorted(final.objects))
    objects = {each: stored for each, stored in final.objects.items() if each != key}
    robbed = _with_final(record, replace(final, objects=objects))
    yield "an object's row", robbed, "gone", f"{final.ref}: object {key}"


def _turn_row(record: Record, chance: random.Random) -> Iterator[Robbed]:
    final = chance.choice([final for final in record.finals.values() if final.turns])
    turn = chance.choice(final.turns)
    robbed = _with_final(record, replace(final, turns=[each for each in final.turns if each != turn]))
    yield "a turn's row", robbed, "gone", f"{final.ref}: turn {turn[0]}"


def _last_commit(record: Record, chance: random.Random) -> Iterator[Robbed]:
    """A container as it stood one commit before."""
    final = chance.choice([final for final in record.finals.values() if final.commit > 1])
    robbed = _with_final(record, replace(final, commit=final.commit - 1))
    yield "a container's last commit", robbed, "gone", f"{final.ref} stands at commit {final.commit - 1}"


def _half(record: Record, chance: random.Random) -> Iterator[Robbed]:
    """The subject's part of a commit over two containers."""
    wide = [(i, a) for i, a in _answered(record) if i.op == "commit" and len(i.units[0]) > 1 and i.key is None]
    if wide:
        intent, attempt = chance.choice(wide)
        told = acks(intent, attempt)[0] or []
        gone = [e for e in record.events if e.get("trace") == attempt.trace and e.get("container") == told[1].id]
        yield "half of a commit", _without(record, gone), "half", str(intent)


def _second_answer(record: Record, chance: random.Random) -> Iterator[Robbed]:
    """A repeated request that is told another commit number."""
    often = [i for i, _ in _answered(record) if i.key is not None and len([a for a in i.attempts if a.got.whole]) > 1]
    often = [i for i in often if sum(a.got.status in {200, 201} for a in i.attempts) > 1]
    if often:
        intent = chance.choice(often)
        last = max(i for i, a in enumerate(intent.attempts) if a.got.status in {200, 201} and a.got.whole)
        attempts = list(intent.attempts)
        got = attempts[last].got
        attempts[last] = replace(attempts[last], got=replace(got, body=got.body.replace(b'"commit":', b'"commit":9')))
        intents = [replace(i, attempts=attempts) if i is intent else i for i in record.intents]
        yield "a repeated answer's number", replace(record, intents=intents), "other-answer", str(intent)
