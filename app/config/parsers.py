"""How an environment variable becomes a value. A parser raises ValueError with words that hold none of the text."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

KEY_BYTES: Final = 32


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


def text(pattern: str, words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"must be {words}")
        return value

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value, re.ASCII) or not low <= float(value) <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(value)

    return parse


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return value

    return parse


def flag(value: str) -> bool:
    if value not in {"0", "1", "true", "false"}:
        raise ValueError("must be true or false")
    return value in {"1", "true"}


def path(value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError("must be a path")
    return Path(value)


def database(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"postgresql", "postgres"} or not url.hostname:
        raise ValueError("must be an address like postgresql://user:password@host:5432/database")
    return value


def cells(value: str) -> Mapping[str, str]:
    """``region=https://address,…``"""
    cells: dict[str, str] = {}
    for pair in filter(None, value.split(",")):
        region, _, url = pair.partition("=")
        parts = urlsplit(url)
        if not REGION.fullmatch(region) or parts.scheme not in {"https", "http"} or not parts.hostname or parts.query:
            raise ValueError("must be a list like eu-central-1=https://eu.example.com,us-east-1=https://us.example.com")
        cells[region] = url.rstrip("/")
    return MappingProxyType(cells)


def secret_bytes(value: str) -> bytes:
    """32 bytes in hexadecimal or base64."""
    try:
        raw = bytes.fromhex(value) if len(value) == 2 * KEY_BYTES else base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ValueError("must be 32 bytes in hexadecimal or base64: openssl rand -hex 32")
    return raw


REGION: Final = re.compile(r"[a-z0-9-]{2,32}", re.ASCII)
STATE: Final = Path(".confide")
KIB: Final = 1024
MIB: Final = 1024 * 1024
