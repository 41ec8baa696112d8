"""The ``azure-key-vault`` provider: one key of a vault (RSA-OAEP-256) or of a Managed HSM (A256KW).

Neither algorithm takes associated data, so what is wrapped is the 32-byte half ‖ SHA-256 of the wrap context, and the
digest is compared after unwrapping: a half moved to another tenant or generation is refused. A256KW (RFC 3394) is made
with the HSM's secret key, so that the check authenticates. RSA-OAEP is not: whoever has the public key can wrap a value
of his own, digest and all. Such a key may never be the vendor's side.

Wrapping and unwrapping both go to the server. A wrap proves nothing by itself, so it is followed by an unwrap. The
version is pinned at wrap. Sources: the Key Vault REST reference, "Get Key", "wrapKey", "unwrapKey".
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import UUID

from azure.core.rest import AsyncHttpResponse, HttpRequest

from app.crypto.secret import EXPOSE, SecretKey
from app.kms.azure_cell import AzureCell, AzureIdentity
from app.kms.azure_names import KeyName, is_version, vault_host
from app.kms.classify import azure_error
from app.kms.limits import Trace
from app.kms.provider import (
    HALF_BYTES,
    KeyDescription,
    KmsIntegrity,
    KmsMisconfigured,
    KmsOwnCredentials,
    KmsUnclassified,
    Unwrapped,
    WrapContext,
    Wrapped,
)

T = TypeVar("T")
PAYLOAD_BYTES = HALF_BYTES + 32
_A256KW_BYTES = PAYLOAD_BYTES + 8
_NEEDED = {"wrapKey", "unwrapKey"}


@dataclass(frozen=True, slots=True)
class _KeyFacts:
    """What "Get Key" said. ``algorithm`` is None for a kind of key that can't wrap."""

    version: str
    kind: str
    algorithm: Literal["RSA-OAEP-256", "A256KW"] | None
    operations: frozenset[str]
    attributes: Mapping[str, Any]
    tags: Mapping[str, str]
    region: str | None


