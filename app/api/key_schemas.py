"""The JSON bodies of /v1/keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from app.api.rules import Schema, one_of, shape
from app.api.schemas import In, Out
from app.services.bindings import Inventory, policy_of

Text = Annotated[str, Meta(min_length=1, max_length=2048)]
Region = Annotated[str, Meta(pattern="^[a-z0-9-]{2,32}$", description="As the KMS names it.")]


def _form(pattern: str, most: int = 2048) -> Meta:
    """A text's form, for the document: the service looks closer, and says what to give instead."""
    return Meta(min_length=1, max_length=most, extra_json_schema={"pattern": pattern})


_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_KeyArn = Annotated[str, _form(f"^arn:aws[a-z-]{{0,12}}:kms:[a-z0-9-]+:[0-9]{{12}}:key/({_UUID}|mrk-[0-9a-f]{{32}})$")]
_RoleArn = Annotated[
    str, _form("^arn:aws[a-z-]{0,12}:iam::[0-9]{12}:role/([A-Za-z0-9+=,.@_-]{1,64}/){0,8}[A-Za-z0-9+=,.@_-]{1,64}$")
]
_Vault = Annotated[str, _form("^[A-Za-z](-?[A-Za-z0-9]){2,23}$", 24)]
_KeyUrl = Annotated[
    str,
    _form(
        "^https://[A-Za-z](-?[A-Za-z0-9]){2,11}[.](vault|managedhsm)[.]azure[.]net/keys/[A-Za-z0-9-]{1,127}(/[0-9a-f]{32})?$"
    ),
]
_AZURE_KEY: Final[Schema] = {"pattern": "^[A-Za-z0-9-]{1,127}$"}
_TRANSIT_KEY: Final[Schema] = {"pattern": "^[A-Za-z0-9]([A-Za-z0-9_-]{0,98}[A-Za-z0-9])?$"}
_KeyVersion = Annotated[str, _form("^[0-9a-f]{32}$")]
_Guid = Annotated[str, _form("^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$")]
_FileName = Annotated[str, _form("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]


def _of(provider: str, *needed: str, more: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """The fields of one provider's binding."""
    names = ["provider", *needed, *more]
    return shape(present=needed, provider={"const": provider}, **fields) | {"propertyNames": {"enum": names}}


class BindingIn(In):
    """A key to bind. The fields depend on ``provider``; what doesn't belong to it is refused with what to give.

    aws-kms: key_arn, role_arn. azure-key-vault: vault_name, key_name, entra_tenant_id, and if wanted key_version,
    client_id, managed_hsm; or key_url and entra_tenant_id. vault-transit: endpoint (a name), key_name, mount.
    vendor: nothing else; for a move back to the vendor's key. A cell has some of these providers.
    """

    also: ClassVar[Schema | None] = one_of(
        _of("aws-kms", "key_arn", "role_arn"),
        _of(
            "azure-key-vault",
            "vault_name",
            "key_name",
            "entra_tenant_id",
            more=("key_version", "client_id", "managed_hsm"),
            key_name=_AZURE_KEY,
        ),
        _of("azure-key-vault", "key_url", "entra_tenant_id", more=("client_id",)),
        _of("vault-transit", "endpoint", "key_name", more=("mount",), key_name=_TRANSIT_KEY),
        _of("local", "name"),
        _of("vendor"),
    )

    provider: Text
    key_arn: _KeyArn | UnsetType = UNSET
    role_arn: _RoleArn | UnsetType = UNSET
    vault_name: _Vault | UnsetType = UNSET
    key_name: Text | UnsetType = UNSET
    key_version: _KeyVersion | UnsetType = UNSET
    key_url: _KeyUrl | UnsetType = UNSET
    managed_hsm: bool | UnsetType = UNSET
    entra_tenant_id: _Guid | UnsetType = UNSET
    client_id: _Guid | UnsetType = UNSET
    endpoint: Text | UnsetType = UNSET
    mount: Text | UnsetType = UNSET
    name: _FileName | UnsetType = UNSET


class StepOut(Out):
    """What to paste. ``language``: json, shell or hcl."""

    title: str
    language: str
    text: str

    @classmethod
    def of(cls, step: Any) -> StepOut:
        return cls(step.title, step.language, step.text)


class CheckOut(Out):
    """One check of the doctor's. ``must``: a binding that fails it can't be activated."""

    name: str
    must: bool = msgspec.field()
    outcome: str = msgspec.field()
    cause: str = ""
    fix: str = ""
    ms: float = 0.0

    @classmethod
    def of(cls, check: Any) -> CheckOut:
        ms = round(check.ms, 1)
        return cls(check.name, check.must, str(check.outcome), check.cause, check.fix, ms)


class DependingOut(Out):
    """What would be lost with a key: root keys, and the container and index keys that those still open."""

    root_keys: int = msgspec.field()
    container_keys: int = msgspec.field()
    index_keys: int = msgspec.field()


class BindingOut(Out):
    """A key binding. ``state``: pending, checked, active, unavailable, revoked, retiring (moved away from), retired.

    ``fields`` are those of its creation, with the external id or proof that we drew. ``used_at`` may lag by a lease.
    """

    id: UUID
    provider: str
    state: str
    fields: dict[str, Any]
    created_at: datetime
    changed_at: datetime
    current: bool = False
    kek: str | None = None
    kek_version: str | None = None
    checked_at: datetime | None = None
    activated_at: datetime | None = None
    retired_at: datetime | None = None
    used_at: datetime | None = None
    steps: list[StepOut] | None = None
    depending: DependingOut | None = None
    checks: list[CheckOut] | None = None

    @classmethod
    def of(cls, row: Any, *, steps: list[StepOut] | None = None, depending: dict[str, int] | None = None) -> BindingOut:
        names = (
            "id", "provider", "state", "created_at", "changed_at", "current", "kek", "kek_version", "checked_at",
            "activated_at", "retired_at", "used_at",
        )  # fmt: skip
        values = {name: row[name] for name in names}
        fields = orjson.loads(row["fields"])
        values["fields"] = {name: value for name, value in fields.items() if value is not None}
        checks = None
        if row["report"] is not None:
            checks = [msgspec.convert(each, CheckOut) for each in orjson.loads(row["report"])]
        told = DependingOut(**depending) if depending is not None else None
        return cls(**values, steps=steps, depending=told, checks=checks)


class BindingsOut(Out):
    bindings: list[BindingOut]


class CheckedOut(Out):
    """The doctor's findings. ``ok``: the binding may be activated."""

    binding: BindingOut
    ok: bool = msgspec.field()
    checks: list[CheckOut] = msgspec.field()


class ActivatedOut(Out):
    """``generation``: the new root key's. ``job`` re-seals what is under older ones."""

    binding: BindingOut
    generation: int
    job: UUID


class StartedOut(Out):
    job: UUID


class StatementOut(Out):
    """``text`` says that the key may be disabled; ``signed`` is the same as a signed note, where the cell signs."""

    text: str
    signed: str | None = None


class RetiredOut(Out):
    """``retired`` false: ``depending`` says what must go first."""

    binding: BindingOut
    retired: bool = msgspec.field()
    depending: DependingOut = msgspec.field()
    statement: StatementOut | None = None

    @classmethod
    def of(cls, row: Any, depending: dict[str, int]) -> RetiredOut:
        said = orjson.loads(row["statement"]) if row["statement"] is not None else None
        statement = StatementOut(said["text"], said["signed"]) if said is not None else None
        return cls(BindingOut.of(row), row["state"] == "retired", DependingOut(**depending), statement)


class KeyStateOut(Out):
    """``key_state``: active, unavailable, revoked, sealed or rekeying."""

    key_state: str

    @classmethod
    def of(cls, row: Any) -> KeyStateOut:
        return cls(row["key_state"])


class PolicyIn(In):
    """What to change. ``rotation_days`` and ``allowed_kms_regions`` null: back to the default.

    A lease of 0: every request is preceded by a call to the KMS. ``grace_seconds``: served so much longer while the KMS
    is out (never when it refuses), marked in each event.
    """

    also: ClassVar[Schema | None] = {"minProperties": 1}

    lease_seconds: Annotated[int, Meta(ge=0, le=300)] | UnsetType = UNSET
    grace_seconds: Annotated[int, Meta(ge=0, le=900)] | UnsetType = UNSET
    rotation_days: Annotated[int, Meta(ge=1, le=3650)] | UnsetType | None = UNSET
    allowed_kms_regions: Annotated[list[Region], Meta(min_length=1, max_length=64)] | UnsetType | None = UNSET


class PolicyOut(Out):
    lease_seconds: int = msgspec.field()
    grace_seconds: int = msgspec.field()
    allowed_kms_regions: list[str] = msgspec.field()
    rotation_days: int | None = None

    @classmethod
    def of(cls, row: Any, region: str) -> PolicyOut:
        policy = policy_of(row, region)
        return cls(policy.lease_seconds, policy.grace_seconds, sorted(policy.regions), policy.rotation_days)


class GenerationOut(Out):
    """A root key generation. ``binding`` absent: under the vendor's key alone. ``container_keys`` and ``index_keys``:
    how many it still opens."""

    generation: int
    state: str
    kek: str
    created_at: datetime
    wrapped_at: datetime
    age_seconds: int = msgspec.field()
    container_keys: int = msgspec.field()
    index_keys: int = msgspec.field()
    kek_version: str | None = None
    binding: UUID | None = None


class InventoryOut(Out):
    """Everything that opens the tenant's data, and how it stands."""

    key_state: str
    policy: PolicyOut
    bindings: list[BindingOut]
    generations: list[GenerationOut]
    jobs: list[UUID]

    @classmethod
    def of(cls, found: Inventory, region: str) -> InventoryOut:
        now = datetime.now(UTC)
        generations = []
        for root in found.roots:
            containers, indexes = found.dependents[root["generation"]]
            customer = root["customer_kek"] is not None
            generations.append(
                GenerationOut(
                    root["generation"],
                    root["state"],
                    root["customer_kek"] if customer else root["vendor_kek"],
                    root["created_at"],
                    root["resealed_at"],
                    int((now - root["created_at"]).total_seconds()),
                    containers,
                    indexes,
                    (root["customer_kek_version"] if customer else root["vendor_kek_version"]) or None,
                    root["binding_id"],
                )
            )
        return cls(
            found.tenant["key_state"],
            PolicyOut.of(found.tenant, region),
            [BindingOut.of(row) for row in found.bindings],
            generations,
            [job["id"] for job in found.jobs],
        )
