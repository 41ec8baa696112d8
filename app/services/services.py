"""Everything that handlers may use, in one place. Made by ``app.main``; a handler's first argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.services.access import Access
from app.services.api_keys import ApiKeys
from app.services.audit_log import AuditLog
from app.services.audit_parts import AuditParts
from app.services.auditing import Auditing
from app.services.branching import Branching
from app.services.cell_secrets import CellSecrets
from app.services.control import ControlPlane
from app.services.dialogue import Dialogue
from app.services.jobs import Jobs
from app.services.key_plane import KeyPlane
from app.services.keyring import Keyring
from app.services.privacy import Privacy
from app.services.tenants import Tenants
from app.store.lane import Lanes
from app.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest bodies in bytes: a small document, an envelope of many objects, one object."""

    json: int
    envelope: int
    object: int


@dataclass(slots=True)
class Services:
    """The services of one worker. ``lanes``: read, write and record, by name."""

    region: str
    limits: Limits
    secrets: CellSecrets
    lanes: Mapping[str, Lanes[Any]]
    ledger: Ledger
    auditing: Auditing
    access: Access
    control: ControlPlane
    keyring: Keyring
    dialogue: Dialogue
    branching: Branching
    tenants: Tenants
    api_keys: ApiKeys
    audit_log: AuditLog
    audit: AuditParts
    jobs: Jobs
    keys: KeyPlane
    privacy: Privacy
