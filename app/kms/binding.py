"""A tenant's key, named by validated fields: what a binding's row stores and a provider is made from.

``validate_binding`` reads what a customer sent; it raises ``InvalidRequest`` with the place and a text that says what
to do, touches no network, and makes itself what the customer mustn't choose (the external id, the proof token).
``binding_from_record`` reads back what ``record`` wrote.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from app.errors import InvalidRequest
from app.kms import azure_names
from app.kms.aws_arn import parse_key_arn, parse_role_arn

_MOUNT = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?(?:/[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?){0,3}", re.ASCII)
_TRANSIT_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,98}[A-Za-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_EXTERNAL_ID = re.compile(r"confide-[0-9a-f]{32}", re.ASCII)
_FIELD = re.compile(r"[a-z_]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AwsBinding:
    """``role_arn`` and ``external_id`` are None only for the vendor's own key. The external id is no secret."""

    provider: ClassVar[str] = "aws-kms"
    key_arn: str
    role_arn: str | None
    external_id: str | None


@dataclass(frozen=True, slots=True)
class AzureBinding:
    """``proof`` is what the customer puts on the key as the tag ``confide-binding``, or, where ``client_id`` names an
    application of his own, the subject that its federated credential trusts: unique to this binding either way."""

    provider: ClassVar[str] = "azure-key-vault"
    vault_name: str
    managed_hsm: bool
    key_name: str
    key_version: str | None
    entra_tenant_id: str
    client_id: str | None
    proof: str


@dataclass(frozen=True, slots=True)
class TransitBinding:
    """``endpoint`` is the name of one that an operator registered."""

    provider: ClassVar[str] = "vault-transit"
    endpoint: str
    mount: str
    key_name: str


@dataclass(frozen=True, slots=True)
class LocalBinding:
    """A key file ``<name>.kek`` in the configured folder. Development only."""

    provider: ClassVar[str] = "local"
    name: str


Binding = AwsBinding | AzureBinding | TransitBinding | LocalBinding


@dataclass(frozen=True, slots=True)
class BindingRules:
    """What this cell accepts. ``allowed_regions`` is the tenant's own list, None for no restriction at this point;
    ``endpoints`` are the Transit endpoints that this tenant may name."""

    partitions: frozenset[str] = frozenset({"aws"})
    allowed_regions: frozenset[str] | None = None
    endpoints: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset({"aws-kms", "azure-key-vault", "vault-transit"})


def new_external_id() -> str:
    """128 random bits in the alphabet that STS takes."""
    return f"confide-{secrets.token_hex(16)}"


def validate_binding(data: Mapping[str, Any], rules: BindingRules) -> Binding:
    """A binding from what a customer sent. Raises ``InvalidRequest``; goes nowhere."""
    provider = data.get("provider")
    if not isinstance(provider, str) or provider not in rules.providers or provider not in _READERS:
        raise InvalidRequest(f"Give a provider of this cell: {', '.join(sorted(rules.providers))}.", "/provider")
    required, optional, reader = _READERS[provider]
    for name in data:
        if name not in required | optional | {"provider"}:
            place = f"/{name}" if _FIELD.fullmatch(name) else ""
            known = ", ".join(sorted(required | optional))
            raise InvalidRequest(f"A binding to {provider} has no such field. It has: {known}.", place)
    for name in sorted(required):
        if name not in data:
            raise InvalidRequest(f"A binding to {provider} needs the field {name}.", f"/{name}")
    return reader(data, rules)


def _aws(data: Mapping[str, Any], rules: BindingRules) -> AwsBinding:
    key = parse_key_arn(data["key_arn"], rules.partitions)
    _check_region(key.region, rules.allowed_regions, "/key_arn")
    role = parse_role_arn(data["role_arn"], rules.partitions)
    if (role.partition, role.account) != (key.partition, key.account):
        raise InvalidRequest("The role must be in the AWS account that owns the key. Make it there.", "/role_arn")
    return AwsBinding(str(key), str(role), new_external_id())


def _azure(data: Mapping[str, Any], _: BindingRules) -> AzureBinding:
    if "key_url" in data:
        for name in ("vault_name", "key_name", "key_version", "managed_hsm"):
            if name in data:
                raise InvalidRequest("Give either key_url or the names, not both.", f"/{name}")
        name_ = azure_names.parse_key_url(data["key_url"])
    else:
        hsm = data.get("managed_hsm", False)
        if not isinstance(hsm, bool):
            raise InvalidRequest("managed_hsm is true or false.", "/managed_hsm")
        name_ = azure_names.KeyName(
            azure_names.vault_name(data.get("vault_name")),
            hsm,
            azure_names.key_name(data.get("key_name")),
            azure_names.key_version(data.get("key_version")),
        )
    return AzureBinding(
        name_.vault_name,
        name_.managed_hsm,
        name_.key_name,
        name_.version,
        azure_names.entra_tenant_id(data["entra_tenant_id"]),
        azure_names.client_id(data.get("client_id")),
        new_external_id(),
    )


