"""What the audit log says that became of each container: its commits one by one, and the state after each.

The log tells which attempt made a commit and under which number; the attempt tells what it meant to write. Played in
order, that is the only state that may be there afterwards, and every state that a read may ever have shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.programmes.chaos_record import Attempt, Change, Intent, Key, Ref, Value

Report = Callable[[str, str], None]
"""Takes a finding's kind and text."""
Event = dict[str, Any]
TAIL = 12
MAKES = ("container.create", "session.create")


@dataclass(slots=True)
class Stored:
    """An object after some commit. ``versions``: of its commit; which of them is its own, only the client was told."""

    value: Value
    versions: frozenset[str]


@dataclass(slots=True)
class Moment:
    """A container after one commit."""

    objects: dict[Key, Stored]
    tail: tuple[tuple[int, str], ...]
    """The last living turns."""


@dataclass
class History:
    """One container's. Commit numbers count from 1, and so do turns."""

    ref: Ref
    moments: list[Moment] = field(default_factory=list)
    written: dict[str, tuple[int, dict[Key, Value]]] = field(default_factory=dict)
    """By version: the commit, and what each of its objects held then."""
    touched: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(list))
    words: dict[int, str] = field(default_factory=dict)
    """Of turns, by number."""
    removed_at: dict[int, int] = field(default_factory=dict)
    living: dict[int, str] = field(default_factory=dict)

    @property
    def commit(self) -> int:
        return len(self.moments)

    def replaced_at(self, version: str, key: Key) -> int | None:
        """The commit after which ``version`` of an object could no longer be read."""
        commits = self.touched[key]
        place = bisect_right(commits, self.written[version][0])
        return commits[place] if place < len(commits) else None


class Asked:
    """Whose trace it was."""

    def __init__(self, intents: Sequence[Intent]) -> None:
        self._by_trace = {attempt.trace: (intent, attempt) for intent in intents for attempt in intent.attempts}

    def of(self, event: Event) -> tuple[Intent, Attempt] | None:
        return self._by_trace.get(event.get("trace", ""))


def play(ref: Ref, events: Sequence[Event], asked: Asked, report: Report) -> History:
    """``events``: the container's, each of which raised its commit number."""
    history = History(ref)
    objects: dict[Key, Stored] = {}
    for event in sorted(events, key=lambda each: each["commit"]):
        if event["commit"] != history.commit + 1:
            report("commit-gap", f"{ref}: commit {event['commit']} comes after {history.commit}")
        found = asked.of(event)
        change = _change(found[0], ref, event["action"]) if found is not None else None
        if found is None or change is None:
            report("surplus", f"{ref}: commit {event['commit']} ({event['action']}) is nobody's")
            change = Change(ref, event["action"])
        where = f"{found[0] if found else 'nobody'}, event {event['id']}"
        _hold(change, event, history, objects, report, where)
        objects = _apply(change, event, history, objects)
        _say_turns(change, event, history, report, where)
        tail = tuple(list(history.living.items())[-TAIL:])
        history.moments.append(Moment(objects, tail))
    return history


def _change(intent: Intent, ref: Ref, action: str) -> Change | None:
    """What an intent meant to do to a container. A subject or session may have to be made on the way."""
    for unit in intent.units:
        for change in unit:
            if change.ref == ref and change.action == action:
                return change
    return Change(ref, action) if action in MAKES else None


def _hold(
    change: Change, event: Event, history: History, objects: dict[Key, Stored], report: Report, where: str
) -> None:
    """The event against the change, and the change's preconditions against what stood there."""
    deleted = [key for key in change.deletes if key in objects]
    wanted = len(change.puts) + len(change.merges) + len(deleted)
    versions = {version for _, version in event.get("objects", ())}
    if len(versions) != wanted:
        report("event-differs", f"{where}: {len(versions)} versions where {wanted} objects were changed")
    if any(not versions & objects[key].versions for key in deleted):
        report("event-differs", f"{where}: the deleted version isn't the one that stood there")
    for key in change.puts:
        stood = objects.get(key)
        if change.if_absent and stood is not None:
            report("lost-update", f"{where}: {key} was claimed as absent, and stood there")
        if change.if_version is not None and (stood is None or change.if_version not in stood.versions):
            report("lost-update", f"{where}: {key} was replaced as version {change.if_version}, which wasn't there")
    if change.expected_commit is not None and change.expected_commit != history.commit:
        report("lost-update", f"{where}: expected commit {change.expected_commit}, but {history.commit} stood")


def _apply(change: Change, event: Event, history: History, objects: dict[Key, Stored]) -> dict[Key, Stored]:
    commit = event["commit"]
    touched = {*change.puts, *change.merges, *(key for key in change.deletes if key in objects)}
    versions = frozenset(version for _, version in event.get("objects", ()))
    after = {key: stored for key, stored in objects.items() if key not in change.deletes}
    written: dict[Key, Value] = {key: {"w": word} for key, word in change.puts.items()}
    for key, patch in change.merges.items():
        written[key] = (objects[key].value if key in objects else {}) | patch
    after |= {key: Stored(value, versions) for key, value in written.items()}
    for key in touched:
        history.touched[key].append(commit)
    for version in versions:
        history.written.setdefault(version, (commit, written))
    return after


def _say_turns(change: Change, event: Event, history: History, report: Report, where: str) -> None:
    told = [tuple(each) for each in event.get("turns", ())]
    wanted: list[tuple[int, int]] = []
    if change.turns:
        first = len(history.words) + 1
        wanted = [(first, first + len(change.turns) - 1)]
        for number, word in enumerate(change.turns, first):
            history.words[number] = history.living[number] = word
    if change.pop:
        gone = list(history.living)[-change.pop :]
        wanted = [(gone[0], gone[-1])] if gone else []
        for number in gone:
            del history.living[number]
            history.removed_at[number] = event["commit"]
    if told != wanted:
        report("event-differs", f"{where}: tells turns {told}, and {wanted} were changed")
