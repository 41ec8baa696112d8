"""The text of API keys and enrolment tokens.

    cfd_<env>_<region>_<key id, 22>_<secret, 32><checksum, 6>

``cfe`` instead of ``cfd`` makes it an enrolment token. Key id, secret and checksum are base62 (0-9 A-Z a-z). The
checksum is the CRC-32 of all that stands before it: a secret scanner can tell a real key from a look-alike offline.
It is no authentication; that is the peppered digest, since 190 random bits need no slow hash.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from app.crypto.context import prefixed
from app.crypto.secret import SecretKey
from app.errors import Unauthenticated

DIGEST_SIZE: Final = 32

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES: Final = bytes.maketrans(_ALPHABET.encode(), bytes(range(62)))
_ENV: Final = re.compile(r"[a-z]{2,8}")
_REGION: Final = re.compile(r"[a-z0-9-]{2,32}")
_TEXT: Final = re.compile(
    r"(cf[de])_([a-z]{2,8})_([a-z0-9-]{2,32})_([0-9A-Za-z]{22})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A well-formed key: nothing is yet said about its being a real one."""

    env: str
    region: str
    key_id: UUID
    secret: str = field(repr=False, compare=False)


def mint(env: str, region: str, key_id: UUID) -> str:
    """A new API key. Raises ``ValueError`` unless env is [a-z]{2,8} and region is [a-z0-9-]{2,32}."""
    return _mint("cfd", env, region, key_id)


def mint_enrolment(env: str, region: str, key_id: UUID) -> str:
    """A new enrolment token, as ``mint``."""
    return _mint("cfe", env, region, key_id)


def parse(text: str) -> ParsedKey:
    """An API key's parts. Raises ``Unauthenticated`` on anything malformed, with one text for every reason."""
    return _parse("cfd", text)


def parse_enrolment(text: str) -> ParsedKey:
    """An enrolment token's parts, as ``parse``."""
    return _parse("cfe", text)


def digest(pepper: SecretKey, text: str, *rights: str) -> bytes:
    """What is stored of a key: HMAC-SHA256 of its whole text and of what its row says it is good for, 32 bytes.

    So a row that was moved to another tenant, or given other rights, belongs to no key any more. ``rights`` are texts,
    in an order that the caller keeps.
    """
    return pepper.hmac_sha256(b"".join(prefixed(part.encode("utf-8", "surrogatepass")) for part in (text, *rights)))


def matches(pepper: SecretKey, text: str, stored: bytes, *rights: str) -> bool:
    """Whether ``stored`` is the digest of ``text`` with these rights, in constant time."""
    return hmac.compare_digest(digest(pepper, text, *rights), stored)


def _mint(prefix: str, env: str, region: str, key_id: UUID) -> str:
    if not _ENV.fullmatch(env) or not _REGION.fullmatch(region):
        raise ValueError("The environment or region can't stand in an API key.")
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    body = f"{prefix}_{env}_{region}_{_base62(key_id.int, 22)}_{secret}"
    return body + _base62(_checksum(body), 6)


def _parse(prefix: str, text: str) -> ParsedKey:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise Unauthenticated
    kind, env, region, key_id, secret, checksum = found.groups()
    number = _number(key_id)
    # Fixed width makes base62 canonical: one spelling for each number.
    if kind != prefix or number >= 1 << 128 or _number(checksum) != _checksum(text[:-6]):
        raise Unauthenticated
    return ParsedKey(env, region, UUID(int=number), secret)


def _checksum(body: str) -> int:
    return zlib.crc32(body.encode("ascii"))


def _number(digits: str) -> int:
    number = 0
    for digit in digits.encode("ascii").translate(_VALUES):
        number = number * 62 + digit
    return number


def _base62(number: int, width: int) -> str:
    """``number`` with leading zeros, most significant digit first."""
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
