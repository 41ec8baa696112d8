"""Keys abroad: where a binding's key is, and whether the tenant has consented to that transfer.

A KMS call with a key in another region than the tenant's carries a half of its root key there. So the tenant's policy
must allow the region, and a consent of scope ``kms`` must stand: when the binding is made, checked and activated, and
at every load of the tenant's keys after that. One that is revoked or ends stops the binding, as a denial by its KMS
would.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final
from uuid import UUID

import orjson

from app.errors import Forbidden
from app.kms.aws_arn import parse_key_arn
from app.kms.binding import AwsBinding, Binding, LocalBinding, TransitBinding
from app.kms.doctor import Check, Outcome
from app.kms.registry import KmsSettings
from app.store import bindings as rows
from app.store.keys import move_key_state
from app.store.ledger import Transaction

REGIONS_NEARBY: Final[Mapping[str, frozenset[str]]] = {
    "eu-central-1": frozenset({"germanywestcentral", "germanynorth"}),
    "eu-west-1": frozenset({"northeurope"}),
    "eu-west-2": frozenset({"uksouth", "ukwest"}),
    "eu-west-3": frozenset({"francecentral"}),
    "eu-central-2": frozenset({"switzerlandnorth"}),
    "eu-north-1": frozenset({"swedencentral"}),
    "us-east-1": frozenset({"eastus", "eastus2"}),
    "us-east-2": frozenset({"centralus", "northcentralus"}),
    "us-west-2": frozenset({"westus2"}),
}
"""A cell's region under the names of the other cloud, the same country each: no transfer."""

CHECK: Final = "transfer-consented"
CODE: Final = "no-consent"
PARTITIONS: Final = frozenset({"aws", "aws-cn", "aws-us-gov"})
_CAUSE: Final = "The key is in the region {}, outside the tenant's own, and no consent to that transfer stands."
_FIX: Final = "POST /v1/privacy/consents with the scope kms and that destination, or use a key at home."


def home(region: str) -> frozenset[str]:
    """The cell's region, also under the other cloud's names."""
    return frozenset({region}) | REGIONS_NEARBY.get(region, frozenset())


def destination(binding: Binding, settings: KmsSettings) -> str | None:
    """The region abroad that a binding's key is in; None at home, and where only the key's service can tell."""
    region: str | None = None
    match binding:
        case AwsBinding():
            region = parse_key_arn(binding.key_arn, PARTITIONS).region
        case TransitBinding():
            region = next((each.region for each in settings.transit if each.name == binding.endpoint), None)
        case LocalBinding():
            region = settings.region
    return abroad(region, settings.region)


def abroad(region: str | None, cell: str) -> str | None:
    """``region`` where it isn't home."""
    return None if region is None or region in home(cell) else region


def require(transfer_to: str | None, consented: Collection[str]) -> None:
    """Raises ``Forbidden`` for a transfer without a consent that stands."""
    if transfer_to is not None and transfer_to not in consented:
        raise Forbidden(f"{_CAUSE.format(transfer_to)} {_FIX}")


def look(transfer_to: str | None, consented: Collection[str]) -> Check:
    """The doctor's view of it: a must-check."""
    if transfer_to is None or transfer_to in consented:
        return Check(CHECK, True, Outcome.PASS)
    return Check(CHECK, True, Outcome.FAIL, _CAUSE.format(transfer_to), _FIX)


async def withdraw(tx: Transaction, tenant: UUID) -> list[UUID]:
    """Stop the tenant's bindings abroad whose consent doesn't stand, and with them the tenant, in every worker at its
    next statement. Answers which. They come back as after a denial, by a probe, once there is a consent again.
    """
    stopped = []
    for binding in await rows.unconsented(tx, tenant):
        before = await rows.move(tx, tenant, binding, "revoked", ["active", "unavailable", "retiring"])
        if before is None:
            continue
        detail = {"binding": str(binding), "from": before, "to": "revoked", "code": CODE}
        tx.event(tenant, "binding.state", orjson.dumps({"detail": detail}).decode())
        stopped.append(binding)
    if stopped:
        await move_key_state(tx, tenant, "revoked", ["active", "unavailable", "rekeying"])
    return stopped


def refuse(row: Any) -> None:
    """Raises ``Forbidden`` where a binding's row says that its consent doesn't stand."""
    if not row["consented"]:
        require(row["transfer_to"], ())
