# ruff: noqa: RUF012  msgspec makes a fresh list for each instance
"""The JSON bodies of POST /v1/load and POST /v1/commit, after the rules of ``app/api/schemas.py``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar
from uuid import UUID

from msgspec import Meta

from app.api.rules import Schema, all_of, any_of, exactly_one, one_of, shape
from app.api.schemas import (
    Collection,
    Count,
    DeleteIn,
    In,
    Labels,
    MergeIn,
    Name,
    Number,
    ObjectIn,
    ObjectOut,
    Out,
    Tag,
    Ttl,
    TurnIn,
    TurnOut,
)

# ---------------------------------------------------------------- load


class SelectorIn(In):
    """Part of a container: all of it (empty), a ``collection``, one ``key`` of it, a ``tag``, the ``newest`` n of
    these.
    """

    also: ClassVar[Schema | None] = one_of(
        shape(absent=("key",)), shape(given=("collection", "key"), absent=("tag", "newest"))
    )

    collection: Collection | None = None
    key: Name | None = None
    tag: Tag | None = None
    newest: Count | None = None


Selectors = Annotated[list[SelectorIn], Meta(max_length=32)]


class TurnsIn(In):
    """Turns to load: the ``last`` n."""

    last: Count


class LoadIn(In):
    """All that a turn needs, in one round trip. Name the session by ``session`` or ``external_id``.

    ``subject`` true loads the context of the session's subject (``subject_context`` narrows it), ``app`` that of an
    app.
    """

    also: ClassVar[Schema | None] = all_of(
        exactly_one("session", "external_id"),
        any_of(shape(absent=("subject_context",)), shape(given=("subject",), subject={"const": True})),
        any_of(shape(absent=("app_context",)), shape(given=("app",))),
    )

    session: UUID | None = None
    external_id: Name | None = None
    context: Selectors | None = None
    turns: TurnsIn | None = None
    subject: bool = False
    subject_context: Selectors | None = None
    app: Name | None = None
    app_context: Selectors | None = None


class LoadedContainer(Out):
    """A container's part of a load: its id, commit number and what was selected, newest first."""

    id: UUID
    commit: int
    created_at: datetime
    updated_at: datetime
    context: list[ObjectOut] = []
    truncated: bool = False


class LoadOut(Out):
    session: LoadedContainer
    turns: list[TurnOut] = []
    subject: LoadedContainer | None = None
    app: LoadedContainer | None = None


# ---------------------------------------------------------------- commit

Puts = Annotated[list[ObjectIn], Meta(max_length=256)]
Merges = Annotated[list[MergeIn], Meta(max_length=64)]
Deletes = Annotated[list[DeleteIn], Meta(max_length=256)]


class CreateIn(In):
    """What the session is created with where the external id names none yet."""

    subject: Name | None = None
    labels: Labels = []
    ttl: Ttl | None = None


class SubjectChanges(In):
    """Changes to the context of the session's subject, in the same commit."""

    put: Puts = []
    merge: Merges = []
    delete: Deletes = []
    expected_commit: Number | None = None


class AppChanges(In):
    """Changes to an app's context, in the same commit."""

    name: Name
    put: Puts = []
    merge: Merges = []
    delete: Deletes = []
    expected_commit: Number | None = None


class CommitIn(In):
    """One dialogue turn, all or nothing. ``create`` makes the session if ``external_id`` names none.

    Deletes come first, then puts and merges, and ``keep_newest`` last; turns are appended in their order.

    ``expected_commit``: the session's commit number must be this one, or the commit is refused with 412.
    """

    also: ClassVar[Schema | None] = one_of(
        shape(given=("session",), absent=("external_id", "create")), shape(given=("external_id",), absent=("session",))
    )

    session: UUID | None = None
    external_id: Name | None = None
    create: CreateIn | None = None
    expected_commit: Number | None = None
    put: Puts = []
    merge: Merges = []
    delete: Deletes = []
    turns: Annotated[list[TurnIn], Meta(max_length=256)] = []
    subject: SubjectChanges | None = None
    app: AppChanges | None = None


class PutOut(Out):
    """The version that a put or merge wrote, in the request's order."""

    version: UUID


class Committed(Out):
    """A container's part of a commit."""

    id: UUID
    commit: int
    put: list[PutOut] = []
    merge: list[PutOut] = []
    created: bool = False
    first_turn: int | None = None
    last_turn: int | None = None


class CommitOut(Out):
    session: Committed
    subject: Committed | None = None
    app: Committed | None = None