class AzureKeyVaultProvider:
    """``key.version`` None: the current version is pinned at each wrap. Nothing is fetched until it is used."""

    name = "azure-key-vault"

    def __init__(self, cell: AzureCell, key: KeyName, identity: AzureIdentity) -> None:
        self._cell = cell
        self._key = key
        self._identity = identity
        self._host = vault_host(key.vault_name, key.managed_hsm)
        self.kek_uri = f"https://{self._host}/keys/{key.key_name}"

    async def wrap(self, key: SecretKey, context: WrapContext, intent: UUID) -> Wrapped:
        trace = Trace("wrap", self.kek_uri, self._key.version or "")

        async def attempt() -> bytes:
            facts = await self._facts(intent, trace)
            if facts.algorithm is None or not facts.operations >= _NEEDED:
                raise KmsMisconfigured("KeyKind", "the key must be RSA of 2048 bits or more, or AES in a Managed HSM")
            trace.kek_version = facts.version
            payload = bytes(key.expose(EXPOSE)) + context.digest()
            pinned: dict[str, Any] = {"version": facts.version, "intent": intent, "trace": trace}
            ciphertext = await self._operate("wrapkey", facts.algorithm, payload, **pinned)
            opened = await self._operate("unwrapkey", facts.algorithm, ciphertext, **pinned)
            if not hmac.compare_digest(opened, payload):
                raise KmsIntegrity("WrapNotProved", "what the vault wrapped doesn't unwrap to the same value")
            return ciphertext

        ciphertext = await self._run(trace, attempt)
        return Wrapped(ciphertext, self.kek_uri, trace.kek_version, trace.call())

    async def unwrap(self, ciphertext: bytes, kek_version: str, context: WrapContext, intent: UUID) -> Unwrapped:
        trace = Trace("unwrap", self.kek_uri, kek_version)
        aes = self._key.managed_hsm and len(ciphertext) == _A256KW_BYTES
        algorithm: Literal["A256KW", "RSA-OAEP-256"] = "A256KW" if aes else "RSA-OAEP-256"

        async def attempt() -> SecretKey:
            payload = await self._operate(
                "unwrapkey", algorithm, ciphertext, version=kek_version, intent=intent, trace=trace
            )
            if len(payload) != PAYLOAD_BYTES:
                raise KmsIntegrity("WrongLength", "the unwrapped value isn't a half of a root key")
            if not hmac.compare_digest(payload[HALF_BYTES:], context.digest()):
                raise KmsIntegrity("ContextMismatch", "wrapped for another tenant, region, half or generation")
            return SecretKey.of(payload[:HALF_BYTES])

        return Unwrapped(await self._run(trace, attempt), trace.call())

    async def describe(self, intent: UUID) -> KeyDescription:
        trace = Trace("describe", self.kek_uri, self._key.version or "")

        async def attempt() -> _KeyFacts:
            return await self._facts(intent, trace)

        facts = await self._run(trace, attempt)
        enabled = facts.attributes.get("enabled")
        return KeyDescription(
            kek_uri=self.kek_uri,
            kind=facts.kind,
            enabled=enabled if isinstance(enabled, bool) else None,
            state=None if enabled is None else ("Enabled" if enabled else "Disabled"),
            region=facts.region,
            current_version=facts.version,
            expires_at=_number(facts.attributes.get("exp")),
            deletion_at=None,
            tags=facts.tags,
            authenticates_context=facts.algorithm == "A256KW",
            usable_kind=facts.algorithm is not None and facts.operations >= _NEEDED,
            call=trace.call(),
        )

    async def close(self) -> None:
        """The cell owns the connections."""

    async def _run(self, trace: Trace, attempt: Callable[[], Awaitable[T]]) -> T:
        async def refreshed() -> T:
            try:
                return await attempt()
            except KmsOwnCredentials:
                await self._cell.forget(self._identity)
                return await attempt()

        return await self._cell.gate(self._host).run(trace, refreshed)

    async def _facts(self, intent: UUID, trace: Trace) -> _KeyFacts:
        wanted = f"/{self._key.version}" if self._key.version else ""
        body, response = await self._send("GET", f"{self.kek_uri}{wanted}", None, intent, trace)
        jwk = body.get("key")
        if not isinstance(jwk, dict):
            raise KmsUnclassified("NoKey", "the vault's answer holds no key")
        version = _version_of(jwk.get("kid"), self.kek_uri)
        if self._key.version not in {None, version}:
            raise KmsIntegrity("VersionMismatch", "the answer names another version")
        kind, algorithm = _kind_of(jwk, self._key.managed_hsm)
        return _KeyFacts(
            version,
            kind,
            algorithm,
            frozenset(jwk.get("key_ops") or ()),
            body.get("attributes") or {},
            {str(name): str(value) for name, value in (body.get("tags") or {}).items()},
            response.headers.get("x-ms-keyvault-region"),
        )

    async def _operate(
        self, operation: str, algorithm: str, value: bytes, *, version: str, intent: UUID, trace: Trace
    ) -> bytes:
        """One wrapkey or unwrapkey by this exact version; the answer must name it. The version comes from a stored row
        and goes into the path, so its form is checked: no row leads us to another key or operation."""
        if not is_version(version):
            raise KmsIntegrity("BadVersion", "the stored key version isn't one of Key Vault's")
        body, _ = await self._send(
            "POST", f"{self.kek_uri}/{version}/{operation}", {"alg": algorithm, "value": _encode(value)}, intent, trace
        )
        if _version_of(body.get("kid"), self.kek_uri) != version:
            raise KmsIntegrity("VersionMismatch", "the answer names another version")
        return _decode(body.get("value"))

    async def _send(
        self, method: str, url: str, body: Mapping[str, str] | None, intent: UUID, trace: Trace
    ) -> tuple[dict[str, Any], AsyncHttpResponse]:
        headers = {"x-ms-client-request-id": str(intent)}
        request = HttpRequest(method, url, json=body, headers=headers)
        response = await self._cell.send(self._key.vault_name, self._key.managed_hsm, self._identity, request)
        trace.request_id = response.headers.get("x-ms-request-id") or trace.request_id
        answer = _json(response)
        if response.status_code == 200 and answer is not None:
            return answer, response
        error = (answer or {}).get("error")
        told = error if isinstance(error, dict) else {}
        inner = told.get("innererror")
        raise azure_error(
            response.status_code,
            told.get("code"),
            inner.get("code") if isinstance(inner, dict) else None,
            _seconds(response.headers.get("Retry-After")),
        )


def _kind_of(jwk: Mapping[str, Any], managed_hsm: bool) -> tuple[str, Literal["RSA-OAEP-256", "A256KW"] | None]:
    """A readable kind, and the algorithm it wraps with. RSA below 2048 bits and elliptic curves have none."""
    kty = str(jwk.get("kty"))
    if kty in {"RSA", "RSA-HSM"}:
        bits = int.from_bytes(_decode(jwk.get("n")), "big").bit_length()
        return f"{kty}-{bits}", "RSA-OAEP-256" if bits >= 2048 else None
    if kty == "oct-HSM" and managed_hsm:
        return kty, "A256KW"
    return kty, None


def _version_of(kid: object, kek_uri: str) -> str:
    """The version in a key identifier, which must be one of this very key."""
    prefix = f"{kek_uri}/"
    if not isinstance(kid, str) or not kid.lower().startswith(prefix.lower()):
        raise KmsIntegrity("KidMismatch", "the answer names another key")
    return kid[len(prefix) :]


def _json(response: AsyncHttpResponse) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _encode(raw: bytes) -> str:
    """Base64url without padding, RFC 7515 section 2."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _decode(text: object) -> bytes:
    try:
        raw = base64.b64decode(str(text) + "=" * (-len(str(text)) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw or _encode(raw) != text:
        raise KmsUnclassified("BadBase64", "the vault's answer isn't base64url")
    return raw


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() else None
