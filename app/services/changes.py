"""What a request asks for, and what it gets, in plain values: no HTTP, no SQL, nothing sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from app.identity import Caller, Kind, Purpose
from app.services.auditing import Trace


class Call(Struct, frozen=True):
    """Who asks, for what, and where from."""

    caller: Caller
    purpose: Purpose | None
    trace: Trace
    idempotency_key: bytes | None = None
    fingerprint: bytes | None = None
    """What tells one request's body from another under the same idempotency key; never stored as it is."""


class Where(Struct, frozen=True):
    """A container: by id, by the client's own name for it (the only way for one that may have to be made), or a subject
    by a session of its own.
    """

    kind: Kind
    id: UUID | None = None
    external: str | None = None
    session: Where | None = None


# ---------------------------------------------------------------- asked


@dataclass(slots=True)
class Put:
    """``inline``: the body is canonical JSON from an envelope. ``if_version``: a version, or the nil UUID for any."""

    collection: str
    key: str
    content_type: str
    body: bytes = field(repr=False)
    tags: Sequence[str] = ()
    inline: bool = False
    if_version: UUID | None = None
    if_none: bool = False


@dataclass(slots=True)
class Merge:
    """RFC 7396, ``patch`` parsed."""

    collection: str
    key: str
    patch: Any = field(repr=False)
    if_version: UUID | None = None
    largest: int | None = None
    """Bytes that the merged object may have."""


@dataclass(slots=True)
class Delete:
    """One object (``key``), or all of a collection and/or tag, or all of a collection but its newest ``keep``."""

    collection: str | None = None
    key: str | None = None
    tag: str | None = None
    keep: int | None = None
    if_version: UUID | None = None
    must_exist: bool = False
    """Whether nothing to delete is ``NotFound``; no precondition of the caller's."""


@dataclass(slots=True)
class NewTurn:
    content_type: str
    body: bytes = field(repr=False)
    inline: bool = False


class Making(Struct):
    """How a container is made where it doesn't exist. ``ttl_*`` in seconds; None: the tenant's default."""

    subject: str | None = None
    labels: Sequence[str] = ()
    ttl_idle: int | None = None
    ttl_absolute: int | None = None
    subject_id: UUID | None = None
    """Instead of ``subject``: the subject's container."""


class Changes(Struct):
    """All changes to one container in one commit. ``only_new``: a container that exists already is a ``Conflict``."""

    where: Where
    action: str
    puts: Sequence[Put] = ()
    merges: Sequence[Merge] = ()
    deletes: Sequence[Delete] = ()
    turns: Sequence[NewTurn] = ()
    expected_commit: int | None = None
    expected_last: int | None = None
    make: Making | None = None
    pop: int | None = None
    clear: bool = False
    only_new: bool = False


class Select(Struct):
    """Part of a container's objects. Without a ``key``: the newest ``limit`` (None: as many as fit), below
    ``before``.
    """

    collection: str | None = None
    key: str | None = None
    tag: str | None = None
    limit: int | None = None
    before: UUID | None = None


class TurnRange(Struct):
    """The last ``limit`` turns below ``before``, or the first ``limit`` above ``after``."""

    limit: int
    before: int | None = None
    after: int | None = None


# ---------------------------------------------------------------- got


@dataclass(slots=True)
class Found:
    """An object as stored, opened."""

    collection: str
    key: str
    tags: list[str]
    inline: bool
    id: UUID
    version: UUID
    content_type: str
    commit: int
    created_at: datetime
    updated_at: datetime
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Turn:
    number: int
    id: UUID
    content_type: str
    commit: int
    created_at: datetime
    inline: bool
    body: bytes = field(repr=False)


class Container(Struct):
    """A container's record. The opened names are there only where they were asked for."""

    id: UUID
    kind: Kind
    commit: int
    head: int
    created_at: datetime
    updated_at: datetime
    external_id: str | None = None
    subject_id: UUID | None = None
    labels: list[str] = []
    ttl_idle: int | None = None
    ttl_absolute: int | None = None
    hold: bool = False
    expires_at: datetime | None = None
    meta_version: UUID | None = None


class Opened(Struct):
    """What a load found in one container, newest objects first."""

    container: Container
    objects: list[Found]
    turns: list[Turn]
    truncated: bool = False


class Applied(Struct):
    """What a commit did to one container. ``removed``: ids of deleted objects; ``popped``: opened turns."""

    id: UUID
    commit: int
    head: int
    created: bool
    puts: list[UUID]
    merges: list[UUID]
    first_turn: int | None
    last_turn: int | None
    removed: int = 0
    unchanged: int = 0
    inserted: int = 0
    popped: list[Turn] = []
