"""Where a tenant's data may go: its own region, and what a recorded consent names. There is none by default."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from app.errors import Forbidden, InvalidRequest, NotFound
from app.identity import Caller, new_id
from app.services import key_transfers
from app.services.auditing import Auditing, Trace
from app.services.control import ControlPlane
from app.store import bindings as binding_rows
from app.store import privacy_records as rows
from app.store.ledger import Ledger

Scope = Literal["kms", "audit-stream", "incident-notice"]
Safeguard = Literal["adequacy", "scc", "bcr", "explicit-consent", "derogation"]

AT_ONCE: Final = 1000


class Residency:
    """Consents, and the question that everything asks which sends something away."""

    def __init__(self, region: str, control: ControlPlane, ledger: Ledger, auditing: Auditing) -> None:
        self.region = region
        self._auditing = auditing
        self._control = control
        self._ledger = ledger

    async def allowed(self, tenant: UUID, region: str, scope: Scope) -> bool:
        """Whether something of the tenant's may go to ``region`` now: its own, or under a consent that stands."""
        if region == self.region:
            return True
        async with self._ledger.transaction(tenant) as tx:
            return await rows.consent_stands(tx, tenant, scope, region)

    async def require(self, tenant: UUID, region: str, scope: Scope) -> None:
        """Raises Forbidden where ``allowed`` says no."""
        if not await self.allowed(tenant, region, scope):
            raise Forbidden(
                f"That is in another region than the tenant's, {self.region}. A transfer needs a recorded consent:"
                " POST /v1/privacy/consents."
            )

    async def grant(
        self, caller: Caller, scope: Scope, destination: str, safeguard: Safeguard, expires_at: datetime, trace: Trace
    ) -> Any:
        """Record a consent. Raises InvalidRequest."""
        if destination == self.region:
            raise InvalidRequest("That is the tenant's own region.", "/destination")
        if expires_at <= datetime.now(UTC):
            raise InvalidRequest("A consent must end in the future.", "/expires_at")
        consent = new_id()
        detail = {"step": "granted", "consent": str(consent), "scope": scope, "destination": destination}
        async with self._control.act(caller, trace, "privacy.consent", safeguard=safeguard, **detail) as act:
            who = (caller.principal, caller.api_key)
            row = await rows.insert_consent(
                act.tx, caller.tenant, consent, scope, destination, safeguard, who, expires_at
            )
            if scope == "kms":
                await binding_rows.probe_abroad(act.tx, caller.tenant, destination)
            return row

    async def revoke(self, caller: Caller, consent: UUID, trace: Trace) -> Any:
        """From the next question on the answer is no; keys abroad that need it are stopped with it. Raises NotFound."""
        stopped: list[UUID] = []
        async with self._control.act(caller, trace, "privacy.consent", step="revoked", consent=str(consent)) as act:
            row = await rows.revoke_consent(act.tx, caller.tenant, consent, caller.principal)
            if row is None:
                raise NotFound
            if row["scope"] == "kms":
                stopped = await key_transfers.withdraw(act.tx, caller.tenant)
        self._tell(caller.tenant, stopped)
        return row

    async def stop_unconsented(self) -> int:
        """Stop keys abroad whose consent has ended. Answers how many bindings. Raises Unavailable."""
        async with self._ledger.transaction() as tx:
            tenants = await binding_rows.unconsented_tenants(tx, AT_ONCE)
        count = 0
        for tenant in tenants:
            async with self._ledger.transaction(tenant) as tx:
                stopped = await key_transfers.withdraw(tx, tenant)
            self._tell(tenant, stopped)
            count += len(stopped)
        return count

    def _tell(self, tenant: UUID, stopped: list[UUID]) -> None:
        for binding in stopped:
            self._auditing.alarm("transfer-without-consent", tenant=str(tenant), binding=str(binding))

    async def page(self, caller: Caller, limit: int, trace: Trace) -> list[Any]:
        async with self._control.look(caller, trace) as tx:
            return await rows.consents(tx, caller.tenant, limit)
