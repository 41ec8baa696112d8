"""Holds what clients were told against the audit log and against what is there afterwards.

Pure: a record in, findings out. Every finding is a broken promise, named with the request or the container that it
was broken to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from typing import Any

from tests.programmes.chaos_answers import WORD, Ack, Shown, acks, refused, shown, statuses
from tests.programmes.chaos_history import Asked, Event, History, play
from tests.programmes.chaos_record import UNSURE, Attempt, Finding, Intent, Record, Ref

EXCUSED = frozenset({200, 201, 404, 412, 503})
PROBLEMS_OF_503 = frozenset(f"urn:confide:problem:{slug}" for slug in ("unavailable", "key-unavailable")) | {UNSURE}


def reconcile(record: Record) -> list[Finding]:
    """Every broken promise."""
    return Reconciliation(record).run()


class Reconciliation:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.findings: list[Finding] = []
        self.checked: Counter[str] = Counter()
        self.asked = Asked(record.intents)
        self.ids: dict[Ref, set[str]] = defaultdict(set)
        self.by_trace: dict[str, list[Event]] = defaultdict(list)
        self.changes: dict[str, list[Event]] = defaultdict(list)
        """By container: the events that raised its commit number."""
        self.histories: dict[Ref, History] = {}
        self._floors: dict[Ref, tuple[list[float], list[int]]] = {}

    def report(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))

    def run(self) -> list[Finding]:
        self._sort_events()
        self._sort_names()
        self._play()
        self._units()
        self._sort_floors()
        for intent in self.record.intents:
            for attempt in intent.attempts:
                self._attempt(intent, attempt)
            self._one_answer(intent)
        self._finals()
        return self.findings

    # ------------------------------------------------------------ preparation

    def _sort_events(self) -> None:
        for event in self.record.events:
            self.by_trace[event.get("trace", "")].append(event)
            if event["outcome"] == "allowed" and "commit" in event and "container" in event:
                self.changes[event["container"]].append(event)

    def _sort_names(self) -> None:
        """Which container each name led to: as answers, the final reading and paths say."""
        for ref, final in self.record.finals.items():
            self.ids[ref].add(final.id)
        for intent in self.record.intents:
            for attempt in intent.attempts:
                told = [ack for unit in acks(intent, attempt) for ack in unit or ()]
                for each in [*told, *shown(intent, attempt)]:
                    if each.id is not None and each.ref is not None:
                        self.ids[each.ref].add(each.id)
        for ref, found in self.ids.items():
            if len(found) > 1:
                self.report("two-containers", f"{ref} is {sorted(found)}")

    def _play(self) -> None:
        explained = set()
        for ref, found in self.ids.items():
            events = [event for container in found for event in self.changes.get(container, ())]
            explained |= found
            self.histories[ref] = play(ref, events, self.asked, self.report)
        for container in self.changes.keys() - explained:
            self.report("surplus", f"container {container} was changed and is found under no name")

    def _units(self) -> None:
        """A change is applied once however often it was sent, and all of a unit together."""
        for intent in self.record.intents:
            events = [event for attempt in intent.attempts for event in self._effects(attempt)]
            for unit in intent.units:
                times = [sum(self._is_of(event, change.ref, change.action) for event in events) for change in unit]
                if max(times) > 1:
                    self.report("twice", f"{intent} was applied {max(times)} times")
                elif len(set(times)) > 1:
                    self.report("half", f"{intent} changed {times} of {[change.ref for change in unit]}")

    def _sort_floors(self) -> None:
        """For each container, the highest commit that was acknowledged up to each moment."""
        told: dict[Ref, list[tuple[float, int]]] = defaultdict(list)
        for intent in self.record.intents:
            for attempt in intent.attempts:
                for unit in acks(intent, attempt):
                    for ack in unit or ():
                        if ack.commit is not None:
                            told[ack.ref].append((attempt.ended, ack.commit))
        for ref, pairs in told.items():
            pairs.sort()
            highest, commits = 0, []
            for _, commit in pairs:
                highest = max(highest, commit)
                commits.append(highest)
            self._floors[ref] = [moment for moment, _ in pairs], commits

    def _floor(self, ref: Ref, moment: float) -> int:
        moments, commits = self._floors.get(ref, ([], []))
        place = bisect_right(moments, moment)
        return commits[place - 1] if place else 0

    def _effects(self, attempt: Attempt) -> list[Event]:
        """What an attempt changed, as the log has it."""
        return [event for event in self.by_trace[attempt.trace] if event["outcome"] == "allowed" and "commit" in event]

    def _is_of(self, event: Event, ref: Ref, action: str) -> bool:
        return event["action"] == action and event.get("container") in self.ids.get(ref, ())

    # ------------------------------------------------------------ answers

    def _attempt(self, intent: Intent, attempt: Attempt) -> None:
        where = f"{intent}, request {attempt.got.request or attempt.trace}"
        self._excused(intent, attempt, where)
        for unit, no in zip(intent.units, refused(intent, attempt), strict=True):
            there = [e for e in self._effects(attempt) for change in unit if self._is_of(e, change.ref, change.action)]
            self.checked["refusals"] += no
            if no and there:
                told = attempt.got.status or "not sent"
                self.report("refused-but-there", f"{where}: {told}, commit {there[0]['commit']}")
        for unit, told in zip(intent.units, acks(intent, attempt), strict=True):
            for change, ack in zip(unit, told or (), strict=told is not None):
                self.checked["writes"] += 1
                self._written(intent, attempt, change.action, ack, where)
        for each in shown(intent, attempt):
            self.checked["reads" if each.whole else "cut reads"] += 1
            self._released(attempt, each, where)
            if each.whole and each.ref is not None:
                self._true(attempt, each, where)
        if intent.op == "load" and attempt.got.whole and attempt.got.status == 200:
            self._snapshots(intent, attempt, where)

    def _excused(self, intent: Intent, attempt: Attempt, where: str) -> None:
        """A crash excuses a 503 that says which, and nothing else."""
        got = attempt.got
        if got.fault == "not what was put":
            self.report("torn", f"{where}: a large object's bytes are none that were put")
        for status in statuses(intent, attempt):
            if status not in EXCUSED:
                self.report("status", f"{where}: {status} {got.problem}")
        if got.status == 503 and got.whole and got.problem not in PROBLEMS_OF_503:
            self.report("status", f"{where}: 503 {got.problem}")
        if got.status is not None and got.status >= 400 and WORD.search(got.body):
            self.report("content-in-error", where)

    def _written(self, intent: Intent, attempt: Attempt, action: str, told: Ack, where: str) -> None:
        """An acknowledged write has its event; a repeated one has the first one's and an event of its own."""
        if not any(event["outcome"] == "allowed" for event in self.by_trace[attempt.trace]):
            self.report("write-without-event", f"{where}: {action} of {told.ref}")
            return
        events = [e for each in intent.attempts for e in self._effects(each) if self._is_of(e, told.ref, action)]
        if intent.op == "open":
            return  # an existing session was only read
        fits = [event for event in events if _tells(event, told)]
        if not fits:
            self.report(
                "write-without-event",
                f"{where}: {action} of {told.ref}, commit {told.commit}, versions {told.versions}, turns {told.turns}",
            )

    def _released(self, attempt: Attempt, each: Shown, where: str) -> None:
        """Content that was released is in an event of this very request, object by object and turn by turn."""
        events = [
            event
            for event in self.by_trace[attempt.trace]
            if event["outcome"] == "allowed"
            and (not each.whole or event["action"] == each.action)
            and (each.ref is None or event.get("container") in self.ids.get(each.ref, ()))
            and (not attempt.got.request or event.get("request") == attempt.got.request)
        ]
        versions = {version for event in events for _, version in event.get("objects", ())}
        spans = [span for event in events for span in event.get("turns", ())]
        missing: list[Any] = [version for _, version, _ in each.objects if version not in versions]
        missing += [n for n, _ in each.turns if not any(low <= n <= high for low, high in spans)]
        if missing or not events:
            self.report("read-without-event", f"{where}: {each.action} of {each.ref}, {missing[:3]} of {len(missing)}")

    def _true(self, attempt: Attempt, each: Shown, where: str) -> None:
        """What was shown had been written, by whom the log says, and nothing acknowledged had replaced it."""
        history = self.histories[each.ref] if each.ref is not None else History(("", ""))
        floor = self._floor(history.ref, attempt.began)
        for key, version, value in each.objects:
            commit, values = history.written.get(version, (0, {}))
            if key is None or not commit:
                self.report("surplus", f"{where}: shows {key} version {version}, which no commit wrote")
                continue
            if value is not None and values.get(key) != value:
                self.report("torn", f"{where}: shows {key} version {version} with another content than was written")
            replaced = history.replaced_at(version, key)
            if replaced is not None and replaced <= floor:
                self.report("stale", f"{where}: shows {key} of commit {commit}, replaced at {replaced}; {floor} stood")
        for number, word in each.turns:
            if word is not None and history.words.get(number) != word:
                self.report("surplus", f"{where}: shows turn {number} of {each.ref}, which no commit wrote so")
            if each.action != "turns.pop" and history.removed_at.get(number, floor + 1) <= floor:
                self.report("stale", f"{where}: shows turn {number} of {each.ref}, which was removed before")
        if each.commit is not None and not floor <= each.commit <= history.commit:
            self.report("stale", f"{where}: {each.ref} at {each.commit}, not within {floor} and {history.commit}")

    def _snapshots(self, intent: Intent, attempt: Attempt, where: str) -> None:
        """A load shows each container as it stood after one commit: all that was selected, and nothing else."""
        shows = {show.ref: show for show in intent.shows}
        for each in shown(intent, attempt):
            if each.ref is None or each.commit is None or not 1 <= each.commit <= self.histories[each.ref].commit:
                continue
            show, moment = shows[each.ref], self.histories[each.ref].moments[each.commit - 1]
            wanted = {k: s.value for k, s in moment.objects.items() if k[0] in (show.collections or ())}
            if {key: value for key, _, value in each.objects} != wanted:
                self.report("torn", f"{where}: objects of {each.ref} at {each.commit} aren't what stood then")
            if show.last and [*each.turns] != [*moment.tail[-show.last :]]:
                self.report("torn", f"{where}: turns of {each.ref} at {each.commit} aren't what stood then")

    def _one_answer(self, intent: Intent) -> None:
        """All that was ever answered to one idempotency key is one answer, cut or whole."""
        if intent.key is None:
            return
        got = [each.got for each in intent.attempts if each.got.status in {200, 201}]
        whole = next((each for each in got if each.whole), None)
        for each in got if whole is not None else ():
            self.checked["repeats"] += each is not whole
            if each.status != whole.status:
                self.report("other-status", f"{intent}: {whole.status} and then {each.status}")
            same = each.headers.get("etag") == whole.headers.get("etag")
            if not same or each.body != whole.body[: len(each.body)] or (each.whole and each.body != whole.body):
                self.report(
                    "other-answer",
                    f"{intent}: {whole.status} {whole.body[:200]!r} and then {each.status} {each.body[:200]!r}",
                )

    # ------------------------------------------------------------ afterwards

    def _finals(self) -> None:
        for ref, history in self.histories.items():
            final = self.record.finals.get(ref)
            if final is None:
                if history.commit:
                    self.report("gone", f"{ref} isn't there, although the log has {history.commit} commits of it")
                continue
            self.checked["containers"] += 1
            if final.commit != history.commit:
                kind = "gone" if final.commit < history.commit else "surplus"
                self.report(kind, f"{ref} stands at commit {final.commit}; the log's last is {history.commit}")
            last = history.moments[-1].objects if history.moments else {}
            for key in last.keys() | final.objects.keys():
                self._final_object(ref, key, last, final.objects)
            living = history.living
            for number in [n for n in living if (n, living[n]) not in final.turns]:
                self.report("gone", f"{ref}: turn {number}")
            for number, _ in [turn for turn in final.turns if turn[0] not in living]:
                self.report("surplus", f"{ref}: turn {number}")
            if [n for n, _ in final.turns] != sorted({n for n, _ in final.turns}):
                self.report("surplus", f"{ref}: turns are repeated or out of order")

    def _final_object(self, ref: Ref, key: Any, last: dict[Any, Any], found: dict[Any, Any]) -> None:
        self.checked["objects"] += 1
        if key not in found:
            self.report("gone", f"{ref}: object {key}")
        elif key not in last:
            self.report("surplus", f"{ref}: object {key} version {found[key][0]}")
        elif found[key][0] not in last[key].versions or found[key][1] != last[key].value:
            self.report("gone", f"{ref}: object {key} is version {found[key][0]}, not the one written last")


def _tells(event: Event, told: Ack) -> bool:
    versions = {version for _, version in event.get("objects", ())}
    spans = [tuple(span) for span in event.get("turns", ())]
    return (
        (told.commit is None or event["commit"] == told.commit)
        and versions.issuperset(told.versions)
        and (told.turns is None or told.turns in spans)
    )
