"""Notices to tenants by webhook: kept until delivered, tried again with growing pauses, readable by operators.

A notice is signed like a receipt, so that its receiver needs no shared secret. Its body has ids and times only.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from app.audit.checkpoint import Signer
from app.crypto.secret import SecretKey
from app.crypto.tokens import open_token, seal_token
from app.errors import ConfideError
from app.identity import NO_UUID, Caller
from app.services.audit_receivers import NotDelivered, check_url
from app.services.auditing import Auditing, Trace
from app.services.control import ControlPlane
from app.services.residency import Residency
from app.store import backup as cell_rows
from app.store import incidents as rows
from app.store import privacy_records as record_rows
from app.store.ledger import Ledger

log = logging.getLogger("confide.outbox")

PAUSES: Final = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""Seconds before the next try; the last one stays."""
AT_ONCE: Final = 20
_ROUTE: Final = "notice-contact"


class Sender(Protocol):
    """Posts to a receiver (``app/services/audit_receivers.py``)."""

    private: bool

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None: ...


class Outbox:
    """A tenant's contact, and the deliveries."""

    def __init__(
        self,
        control: ControlPlane,
        ledger: Ledger,
        residency: Residency,
        sender: Sender,
        signer: Signer,
        key: SecretKey,
        auditing: Auditing,
    ) -> None:
        self._auditing = auditing
        self._control = control
        self._ledger = ledger
        self._residency = residency
        self.sender = sender
        self._signer = signer
        self._key = key

    async def set_contact(self, caller: Caller, url: str, region: str, trace: Trace) -> Any:
        """Where notices go. ``region``: where the receiver stands, as the tenant declares it.

        Raises InvalidRequest; Forbidden for another region without a consent.
        """
        check_url(url, private=self.sender.private)
        await self._residency.require(caller.tenant, region, "incident-notice")
        async with self._control.act(caller, trace, "tenant.update", what="incident-contact", to_region=region) as act:
            sealed = seal_token(self._key, caller.tenant, _ROUTE, url.encode())
            host = urlsplit(url).hostname or ""
            return await record_rows.put_contact(act.tx, caller.tenant, sealed, host, region, caller.principal)

    async def deliver(self) -> int:
        """Try what is due. Answers how many were delivered."""
        async with self._ledger.transaction(NO_UUID) as tx:
            if not await rows.lead(tx):
                return 0
            due = await rows.waiting(tx, AT_ONCE)
        return sum([await self._try(row["tenant_id"], row["id"]) for row in due])

    async def page(self, caller: Caller, limit: int, trace: Trace) -> list[Any]:
        """The outbox for operators: what was sent to whom, how often it was tried, what went wrong."""
        async with self._control.look(caller, trace) as tx:
            tenants: list[UUID] = []
            after = NO_UUID
            while found := await cell_rows.all_tenants(tx, after, 1000):
                tenants += found
                after = found[-1]
        async with self._ledger.transaction(*tenants) as tx:
            return await rows.notices(tx, tenants, limit)

    async def _try(self, tenant: UUID, notice: UUID) -> bool:
        async with self._ledger.transaction(tenant) as tx:
            row = await rows.notice(tx, tenant, notice)
            contact = await record_rows.contact(tx, tenant)
        if row is None or row["delivered_at"] is not None:
            return False
        error = await self._send(tenant, row, contact)
        due = orjson.loads(row["body"]).get("due")
        if error is not None and due is not None and datetime.fromisoformat(due) < datetime.now(UTC):
            # Told is who was reached: at every try from then on, an hour apart at most, until it is delivered.
            facts = {"tenant": str(tenant), "notice": str(notice), "incident": str(row["incident_id"])}
            self._auditing.alarm("notice-undelivered", **facts, error=error)
        pause = PAUSES[min(row["attempts"], len(PAUSES) - 1)]
        async with self._ledger.transaction(tenant) as tx:
            await rows.tried(tx, tenant, notice, error, pause)
        return error is None

    async def _send(self, tenant: UUID, row: Any, contact: Any) -> str | None:
        """None, or a code of what went wrong."""
        if contact is None:
            return "no-contact"
        if not await self._residency.allowed(tenant, contact["region"], "incident-notice"):
            return "no-consent"
        body = row["body"].encode()
        headers = {
            "content-type": "application/json",
            "confide-notice": str(row["id"]),
            "confide-signature": b64encode(self._signer.line(body)).decode(),
        }
        try:
            url = open_token(self._key, tenant, _ROUTE, contact["url"]).decode()
            await self.sender.post(url, body, headers)
        except NotDelivered as error:
            return str(error)
        except ConfideError as error:
            return type(error).__name__
        return None
