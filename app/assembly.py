"""Everything of one worker, made from the settings and not yet connected.

``app/main.py`` starts, serves and closes what ``assemble`` makes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from app import __version__
from app.api import (
    api_keys,
    audit,
    audit_retention,
    audit_streams,
    batch,
    cell_audit,
    containers,
    context,
    enrolment,
    jobs,
    keys,
    load_commit,
    privacy_routes,
    tenants,
    turns,
)
from app.api.docs_page import docs_routes
from app.api.health import health_routes
from app.api.table import Route
from app.audit.checkpoint import Signer
from app.config import ConfigError, Settings, with_defaults
from app.crypto.keys import hkdf_sha256
from app.crypto.secret import SecretKey
from app.errors import ConfideError
from app.kms.registry import KmsSettings, ProviderRegistry
from app.observability.metrics import Metrics
from app.services import privacy
from app.services.access import Access
from app.services.api_keys import ApiKeys
from app.services.audit_parts import AuditOptions, AuditParts, audit_parts, dev_seed
from app.services.audit_receivers import Receivers
from app.services.auditing import Auditing
from app.services.branching import Branching
from app.services.cell_secrets import CellSecrets
from app.services.control import ControlPlane
from app.services.deletion_journal import DeletionJournal
from app.services.denials import Denials
from app.services.detections import Thresholds
from app.services.dialogue import Dialogue
from app.services.jobs import Jobs
from app.services.key_plane import core, key_plane
from app.services.keyring import Keyring
from app.services.rate import Rates
from app.services.reading import Reading
from app.services.rekey_requests import Lookups, MovingLane
from app.services.services import Limits, Services
from app.services.tenants import Tenants
from app.services.trust import Statement, TrustFileError, load_statement
from app.services.writing import Writing
from app.store.api_keys import KeyRows
from app.store.connection import Connect, connector
from app.store.lane import Lane, LaneLimits, Lanes
from app.store.ledger import Ledger
from app.store.pool import Pool
from app.store.statements import (
    READ,
    RECORD,
    WRITE,
    Read,
    Record,
    Write,
    decode,
    encode_read,
    encode_record,
    encode_write,
)

RESOURCES: Final = (
    load_commit,
    context,
    turns,
    batch,
    containers,
    tenants,
    enrolment,
    api_keys,
    keys,
    jobs,
    audit,
    audit_retention,
    audit_streams,
    cell_audit,
    privacy_routes,
)
"""Each module declares its ``ROUTES``."""

SECRET_FILE: Final = "cell.secret"  # noqa: S105  a file's name


@dataclass(frozen=True, slots=True)
class Parts:
    """One worker's services and what must be started and closed around them."""

    settings: Settings
    services: Services
    metrics: Metrics
    rows: KeyRows
    pool: Pool
    registry: ProviderRegistry
    denials: Denials


