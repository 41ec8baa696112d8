"""What an answer says: which writes it acknowledges, which it refuses, and what content it shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tests.programmes.chaos_record import UNSURE, Attempt, Intent, Key, Ref, Value

VERSION = re.compile(rb'"version":"([0-9a-f-]{36})"')
NUMBER = re.compile(rb'"number":(\d+),"id":"[0-9a-f-]{36}"')
WORD = re.compile(rb"word-\d{6}")


@dataclass(slots=True)
class Ack:
    """A container's part of an acknowledged write. None: the answer doesn't say."""

    ref: Ref
    id: str | None = None
    commit: int | None = None
    versions: tuple[str, ...] = ()
    turns: tuple[int, int] | None = None


@dataclass(slots=True)
class Shown:
    """Content of one container in an answer. ``commit`` only where it is a snapshot of the container."""

    ref: Ref | None
    action: str
    id: str | None = None
    commit: int | None = None
    objects: list[tuple[Key | None, str, Value | None]] = field(default_factory=list)
    """Key, version, value; None where a cut answer doesn't tell."""
    turns: list[tuple[int, str | None]] = field(default_factory=list)
    whole: bool = True


def acks(intent: Intent, attempt: Attempt) -> list[list[Ack] | None]:  # noqa: PLR0911  one for each kind
    """For each unit of the intent, what the answer acknowledges; None where it doesn't."""
    got = attempt.got
    if got.status not in {200, 201} or not got.whole:
        return [None] * len(intent.units)
    answer = got.document
    match intent.op:
        case "commit":
            return [[_committed(change.ref, answer[change.ref[0]]) for change in intent.units[0]]]
        case "put" | "swap" | "claim" | "put_blob" | "patch":
            return [[Ack(intent.units[0][0].ref, None, answer["commit"], (answer["version"],))]]
        case "delete":
            return [[Ack(intent.units[0][0].ref, None, answer["commit"])]]
        case "append":
            turns = answer["first_turn"], answer["last_turn"]
            return [[Ack(intent.units[0][0].ref, None, answer["commit"], (), turns)]]
        case "pop":
            numbers = [turn["number"] for turn in answer["turns"]]
            span = (min(numbers), max(numbers)) if numbers else None
            return [[Ack(intent.units[0][0].ref, None, None, (), span)]]
        case "open":
            return [[Ack(intent.units[0][0].ref, answer["id"])]]
        case "batch":
            return [_of_item(unit[0].ref, result) for unit, result in _units_of_batch(intent, answer)]
    return [None] * len(intent.units)


def refused(intent: Intent, attempt: Attempt) -> list[bool]:
    """For each unit, whether the answer says for sure that nothing was stored."""
    got = attempt.got
    if not got.sent:
        return [True] * len(intent.units)
    if not got.whole or got.status is None:
        return [False] * len(intent.units)
    if intent.op == "batch" and got.status == 200:
        return [
            result["status"] >= 400 and result["problem"]["type"] != UNSURE
            for _, result in _units_of_batch(intent, got.document)
        ]
    return [got.status >= 400 and got.problem != UNSURE] * len(intent.units)


def statuses(intent: Intent, attempt: Attempt) -> list[int]:
    """Of the answer and, in a batch, of its items."""
    got = attempt.got
    found = [got.status] if got.status is not None else []
    if intent.op == "batch" and got.status == 200 and got.whole:
        found += [result["status"] for result in got.document["results"]]
    return found


def shown(intent: Intent, attempt: Attempt) -> list[Shown]:  # noqa: PLR0911  one for each kind
    """The content that arrived, also of an answer that was cut."""
    got = attempt.got
    if got.status not in {200, 201} or not got.body:
        return []
    if intent.op in {"get", "get_blob"}:
        show = intent.shows[0]
        return [Shown(show.ref, show.action, None, None, [_raw(intent, got.headers["etag"].strip('"'), got)])]
    if not got.whole:
        return _cut(intent, got.body)
    answer = got.document
    match intent.op:
        case "load":
            found = {show.ref[0]: show for show in intent.shows}
            parts = [_loaded(found[kind].ref, answer[kind]) for kind in found if kind in answer]
            parts[0].turns = _turns(answer)
            return parts
        case "list" | "list_blobs":
            return [Shown(intent.shows[0].ref, "context.read", None, None, _objects(answer["objects"]))]
        case "page" | "pop":
            return [Shown(intent.shows[0].ref, intent.shows[0].action, turns=_turns(answer))]
        case "lookup":
            show = intent.shows[0]
            return [Shown(show.ref, show.action, each["id"], each["commit"]) for each in answer["sessions"]]
        case "batch":
            return [
                Shown(ref, "context.read", None, None, _objects([result["object"]]))
                for ref, result in _gets_of_batch(intent, answer)
                if result["status"] == 200
            ]
    return []


# ---------------------------------------------------------------- parts


def _committed(ref: Ref, part: dict[str, Any]) -> Ack:
    versions = tuple(each["version"] for each in [*part.get("put", ()), *part.get("merge", ())])
    turns = (part["first_turn"], part["last_turn"]) if part.get("last_turn") is not None else None
    return Ack(ref, part["id"], part["commit"], versions, turns)


def _of_item(ref: Ref, result: dict[str, Any]) -> list[Ack] | None:
    if result["status"] not in {200, 201}:
        return None
    return [Ack(ref, None, result["commit"], (result["version"],) if "version" in result else ())]


def _units_of_batch(intent: Intent, answer: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    results = [result for item, result in _items(intent, answer) if item["op"] != "get"]
    return list(zip(intent.units, results, strict=True))


def _gets_of_batch(intent: Intent, answer: dict[str, Any]) -> list[tuple[Ref, dict[str, Any]]]:
    results = [result for item, result in _items(intent, answer) if item["op"] == "get"]
    return list(zip((show.ref for show in intent.shows), results, strict=True))


def _items(intent: Intent, answer: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(intent.document["requests"], answer["results"], strict=True))


def _loaded(ref: Ref, part: dict[str, Any]) -> Shown:
    return Shown(ref, "context.load", part["id"], part["commit"], _objects(part.get("context", ())))


def _objects(objects: Any) -> list[tuple[Key | None, str, Value | None]]:
    return [((each["collection"], each["key"]), each["version"], each.get("json")) for each in objects]


def _turns(answer: dict[str, Any]) -> list[tuple[int, str | None]]:
    return [(turn["number"], turn["json"]["w"]) for turn in answer.get("turns", ())]


def _raw(intent: Intent, version: str, got: Any) -> tuple[Key | None, str, Value | None]:
    """A single object's bytes: its key is the path's, its version the ETag."""
    collection, key = intent.path.split("/")[-2:]
    if intent.op == "get_blob":
        line, end, _ = got.body.partition(b"\n")
        return (collection, key), version, {"w": line.decode()} if end else None
    return (collection, key), version, got.document if got.whole else None


def _cut(intent: Intent, body: bytes) -> list[Shown]:
    """What a cut answer holds at least: versions and numbers of turns. They are of one of the containers meant."""
    if not intent.shows:
        return []
    several = len(intent.shows) > 1
    return [
        Shown(
            None if several else intent.shows[0].ref,
            intent.shows[0].action,
            objects=[(None, each.decode(), None) for each in VERSION.findall(body)],
            turns=[(int(each), None) for each in NUMBER.findall(body)],
            whole=False,
        )
    ]
