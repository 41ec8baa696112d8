"""Playing dialogues as a runtime would, and reading everything back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import msgspec
import orjson

from app.api.schemas import ObjectOut, TurnOut, TurnsOut
from app.api.schemas_turn import CommitOut, LoadedContainer, LoadOut
from app.cli.replay_client import Call, Client
from app.cli.replay_dialogues import Dialogue, Exchange, canonical

COLLECTION: Final = "state"
LAST_TURNS: Final = 6
"""How many turns a runtime wants to see before it answers: its prompt's short-term memory."""
PAGE: Final = 10
"""Turns in a page of reading back: few, so that most dialogues take several."""
_ABSENT: Final = "the session is absent"
_MOVED: Final = "the session's commit number is another one"


class MismatchError(Exception):
    """The service holds something else than what was committed. The text says what kind of thing, never the thing."""


class Kept(NamedTuple):
    """Where a dialogue went: the session's id and its commit number."""

    session: UUID
    commit: int


class Player:
    """Writes and reads dialogues through one client. ``advance`` is told of each exchange or dialogue that is done."""

    def __init__(self, client: Client, prefix: str, advance: Callable[[int], None]) -> None:
        self._client = client
        self._prefix = prefix
        self._advance = advance
        self.kept: dict[str, Kept] = {}
        self.mismatches: dict[str, str] = {}
        self.found = 0
        """Exchanges that a run before this one had committed already."""

    async def write(self, dialogue: Dialogue) -> int:
        """One load and one commit for each exchange; answers how many were committed.

        A dialogue that another run began is continued, once what it holds is verified.
        """
        loaded = await self._load_for_turn({"external_id": self._prefix + dialogue.dialogue_id}, absent_is_fine=True)
        done = 0
        if loaded is not None:
            done = loaded.session.commit
            self._verify(loaded, dialogue, done)
            self.kept[dialogue.dialogue_id] = Kept(loaded.session.id, done)
            self.found += done
            self._advance(done)
        for number in range(done, len(dialogue.exchanges)):
            kept = self.kept.get(dialogue.dialogue_id)
            if number > done and kept is not None:
                loaded = await self._load_for_turn({"session": str(kept.session)})
                self._verify(loaded, dialogue, number)
            self.kept[dialogue.dialogue_id] = await self._commit(dialogue, number, kept)
            self._advance(1)
        return len(dialogue.exchanges) - done

    async def read(self, dialogue: Dialogue) -> int:
        """Everything that the session holds, against everything that was committed."""
        kept = self.kept.get(dialogue.dialogue_id)
        name = {"session": str(kept.session)} if kept else {"external_id": self._prefix + dialogue.dialogue_id}
        answer = await self._client.call(Call("read_load", "POST", "/v1/load", {**name, "context": [{}]}))
        if answer.status == 404:
            raise MismatchError(_ABSENT)
        session = answer.decoded(LoadOut).session
        if session.commit != len(dialogue.exchanges) or (kept and kept != (session.id, session.commit)):
            raise MismatchError(_MOVED)
        _compare_state(session, dialogue.state_after(session.commit))
        turns = await self._all_turns(session.id)
        expected = dialogue.turns_after(session.commit)
        _compare_turns(turns, expected, len(expected))
        self._advance(1)
        return 1

    async def each(self, dialogues: Iterable[Dialogue], workers: int, do: Callable[[Dialogue], Awaitable[int]]) -> int:
        """``do`` for every dialogue, ``workers`` at a time. A mismatch ends its own dialogue, a failure all of them.

        Answers the sum of what ``do`` counted.
        """
        queue = iter(dialogues)
        done = 0

        async def work() -> None:
            nonlocal done
            for dialogue in queue:
                try:
                    count = await do(dialogue)
                    done += count
                except MismatchError as mismatch:
                    self.mismatches.setdefault(dialogue.dialogue_id, str(mismatch))

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        return done

    async def _load_for_turn(self, name: Mapping[str, str], *, absent_is_fine: bool = False) -> LoadOut | None:
        body = {**name, "context": [{"collection": COLLECTION}], "turns": {"last": LAST_TURNS}}
        answer = await self._client.call(Call("load", "POST", "/v1/load", body))
        if answer.status == 404:
            if absent_is_fine:
                return None
            raise MismatchError(_ABSENT)
        return answer.decoded(LoadOut)

    def _verify(self, loaded: LoadOut | None, dialogue: Dialogue, commits: int) -> None:
        """What a load between two turns shows is exactly what was committed so far."""
        if loaded is None or loaded.session.commit != commits or commits > len(dialogue.exchanges):
            raise MismatchError(_MOVED)
        _compare_state(loaded.session, dialogue.state_after(commits))
        _compare_turns(loaded.turns, dialogue.turns_after(commits), LAST_TURNS)

    async def _commit(self, dialogue: Dialogue, number: int, kept: Kept | None) -> Kept:
        exchange = dialogue.exchanges[number]
        body = _changes(exchange, number)
        if kept is None:
            body |= {"external_id": self._prefix + dialogue.dialogue_id, "create": {}}
        else:
            body["session"] = str(kept.session)
        # Drawn once for this change: however often the call is repeated, the service applies it once.
        call = Call("commit", "POST", "/v1/commit", body, uuid4().hex)
        answer = await self._client.call(call)
        if answer.status == 404:
            raise MismatchError(_ABSENT)
        if answer.status == 412:
            raise MismatchError("the session has moved: another writer, or a repeated commit was applied twice")
        committed = answer.decoded(CommitOut).session
        before = sum(len(earlier.turns) for earlier in dialogue.exchanges[:number])
        if (
            committed.commit != number + 1
            or (kept is not None and committed.id != kept.session)
            or len(committed.put) != len(exchange.state)
            or (committed.first_turn, committed.last_turn) != (before + 1, before + len(exchange.turns))
        ):
            raise MismatchError("a commit was answered with other numbers than it must have")
        return Kept(committed.id, committed.commit)

    async def _all_turns(self, session: UUID) -> list[TurnOut]:
        """From the first one on, page by page."""
        turns: list[TurnOut] = []
        more = True
        while more:
            after = turns[-1].number if turns else 0
            call = Call("read_turns", "GET", f"/v1/sessions/{session}/turns?after={after}&limit={PAGE}")
            answer = await self._client.call(call)
            if answer.status == 404:
                raise MismatchError(_ABSENT)
            page = answer.decoded(TurnsOut)
            more = page.more
            if more and not (page.turns and page.turns[-1].number > after):
                raise MismatchError("the pages of turns lead nowhere")
            turns += page.turns
        return turns


