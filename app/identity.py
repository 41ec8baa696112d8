"""Typed ids and the caller.

All ids are UUIDv7 (RFC 9562) issued by the server. They order by time of issue and carry nothing of the client's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType
from uuid import UUID

from asyncpg.pgproto import pgproto
from uuid_utils import uuid7 as fast_uuid7
from uuid_utils.compat import uuid7

TenantId = NewType("TenantId", UUID)
ContainerId = NewType("ContainerId", UUID)
ObjectId = NewType("ObjectId", UUID)
Version = NewType("Version", UUID)
ApiKeyId = NewType("ApiKeyId", UUID)
EventId = NewType("EventId", UUID)
BindingId = NewType("BindingId", UUID)

NO_UUID = UUID(int=0)


def new_id() -> UUID:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then random bits (RFC 9562 section 5.7)."""
    return uuid7()


def new_version() -> UUID:
    """As ``new_id``, for what is drawn at every write."""
    return quick_id(fast_uuid7().bytes)


def quick_id(raw: bytes) -> UUID:
    """A UUID of the database driver's kind, which is written in C: made, compared, hashed and shown in a tenth of the
    time. It equals the standard library's; orjson alone doesn't know it.
    """
    made: UUID = pgproto.UUID(raw)
    return made


class Role(StrEnum):
    """What an API key is for. Each role has an exact set of scopes; a key may carry fewer, never more."""

    RUNTIME = "runtime"
    ADMIN = "admin"
    AUDITOR = "auditor"
    OPERATOR = "operator"


class Purpose(StrEnum):
    """Why context is opened: a closed list. Training a model is not on it and can't be configured in."""

    SERVE = "serve"
    SUBJECT_ACCESS = "subject-access"
    TENANT_EXPORT = "tenant-export"
    MAINTENANCE = "maintenance"


class Scope(StrEnum):
    """What a caller may do. Routes name exactly one."""

    CONTEXT_READ = "context:read"
    CONTEXT_WRITE = "context:write"
    CONTEXT_EXPORT = "context:export"
    API_KEYS = "api-keys"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    TENANT_READ = "tenant:read"
    TENANT_WRITE = "tenant:write"
    PRIVACY_READ = "privacy:read"
    PRIVACY_WRITE = "privacy:write"
    AUDIT_READ = "audit:read"
    AUDIT_STREAMS = "audit:streams"
    CELL_READ = "cell:read"
    CELL_WRITE = "cell:write"


ROLE_SCOPES: dict[Role, frozenset[Scope]] = {
    Role.RUNTIME: frozenset({Scope.CONTEXT_READ, Scope.CONTEXT_WRITE}),
    Role.ADMIN: frozenset(
        {
            Scope.CONTEXT_EXPORT,
            Scope.API_KEYS,
            Scope.KEYS_READ,
            Scope.KEYS_WRITE,
            Scope.TENANT_READ,
            Scope.TENANT_WRITE,
            Scope.PRIVACY_READ,
            Scope.PRIVACY_WRITE,
            Scope.AUDIT_READ,
            Scope.AUDIT_STREAMS,
        }
    ),
    Role.AUDITOR: frozenset({Scope.AUDIT_READ, Scope.KEYS_READ, Scope.TENANT_READ, Scope.PRIVACY_READ}),
    Role.OPERATOR: frozenset({Scope.CELL_READ, Scope.CELL_WRITE}),
}

ROLE_PURPOSES: dict[Role, frozenset[Purpose]] = {
    Role.RUNTIME: frozenset({Purpose.SERVE}),
    Role.ADMIN: frozenset({Purpose.SUBJECT_ACCESS, Purpose.TENANT_EXPORT}),
    Role.AUDITOR: frozenset(),
    Role.OPERATOR: frozenset(),
}


class Kind(StrEnum):
    """Kinds of container."""

    SESSION = "session"
    SUBJECT = "subject"
    APP = "app"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: an authenticated API key. ``tenant`` is the nil UUID for the cell's operators."""

    tenant: TenantId
    api_key: ApiKeyId
    principal: UUID
    role: Role
    scopes: frozenset[Scope]
    purposes: frozenset[Purpose]
