"""The closed set of audited actions. One name, one sentence; ``docs/format-audit.md`` lists the same table.

A request that only reads a container is a ``context.load`` (everything a turn needs) or a ``context.read`` (one route);
one that reads and writes a container, or writes it as part of a dialogue turn, is a ``context.commit``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CONTEXT = {
    "context.load": "Opened what a dialogue turn needs from one container: objects and turns.",
    "context.commit": "Sealed the changes of a dialogue turn in one container, all or nothing.",
    "context.read": "Opened context objects of one container.",
    "context.write": "Sealed context objects in one container.",
    "context.delete": "Deleted context objects of one container.",
    "context.export": "Opened a container's content for an export.",
    "session.create": "Created a session or got the one that had its external id.",
    "session.read": "Read a session's record and opened its labels.",
    "session.update": "Changed a session's labels, time to live or hold.",
    "session.delete": "Deleted a session with its rows and its container key.",
    "session.lookup": "Looked sessions up by external id, subject or label.",
    "container.create": "Created a container and sealed its container key.",
    "branch": "Copied a session up to a turn or commit into a new session under a new container key.",
    "turns.read": "Opened turns of a session.",
    "turns.append": "Sealed turns at the end of a session's history.",
    "turns.pop": "Opened and removed the last turns of a session; tombstones remain.",
    "turns.clear": "Removed all turns of a session; tombstones remain.",
}

_KEYS = {
    "key.intent": "About to call a key management service: recorded durably before the call leaves.",
    "key.outcome": "What the key management service answered to the call that `intent` names.",
    "key.seal": "The tenant's administrator sealed the tenant: no key is used until it is unsealed.",
    "key.unseal": "The tenant's administrator lifted the seal.",
    "key.rotate": "Started a new generation of the tenant root key or moved to a new version of the KEK.",
    "key.rekey": "Re-sealed or re-encrypted what an old key generation still opened.",
    "key.policy": "Changed the tenant's key policy: lease, grace, allowed regions or providers.",
    "binding.create": "Created a key binding: a KEK reference with its credentials.",
    "binding.check": "Tried a key binding end to end and recorded what it found.",
    "binding.state": "A key binding changed state; `detail` has from and to.",
    "binding.activate": "Made a key binding the one that seals.",
    "binding.retire": "Took a key binding out of use.",
}

_TENANTS = {
    "api-key.create": "Issued an API key.",
    "api-key.rotate": "Issued an API key's successor; both work until the overlap ends.",
    "api-key.revoke": "Revoked an API key.",
    "api-key.denied": "Refused an API key: unknown, expired, revoked or misplaced. Aggregated: `detail` counts them.",
    "access.denied": "Refused a known caller for role, scope, purpose, state or region.",
    "tenant.create": "An operator created a tenant.",
    "tenant.enrol": "Redeemed the one-time enrolment token for the tenant's first admin API key.",
    "tenant.suspend": "An operator suspended a tenant.",
    "tenant.resume": "An operator lifted a tenant's suspension.",
    "tenant.update": "Changed a tenant's settings.",
    "offboard": "A step of a tenant's leaving: export, destruction of its keys, certificate.",
    "trust.accept": "The tenant accepted terms, sub-processors or a change of them.",
}

_OVERSIGHT = {
    "job.start": "A background job started; `detail` names it.",
    "job.step": "A background job finished a step that can be resumed from.",
    "job.end": "A background job ended; `detail` has its counts.",
    "audit.query": "Somebody read the audit log, a summary, a checkpoint or a proof.",
    "audit.export": "Somebody exported the audit log.",
    "audit.stream": "An audit stream was created, changed, tested, deleted or fell behind.",
    "audit.retention": "Dropped a whole, sealed, exported range of the audit log, or changed how long it is kept.",
    "audit.restore": "The log goes on under a new origin after a restore; `detail` says what was signed and is lost.",
    "audit.quarantine": "An event of an unknown action could not be encoded and is sealed as this; `detail` says why.",
    "tamper.refused": "Stored bytes did not authenticate as what they should be and were refused.",
    "privacy.erasure": "Asked for, ran or attested the erasure of a subject or session.",
    "privacy.export": "Opened a subject's context to answer an access request.",
    "privacy.hold": "Set or lifted a legal hold.",
    "privacy.consent": "Recorded or revoked a consent, for example to a transfer.",
    "privacy.statement": "Signed the statement that accounts for every opening of a period.",
    "retention.expire": "Erased what had reached the end of its retention.",
    "incident.open": "Opened an incident; its clock starts at detection.",
    "incident.update": "Added to an incident's history or changed its phase.",
    "incident.notify": "Told a customer or an authority, or tried to.",
    "incident.scope": "Computed an incident's blast radius from the audit log.",
    "incident.close": "Closed an incident.",
    "evidence.export": "Exported evidence for a control or a period.",
}

ACTIONS: Mapping[str, str] = MappingProxyType({**_CONTEXT, **_KEYS, **_TENANTS, **_OVERSIGHT})
