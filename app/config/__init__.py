"""Frozen settings, read once from ``CONFIDE_*`` environment variables and from nowhere else.

Strict: an unknown variable or a bad value refuses to start, with every fault named at once and no value shown, since a
value may be a secret put in the wrong place. A secret may stand in a file instead: ``CONFIDE_X_FILE`` names it.
``docs/configuration.md`` is the table for readers; a test holds it against these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from app.config.kms import KmsVariables
from app.config.parsers import (
    KIB,
    MIB,
    STATE,
    cells,
    database,
    number,
    one_of,
    path,
    secret_bytes,
    setting,
    text,
    whole,
)

DEV: Final = "dev"
MIN_DISTINCT_BYTES: Final = 12
"""32 random bytes have about 30 different values; fewer than this is a placeholder, not a secret."""

CLIENT_VARIABLES: Final = frozenset(
    {
        "CONFIDE_URL",
        "CONFIDE_TENANT",
        "CONFIDE_RUNTIME_KEY",
        "CONFIDE_ADMIN_KEY",
        "CONFIDE_AUDITOR_KEY",
        "CONFIDE_OPERATOR_KEY",
    }
)
"""Read by the command line and the client libraries; whoever sourced demo.env may start the service all the same."""
IGNORED_PREFIXES: Final = ("CONFIDE_TEST_", "CONFIDE_BENCH_")


class ConfigError(Exception):
    """The settings can't be used. The text names variables and says what to do; it holds no value."""


