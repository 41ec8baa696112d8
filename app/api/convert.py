"""Between the JSON of the dialogue routes and the services' plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from app.api.http import ANY, Request
from app.api.schemas import ContainerOut, DeleteIn, MergeIn, ObjectIn, ObjectOut, Ttl, TurnIn, TurnOut
from app.api.schemas_turn import Committed, LoadedContainer, PutOut, SelectorIn
from app.errors import InvalidRequest
from app.identity import NO_UUID, Kind
from app.services import content
from app.services.auditing import Trace
from app.services.changes import (
    Applied,
    Call,
    Container,
    Delete,
    Found,
    Making,
    Merge,
    NewTurn,
    Opened,
    Put,
    Select,
    Turn,
)

JSON_TYPE: Final = "application/json"
OCTETS_TYPE: Final = "application/octet-stream"
NO_VERSION: Final = UUID(int=(1 << 128) - 1)
"""Equals no stored version: what an entity tag of somebody else's becomes."""

_encode = msgspec.json.Encoder().encode


def call_of(request: Request, body: Struct | bytes | None = None) -> Call:
    """Who asks. ``body`` where the route takes an Idempotency-Key."""
    trace = Trace(request.trace_id, request.request_id_text, request.client_address)
    key = request.idempotency_key()
    if key is None:
        return Call(request.caller, request.purpose_or_none, trace)
    raw = body if isinstance(body, bytes) else _encode(body)
    headers = [request.header(name) for name in (b"content-type", b"if-match", b"if-none-match")]
    target = f"{request.method} {request.route.path} {request.params} {dict(request.query)} {headers}".encode()
    return Call(request.caller, request.purpose_or_none, trace, key, target + b"\x00" + raw)


# ---------------------------------------------------------------- in


def value_in(
    json: Raw | UnsetType, base64: str | UnsetType, content_type: str | None, pointer: str
) -> tuple[str, bytes, bool]:
    """Content type, bytes, and whether they were given inline. Exactly one of ``json`` and ``base64`` must be there."""
    if isinstance(json, Raw) and base64 is UNSET:
        return content_type or JSON_TYPE, content.canonical(memoryview(json)), True
    if isinstance(base64, str) and json is UNSET:
        return content_type or OCTETS_TYPE, content.from_base64(base64, f"{pointer}/base64"), False
    raise InvalidRequest("Give the value either as json or as base64.", pointer)


def version_in(text: str | None) -> UUID | None:
    """A version from a body; ``*`` is the nil UUID, which stands for any."""
    if text is None:
        return None
    return NO_UUID if text == ANY else UUID(text)


def puts_in(objects: Sequence[ObjectIn], pointer: str, largest: int) -> list[Put]:
    return [put_in(each, f"{pointer}/{index}", largest) for index, each in enumerate(objects)]


def put_in(each: ObjectIn, pointer: str, largest: int) -> Put:
    content_type, body, inline = value_in(each.json, each.base64, each.content_type, pointer)
    if len(body) > largest:
        raise InvalidRequest(f"An object is larger than {largest} bytes.", pointer)
    if each.if_match is not None and each.if_none_match is not None:
        raise InvalidRequest("Give either if_match or if_none_match.", pointer)
    return Put(
        each.collection,
        each.key,
        content_type,
        body,
        tuple(dict.fromkeys(each.tags)),
        inline,
        version_in(each.if_match),
        each.if_none_match is not None,
    )


def merges_in(merges: Sequence[MergeIn], largest: int) -> list[Merge]:
    return [
        Merge(each.collection, each.key, content.patch(memoryview(each.json)), version_in(each.if_match), largest)
        for each in merges
    ]


def deletes_in(deletes: Sequence[DeleteIn], pointer: str) -> list[Delete]:
    return [delete_in(each, f"{pointer}/{index}") for index, each in enumerate(deletes)]


