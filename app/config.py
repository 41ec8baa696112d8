"""Frozen settings, read once from ``CONFIDE_*`` environment variables and from nowhere else.

Strict: an unknown variable or a bad value refuses to start, with every fault named at once and no value shown, since a
value may be a secret put in the wrong place. A secret may stand in a file instead: ``CONFIDE_X_FILE`` names it.
``docs/configuration.md`` is the table for readers; a test holds it against these fields.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

DEV: Final = "dev"
KEY_BYTES: Final = 32
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


def setting(
    env: str,
    parse: Callable[[str], Any],
    default: Any = MISSING,
    *,
    secret: bool = False,
) -> Any:
    """A field read from ``env``. ``parse`` raises ValueError with words that hold nothing of the value."""
    kept = {"env": env, "parse": parse, "secret": secret}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: default, metadata=kept, repr=not secret)
    return field(default=default, metadata=kept, repr=not secret)


# ---------------------------------------------------------------- parsers


def _text(pattern: str, words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"must be {words}")
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value, re.ASCII) or not low <= float(value) <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(value)

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return value

    return parse


def _path(value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError("must be a path")
    return Path(value)


def _database(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"postgresql", "postgres"} or not url.hostname:
        raise ValueError("must be an address like postgresql://user:password@host:5432/database")
    return value


def _cells(value: str) -> Mapping[str, str]:
    """``region=https://address,…``"""
    cells: dict[str, str] = {}
    for pair in filter(None, value.split(",")):
        region, _, url = pair.partition("=")
        parts = urlsplit(url)
        if not _REGION.fullmatch(region) or parts.scheme not in {"https", "http"} or not parts.hostname or parts.query:
            raise ValueError("must be a list like eu-central-1=https://eu.example.com,us-east-1=https://us.example.com")
        cells[region] = url.rstrip("/")
    return MappingProxyType(cells)


def _secret_bytes(value: str) -> bytes:
    """32 bytes in hexadecimal or base64."""
    try:
        raw = bytes.fromhex(value) if len(value) == 2 * KEY_BYTES else base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ValueError("must be 32 bytes in hexadecimal or base64: openssl rand -hex 32")
    return raw


_REGION: Final = re.compile(r"[a-z0-9-]{2,32}", re.ASCII)
_KIB: Final = 1024
_MIB: Final = 1024 * 1024

