"""The JSON bodies of the dialogue routes. Unknown fields are refused; texts and lists are bounded.

Names that clients choose (external ids, subjects, labels, collections, keys, tags) are texts of 1 to 512 characters
without control characters. A value is given either inline as ``json`` (stored canonically) or as ``base64``
(byte-exact).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from app.api.rules import Schema, all_of, at_most_one, exactly_one, exactly_one_present, one_of, shape

_TEXT = "^[^\\x00-\\x1f\\x7f-\\x9f]*$(?!\n)"
Name = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=_TEXT, description="1 to 512 characters, no controls.")
]
# Patterns end in $(?!\n), since the $ of Python's re also stands before a last line feed.
Collection = Annotated[str, Meta(min_length=1, max_length=256, pattern=_TEXT)]
Tag = Annotated[str, Meta(min_length=1, max_length=256, pattern=_TEXT)]
Tags = Annotated[list[Tag], Meta(max_length=16)]
Labels = Annotated[list[Tag], Meta(max_length=16)]
ContentType = Annotated[
    str,
    Meta(
        max_length=255,
        pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \t]*;[\x20-\x7e\t]*)?$(?!\n)",
        description="A media type (RFC 9110 section 8.3).",
    ),
]
# For the document only: the decoder checks the same at a fraction of a regular expression's cost.
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
Base64 = Annotated[
    str,
    Meta(
        description="RFC 4648 section 4, canonical: padded, no line breaks.",
        extra_json_schema={"pattern": _BASE64, "contentEncoding": "base64"},
    ),
]
VersionText = Annotated[
    str,
    Meta(
        pattern=r"^(\*|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$(?!\n)",
        description="A version as answered before, or * for any.",
    ),
]
AnyVersion = Annotated[str, Meta(pattern=r"^\*$(?!\n)", description="Only *: nothing may be stored yet.")]
Count = Annotated[int, Meta(ge=1, le=1000)]
Number = Annotated[int, Meta(ge=0, le=9007199254740991)]
Seconds = Annotated[int, Meta(ge=1, le=315360000, description="Seconds.")]


class In(Struct, forbid_unknown_fields=True, gc=False):
    """A request's part. ``also``: which fields belong together, for the document."""

    also: ClassVar[Schema | None] = None


class Out(Struct, omit_defaults=True, gc=False):
    """An answer's part."""


# ---------------------------------------------------------------- values


class TurnIn(In):
    """A turn to append."""

    also: ClassVar[Schema | None] = exactly_one_present("json", "base64")

    json: Raw | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET
    content_type: ContentType | None = None


class ObjectIn(In):
    """A context object to put. ``if_match`` and ``if_none_match`` are the preconditions of RFC 9110, for this
    object.
    """

    also: ClassVar[Schema | None] = all_of(
        exactly_one_present("json", "base64"), at_most_one("if_match", "if_none_match")
    )

    collection: Collection
    key: Name
    json: Raw | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET
    content_type: ContentType | None = None
    tags: Tags = []
    if_match: VersionText | None = None
    if_none_match: AnyVersion | None = None


class MergeIn(In):
    """A JSON merge patch (RFC 7396) of a stored JSON object; an absent one counts as empty."""

    collection: Collection
    key: Name
    json: Raw
    if_match: VersionText | None = None


class DeleteIn(In):
    """Delete one object (``collection`` and ``key``), a collection, everything with a ``tag``, or all of a collection
    but its
    newest ``keep_newest``.
    """

    also: ClassVar[Schema | None] = one_of(
        shape(given=("collection", "key"), absent=("tag", "keep_newest")),
        shape(given=("collection", "keep_newest"), absent=("key", "tag", "if_match")),
        shape(given=("collection",), absent=("key", "keep_newest", "if_match")),
        shape(given=("tag",), absent=("collection", "key", "keep_newest", "if_match")),
    )

    collection: Collection | None = None
    key: Name | None = None
    tag: Tag | None = None
    keep_newest: Annotated[int, Meta(ge=0, le=100000)] | None = None
    if_match: VersionText | None = None


class ObjectOut(Out):
    """A context object as stored. ``json`` where its bytes are JSON, else ``base64``."""

    collection: str
    key: str
    version: UUID
    content_type: str
    commit: int
    created_at: datetime
    updated_at: datetime
    json: Raw | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    tags: list[str] = []


class TurnOut(Out):
    """A turn as stored. Numbers are gap-free and never reused; removed turns are left out."""

    number: int
    id: UUID
    content_type: str
    commit: int
    created_at: datetime
    json: Raw | UnsetType = UNSET
    base64: str | UnsetType = UNSET


