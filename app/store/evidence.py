# ruff: noqa: S608  what is put into the texts are constants of this module
"""The queries behind the evidence. Each answers its population, and the ids of what breaks the control (100 at most).

$1 is the tenant, $2 and $3 the period, $4 the documents that the deployment states, as a JSON array of objects with id,
version, digest and effective. A query that looks at the present state ignores the period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.store.ledger import Transaction
from app.store.privacy_records import SEARCH

SHOWN: Final = 100
MAGIC: Final = "'\\xc04346440101'::bytea"
"""What every sealed value begins with: magic, format and suite (app/crypto/envelope.py)."""

CONTEXT: Final = (
    "('context.load', 'context.commit', 'context.read', 'context.write', 'context.export', 'session.read',"
    " 'turns.read', 'turns.append', 'turns.pop', 'branch')"
)
EVENTS: Final = "confide_audit.event e WHERE e.tenant_id = $1 AND e.time >= $2 AND e.time < $3"


@dataclass(frozen=True, slots=True)
class Check:
    """``question`` for readers; ``population`` counts, ``failures`` lists ids: SQL over $1 to $4."""

    question: str
    population: str
    failures: str

    @property
    def reads_log(self) -> bool:
        """Whether it looks at sealed events, some of which retention may have dropped."""
        return "confide_audit.event " in self.population + self.failures


_STORED: Final = (
    "(SELECT id, body AS sealed FROM confide.context_object WHERE tenant_id = $1 UNION ALL"
    " SELECT id, body FROM confide.turn WHERE tenant_id = $1 AND body IS NOT NULL UNION ALL"
    " SELECT id, meta FROM confide.container WHERE tenant_id = $1) s"
)

CHECKS: Final[dict[str, Check]] = {
    "sealed": Check(
        "Is everything that is stored sealed with AES-256 under the documented suite?",
        f"SELECT count(*) FROM {_STORED}",
        f"SELECT s.id FROM {_STORED} WHERE substring(s.sealed FROM 1 FOR 6) <> {MAGIC}",
    ),
    "container-keys": Check(
        "Has every container a key of its own, under a root key that is in use?",
        "SELECT count(*) FROM confide.container WHERE tenant_id = $1",
        "SELECT c.id FROM confide.container c WHERE c.tenant_id = $1 AND NOT EXISTS (SELECT FROM"
        " confide.container_key k"
        " JOIN confide_keys.root_key r ON r.tenant_id = k.tenant_id AND r.generation = k.trk_generation"
        " AND r.state <> 'destroyed' WHERE k.tenant_id = c.tenant_id AND k.container_id = c.id"
        " AND k.generation = c.ck_generation)",
    ),
    "key-use-logged": Check(
        "Does the log name every version that was written in the period and is stored?",
        "SELECT count(*) FROM confide.context_object WHERE tenant_id = $1 AND updated_at >= $2 AND updated_at < $3",
        "SELECT o.id FROM confide.context_object o WHERE o.tenant_id = $1 AND o.updated_at >= $2 AND o.updated_at < $3"
        " AND NOT EXISTS (SELECT FROM confide_audit.event e WHERE e.tenant_id = $1 AND e.container = o.container_id"
        " AND e.time BETWEEN o.updated_at - interval '1 minute' AND o.updated_at + interval '1 minute'"
        " AND position(convert_to(o.version::text, 'UTF8') IN e.entry) > 0)",
    ),
    "revoked-keys": Check(
        "Was no API key used with success after it was revoked or had expired?",
        "SELECT count(*) FROM confide.api_key WHERE tenant_id = $1 AND (revoked_at IS NOT NULL OR expires_at <= now())",
        "SELECT DISTINCT e.id FROM confide.api_key k JOIN confide_audit.event e ON e.tenant_id = k.tenant_id"
        " AND e.api_key = k.id WHERE k.tenant_id = $1 AND e.time >= $2 AND e.time < $3 AND e.outcome = 'allowed'"
        " AND e.action <> 'api-key.revoke' AND e.time > least(k.revoked_at, k.expires_at) + interval '2 seconds'",
    ),
    "exact-scopes": Check(
        "Has no API key more scopes or purposes than its role?",
        "SELECT count(*) FROM confide.api_key WHERE tenant_id = $1 AND revoked_at IS NULL",
        "SELECT id FROM confide.api_key WHERE tenant_id = $1 AND revoked_at IS NULL AND NOT ("
        "(role = 'runtime' AND scopes <@ ARRAY['context:read', 'context:write'] AND purposes <@ ARRAY['serve']) OR"
        " (role = 'admin' AND NOT scopes && ARRAY['context:read', 'context:write', 'cell:read', 'cell:write']"
        "  AND purposes <@ ARRAY['subject-access', 'tenant-export']) OR"
        " (role = 'auditor' AND NOT scopes && ARRAY['context:read', 'context:write', 'context:export', 'api-keys',"
        "  'keys:write', 'tenant:write', 'privacy:write', 'cell:read', 'cell:write'] AND purposes = '{}'))",
    ),
    "key-rotation": Check(
        "Is every API key that works younger than a year, or does it end?",
        "SELECT count(*) FROM confide.api_key WHERE tenant_id = $1 AND revoked_at IS NULL",
        "SELECT id FROM confide.api_key WHERE tenant_id = $1 AND revoked_at IS NULL AND expires_at IS NULL"
        " AND created_at < now() - interval '365 days'",
    ),
    "no-operator-access": Check(
        "Has no operator and no auditor opened context?",
        f"SELECT count(*) FROM {EVENTS} AND e.action IN {CONTEXT}",
        f"SELECT e.id FROM {EVENTS} AND e.action IN {CONTEXT} AND e.outcome = 'allowed'"
        " AND convert_from(e.entry, 'UTF8')::jsonb ->> 'role' IN ('operator', 'auditor')",
    ),
    "region": Check(
        "Was everything done in the tenant's region?",
        f"SELECT count(*) FROM {EVENTS}",
        f"SELECT e.id FROM {EVENTS} AND convert_from(e.entry, 'UTF8')::jsonb ->> 'region'"
        " IS DISTINCT FROM (SELECT t.region FROM confide.tenant t WHERE t.id = $1)",
    ),
    "transfers": Check(
        "Does everything that leaves the region stand on a consent?",
        "SELECT count(*) FROM (SELECT region FROM confide.notice_contact WHERE tenant_id = $1"
        " UNION ALL SELECT region FROM confide_audit.stream WHERE tenant_id = $1 AND deleted_at IS NULL"
        " UNION ALL SELECT transfer_to FROM confide_keys.binding WHERE tenant_id = $1 AND transfer_to IS NOT NULL"
        " AND state <> 'retired') r",
        "SELECT r.id FROM (SELECT tenant_id AS id, region, 'incident-notice' AS scope FROM confide.notice_contact"
        " WHERE tenant_id = $1 UNION ALL SELECT id, region, 'audit-stream' FROM confide_audit.stream"
        " WHERE tenant_id = $1 AND deleted_at IS NULL UNION ALL SELECT id, transfer_to, 'kms' FROM confide_keys.binding"
        " WHERE tenant_id = $1 AND transfer_to IS NOT NULL AND state NOT IN ('pending', 'checked', 'retired')) r"
        " WHERE r.region <> (SELECT region FROM confide.cell)"
        " AND NOT EXISTS (SELECT FROM confide.consent c WHERE c.tenant_id = $1 AND c.scope = r.scope"
        " AND c.destination = r.region AND c.revoked_at IS NULL AND c.expires_at > now())",
    ),
    "retention": Check(
        "Is nothing stored for longer than five minutes beyond its end, unless it is held?",
        "SELECT count(*) FROM confide.container WHERE tenant_id = $1",
        "SELECT id FROM confide.container WHERE tenant_id = $1 AND NOT hold AND expires_at < now() - interval '5"
        " minutes'",
    ),
    "erasures": Check(
        "Was every erasure that was asked for in the period done in time, with a receipt?",
        "SELECT count(*) FROM confide.job WHERE tenant_id = $1 AND kind = 'erasure' AND created_at >= $2"
        " AND created_at < $3",
        "SELECT j.id FROM confide.job j WHERE j.tenant_id = $1 AND j.kind = 'erasure' AND j.created_at >= $2"
        " AND j.created_at < $3 AND (coalesce(j.finished_at, now()) > j.deadline OR j.state = 'failed' OR (j.state"
        " = 'done'"
        " AND NOT EXISTS (SELECT FROM confide.attestation a WHERE a.tenant_id = $1 AND a.about = j.id)))",
    ),
    "erased-stays-erased": Check(
        "Is nothing stored again of what was erased?",
        "SELECT count(*) FROM confide.erased WHERE tenant_id = $1",
        "SELECT x.container_id FROM confide.erased x JOIN confide.container c ON c.tenant_id = x.tenant_id"
        " AND c.id = x.container_id WHERE x.tenant_id = $1",
    ),
    "access-requests": Check(
        "Did every subject's export that was begun in the period end within an hour?",
        "SELECT count(*) FROM confide.bulk_read WHERE tenant_id = $1 AND started_at >= $2 AND started_at < $3",
        "SELECT id FROM confide.bulk_read WHERE tenant_id = $1 AND started_at >= $2 AND started_at < $3"
        " AND coalesce(finished_at, now()) > started_at + interval '1 hour'",
    ),
    "purposes": Check(
        "Was context opened for a purpose of the closed list, and for none else?",
        f"SELECT count(*) FROM {EVENTS} AND e.action IN {CONTEXT} AND e.outcome = 'allowed'",
        f"SELECT e.id FROM {EVENTS} AND e.action IN {CONTEXT} AND e.outcome = 'allowed' AND coalesce(e.purpose, '')"
        " NOT IN ('serve', 'subject-access', 'tenant-export', 'maintenance')",
    ),
    "log-without-gaps": Check(
        "Has the sealed log neither a missing leaf nor a missing number of a writer in the period?",
        f"SELECT count(*) FROM {EVENTS}",
        "WITH s AS (SELECT (convert_from(e.entry, 'UTF8')::jsonb ->> 'writer')::uuid AS writer,"
        f" (convert_from(e.entry, 'UTF8')::jsonb ->> 'seq')::bigint AS seq FROM {EVENTS})"
        " SELECT s.writer FROM s GROUP BY s.writer HAVING max(s.seq) - min(s.seq) + 1 <> count(*)",
    ),
    "log-sealed": Check(
        "Is every event sealed into the tree within a minute?",
        "SELECT count(*) FROM confide_audit.journal j WHERE j.tenant_id = $1 AND j.time >= $2 AND j.time < $3",
        "SELECT j.id FROM confide_audit.journal j WHERE j.tenant_id = $1 AND j.time >= $2 AND j.time < $3"
        " AND j.time < now() - interval '1 minute'"
        " AND NOT EXISTS (SELECT FROM confide_audit.event e WHERE e.tenant_id = $1 AND e.id = j.id)",
    ),
    "tampering": Check(
        "Was no stored object refused as tampered with?",
        f"SELECT count(*) FROM {EVENTS} AND e.action IN {CONTEXT}",
        f"SELECT e.id FROM {EVENTS} AND e.action = 'tamper.refused'",
    ),
    "incidents-told": Check(
        "Was a notice of every incident that touched the tenant delivered within its time, from detection?",
        "SELECT count(*) FROM confide.incident_part WHERE tenant_id = $1 AND at >= $2 AND at < $3",
        "SELECT DISTINCT p.incident_id FROM confide.incident_part p, LATERAL (SELECT coalesce("
        "(p.scope ->> 'customer_due')::timestamptz, p.at + interval '24 hours') AS at) due"
        " WHERE p.tenant_id = $1 AND p.at >= $2 AND p.at < $3 AND due.at < now()"
        " AND NOT EXISTS (SELECT FROM confide.notice n WHERE n.tenant_id = $1 AND n.incident_id = p.incident_id"
        " AND n.delivered_at <= due.at)",
    ),
    "customer-key": Check(
        "Does the customer's key stand above every root key, once it has been activated?",
        "SELECT count(*) FROM confide_keys.binding WHERE tenant_id = $1 AND state IN ('active', 'unavailable',"
        " 'revoked')",
        "SELECT b.id FROM confide_keys.binding b WHERE b.tenant_id = $1 AND b.state IN ('active', 'unavailable',"
        " 'revoked')"
        " AND EXISTS (SELECT FROM confide_keys.root_key r WHERE r.tenant_id = $1 AND r.state = 'active'"
        " AND r.customer_half IS NULL)",
    ),
    "terms": Check(
        "Are there documents, and has the tenant accepted the present version of each, or still has time for it?",
        "SELECT count(*) FROM jsonb_array_elements($4) d",
        "SELECT d.v ->> 'id' FROM jsonb_array_elements($4) AS d (v) WHERE NOT EXISTS (SELECT FROM"
        " confide.trust_acceptance a WHERE a.tenant_id = $1 AND a.document = d.v ->> 'id' AND ("
        "(a.version = d.v ->> 'version' AND a.digest = d.v ->> 'digest')"
        " OR nullif(d.v ->> 'effective', '')::date > (now() AT TIME ZONE 'UTC')::date))"
        " UNION ALL SELECT 'no document' WHERE jsonb_array_length($4) = 0",
    ),
    "denials-logged": Check(
        "Does every denial in the log say why?",
        f"SELECT count(*) FROM {EVENTS} AND e.outcome <> 'allowed'",
        f"SELECT e.id FROM {EVENTS} AND e.outcome <> 'allowed'"
        " AND coalesce(convert_from(e.entry, 'UTF8')::jsonb ->> 'reason', '') = ''",
    ),
    "holds-explained": Check(
        "Has every legal hold a sealed reason and an actor?",
        "SELECT count(*) FROM confide.legal_hold WHERE tenant_id = $1",
        f"SELECT id FROM confide.legal_hold WHERE tenant_id = $1 AND substring(reason FROM 1 FOR 6) <> {MAGIC}",
    ),
}


async def run(
    tx: Transaction,
    check: Check,
    tenant: UUID,
    since: datetime,
    until: datetime,
    documents: Sequence[Mapping[str, str]],
) -> tuple[int, list[str]]:
    """The population, and the ids of what breaks the control."""
    terms = orjson.dumps(documents).decode()
    await tx.connection.execute(SEARCH)
    population: int = await tx.connection.fetchval(_bound(check.population), tenant, since, until, terms)
    rows: Sequence[Any] = await tx.connection.fetch(
        f"SELECT f.* FROM ({_bound(check.failures)}) f LIMIT {SHOWN}",
        tenant,
        since,
        until,
        terms,
    )
    return population, [str(row[0]) for row in rows]


def _bound(sql: str) -> str:
    """All parameters named with their types, whichever the query uses."""
    return f"SELECT q.* FROM (SELECT $1::uuid, $2::timestamptz, $3::timestamptz, $4::jsonb) p, LATERAL ({sql}) q"


async def leaves(tx: Transaction, tenant: UUID, since: datetime, until: datetime) -> list[dict[str, int]]:
    """The ranges of leaves of the period, by epoch."""
    rows = await tx.connection.fetch(
        "SELECT epoch, min(leaf) AS first, max(leaf) AS last, count(*) AS events FROM confide_audit.event"
        " WHERE tenant_id = $1 AND time >= $2 AND time < $3 GROUP BY 1 ORDER BY 1",
        tenant,
        since,
        until,
    )
    return [dict(row) for row in rows]
