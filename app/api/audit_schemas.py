"""The JSON bodies of the audit routes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from app.api.schemas import In, Out


class DroppedOut(Out):
    """A range of leaves whose events retention dropped; ``end`` is the first leaf that isn't of it."""

    epoch: int
    first: int
    end: int
    events: int
    oldest: datetime
    newest: datetime
    dropped_at: datetime


class EventsOut(Out):
    """Events with the field names of docs/format-audit.md, in canonical form. ``dropped`` is there where retention has
    dropped events of the period that was asked for.
    """

    events: list[dict[str, Any]]
    cursor: str | None = None
    dropped: list[DroppedOut] = msgspec.field(default_factory=list)


class SummaryOut(Out):
    """Counts by value. An event that lacks a field is in none of that field's counts, and one that was ``dropped`` at
    the end of its retention is in none at all.
    """

    from_: datetime = msgspec.field(name="from")
    to: datetime
    events: int = msgspec.field()
    action: dict[str, int] = msgspec.field()
    purpose: dict[str, int] = msgspec.field()
    principal: dict[str, int] = msgspec.field()
    outcome: dict[str, int] = msgspec.field()
    day: dict[str, int] = msgspec.field()
    dropped: list[DroppedOut] = msgspec.field(default_factory=list)


class CountOut(Out):
    tenant_id: UUID
    action: str
    outcome: str
    events: int


class CountsOut(Out):
    counts: list[CountOut]


class CheckpointOut(Out):
    """``root`` is base64; ``note`` the signed text."""

    origin: str
    size: int
    root: str
    signed_at: datetime
    note: str


class CheckpointsOut(Out):
    """``keys`` are verifier keys, the present one first. ``next_below`` is there where more may follow."""

    keys: list[str]
    checkpoints: list[CheckpointOut]
    epoch: int
    next_below: int | None = None


class InclusionOut(Out):
    """``entry`` is the leaf entry: SHA-256(0x00 || entry) is the leaf's hash. ``proof``: hashes in base64."""

    origin: str
    leaf: int
    size: int
    entry: str
    leaf_hash: str
    proof: list[str]
    checkpoint: str


class ConsistencyOut(Out):
    origin: str
    from_: int = msgspec.field(name="from")
    to: int
    proof: list[str] = msgspec.field()
    checkpoint: str = msgspec.field()


# ---------------------------------------------------------------- streams


_LABEL: Final = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_URL: Final = f"^https://{_LABEL}([.]{_LABEL})+(:(443|8443))?([/?][A-Za-z0-9._~:/?@!$&'()*+,;=%-]*)?$"
Url = Annotated[
    str,
    Meta(
        min_length=9,
        max_length=2048,
        description="https, a public address or name, port 443 or 8443; no credentials, no fragment.",
        extra_json_schema={"pattern": _URL},
    ),
]


class StreamIn(In):
    """``region``: where the receiver stands, as you declare it; events stay in the tenant's region."""

    url: Url
    region: Annotated[str, Meta(pattern="^[a-z0-9-]{2,32}$(?!\n)")]


class StreamOut(Out):
    """A stream and its health. ``waiting``: sealed events not delivered; ``dropped``: left out after seven days."""

    id: UUID
    url: str
    region: str
    state: str
    waiting: int
    dropped: int
    failures: int
    created_at: datetime
    last_ok_at: datetime | None = None
    last_error: str | None = None
    next_try_at: datetime | None = None


class StreamCreated(Out):
    """``secret`` signs the deliveries. It is shown this once."""

    stream: StreamOut
    secret: str


class StreamsOut(Out):
    streams: list[StreamOut]


class StreamTested(Out):
    """Whether the receiver took the test delivery; ``error`` is a code."""

    delivered: bool
    error: str | None = None
