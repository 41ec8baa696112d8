"""Between plain values and rows: names become HMACs, contents are sealed, rows are opened. Calls ``app/crypto`` only.

An object's plaintext is its name and its content together, so that neither can be exchanged: 4 bytes length,
big-endian,
of a JSON array [collection, key, tags, inline], the array, the content. A turn's is one byte (1: inline JSON) and
content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from app.crypto.context import Domain, SealContext
from app.crypto.envelope import open_sealed, read_header, seal
from app.crypto.index import IndexKind, index_tag
from app.crypto.keys import hkdf_sha256
from app.crypto.secret import SecretKey
from app.errors import Tampered
from app.identity import NO_UUID, Kind, quick_id
from app.services.changes import Found, NewTurn, Put, Turn
from app.services.tenant_keys import TenantKeys

_EXTERNAL: Final = {
    Kind.SESSION: IndexKind.EXTERNAL_ID,
    Kind.SUBJECT: IndexKind.SUBJECT,
    Kind.APP: IndexKind.APP,
}
_VERSION_BITS: Final = ~((0xF << 76) | (0x3 << 62))
_UUID8: Final = (0x8 << 76) | (0x2 << 62)


def _tag(keys: TenantKeys, kind: IndexKind, container: UUID, *values: str) -> UUID:
    """128 bits of HMAC as a UUID."""
    tag = index_tag(keys.index, kind, container, *values)[:16]
    if keys.former is not None and (container == NO_UUID or not keys.former.stands(container)):
        keys.former.note(tag, lambda older: index_tag(older, kind, container, *values)[:16])
    return quick_id(tag)


def external_tag(keys: TenantKeys, kind: Kind, name: str) -> UUID:
    """How a container is found by the client's own name."""
    return _tag(keys, _EXTERNAL[kind], NO_UUID, name)


def label_tag(keys: TenantKeys, label: str) -> UUID:
    return _tag(keys, IndexKind.LABEL, NO_UUID, label)


def collection_tag(keys: TenantKeys, container: UUID, collection: str) -> UUID:
    held = keys.names.get((container, collection, None))
    if held is not None:
        return held
    return keys.name(container, collection, None, _tag(keys, IndexKind.COLLECTION, container, collection))


def object_tag(keys: TenantKeys, container: UUID, tag: str) -> UUID:
    return _tag(keys, IndexKind.TAG, container, tag)


def object_id(keys: TenantKeys, container: UUID, collection: str, key: str) -> UUID:
    """An object's id: HMAC of its name as a UUIDv8 (RFC 9562 section 5.8), so that it says nothing of the name."""
    held = keys.names.get((container, collection, key))
    if held is not None:
        return held
    made = _object_id(keys.index, container, collection, key)
    if keys.former is not None and not keys.former.stands(container):
        keys.former.note(made, lambda older: _object_id(older, container, collection, key))
    return keys.name(container, collection, key, quick_id(made))


def _object_id(index: SecretKey, container: UUID, collection: str, key: str) -> bytes:
    digest = index_tag(index, IndexKind.OBJECT, container, collection, key)
    return (int.from_bytes(digest[:16], "big") & _VERSION_BITS | _UUID8).to_bytes(16, "big")


def fingerprint(keys: TenantKeys, container: UUID, *parts: bytes) -> bytes:
    """Tells equal contents from different ones, to those who have the tenant's key."""
    mark = index_tag(keys.index, IndexKind.FINGERPRINT, container, *parts)
    if keys.former is not None and container == NO_UUID:
        keys.former.note(mark, lambda older: index_tag(older, IndexKind.FINGERPRINT, container, *parts))
    return mark


def idempotency_tag(keys: TenantKeys, principal: UUID, key: bytes) -> bytes:
    tag = index_tag(keys.index, IndexKind.IDEMPOTENCY, NO_UUID, principal.bytes, key)
    if keys.former is not None:
        keys.former.note(tag, lambda older: index_tag(older, IndexKind.IDEMPOTENCY, NO_UUID, principal.bytes, key))
    return tag


# ---------------------------------------------------------------- objects


def _object_context(keys: TenantKeys, container: UUID, item: UUID, version: UUID, content_type: str) -> SealContext:
    return SealContext(Domain.OBJECT, keys.region, keys.tenant, container, item, version, 0, content_type)


def seal_object(
    keys: TenantKeys, ck: SecretKey, generation: int, container: UUID, item: UUID, version: UUID, put: Put
) -> bytes:
    name = orjson.dumps((put.collection, put.key, put.tags, put.inline))
    context = _object_context(keys, container, item, version, put.content_type)
    plaintext = b"".join((len(name).to_bytes(4, "big"), name, put.body))
    return seal(ck, container, generation, context, plaintext)


def open_object(keys: TenantKeys, ck: SecretKey, container: UUID, row: Any) -> Found:
    """A row of ``confide.read``. Raises ``Tampered``."""
    item, version, content_type = row["id"], row["version"], row["content_type"]
    context = _object_context(keys, container, item, version, content_type)
    plaintext = open_sealed(ck, container, row["ck_generation"], context, row["body"])
    start = 4 + int.from_bytes(plaintext[:4], "big")
    collection, key, tags, inline = orjson.loads(plaintext[4:start])
    return Found(
        collection,
        key,
        tags,
        inline,
        item,
        version,
        content_type,
        row["commit_number"],
        row["created_at"],
        row["updated_at"],
        plaintext[start:],
    )


# ---------------------------------------------------------------- turns