# ---------------------------------------------------------------- containers


class Ttl(In, omit_defaults=True):
    """Time to live. ``idle`` runs from the last write, ``absolute`` from the creation; the earlier one ends the
    container.
    """

    idle: Seconds | None = None
    absolute: Seconds | None = None


class SessionIn(In):
    """Get or create a session. With an ``external_id`` that is known, the existing session is answered unchanged."""

    external_id: Name | None = None
    subject: Name | None = None
    labels: Labels = []
    ttl: Ttl | None = None


class SessionPatch(In):
    """What may be changed of a session. An absent field stays as it is."""

    also: ClassVar[Schema | None] = {
        "minProperties": 1,
        "allOf": [shape(ttl={"anyOf": [shape(given=("idle",)), shape(given=("absolute",))]})],
    }

    labels: Labels | UnsetType = UNSET
    ttl: Ttl | UnsetType = UNSET
    hold: bool | UnsetType = UNSET


class SessionLookup(In):
    """Exactly one of the three."""

    also: ClassVar[Schema | None] = exactly_one("external_id", "subject", "label")

    external_id: Name | None = None
    subject: Name | None = None
    label: Tag | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: str | None = None


class SubjectIn(In):
    """Get or create the container of a data subject."""

    external_id: Name


class AppIn(In):
    """Get or create a container that the tenant's application shares."""

    name: Name


class ContainerOut(Out):
    """A container's record. ``expires_at`` is absent where nothing ends it."""

    id: UUID
    kind: str
    commit: int
    created_at: datetime
    updated_at: datetime
    external_id: str | None = None
    subject_id: UUID | None = None
    labels: list[str] = []
    ttl: Ttl | None = None
    hold: bool = False
    turns: int = 0
    expires_at: datetime | None = None


class SessionsOut(Out):
    sessions: list[ContainerOut]
    cursor: str | None = None


class BranchIn(In):
    """Copy a session up to a turn or a commit, under a new container key. Objects changed after it are left
    out.
    """

    also: ClassVar[Schema | None] = at_most_one("turn", "commit")

    turn: Number | None = None
    commit: Number | None = None
    external_id: Name | None = None
    labels: Labels = []
    ttl: Ttl | None = None


class BranchOut(Out):
    session: ContainerOut
    objects: int
    turns: int
    omitted: int


# ---------------------------------------------------------------- single routes


class Written(Out):
    """What a single write answers: the new version and the container's commit number."""

    version: UUID
    commit: int


class ObjectsOut(Out):
    objects: list[ObjectOut]
    cursor: str | None = None


class Removed(Out):
    removed: int
    commit: int


class TurnsOut(Out):
    """``more``: there are further turns in the direction that was asked for."""

    turns: list[TurnOut]
    more: bool = False


class AppendIn(In):
    """Turns to append, in order. ``expected_last``: the number of the turn that must be the last one now."""

    turns: Annotated[list[TurnIn], Meta(min_length=1, max_length=256)]
    expected_last: Number | None = None


class AppendOut(Out):
    first_turn: int
    last_turn: int
    commit: int


class PopIn(In):
    """Remove the last ``count`` turns and answer them, newest first."""

    count: Annotated[int, Meta(ge=1, le=256)] = 1


# ---------------------------------------------------------------- batch


class BatchItem(In):
    """One read or write of one object. Exactly one of ``session``, ``subject`` and ``app`` holds a container's id.

    The value is as in ``ObjectIn``. An item that breaks these rules fails by itself.
    """

    op: Annotated[str, Meta(pattern="^(get|put|merge|delete)$(?!\n)")]
    collection: Collection
    key: Name
    session: UUID | None = None
    subject: UUID | None = None
    app: UUID | None = None
    json: Raw | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    content_type: ContentType | None = None
    tags: Tags = []
    if_match: VersionText | None = None
    if_none_match: AnyVersion | None = None


class BatchIn(In):
    """Independent reads and writes over many containers: each succeeds or fails by itself, in no promised order."""

    requests: Annotated[list[BatchItem], Meta(min_length=1, max_length=256)]


class BatchResult(Out):
    """``status`` is the HTTP status that the single route would have given; ``problem`` its problem document."""

    status: int
    object: ObjectOut | None = None
    version: UUID | None = None
    commit: int | None = None
    problem: dict[str, Any] | None = None


class BatchOut(Out):
    results: list[BatchResult]
