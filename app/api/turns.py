"""A session's turns: append, page both ways, the last n, pop, clear."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from app.api.convert import call_of, turn_out, turns_in
from app.api.http import Answer, Request, json_answer
from app.api.schemas import AppendIn, AppendOut, Count, Number, PopIn, Removed, TurnsOut
from app.api.table import IDEMPOTENCY_KEY, PURPOSE, QueryParam, ResponseDoc, Route
from app.errors import (
    Conflict,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    NumberNotRepresentable,
    PreconditionFailed,
)
from app.identity import Kind, Purpose, Scope
from app.services.changes import Changes, TurnRange, Where
from app.services.dialogue import Loading
from app.services.services import Services


async def list_turns(services: Services, request: Request, _body: None) -> Answer:
    query = request.query
    after, before, last = query["after"], query["before"], query["last"]
    if sum(asked is not None for asked in (after, before, last)) > 1:
        raise InvalidRequest("Give at most one of after, before and last.")
    limit = last or query["limit"]
    wanted = TurnRange(limit + 1, before, after if before is None and last is None else None)
    if after is None and before is None and last is None:
        wanted.after = 0
    part = Loading(Where(Kind.SESSION, request.path_id()), "turns.read", turns=wanted)
    opened = (await services.dialogue.load(call_of(request), [part]))[0]
    if opened is None:
        raise NotFound
    turns = opened.turns
    if len(turns) > limit:
        turns = turns[:limit] if wanted.after is not None else turns[-limit:]
    return json_answer(TurnsOut([turn_out(turn) for turn in turns], len(opened.turns) > limit or opened.truncated))


async def append_turns(services: Services, request: Request, body: AppendIn) -> Answer:
    changes = Changes(
        Where(Kind.SESSION, request.path_id()),
        "turns.append",
        turns=turns_in(body.turns, "/turns", services.limits.object),
        expected_last=body.expected_last,
    )
    done = (await services.dialogue.commit(call_of(request, body), [changes]))[0]
    return json_answer(AppendOut(done.first_turn or 0, done.last_turn or 0, done.commit))


async def pop_turns(services: Services, request: Request, body: PopIn) -> Answer:
    changes = Changes(Where(Kind.SESSION, request.path_id()), "turns.pop", pop=body.count)
    done = (await services.dialogue.commit(call_of(request), [changes]))[0]
    return json_answer(TurnsOut([turn_out(turn) for turn in done.popped]))


async def clear_turns(services: Services, request: Request, _body: None) -> Answer:
    changes = Changes(Where(Kind.SESSION, request.path_id()), "turns.clear", clear=True)
    done = (await services.dialogue.commit(call_of(request), [changes]))[0]
    return json_answer(Removed(done.removed, done.commit))


_COMMON: Final[dict[str, Any]] = {"purpose": True, "purposes": (Purpose.SERVE,), "tags": ("turns",)}
_PATH: Final = "/v1/sessions/{id}/turns"

ROUTES: Final = (
    Route("GET", _PATH, list_turns, "list_turns", "Read turns, oldest first",
          {200: ResponseDoc("The turns that were asked for; removed ones are left out.", TurnsOut)},
          scope=Scope.CONTEXT_READ,
          query=(QueryParam("after", Number, "Turns above this number."),
                 QueryParam("before", Annotated[int, Meta(ge=1, le=9007199254740991)], "Turns below this number."),
                 QueryParam("last", Count, "The last n turns."),
                 QueryParam("limit", Count, "Turns in a page.", default=100)),
          headers=(PURPOSE,), errors=(InvalidRequest, NotFound), **_COMMON),
    Route("POST", _PATH, append_turns, "append_turns", "Append turns",
          {200: ResponseDoc("The numbers that they got.", AppendOut)},
          scope=Scope.CONTEXT_WRITE, body=AppendIn, limit="envelope", headers=(IDEMPOTENCY_KEY, PURPOSE),
          errors=(NotFound, PreconditionFailed, IdempotencyMismatch, NumberNotRepresentable),
          request_example={"turns": [{"json": {"role": "user", "text": "Hello"}}]}, **_COMMON),
    Route("POST", f"{_PATH}/pop", pop_turns, "pop_turns", "Remove the last turns and answer them",
          {200: ResponseDoc("The removed turns, newest first.", TurnsOut)},
          scope=Scope.CONTEXT_WRITE, body=PopIn, headers=(PURPOSE,), errors=(NotFound, Conflict),
          description="It opens what it answers: an event of its own. A retry removes further turns: there is no "
                      "Idempotency-Key, since the first answer's content is gone.",
          request_example={"count": 2}, **_COMMON),
    Route("DELETE", _PATH, clear_turns, "clear_turns", "Remove all turns",
          {200: ResponseDoc("How many went; tombstones keep their numbers.", Removed)},
          scope=Scope.CONTEXT_WRITE, headers=(PURPOSE,), errors=(NotFound, Conflict), **_COMMON),
)  # fmt: skip