def _turn_context(keys: TenantKeys, container: UUID, turn: UUID, number: int, content_type: str) -> SealContext:
    return SealContext(Domain.TURN, keys.region, keys.tenant, container, turn, turn, number, content_type)


def seal_turn(
    keys: TenantKeys, ck: SecretKey, generation: int, container: UUID, turn: UUID, number: int, new: NewTurn
) -> bytes:
    context = _turn_context(keys, container, turn, number, new.content_type)
    return seal(ck, container, generation, context, (b"\x01" if new.inline else b"\x00") + new.body)


def open_turn(keys: TenantKeys, ck: SecretKey, container: UUID, row: Any) -> Turn:
    """A row of ``confide.read``. Raises ``Tampered``."""
    context = _turn_context(keys, container, row["id"], row["number"], row["content_type"])
    plaintext = open_sealed(ck, container, row["ck_generation"], context, row["body"])
    return Turn(
        row["number"],
        row["id"],
        row["content_type"],
        row["commit_number"],
        row["created_at"],
        plaintext[:1] == b"\x01",
        plaintext[1:],
    )


# ---------------------------------------------------------------- a container's readable names


def _meta_context(keys: TenantKeys, container: UUID, version: UUID) -> SealContext:
    return SealContext(
        Domain.CONTAINER_META, keys.region, keys.tenant, container, container, version, 0, "application/json"
    )


class Meta(NamedTuple):
    """What a container is called and whose it is, sealed: its row's own columns are held against it."""

    kind: Kind
    external_id: str | None
    subject: UUID | None
    labels: Sequence[str]


def seal_meta(keys: TenantKeys, ck: SecretKey, generation: int, container: UUID, version: UUID, meta: Meta) -> bytes:
    subject = str(meta.subject) if meta.subject is not None else None
    plaintext = orjson.dumps([meta.kind.value, meta.external_id, subject, list(meta.labels)])
    return seal(ck, container, generation, _meta_context(keys, container, version), plaintext)


def open_meta(keys: TenantKeys, ck: SecretKey, generation: int, container: UUID, version: UUID, sealed: bytes) -> Meta:
    """Raises ``Tampered``."""
    opened = open_sealed(ck, container, generation, _meta_context(keys, container, version), sealed)
    kind, external, subject, labels = orjson.loads(opened)
    return Meta(Kind(kind), external, UUID(subject) if subject is not None else None, labels)


def hold_against(keys: TenantKeys, meta: Meta, *, kind: Kind, external: UUID | None, subject: UUID | None) -> None:
    """A row that was found under another name, or given to another person, is refused. Raises ``Tampered``.

    ``external`` is the tag that it was found by, None where it was found by its id.
    """
    named = external_tag(keys, kind, meta.external_id) if meta.external_id is not None else None
    if meta.kind is not kind or meta.subject != subject or (external is not None and named != external):
        raise Tampered


# ---------------------------------------------------------------- stored answers


def _answer_context(keys: TenantKeys, tag: bytes) -> SealContext:
    return SealContext(
        Domain.ANSWER, keys.region, keys.tenant, NO_UUID, UUID(bytes=tag[:16]), UUID(bytes=tag[16:]), 0, ""
    )


def seal_answer(keys: TenantKeys, tag: bytes, answer: Any) -> bytes:
    """What a repeated request will be told, bound to its idempotency tag."""
    return seal(keys.answers, keys.tenant, keys.index_number, _answer_context(keys, tag), orjson.dumps(answer))


def answer_again(keys: TenantKeys, number: int, index: SecretKey, old: bytes, tag: bytes, sealed: bytes) -> bytes:
    """An answer that was kept under an older index key, kept under the present one. Raises ``Tampered``."""
    with_key = hkdf_sha256(index, b"confide/v1/answers")
    try:
        plaintext = open_sealed(with_key, keys.tenant, number, _answer_context(keys, old), sealed)
    finally:
        with_key.wipe()
    return seal(keys.answers, keys.tenant, keys.index_number, _answer_context(keys, tag), plaintext)


def open_answer(keys: TenantKeys, tag: bytes, sealed: bytes | None) -> Any:
    if sealed is None:
        raise Tampered
    return orjson.loads(open_sealed(keys.answers, keys.tenant, keys.index_number, _answer_context(keys, tag), sealed))


# ---------------------------------------------------------------- reasons of holds


def _reason_context(keys: TenantKeys, container: UUID, hold: UUID) -> SealContext:
    return SealContext(Domain.REASON, keys.region, keys.tenant, container, hold, hold, 0, "text/plain")


def seal_reason(keys: TenantKeys, container: UUID, hold: UUID, reason: str) -> bytes:
    """Why something is held, bound to the hold. It moves with the index key, as stored answers do."""
    context = _reason_context(keys, container, hold)
    return seal(keys.answers, keys.tenant, keys.index_number, context, reason.encode())


def open_reason(keys: TenantKeys, container: UUID, hold: UUID, sealed: bytes) -> str:
    """Also one that stands under an older index key still. Raises ``Tampered``."""
    context, number = _reason_context(keys, container, hold), read_header(sealed).generation
    if number == keys.index_number or keys.former is None:
        return open_sealed(keys.answers, keys.tenant, keys.index_number, context, sealed).decode()
    older = next((key for each, key in keys.former.keys if each == number), None)
    if older is None:
        raise Tampered
    with_key = hkdf_sha256(older, b"confide/v1/answers")
    try:
        return open_sealed(with_key, keys.tenant, number, context, sealed).decode()
    finally:
        with_key.wipe()