def _transit(data: Mapping[str, Any], rules: BindingRules) -> TransitBinding:
    endpoint, mount, key = data["endpoint"], data.get("mount", "transit"), data["key_name"]
    if not isinstance(endpoint, str) or endpoint not in rules.endpoints:
        raise InvalidRequest(
            "Give the name of a Transit endpoint that the operator has registered for you. An address isn't accepted: "
            "ask the operator to register your server.",
            "/endpoint",
        )
    if not isinstance(mount, str) or not _MOUNT.fullmatch(mount):
        raise InvalidRequest("Give the path where the Transit engine is mounted, e.g. transit.", "/mount")
    if not isinstance(key, str) or not _TRANSIT_KEY.fullmatch(key):
        raise InvalidRequest("Give the key's name alone: letters, digits, hyphens and underscores.", "/key_name")
    return TransitBinding(endpoint, mount, key)


def _local(data: Mapping[str, Any], _: BindingRules) -> LocalBinding:
    name = data["name"]
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise InvalidRequest("Give the key file's name: lower-case letters, digits and hyphens.", "/name")
    return LocalBinding(name)


_Reader = Callable[[Mapping[str, Any], BindingRules], Binding]
_READERS: Mapping[str, tuple[frozenset[str], frozenset[str], _Reader]] = {
    "aws-kms": (frozenset({"key_arn", "role_arn"}), frozenset(), _aws),
    "azure-key-vault": (
        frozenset({"entra_tenant_id"}),
        frozenset({"vault_name", "key_name", "key_version", "client_id", "managed_hsm", "key_url"}),
        _azure,
    ),
    "vault-transit": (frozenset({"endpoint", "key_name"}), frozenset({"mount"}), _transit),
    "local": (frozenset({"name"}), frozenset(), _local),
}


def _check_region(region: str, allowed: Collection[str] | None, pointer: str) -> None:
    if allowed is not None and region not in allowed:
        raise InvalidRequest(
            "The key is in a region that the tenant's key policy doesn't allow. Use a key in an allowed region, or "
            "change allowed_kms_regions with PATCH /v1/keys/policy.",
            pointer,
        )


def record(binding: Binding) -> dict[str, Any]:
    """The binding as JSON for its row, with its provider."""
    return {"provider": binding.provider, **asdict(binding)}


def binding_from_record(stored: Mapping[str, Any]) -> Binding:
    """What ``record`` wrote, checked again: a row that was changed doesn't lead us elsewhere. Raises ``InvalidRequest``
    for values that were never valid, ``KeyError`` or ``TypeError`` for a record of another shape."""
    fields = {name: value for name, value in stored.items() if name != "provider"}
    match stored["provider"]:
        case "aws-kms":
            aws = AwsBinding(**fields)
            parse_key_arn(aws.key_arn, frozenset({"aws", "aws-cn", "aws-us-gov"}))
            if aws.role_arn is not None:
                parse_role_arn(aws.role_arn, frozenset({"aws", "aws-cn", "aws-us-gov"}))
            _check_external_id(aws.external_id, none_allowed=aws.role_arn is None)
            return aws
        case "azure-key-vault":
            azure = AzureBinding(**fields)
            azure_names.vault_name(azure.vault_name)
            azure_names.key_name(azure.key_name)
            azure_names.key_version(azure.key_version)
            azure_names.entra_tenant_id(azure.entra_tenant_id)
            azure_names.client_id(azure.client_id)
            _check_external_id(azure.proof, none_allowed=False)
            return azure
        case "vault-transit":
            transit = TransitBinding(**fields)
            rules = BindingRules(endpoints=frozenset({transit.endpoint}))
            return _transit({"endpoint": transit.endpoint, "mount": transit.mount, "key_name": transit.key_name}, rules)
        case "local":
            return _local(fields, BindingRules())
    raise KeyError("provider")


def _check_external_id(value: str | None, *, none_allowed: bool) -> None:
    if not (value is None and none_allowed) and not (isinstance(value, str) and _EXTERNAL_ID.fullmatch(value)):
        raise InvalidRequest("The stored binding's external id or proof isn't one that we generated.", "/external_id")