# ---------------------------------------------------------------- the settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a deployment decides. Sizes are in bytes, times in seconds."""

    env: str = setting("CONFIDE_ENV", _text("[a-z]{2,8}", "2 to 8 letters a-z"), "live")
    region: str = setting("CONFIDE_REGION", _text("[a-z0-9-]{2,32}", "2 to 32 of a-z, 0-9 and -"), "")
    cells: Mapping[str, str] = setting("CONFIDE_CELLS", _cells, MappingProxyType({}))
    host: str = setting("CONFIDE_HOST", _text(r"[0-9A-Za-z.:_-]{1,255}", "a host name or address"), "127.0.0.1")
    port: int = setting("CONFIDE_PORT", _whole(0, 65535), 8080)
    workers: int = setting("CONFIDE_WORKERS", _whole(1, 64), 1)
    trusted_proxies: int = setting("CONFIDE_TRUSTED_PROXIES", _whole(0, 8), 0)
    state_dir: Path = setting("CONFIDE_STATE_DIR", _path, Path(".confide"))

    database_url: str | None = setting("CONFIDE_DATABASE_URL", _database, None, secret=True)
    owner_database_url: str | None = setting("CONFIDE_OWNER_DATABASE_URL", _database, None, secret=True)
    cell_secret: bytes | None = setting("CONFIDE_CELL_SECRET", _secret_bytes, None, secret=True)

    max_json_bytes: int = setting("CONFIDE_MAX_JSON_BYTES", _whole(_KIB, 16 * _MIB), 64 * _KIB)
    max_envelope_bytes: int = setting("CONFIDE_MAX_ENVELOPE_BYTES", _whole(64 * _KIB, 64 * _MIB), 16 * _MIB)
    max_object_bytes: int = setting("CONFIDE_MAX_OBJECT_BYTES", _whole(_KIB, 16 * _MIB), _MIB)
    rate_per_second: int = setting("CONFIDE_RATE_PER_SECOND", _whole(1, 1_000_000), 5000)

    lane_items: int = setting("CONFIDE_LANE_ITEMS", _whole(1, 1024), 64)
    lane_bytes: int = setting("CONFIDE_LANE_BYTES", _whole(64 * _KIB, 256 * _MIB), 8 * _MIB)
    lane_waiting: int = setting("CONFIDE_LANE_WAITING", _whole(1, 100_000), 4096)
    lane_reconnect_seconds: float = setting("CONFIDE_LANE_RECONNECT_SECONDS", _number(0, 60), 2.0)

    log_level: str = setting("CONFIDE_LOG_LEVEL", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO")
    log_share: float = setting("CONFIDE_LOG_SHARE", _number(0, 1), 1.0)
    drain_seconds: int = setting("CONFIDE_DRAIN_SECONDS", _whole(0, 600), 20)

    kms_provider: str = setting("CONFIDE_KMS_PROVIDER", _text("[a-z-]{2,32}", "the name of a key provider"), "")
    local_key_dir: Path | None = setting("CONFIDE_LOCAL_KEY_DIR", _path, None)

    @property
    def dev(self) -> bool:
        return self.env == DEV


def load(environ: Mapping[str, str], **overrides: Any) -> Settings:
    """The settings in ``environ``. ``overrides``: by field name, from the command line. Raises ConfigError."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    known = {item.metadata["env"]: item for item in fields(Settings)}
    for name in environ:
        if not name.startswith("CONFIDE_") or name in CLIENT_VARIABLES or name.startswith(IGNORED_PREFIXES):
            continue
        item = known.get(name.removesuffix("_FILE") if name not in known else name)
        if item is None or (name not in known and not item.metadata["secret"]):
            faults.append(f"{name} is not a setting of Confide (see docs/configuration.md)")
            continue
        if item.name in values:
            faults.append(f"{item.metadata['env']} and {item.metadata['env']}_FILE are both set: keep one")
            continue
        try:
            text = environ[name] if name in known else _read_secret(environ[name])
            if text:
                values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            faults.append(f"{name} {error}")
    if faults:
        raise ConfigError("\n".join(sorted(faults)))
    given = {name: value for name, value in overrides.items() if value is not None}
    return _with_defaults(Settings(**(values | given)))


def _read_secret(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        raise ValueError("names a file that can't be read") from None


def _with_defaults(settings: Settings) -> Settings:
    """Development's defaults, and a refusal of what is unsafe elsewhere."""
    if settings.dev:
        return replace(
            settings,
            region=settings.region or "local",
            kms_provider=settings.kms_provider or "local",
            local_key_dir=settings.local_key_dir or settings.state_dir / "keys",
        )
    faults = unsafe(settings)
    if faults:
        raise ConfigError("\n".join(faults))
    return settings


def unsafe(settings: Settings) -> list[str]:
    """Why these settings may serve development only. The database's login is judged when it is first used."""
    faults = []
    if not settings.region:
        faults.append("CONFIDE_REGION is not set: name this cell's region")
    if settings.database_url is None:
        faults.append("CONFIDE_DATABASE_URL is not set: the embedded PostgreSQL is for CONFIDE_ENV=dev only")
    if settings.kms_provider in {"", "local"}:
        faults.append("CONFIDE_KMS_PROVIDER is not set or local: the local key file is for CONFIDE_ENV=dev only")
    if settings.cell_secret is None:
        faults.append("CONFIDE_CELL_SECRET is not set: openssl rand -hex 32, the same for all workers of the cell")
    elif len(set(settings.cell_secret)) < MIN_DISTINCT_BYTES:
        faults.append("CONFIDE_CELL_SECRET is a placeholder, not a random secret: openssl rand -hex 32")
    return faults
