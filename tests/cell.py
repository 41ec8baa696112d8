"""A whole worker in the test's process: real services, real PostgreSQL, HTTP through the ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2

from app.config import Settings
from app.identity import NO_UUID, Role, new_id
from app.kms.registry import KmsSettings
from app.main import Parts, api_of, assemble, serving
from app.services.api_keys import Wanted
from app.store.cell import name_region

REGION = "eu-central-1"


@dataclass
class Tenant:
    """A tenant with a key of each role."""

    id: UUID
    runtime: httpx2.AsyncClient
    admin: httpx2.AsyncClient
    auditor: httpx2.AsyncClient
    keys: dict[str, str] = field(repr=False)


@dataclass
class Cell:
    """A running worker. ``operator`` and each tenant's clients are authenticated; ``anyone`` is not."""

    parts: Parts
    api: Any
    url: str
    operator: httpx2.AsyncClient
    anyone: httpx2.AsyncClient

    def client(self, key: str | None) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(self.api), base_url="http://cell", headers=headers)

    async def tenant(self, name: str = "acme") -> Tenant:
        """Onboard as an operator and a first admin would."""
        made = (await self.operator.post("/v1/tenants", json={"name": name})).raise_for_status().json()
        redeem = {"token": made["enrolment"]["token"], "name": "first-admin"}
        first = (await self.anyone.post("/v1/enrolments/redeem", json=redeem)).raise_for_status().json()
        keys = {"admin": first["secret"]}
        admin = self.client(first["secret"])
        for role in ("runtime", "auditor"):
            issued = await admin.post("/v1/api-keys", json={"name": role, "role": role})
            keys[role] = issued.raise_for_status().json()["secret"]
        tenant = UUID(made["tenant"]["id"])
        return Tenant(tenant, self.client(keys["runtime"]), admin, self.client(keys["auditor"]), keys)


def settings_of(url: str, state: Path, **changes: Any) -> Settings:
    own = Settings(env="dev", region=REGION, database_url=url, state_dir=state, log_level="ERROR", sealer="worker")
    return replace(own, **changes)


@asynccontextmanager
async def running_cell(url: str, state: Path, kms: KmsSettings | None = None, **changes: Any) -> AsyncIterator[Cell]:
    """A worker on a migrated database, with an operator's key. ``kms``: other key services than a key file."""
    await asyncio.to_thread(name_region, url, changes.get("region", REGION))
    parts = assemble(settings_of(url, state, **changes), kms)
    async with serving(parts):
        keys = parts.services.api_keys
        async with parts.services.ledger.transaction(NO_UUID) as tx:
            issued = await keys.issue(tx, NO_UUID, keys.settle(Wanted("operator", Role.OPERATOR)), new_id())
        api = api_of(parts)
        cell = Cell(parts, api, url, None, None)  # type: ignore[arg-type]  clients need the cell
        cell.operator, cell.anyone = cell.client(issued.secret), cell.client(None)
        yield cell