def assemble(settings: Settings, kms: KmsSettings | None = None) -> Parts:
    """Everything of a worker, unconnected. ``kms``: instead of what the settings say, for tests. Raises ConfigError."""
    connect = _connect(settings)
    metrics = Metrics()
    lanes = _lanes(connect, settings, metrics)
    ledger, rows, pool = Ledger(connect), KeyRows(connect), Lookups(connect)
    secrets = CellSecrets.derive(cell_secret(settings))
    auditing = Auditing(settings.region, lanes["record"], ledger)
    denials = Denials(auditing)
    access = Access(
        env=settings.env,
        region=settings.region,
        cells=settings.cells,
        pepper=secrets.pepper,
        rows=rows,
        rates=Rates(settings.rate_per_second),
        denials=denials,
    )
    registry = ProviderRegistry(kms or kms_settings(settings))

    def called(provider: str, operation: str, outcome: str, seconds: float) -> None:
        metrics.kms_seconds.observe(seconds, (provider, operation, outcome))

    deletions = DeletionJournal(privacy.deletion_folder(settings.deletion_journal_dir, settings.state_dir))
    made = core(settings.region, registry, auditing, lambda: Ledger(connect), Pool(connect, 2), deletions, called)
    keyring = made.keyring
    metrics.gather = _key_metrics(keyring, metrics)
    pool.former = keyring.former
    around = keyring, made.mover, pool, made.ledgers[2]
    reads, writes = MovingLane.under(lanes["read"], *around), MovingLane.under(lanes["write"], *around)
    reading = Reading(settings.region, keyring, reads, pool, auditing)
    control = ControlPlane(ledger, auditing, access)
    trees = _audit(settings, auditing, access, control, metrics)
    api_keys_ = ApiKeys(settings.env, settings.region, secrets.pepper, control, access)
    dialogue = Dialogue(reading, Writing(reading, writes, deletions), writes)
    jobs_runner = Jobs(Ledger(connect), pool, auditing, control)
    services = Services(
        region=settings.region,
        limits=Limits(settings.max_json_bytes, settings.max_envelope_bytes, settings.max_object_bytes),
        secrets=secrets,
        lanes=lanes,
        ledger=ledger,
        auditing=auditing,
        access=access,
        control=control,
        keyring=keyring,
        dialogue=dialogue,
        branching=Branching(dialogue),
        tenants=Tenants(
            env=settings.env,
            region=settings.region,
            pepper=secrets.pepper,
            ledger=ledger,
            auditing=auditing,
            access=access,
            control=control,
            keys=api_keys_,
            maker=keyring,
        ),
        api_keys=api_keys_,
        audit_log=trees.log,
        audit=trees,
        jobs=jobs_runner,
        keys=key_plane(made, control, auditing, jobs_runner, pool, audit_signer(settings)),
        privacy=privacy.assemble(
            privacy.Needs(
                region=settings.region,
                ledger=Ledger(connect),
                pool=pool,
                control=control,
                auditing=auditing,
                jobs=jobs_runner,
                keyring=keyring,
                reading=reading,
                dialogue=dialogue,
                deletions=deletions,
                signer=audit_signer(settings),
                checkpoints=trees.signing,
                notes=secrets.notes,
                receivers=Receivers(
                    private=settings.audit_private_receivers == "yes", authorities=settings.audit_receiver_ca
                ),
                trust=_trust(settings),
                customer_hours=settings.incident_customer_hours,
                authority_hours=settings.incident_authority_hours,
                keep_journal=timedelta(days=settings.deletion_journal_days),
                thresholds=Thresholds(settings.detect_denied, settings.detect_opened, settings.detect_opened_factor),
                observe_sweep=metrics.swept,
            )
        ),
    )
    return Parts(settings, services, metrics, rows, pool, registry, denials)


def routes_of(parts: Parts) -> tuple[Route, ...]:
    """The whole route table, its own documentation included."""

    async def ready() -> None:
        await parts.pool.fetch("SELECT 1")

    routes = tuple(route for resource in RESOURCES for route in resource.ROUTES)
    routes += health_routes(ready, parts.metrics)
    return routes + docs_routes(routes, version=__version__)


def kms_settings(settings: Settings) -> KmsSettings:
    """Raises ConfigError where two settings contradict each other."""
    kms = with_defaults(settings).kms
    if kms.local_key_dir is not None:
        private_dir(kms.local_key_dir)
    try:
        return kms.settings(settings.region, dev=settings.dev)
    except (ValueError, ConfideError) as error:
        raise ConfigError(f"the CONFIDE_* settings of the key management service: {error}") from None


