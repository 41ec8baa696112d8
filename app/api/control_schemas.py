"""The JSON bodies of the control plane: tenants, enrolment, API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.api.parse import is_meant
from app.api.rules import Schema, at_most_one, one_of, shape
from app.api.schemas import In, Out
from app.api.table import QueryParam
from app.errors import InvalidRequest
from app.identity import ROLE_PURPOSES, ROLE_SCOPES, Purpose, Role, Scope

# Python's $ also matches before a last line feed, which the look-ahead then refuses.
Label = Annotated[
    str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$(?!\n)", description="1 to 63 of a-z, 0-9, -; no - first.")
]
Lifetime = Annotated[int, Meta(ge=1, le=315360000, description="Seconds.")]
Rate = Annotated[int, Meta(ge=1, le=1000000, description="Requests a second, for each worker of the cell.")]
Aware = Annotated[
    datetime,
    Meta(
        tz=True,
        description="RFC 3339, in the years 2000 to 2199.",
        extra_json_schema={"pattern": "^2[01][0-9]{2}-"},
    ),
]
Cidr = Annotated[
    str,
    Meta(
        min_length=2,
        max_length=43,
        pattern="^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$(?!\n)",
        description="An IPv4 or IPv6 address, or a network (RFC 4632) with no bits beyond its prefix.",
        extra_json_schema={"format": "cidr"},
    ),
]
Limit = Annotated[int, Meta(ge=1, le=200)]

LIMIT: Final = QueryParam("limit", Limit, "How many, at most.", 50)
CURSOR: Final = QueryParam(
    "cursor",
    Annotated[str, Meta(min_length=1, max_length=1024)],
    "As the page before answered it; the other parameters must be the same.",
)


def check_times(*moments: datetime) -> None:
    """Raises InvalidRequest for a time that no calendar arithmetic survives or that nobody can mean."""
    if not all(is_meant(moment) for moment in moments):
        raise InvalidRequest("A time must lie in the years 2000 to 2199.")


# ---------------------------------------------------------------- tenants


class TenantIn(In):
    """A tenant to create. What is left out has the cell's default.

    ``ttl_idle_seconds`` can't exceed ``ttl_max_seconds``.
    """

    name: Label
    require_preconditions: bool | UnsetType = UNSET
    ttl_idle_seconds: Lifetime | UnsetType = UNSET
    ttl_max_seconds: Lifetime | UnsetType = UNSET
    rate_per_second: Rate | UnsetType = UNSET


class TenantPatch(In):
    """What a tenant's administrator may change. An absent field stays as it is.

    ``ttl_idle_seconds`` can't exceed ``ttl_max_seconds``.
    """

    also: ClassVar[Schema | None] = {"minProperties": 1}

    name: Label | UnsetType = UNSET
    require_preconditions: bool | UnsetType = UNSET
    ttl_idle_seconds: Lifetime | UnsetType = UNSET
    ttl_max_seconds: Lifetime | UnsetType = UNSET


class TenantOut(Out):
    """A tenant. ``state`` is the operator's doing, ``key_state`` that of its key."""

    id: UUID
    name: str
    region: str
    state: str
    key_state: str
    require_preconditions: bool = msgspec.field()
    lease_seconds: int = msgspec.field()
    grace_seconds: int = msgspec.field()
    ttl_idle_seconds: int = msgspec.field()
    ttl_max_seconds: int = msgspec.field()
    created_at: datetime = msgspec.field()
    changed_at: datetime = msgspec.field()
    rate_per_second: int | None = None

    @classmethod
    def of(cls, row: Any) -> TenantOut:
        return cls(**{name: row[name] for name in cls.__struct_fields__})


class EnrolmentOut(Out):
    """The token for the tenant's first admin key. It is shown once, works once, and ends at ``expires_at``."""

    token: str
    expires_at: datetime


class TenantCreated(Out):
    tenant: TenantOut
    enrolment: EnrolmentOut


class TenantsOut(Out):
    tenants: list[TenantOut]
    cursor: str | None = None


class RedeemIn(In):
    """An enrolment token, and the name of the admin key to make."""

    token: Annotated[str, Meta(min_length=1, max_length=256)]
    name: Label = "first-admin"


# ---------------------------------------------------------------- API keys


def _rights(role: Role) -> Schema:
    """What a key of the role may carry."""
    scopes, purposes = sorted(ROLE_SCOPES[role]), sorted(ROLE_PURPOSES[role])
    return shape(
        role={"const": role.value},
        scopes={"items": {"enum": scopes}},
        purposes={"items": {"enum": purposes}} if purposes else {"maxItems": 0},
    )


class ApiKeyIn(In):
    """An API key to issue. Scopes and purposes are all of the role's where they are left out.

    ``expires_at`` (ahead, by ten years at most) or ``ttl`` (seconds) ends it; ``sources`` limits where it may be used
    from.
    """

    also: ClassVar[Schema | None] = at_most_one("expires_at", "ttl") | {
        "allOf": [one_of(*map(_rights, (Role.RUNTIME, Role.ADMIN, Role.AUDITOR)))]
    }

    name: Label
    role: Literal["runtime", "admin", "auditor"]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=16)] | None = None
    purposes: Annotated[list[Purpose], Meta(max_length=8)] | None = None
    expires_at: Aware | None = None
    ttl: Lifetime | None = None
    sources: Annotated[list[Cidr], Meta(min_length=1, max_length=64)] | None = None


class OperatorKeyIn(In):
    """An operator's key to issue. ``expires_at`` lies ahead, by ten years at most."""

    also: ClassVar[Schema | None] = at_most_one("expires_at", "ttl") | {
        "allOf": [shape(scopes={"items": {"enum": sorted(ROLE_SCOPES[Role.OPERATOR])}})]
    }

    name: Label
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=16)] | None = None
    expires_at: Aware | None = None
    ttl: Lifetime | None = None
    sources: Annotated[list[Cidr], Meta(min_length=1, max_length=64)] | None = None


class RotateIn(In):
    """How long both keys work: 0 to 604800 seconds (7 days)."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=604800)]


class ApiKeyOut(Out):
    """An API key without its secret. ``last_used_at`` may lag by a minute."""

    id: UUID
    principal: UUID
    name: str
    role: Role
    scopes: list[str]
    purposes: list[str]
    created_at: datetime
    sources: list[str] | None = None
    replaced_by: UUID | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    @classmethod
    def of(cls, row: Any) -> ApiKeyOut:
        values = {name: row[name] for name in cls.__struct_fields__}
        values["role"] = Role(values["role"])
        if values["sources"] is not None:
            values["sources"] = [str(source) for source in values["sources"]]
        return cls(**values)


class ApiKeyIssued(Out):
    """A new API key with its secret, which is shown this once and stored nowhere."""

    key: ApiKeyOut
    secret: str


class ApiKeysOut(Out):
    keys: list[ApiKeyOut]
    cursor: str | None = None
