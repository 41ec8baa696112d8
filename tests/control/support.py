"""What several tests of the control plane need."""

from __future__ import annotations

import secrets
from typing import Any

import asyncpg
import orjson

from app.services.audit_log import event_of
from tests.cell import REGION, Cell

SAFE = {
    "CONFIDE_ENV": "live",
    "CONFIDE_REGION": REGION,
    "CONFIDE_CELL_SECRET": secrets.token_hex(32),
    "CONFIDE_AUDIT_SIGNING_KEY": secrets.token_hex(32),
    "CONFIDE_KMS_PROVIDER": "vault-transit",
    "CONFIDE_VENDOR_KEY": "eu/transit/confide",
    "CONFIDE_TRANSIT_ENDPOINTS": '[{"name": "eu", "url": "https://bao.example.com", "token": "planted-token"}]',
}
"""What production needs, but for the database's address."""


async def events(cell: Cell, tenant: Any, action: str | None = None) -> list[dict[str, Any]]:
    """A log as it stands in the journal, oldest first."""
    connection = await asyncpg.connect(cell.url)
    try:
        rows = await connection.fetch(
            "SELECT * FROM confide_audit.journal WHERE tenant_id = $1 ORDER BY time, id", tenant
        )
    finally:
        await connection.close()
    found = [event_of(row, REGION) for row in rows]
    return [event for event in found if action in {None, event["action"]}]


async def sql(cell: Cell, statement: str, *arguments: Any) -> Any:
    """As the superuser: for what no client can do."""
    connection = await asyncpg.connect(cell.url)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


def shape(answer: Any) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Status, body and headers without what names this one request."""
    body = orjson.loads(answer.content)
    body.pop("instance")
    own = {"confide-request-id", "confide-trace-id"}
    return answer.status_code, orjson.dumps(body), sorted(pair for pair in answer.headers.items() if pair[0] not in own)


async def make_key(admin: Any, **body: Any) -> dict[str, Any]:
    """A key issued by ``admin``: the answer's JSON."""
    answer = await admin.post("/v1/api-keys", json={"name": "made", "role": "runtime"} | body)
    assert answer.status_code == 201, answer.text
    value: dict[str, Any] = answer.json()
    return value