# ---------------------------------------------------------------- the settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a deployment decides. Sizes are in bytes, times in seconds."""

    env: str = setting("CONFIDE_ENV", text("[a-z]{2,8}", "2 to 8 letters a-z"), "live")
    region: str = setting("CONFIDE_REGION", text("[a-z0-9-]{2,32}", "2 to 32 of a-z, 0-9 and -"), "")
    cells: Mapping[str, str] = setting("CONFIDE_CELLS", cells, MappingProxyType({}))
    host: str = setting("CONFIDE_HOST", text(r"[0-9A-Za-z.:_-]{1,255}", "a host name or address"), "127.0.0.1")
    port: int = setting("CONFIDE_PORT", whole(0, 65535), 8080)
    workers: int = setting("CONFIDE_WORKERS", whole(1, 64), 1)
    trusted_proxies: int = setting("CONFIDE_TRUSTED_PROXIES", whole(0, 8), 0)
    state_dir: Path = setting("CONFIDE_STATE_DIR", path, STATE)  # noqa: RUF009  a field, in truth

    deletion_journal_dir: Path | None = setting("CONFIDE_DELETION_JOURNAL_DIR", path, None)  # noqa: RUF009  a field
    deletion_journal_days: int = setting("CONFIDE_DELETION_JOURNAL_DAYS", whole(8, 36_500), 400)
    trust_file: Path | None = setting("CONFIDE_TRUST_FILE", path, None)  # noqa: RUF009  a field
    incident_customer_hours: int = setting("CONFIDE_INCIDENT_CUSTOMER_HOURS", whole(1, 720), 24)
    incident_authority_hours: int = setting("CONFIDE_INCIDENT_AUTHORITY_HOURS", whole(1, 720), 72)
    detect_denied: int = setting("CONFIDE_DETECT_DENIED", whole(1, 1_000_000), 50)
    detect_opened: int = setting("CONFIDE_DETECT_OPENED", whole(1, 100_000_000), 2000)
    detect_opened_factor: int = setting("CONFIDE_DETECT_OPENED_FACTOR", whole(1, 10_000), 10)

    database_url: str | None = setting("CONFIDE_DATABASE_URL", database, None, secret=True)
    owner_database_url: str | None = setting("CONFIDE_OWNER_DATABASE_URL", database, None, secret=True)
    cell_secret: bytes | None = setting("CONFIDE_CELL_SECRET", secret_bytes, None, secret=True)

    audit_name: str = setting("CONFIDE_AUDIT_NAME", text("[a-z0-9.-]{1,128}", "a host name of yours"), "confide.local")
    audit_signing_key: bytes | None = setting("CONFIDE_AUDIT_SIGNING_KEY", secret_bytes, None, secret=True)
    audit_retired_keys: str = setting("CONFIDE_AUDIT_RETIRED_KEYS", text(r"[\x21-\x7e]{0,8192}", "verifier keys"), "")
    audit_witness_dir: Path | None = setting("CONFIDE_AUDIT_WITNESS_DIR", path, None)  # noqa: RUF009  a field
    sealer: str = setting("CONFIDE_SEALER", one_of("process", "worker"), "process")
    audit_private_receivers: str = setting("CONFIDE_AUDIT_PRIVATE_RECEIVERS", one_of("no", "yes"), "no")
    audit_receiver_ca: Path | None = setting("CONFIDE_AUDIT_RECEIVER_CA", path, None)  # noqa: RUF009  a field

    max_json_bytes: int = setting("CONFIDE_MAX_JSON_BYTES", whole(KIB, 16 * MIB), 64 * KIB)
    max_envelope_bytes: int = setting("CONFIDE_MAX_ENVELOPE_BYTES", whole(64 * KIB, 64 * MIB), 16 * MIB)
    max_object_bytes: int = setting("CONFIDE_MAX_OBJECT_BYTES", whole(KIB, 16 * MIB), MIB)
    rate_per_second: int = setting("CONFIDE_RATE_PER_SECOND", whole(1, 1_000_000), 5000)

    lanes: int = setting("CONFIDE_LANES", whole(1, 8), 1)
    lane_items: int = setting("CONFIDE_LANE_ITEMS", whole(1, 1024), 64)
    lane_bytes: int = setting("CONFIDE_LANE_BYTES", whole(64 * KIB, 256 * MIB), 8 * MIB)
    lane_waiting: int = setting("CONFIDE_LANE_WAITING", whole(1, 100_000), 4096)
    lane_reconnect_seconds: float = setting("CONFIDE_LANE_RECONNECT_SECONDS", number(0, 60), 2.0)

    log_level: str = setting("CONFIDE_LOG_LEVEL", one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO")
    log_share: float = setting("CONFIDE_LOG_SHARE", number(0, 1), 1.0)
    drain_seconds: int = setting("CONFIDE_DRAIN_SECONDS", whole(0, 600), 20)

    kms: KmsVariables = field(default_factory=KmsVariables)

    @property
    def dev(self) -> bool:
        return self.env == DEV


def load(environ: Mapping[str, str]) -> Settings:
    """The settings in ``environ``. Raises ConfigError."""
    faults: list[str] = []
    texts: dict[str, str] = {}
    known = {item.metadata["env"]: item for item in all_fields()}
    for name in environ:
        if not name.startswith("CONFIDE_") or name in CLIENT_VARIABLES or name.startswith(IGNORED_PREFIXES):
            continue
        env = name if name in known else name.removesuffix("_FILE")
        if env not in known or (env != name and not known[env].metadata["secret"]):
            faults.append(f"{name} is not a setting of Confide (see docs/configuration.md)")
        elif not environ[name]:
            continue  # as `NAME=` in a compose file's or a unit's environment: absent
        elif env in texts:
            faults.append(f"{env} and {env}_FILE are both set: keep one")
        else:
            try:
                texts[env] = environ[name] if env == name else _read_secret(environ[name])
            except ValueError as error:
                faults.append(f"{name} {error}")
    kms = KmsVariables(**_values(fields(KmsVariables), texts, faults))
    own = tuple(item for item in fields(Settings) if item.name != "kms")
    settings = Settings(**_values(own, texts, faults), kms=kms)
    if not faults:
        settings = with_defaults(settings)
        faults = settings.kms.contradictions(dev=settings.dev)
        faults += [] if settings.dev else unsafe(settings)
    if faults:
        raise ConfigError("\n".join(sorted(faults)))
    return settings


def all_fields() -> tuple[Field[Any], ...]:
    """Every field that an environment variable fills."""
    return (*(item for item in fields(Settings) if item.name != "kms"), *fields(KmsVariables))


def _values(items: tuple[Field[Any], ...], texts: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
    """Parsed values by field name. An empty text counts as absent; what can't be parsed becomes a fault."""
    values: dict[str, Any] = {}
    for item in items:
        env = item.metadata["env"]
        if texts.get(env):
            try:
                values[item.name] = item.metadata["parse"](texts[env])
            except ValueError as error:
                faults.append(f"{env} {error}")
    return values


def _read_secret(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError, ValueError):
        raise ValueError("names a file that can't be read") from None


def with_defaults(settings: Settings) -> Settings:
    """Development's defaults; elsewhere there are none for what matters."""
    if not settings.dev:
        return settings
    folder = settings.kms.local_key_dir or settings.state_dir / "keys"
    kms = replace(settings.kms, provider=settings.kms.provider or "local", local_key_dir=folder)
    return replace(settings, region=settings.region or "local", kms=kms)


def unsafe(settings: Settings) -> list[str]:
    """Why these settings may serve development only. The database's login is judged when it is first used."""
    faults = []
    if not settings.region:
        faults.append("CONFIDE_REGION is not set: name this cell's region")
    if settings.database_url is None:
        faults.append("CONFIDE_DATABASE_URL is not set: the embedded PostgreSQL is for CONFIDE_ENV=dev only")
    if settings.kms.provider in {"", "local"}:
        faults.append("CONFIDE_KMS_PROVIDER is not set or local: the local key file is for CONFIDE_ENV=dev only")
    if settings.cell_secret is None:
        faults.append("CONFIDE_CELL_SECRET is not set: openssl rand -hex 32, the same for all workers of the cell")
    elif len(set(settings.cell_secret)) < MIN_DISTINCT_BYTES:
        faults.append("CONFIDE_CELL_SECRET is a placeholder, not a random secret: openssl rand -hex 32")
    if settings.audit_signing_key is None:
        faults.append("CONFIDE_AUDIT_SIGNING_KEY is not set: openssl rand -hex 32, kept outside the database")
    if settings.audit_private_receivers == "yes":
        faults.append("CONFIDE_AUDIT_PRIVATE_RECEIVERS=yes is for CONFIDE_ENV=dev only")
    return faults