def delete_in(each: DeleteIn, pointer: str) -> Delete:
    """Refuses combinations that say nothing or too much: a delete never takes more than what it names."""
    if each.collection is None and each.tag is None:
        raise InvalidRequest("Name what to delete: a collection, a collection's key, or a tag.", pointer)
    if each.key is not None and (each.collection is None or each.tag is not None or each.keep_newest is not None):
        raise InvalidRequest("A key goes with its collection and nothing else.", pointer)
    if each.keep_newest is not None and (each.collection is None or each.tag is not None):
        raise InvalidRequest("keep_newest goes with a collection and nothing else.", pointer)
    if each.if_match is not None and each.key is None:
        raise InvalidRequest("if_match goes with one object's key.", pointer)
    return Delete(each.collection, each.key, each.tag, each.keep_newest, version_in(each.if_match))


def turns_in(turns: Sequence[TurnIn], pointer: str, largest: int) -> list[NewTurn]:
    made = []
    for index, turn in enumerate(turns):
        content_type, body, inline = value_in(turn.json, turn.base64, turn.content_type, f"{pointer}/{index}")
        if len(body) > largest:
            raise InvalidRequest(f"A turn is larger than {largest} bytes.", f"{pointer}/{index}")
        made.append(NewTurn(content_type, body, inline))
    return made


def making_in(subject: str | None, labels: Sequence[str], ttl: Ttl | None) -> Making:
    return Making(
        subject,
        tuple(dict.fromkeys(labels)),
        ttl.idle if ttl is not None else None,
        ttl.absolute if ttl is not None else None,
    )


def selects_in(selectors: Sequence[SelectorIn] | None, pointer: str) -> list[Select]:
    selects = []
    for index, each in enumerate(selectors or ()):
        if each.key is not None and (each.collection is None or each.tag is not None or each.newest is not None):
            raise InvalidRequest("A key goes with its collection and nothing else.", f"{pointer}/{index}")
        selects.append(Select(each.collection, each.key, each.tag, each.newest))
    return selects


# ---------------------------------------------------------------- out


def value_out(content_type: str, body: bytes, *, inline: bool) -> tuple[Raw | UnsetType, str | UnsetType]:
    """The bytes as they are where they are JSON, else as base64."""
    if inline or (content_type.startswith(JSON_TYPE) and content.is_json(body)):
        return Raw(body), UNSET
    return UNSET, content.to_base64(body)


def object_out(found: Found) -> ObjectOut:
    json, base64 = value_out(found.content_type, found.body, inline=found.inline)
    return ObjectOut(
        found.collection,
        found.key,
        found.version,
        found.content_type,
        found.commit,
        found.created_at,
        found.updated_at,
        json,
        base64,
        found.tags,
    )


def turn_out(turn: Turn) -> TurnOut:
    json, base64 = value_out(turn.content_type, turn.body, inline=turn.inline)
    return TurnOut(turn.number, turn.id, turn.content_type, turn.commit, turn.created_at, json, base64)


def container_out(container: Container) -> ContainerOut:
    ttl = None
    if container.ttl_idle is not None or container.ttl_absolute is not None:
        ttl = Ttl(container.ttl_idle, container.ttl_absolute)
    return ContainerOut(
        container.id,
        container.kind.value,
        container.commit,
        container.created_at,
        container.updated_at,
        container.external_id,
        container.subject_id,
        container.labels,
        ttl,
        container.hold,
        container.head - 1,
        container.expires_at,
    )


def loaded_out(opened: Opened) -> LoadedContainer:
    container = opened.container
    return LoadedContainer(
        container.id,
        container.commit,
        container.created_at,
        container.updated_at,
        [object_out(found) for found in _once(opened.objects)],
        opened.truncated,
    )


def _once(objects: Sequence[Found]) -> Sequence[Found]:
    """Selectors may overlap; an object is answered once."""
    if len(objects) < 2:
        return objects
    return list({found.id: found for found in objects}.values())


def committed_out(applied: Applied) -> Committed:
    return Committed(
        applied.id,
        applied.commit,
        [PutOut(version) for version in applied.puts],
        [PutOut(version) for version in applied.merges],
        applied.created,
        applied.first_turn,
        applied.last_turn,
    )


def kind_path(kind: Kind) -> str:
    return f"/v1/{kind.value}s"


def article(kind: Kind) -> str:
    return "an" if kind is Kind.APP else "a"
