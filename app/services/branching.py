"""Branch: copy a session up to a turn or a commit into a new session, under a new container key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from app.errors import Conflict, InvalidRequest, NotFound
from app.identity import Kind
from app.services.changes import (
    Call,
    Changes,
    Container,
    Found,
    Making,
    NewTurn,
    Opened,
    Put,
    Select,
    Turn,
    TurnRange,
    Where,
)
from app.services.dialogue import Dialogue, Loading

PAGE: Final = 500
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of content in the largest session that can be branched in one commit."""
TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Branched:
    """``omitted``: objects that were changed after the commit that was asked for; their earlier content isn't kept."""

    container: Container
    objects: int
    turns: int
    omitted: int


class Branching:
    """Reads the source in pages, each an event, and writes the copy in one commit."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue

    async def branch(
        self, call: Call, source: Where, external: str | None, making: Making, *, turn: int | None, commit: int | None
    ) -> Branched:
        """Raises ``NotFound``, ``Conflict`` (the external id is taken, or the source keeps changing),
        ``InvalidRequest``.
        """
        # The copy is about the same person: an erasure of the subject must find it.
        making.subject_id = await self._dialogue.subject_id(call, source)
        for _ in range(TRIES):
            first = await self._page(call, source, None, 0)
            if external is not None and await self._taken(call, external):
                raise Conflict("A session with this external_id exists. Choose another.")
            objects, turns, steady = await self._whole(call, source, first)
            if steady:
                break
        else:
            raise Conflict("The session changes faster than it can be copied. Try again.")
        kept_turns = [each for each in turns if _within(each, turn, commit)]
        until = _commit_of(turns, turn) if turn is not None else commit
        kept = [each for each in objects if until is None or each.commit <= until]
        changes = Changes(
            Where(Kind.SESSION, external=external),
            "branch",
            puts=[_copy(each) for each in kept],
            turns=[NewTurn(each.content_type, each.body, each.inline) for each in kept_turns],
            make=making,
            only_new=True,
        )
        done = (await self._dialogue.commit(Call(call.caller, call.purpose, call.trace), [changes]))[0]
        record = await self._dialogue.record(call, Where(Kind.SESSION, done.id), "branch")
        return Branched(record, len(kept), len(kept_turns), len(objects) - len(kept))

    async def _taken(self, call: Call, external: str) -> bool:
        return bool(await self._dialogue.find_sessions(call, external=external, limit=1))

    async def _whole(self, call: Call, source: Where, first: Opened) -> tuple[list[Found], list[Turn], bool]:
        """All objects and turns; and whether the session stood still meanwhile."""
        objects, turns, page, steady = list(first.objects), list(first.turns), first, True
        while page.objects or page.turns:
            page = await self._page(
                call,
                source,
                objects[-1].version if objects else None,
                turns[-1].number if turns else 0,
            )
            steady = steady and page.container.commit == first.container.commit
            known = {each.id for each in objects}
            objects += [each for each in page.objects if each.id not in known]
            turns += page.turns
            if sum(len(found.body) for found in objects) + sum(len(each.body) for each in turns) > LARGEST:
                raise InvalidRequest(f"The session holds more than {LARGEST} bytes, too many to branch.")
        return objects, turns, steady

    async def _page(self, call: Call, source: Where, before: UUID | None, after: int) -> Opened:
        part = Loading(source, "branch", [Select(limit=PAGE, before=before)], TurnRange(PAGE, after=after))
        opened = (await self._dialogue.load(call, [part]))[0]
        if opened is None:
            raise NotFound
        return opened


def _within(turn: Turn, last: int | None, commit: int | None) -> bool:
    return (last is None or turn.number <= last) and (commit is None or turn.commit <= commit)


def _commit_of(turns: Sequence[Turn], last: int) -> int | None:
    """The commit that the context stood at when turn ``last`` was the last one; None where that is now."""
    later = [each.commit for each in turns if each.number > last]
    return min(later) - 1 if later else None


def _copy(found: Found) -> Put:
    return Put(found.collection, found.key, found.content_type, found.body, tuple(found.tags), found.inline)