def _audit(
    settings: Settings, auditing: Auditing, access: Access, control: ControlPlane, metrics: Metrics
) -> AuditParts:
    options = AuditOptions(
        region=settings.region,
        database_url=settings.database_url or "",
        signer=audit_signer(settings),
        retired_keys=settings.audit_retired_keys,
        witness_folder=settings.audit_witness_dir or settings.state_dir / "witness",
        stream_key=hkdf_sha256(SecretKey.of(cell_secret(settings)), b"confide/v1/audit-streams"),
        private_receivers=settings.audit_private_receivers == "yes",
        receiver_authorities=settings.audit_receiver_ca,
    )
    try:
        return audit_parts(options, auditing=auditing, access=access, control=control, metrics=metrics)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _connect(settings: Settings) -> Connect:
    if settings.database_url is None:
        raise ConfigError("CONFIDE_DATABASE_URL is not set")
    return connector(settings.database_url)


def _lanes(connect: Connect, settings: Settings, metrics: Metrics) -> dict[str, Lanes[Any]]:
    limits = LaneLimits(
        settings.lane_items, settings.lane_bytes, settings.lane_waiting, settings.lane_reconnect_seconds
    )

    def observe(name: str, items: int, events: int) -> None:
        metrics.batch_items.observe(items, (name,))
        metrics.audit_commits.inc(("committed",))
        metrics.audit_events.inc(("committed",), events)

    def read() -> Lane[Read]:
        return Lane("read", connect, READ, encode_read, decode, limits, observe=observe, changes=False)

    def write() -> Lane[Write]:
        return Lane("write", connect, WRITE, encode_write, decode, limits, observe=observe)

    record: Lane[Record] = Lane("record", connect, RECORD, encode_record, _no_results, limits, observe=observe)
    return {
        "read": Lanes([read() for _ in range(settings.lanes)]),
        "write": Lanes([write() for _ in range(settings.lanes)]),
        "record": Lanes([record]),
    }


def _key_metrics(keyring: Keyring, metrics: Metrics) -> Callable[[], None]:
    """What the keyring counts for itself, since it is asked at every request."""
    told = [0, 0]

    def gather() -> None:
        metrics.key_cache.inc(("tenant", "hit"), keyring.hits - told[0])
        metrics.key_cache.inc(("tenant", "miss"), keyring.misses - told[1])
        told[:] = keyring.hits, keyring.misses
        for age in keyring.lease_ages():
            metrics.lease_age.observe(age)

    return gather


def _no_results(batch: Any, _rows: Any) -> list[None]:
    return [None] * len(batch)


def cell_secret(settings: Settings) -> bytes:
    """The cell's secret; in development one that is made in the state directory. Raises ConfigError."""
    if settings.cell_secret is not None:
        return settings.cell_secret
    if not settings.dev:
        raise ConfigError("CONFIDE_CELL_SECRET is not set")
    path = private_dir(settings.state_dir) / SECRET_FILE
    with suppress(FileExistsError):
        _write_once(path, os.urandom(32).hex() + "\n")
    try:
        return bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError):
        raise ConfigError(f"{path} can't be read or doesn't hold 32 bytes in hexadecimal") from None


def _trust(settings: Settings) -> Statement:
    try:
        return load_statement(settings.trust_file)
    except TrustFileError as error:
        raise ConfigError(str(error)) from None


def audit_signer(settings: Settings) -> Signer:
    """What signs checkpoints, receipts and evidence; in development with a seed that is made in the state directory."""
    seed = settings.audit_signing_key
    if seed is None:
        if not settings.dev:
            raise ConfigError("CONFIDE_AUDIT_SIGNING_KEY is not set")
        seed = dev_seed(private_dir(settings.state_dir))
    return Signer(f"{settings.audit_name}/{settings.region}/audit", seed)


def private_dir(path: Path) -> Path:
    """The folder, made for this user alone if there is none. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        raise ConfigError(f"{path} can't be made: CONFIDE_STATE_DIR must name a folder that may be written") from None
    return path


def _write_once(path: Path, text: str) -> None:
    """Whole, or not at all, and never over another worker's. Raises FileExistsError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
        os.link(draft, path)
    finally:
        os.close(descriptor)
        draft.unlink()
