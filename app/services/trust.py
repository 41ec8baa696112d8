"""What the operator of this deployment states in public, and which tenant has accepted which version of it.

The statement is a YAML file of the deployment (``CONFIDE_TRUST_FILE``); what the software itself knows (region,
encryption, retention, incident clock, purposes) is not in it and can't be stated wrongly there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from app.errors import InvalidRequest, NotFound
from app.identity import Caller, Purpose, new_id
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.incident_clock import AUTHORITY, CUSTOMER
from app.services.statements import USE
from app.store import privacy_records as rows


class SubProcessor(msgspec.Struct, forbid_unknown_fields=True):
    """Who else processes data, for what, and where."""

    name: str
    purpose: str
    region: str
    since: str = ""


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """Terms that a tenant accepts: the data processing agreement, the standard contractual clauses.

    Whoever has accepted an earlier version has until ``effective``, a day, for this one. Without it, it holds already.
    """

    id: str
    title: str
    version: str
    url: str = ""
    announced: str = ""
    effective: str = ""


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """An announced change, and the day from which it holds."""

    announced: str
    effective: str
    what: str


class Statement(msgspec.Struct, forbid_unknown_fields=True):
    """The deployment's file."""

    operator: str = "The operator of this deployment has not named himself (CONFIDE_TRUST_FILE)."
    contact: str = ""
    notice_days: int = 30
    sub_processors: list[SubProcessor] = msgspec.field(default_factory=list)
    documents: list[Document] = msgspec.field(default_factory=list)
    changes: list[Change] = msgspec.field(default_factory=list)

    def check(self) -> None:
        """Raises TrustFileError for a change that would take effect before its notice period has passed."""
        days = [(each.announced, each.effective) for each in self.changes]
        days += [(each.announced, each.effective) for each in self.documents if each.announced or each.effective]
        for announced, effective in days:
            try:
                notice = date.fromisoformat(effective) - date.fromisoformat(announced)
            except ValueError:
                raise TrustFileError("CONFIDE_TRUST_FILE: announced and effective are days, e.g. 2026-03-01") from None
            if notice < timedelta(days=self.notice_days):
                raise TrustFileError(
                    f"CONFIDE_TRUST_FILE: the change of {announced} takes effect before its notice of"
                    f" {self.notice_days} days has passed"
                )


class TrustFileError(ValueError):
    """The deployment's trust file can't be used."""


KEY_OPTIONS: Final = ("vendor-managed", "aws-kms", "azure-key-vault", "vault-transit")


@dataclass(slots=True)
class Trust:
    """``clock``: notice to customers and to the authority, from detection."""

    region: str
    control: ControlPlane
    statement: Statement
    customer: timedelta = CUSTOMER
    authority: timedelta = AUTHORITY
    page: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.page = {
            "operator": self.statement.operator,
            "contact": self.statement.contact,
            "regions": [self.region],
            "encryption": "AES-256-GCM in 16 KiB chunks with key commitment (C2SP chunked-encryption, Cobblestone-256);"
            " a key for each container, sealed under a tenant's own root key",
            "key_options": list(KEY_OPTIONS),
            "retention": {"session_idle_days": 30, "longest_days": 365, "set_by": "the tenant, and each session"},
            "erasure": {"deadline_days": 30, "usually": "seconds", "receipt": "signed"},
            "incident_clock": {
                "starts": "at detection of a potential breach, not at its confirmation",
                "customer_hours": int(self.customer.total_seconds() // 3600),
                "authority_hours": int(self.authority.total_seconds() // 3600),
            },
            "data_use": USE,
            "purposes": [purpose.value for purpose in Purpose],
            "sub_processors": [msgspec.to_builtins(each) for each in self.statement.sub_processors],
            "documents": [msgspec.to_builtins(each) | {"digest": digest(each)} for each in self.statement.documents],
            "changes": [msgspec.to_builtins(each) for each in self.statement.changes],
            "notice_days": self.statement.notice_days,
        }

    async def accept(self, caller: Caller, document: str, version: str, trace: Trace) -> Any:
        """Record that the tenant accepts the present version. Raises NotFound, InvalidRequest for another version."""
        found = next((each for each in self.statement.documents if each.id == document), None)
        async with self.control.act(caller, trace, "trust.accept", document=document, version=version) as act:
            if found is None:
                raise NotFound
            if found.version != version:
                raise InvalidRequest("That isn't the present version: read GET /v1/trust.", "/version")
            who = (caller.principal, caller.api_key)
            return await rows.insert_acceptance(act.tx, caller.tenant, new_id(), document, version, digest(found), who)

    async def acceptances(self, caller: Caller, trace: Trace) -> list[Any]:
        async with self.control.look(caller, trace) as tx:
            return await rows.acceptances(tx, caller.tenant)


def digest(document: Document) -> str:
    """What was accepted, so that a text that is exchanged later shows."""
    text = {"id": document.id, "title": document.title, "version": document.version, "url": document.url}
    return hashlib.sha256(msgspec.json.encode(text)).hexdigest()


def terms(statement: Statement) -> list[dict[str, str]]:
    """What tenants must have accepted: id, version, digest, and from when (a day; empty: already)."""
    return [
        {"id": each.id, "version": each.version, "digest": digest(each), "effective": each.effective}
        for each in statement.documents
    ]


def load_statement(path: Path | None) -> Statement:
    """Raises TrustFileError with what to mend."""
    if path is None:
        return Statement()
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=Statement)
        found.check()
        return found
    except OSError:
        raise TrustFileError("CONFIDE_TRUST_FILE names a file that can't be read") from None
    except msgspec.DecodeError as error:
        raise TrustFileError(f"CONFIDE_TRUST_FILE: {error}") from None