def _changes(exchange: Exchange, expected_commit: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "expected_commit": expected_commit,
        "put": [
            {"collection": COLLECTION, "key": service, "json": orjson.Fragment(state)}
            for service, state in exchange.state.items()
        ],
        "turns": [{"json": orjson.Fragment(turn)} for turn in exchange.turns],
    }
    if exchange.dropped:
        body["delete"] = [{"collection": COLLECTION, "key": service} for service in exchange.dropped]
    return body


def _compare_state(session: LoadedContainer, expected: Mapping[str, bytes]) -> None:
    if session.truncated:
        raise MismatchError("the context was truncated")
    stored = {(item.collection, item.key): _canonical_of(item) for item in session.context}
    if len(stored) != len(session.context) or stored.keys() != {(COLLECTION, service) for service in expected}:
        raise MismatchError("other context objects are stored than were committed")
    if any(stored[COLLECTION, service] != state for service, state in expected.items()):
        raise MismatchError("a context object differs")


def _compare_turns(stored: Sequence[TurnOut], expected: Sequence[bytes], last: int) -> None:
    """``stored`` must be the ``last`` of ``expected``, in their order and with their numbers."""
    first = max(0, len(expected) - last)
    ordered = sorted(stored, key=lambda turn: turn.number)
    if [turn.number for turn in ordered] != list(range(first + 1, len(expected) + 1)):
        raise MismatchError("other turns are stored than were committed")
    if any(_canonical_of(turn) != text for turn, text in zip(ordered, expected[first:], strict=True)):
        raise MismatchError("a turn differs")


def _canonical_of(stored: ObjectOut | TurnOut) -> bytes | None:
    """The JSON as canonical text, None where the service holds it as something else than JSON."""
    if not isinstance(stored.json, msgspec.Raw) or stored.content_type != "application/json":
        return None
    return canonical(orjson.loads(memoryview(stored.json)))
