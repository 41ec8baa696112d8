"""What Confide asks of a key management service, and what it may answer.

A provider wraps and unwraps 32-byte halves of tenant root keys under one key-encryption key (KEK). It never decides
what an answer means for the tenant: it classifies (``docs/kms-errors.md``) and raises. It never retries past its
budget, never caches a key, never logs a key, and never falls back to another key.

    KmsError
    ├── KmsDenied            the customer's side refuses: a revocation
    ├── KmsUnavailable       an outage, never a revocation
    │   ├── KmsThrottled
    │   └── KmsUnclassified  a code that isn't in the table: an outage for one lease, and an alarm
    ├── KmsIntegrity         not this key's ciphertext under this context: an alarm
    ├── KmsMisconfigured     the binding itself is wrong
    └── KmsOwnCredentials    the operator's own credentials are refused: an alarm
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self
from uuid import UUID

from app.crypto.secret import SecretKey

HALF_BYTES = 32
MAX_CONTEXT_FIELDS = 16
_FIELD_NAME = re.compile(r"[a-z][a-z0-9:_-]{0,63}", re.ASCII)
_FIELD_VALUE = re.compile(r"[!-~]{1,256}", re.ASCII)
_CONTEXT_DOMAIN = b"confide/kms/wrap-context/v1"


@dataclass(frozen=True, slots=True)
class WrapContext:
    """Authenticated with the wrapped half where the KMS can (AWS encryption context, Transit associated data).

    ``fields`` are ASCII name → value, e.g. ``confide:region``, ``confide:tenant``, ``confide:half``,
    ``confide:generation``. They hold ids only, since customers see them in their own cloud log. 1 to 16 fields, names
    of at most 64 and values of at most 256 printable characters without spaces; anything else is a ``ValueError``.
    """

    fields: Mapping[str, str]

    def __post_init__(self) -> None:
        if not 1 <= len(self.fields) <= MAX_CONTEXT_FIELDS:
            raise ValueError("a wrap context has 1 to 16 fields")
        for name, value in self.fields.items():
            if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
                raise ValueError("a wrap context's names and values are short printable ASCII without spaces")

    def canonical(self) -> bytes:
        """The one byte string of this context: a domain, the number of fields, then each name and value in the order
        of names, every part behind its length (4 bytes, big-endian). Equal only for equal contexts."""
        parts = [_CONTEXT_DOMAIN, len(self.fields).to_bytes(4, "big")]
        for name in sorted(self.fields):
            parts += [name.encode("ascii"), self.fields[name].encode("ascii")]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def digest(self) -> bytes:
        """SHA-256 of ``canonical()``, 32 bytes."""
        return hashlib.sha256(self.canonical()).digest()


@dataclass(frozen=True, slots=True)
class KmsCall:
    """What a call left behind, for the audit's outcome event. Holds no secret. ``latency_ms`` covers all attempts."""

    operation: str
    kek_uri: str
    kek_version: str
    request_id: str | None
    latency_ms: float
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A half as wrapped by the KMS; ``kek_version`` is pinned and needed for unwrapping where the KMS has versions."""

    ciphertext: bytes = field(repr=False)
    kek_uri: str
    kek_version: str
    call: KmsCall


@dataclass(frozen=True, slots=True)
class Unwrapped:
    key: SecretKey = field(repr=False)
    call: KmsCall


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """What the KMS says about the KEK itself (for the doctor and the inventory). Unknown facts are None.

    ``enabled`` is whether the key may be used now; ``expires_at`` and ``deletion_at`` are Unix seconds.
    ``authenticates_context`` is False where anybody with a public key could have made the ciphertext (RSA-OAEP).
    """

    kek_uri: str
    kind: str
    enabled: bool | None
    state: str | None
    region: str | None
    current_version: str | None
    expires_at: float | None
    deletion_at: float | None
    tags: Mapping[str, str]
    authenticates_context: bool
    call: KmsCall
    usable_kind: bool = True


class KeyProvider(Protocol):
    """One KEK behind one KMS. Every method raises a ``KmsError`` subclass on failure and nothing else.

    ``intent`` is the id of the durable audit event written before the call; it travels where the provider logs it
    (AWS: user agent; Azure: x-ms-client-request-id; Transit: a request header).
    """

    name: str
    kek_uri: str

    async def wrap(self, key: SecretKey, context: WrapContext, intent: UUID) -> Wrapped: ...

    async def unwrap(self, ciphertext: bytes, kek_version: str, context: WrapContext, intent: UUID) -> Unwrapped: ...

    async def describe(self, intent: UUID) -> KeyDescription: ...

    async def close(self) -> None: ...


class KmsError(Exception):
    """Root of what a provider raises. ``code`` is the provider's own error code, safe to show and log.

    ``retry_after`` is in seconds. ``alarm`` tells the caller to alarm the operator. ``endpoint_fault`` is True where
    the endpoint itself failed (no answer, broken TLS, 5xx), as against an answer about one key: only such failures
    open the circuit breaker, because one endpoint may serve many tenants.
    """

    kind = "unclassified"
    alarm = False
    endpoint_fault = False

    def __init__(
        self,
        code: str,
        detail: str = "",
        call: KmsCall | None = None,
        retry_after: float | None = None,
        *,
        alarm: bool | None = None,
        endpoint_fault: bool | None = None,
    ) -> None:
        super().__init__(f"{self.kind}: {code}" + (f": {detail}" if detail else ""))
        self.code = code
        self.detail = detail
        self.call = call
        self.retry_after = retry_after
        if alarm is not None:
            self.alarm = alarm
        if endpoint_fault is not None:
            self.endpoint_fault = endpoint_fault

    def copy(self) -> Self:
        """The same error for another caller who waited for the same answer, without the first one's ``call``."""
        fault = self.endpoint_fault
        return type(self)(self.code, self.detail, retry_after=self.retry_after, alarm=self.alarm, endpoint_fault=fault)


class KmsDenied(KmsError):
    """The customer's side refuses: the key is disabled, gone or access is withdrawn."""

    kind = "denied"


class KmsUnavailable(KmsError):
    """The KMS can't be reached or fails: an outage, not a revocation."""

    kind = "unavailable"


class KmsThrottled(KmsUnavailable):
    kind = "throttled"


class KmsIntegrity(KmsError):
    """The ciphertext isn't one of this key's under this context."""

    kind = "integrity"
    alarm = True


class KmsMisconfigured(KmsError):
    """The binding itself is wrong: a wrong kind of key, a bad ARN, a missing permission to describe."""

    kind = "misconfigured"


class KmsOwnCredentials(KmsError):
    """Our own credentials are refused: the operator's trouble, never the tenant's revocation."""

    kind = "own-credentials"
    alarm = True


class KmsUnclassified(KmsUnavailable):
    """A code that isn't in the table: unavailable for one lease, and an alarm."""

    kind = "unclassified"
    alarm = True
