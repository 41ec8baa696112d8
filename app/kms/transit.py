"""The ``vault-transit`` provider: one AEAD key of an OpenBao or HashiCorp Vault Transit engine.

The wrap context goes along as associated data, in its canonical encoding, and the server authenticates it. Endpoints
are those that an operator registered; a binding names one and can't bring an address. Transit's ``encrypt`` makes a
missing key by itself where the token may create, so the key is read before anything is wrapped.

Sources: the Transit secrets engine's HTTP API (encrypt, decrypt, read key), and the AppRole and token APIs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import httpx2

from app.crypto.secret import EXPOSE, SecretKey
from app.kms.classify import transit_error
from app.kms.limits import Gate, Limits, Trace
from app.kms.provider import (
    HALF_BYTES,
    KeyDescription,
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsMisconfigured,
    KmsOwnCredentials,
    KmsUnavailable,
    KmsUnclassified,
    Unwrapped,
    WrapContext,
    Wrapped,
)

T = TypeVar("T")
AEAD_KINDS = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
_GOOD_KINDS = AEAD_KINDS - {"aes128-gcm96"}
_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/]{16,1024}={0,2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TokenAuth:
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AppRoleAuth:
    role_id: str
    secret_id: str = field(repr=False)
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class TransitEndpoint:
    """A server that an operator registered. ``url`` is ``https://host[:port]``; ``ca`` a PEM file, None for the
    system's; ``region`` is where the operator knows the server to stand."""

    name: str
    url: str
    ca: str | None
    auth: TokenAuth | AppRoleAuth
    region: str | None = None
    namespace: str | None = None


class TransitServer:
    """One endpoint: its connections, its token, its breaker and budget."""

    def __init__(self, endpoint: TransitEndpoint, limits: Limits) -> None:
        self.endpoint = endpoint
        self.gate = Gate(limits)
        self._limits = limits
        self._web: httpx2.AsyncClient | None = None
        self._token: str | None = None
        self._until = 0.0
        self._login = asyncio.Lock()

    def _client(self) -> httpx2.AsyncClient:
        if self._web is None:
            if not self.endpoint.url.startswith("https://"):
                raise KmsMisconfigured("EndpointScheme", "a Transit endpoint is reached over https only")
            limits = self._limits
            self._web = httpx2.AsyncClient(
                base_url=f"{self.endpoint.url}/v1/",
                verify=ssl.create_default_context(cafile=self.endpoint.ca),
                timeout=httpx2.Timeout(limits.read_timeout, connect=limits.connect_timeout),
                limits=httpx2.Limits(max_connections=limits.concurrency),
                trust_env=False,
                follow_redirects=False,
                headers={"X-Vault-Request": "true"}
                | ({"X-Vault-Namespace": self.endpoint.namespace} if self.endpoint.namespace else {}),
            )
        return self._web

    async def send(
        self, method: str, path: str, body: Mapping[str, Any] | None, intent: UUID, trace: Trace
    ) -> dict[str, Any]:
        """One request with our token. A refusal is a denial only if the token itself still lives; a token that has
        ended is fetched anew once."""
        try:
            return await self._authorised(method, path, body, intent, trace)
        except KmsDenied as refused:
            if refused.code != "PermissionDenied":
                raise
        if await self._token_lives(intent, trace):
            raise KmsDenied("PermissionDenied", "the server refuses our token the use of this key")
        if isinstance(self.endpoint.auth, TokenAuth):
            raise KmsOwnCredentials("TokenRefused", "the endpoint's token is no longer valid")
        self._token = None
        return await self._authorised(method, path, body, intent, trace)

    async def _authorised(
        self, method: str, path: str, body: Mapping[str, Any] | None, intent: UUID, trace: Trace
    ) -> dict[str, Any]:
        token = await self._current_token(intent, trace)
        return await self._raw(method, path, body, {"X-Vault-Token": token, "X-Confide-Intent": str(intent)}, trace)

    async def _token_lives(self, intent: UUID, trace: Trace) -> bool:
        headers = {"X-Vault-Token": await self._current_token(intent, trace), "X-Confide-Intent": str(intent)}
        try:
            await self._raw("GET", "auth/token/lookup-self", None, headers, trace)
        except KmsDenied:
            return False
        return True

    async def _current_token(self, intent: UUID, trace: Trace) -> str:
        auth = self.endpoint.auth
        if isinstance(auth, TokenAuth):
            return auth.token
        async with self._login:
            if self._token is None or time.monotonic() >= self._until:
                body = {"role_id": auth.role_id, "secret_id": auth.secret_id}
                path = f"auth/{auth.mount}/login"
                try:
                    answer = await self._raw("POST", path, body, {"X-Confide-Intent": str(intent)}, trace)
                except KmsDenied as refused:
                    raise KmsOwnCredentials("LoginRefused", refused.code) from None
                granted = answer.get("auth") or {}
                # Used up to nine tenths of its life, so that no request goes out with one that ends under way.
                self._until = time.monotonic() + float(granted.get("lease_duration") or 0) * 0.9
                self._token = str(granted.get("client_token"))
            return self._token

    async def _raw(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str], trace: Trace
    ) -> dict[str, Any]:
        try:
            response = await self._client().request(method, path, json=body, headers=dict(headers))
        except httpx2.HTTPError as error:
            raise transit_failure(error) from None
        answer = _json(response)
        if response.status_code == 200 and answer is not None:
            trace.request_id = answer.get("request_id") or trace.request_id
            return answer
        errors = (answer or {}).get("errors")
        told = [str(each) for each in errors] if isinstance(errors, list) else None
        after = response.headers.get("Retry-After", "")
        raise transit_error(response.status_code, told, float(after) if after.isascii() and after.isdigit() else None)

    async def close(self) -> None:
        self._token = None
        if self._web is not None:
            await self._web.aclose()
            self._web = None


class TransitProvider:
    """One key of one engine at a registered endpoint. ``mount`` is the engine's path."""

    name = "vault-transit"

    def __init__(self, server: TransitServer, mount: str, key_name: str) -> None:
        self._server = server
        self._mount = mount
        self._key = key_name
        self.kek_uri = f"vault-transit://{server.endpoint.name}/{mount}/{key_name}"

    async def wrap(self, key: SecretKey, context: WrapContext, intent: UUID) -> Wrapped:
        trace = Trace("wrap", self.kek_uri)

        async def attempt() -> bytes:
            facts = await self._facts(intent, trace)
            if not _usable(facts):
                raise KmsMisconfigured("KeyKind", "the key must be aes256-gcm96 or chacha20-poly1305 and not derived")
            if facts.get("soft_deleted"):
                raise KmsDenied("KeySoftDeleted")
            body = {"plaintext": _base64(key.expose(EXPOSE)), "associated_data": _base64(context.canonical())}
            answer = await self._server.send("POST", f"{self._mount}/encrypt/{self._key}", body, intent, trace)
            text = str(_data(answer).get("ciphertext"))
            trace.kek_version = _version(text)
            return text.encode("ascii")

        ciphertext = await self._run(trace, attempt)
        return Wrapped(ciphertext, self.kek_uri, trace.kek_version, trace.call())

    async def unwrap(self, ciphertext: bytes, kek_version: str, context: WrapContext, intent: UUID) -> Unwrapped:
        trace = Trace("unwrap", self.kek_uri, kek_version)

        async def attempt() -> SecretKey:
            text = ciphertext.decode("ascii", "replace")
            if _version(text) != kek_version:
                raise KmsIntegrity("VersionMismatch", "wrapped by another version of the key than was pinned")
            body = {"ciphertext": text, "associated_data": _base64(context.canonical())}
            answer = await self._server.send("POST", f"{self._mount}/decrypt/{self._key}", body, intent, trace)
            return _half(_data(answer).get("plaintext"))

        return Unwrapped(await self._run(trace, attempt), trace.call())

    async def describe(self, intent: UUID) -> KeyDescription:
        trace = Trace("describe", self.kek_uri)

        async def attempt() -> dict[str, Any]:
            return await self._facts(intent, trace)

        facts = await self._run(trace, attempt)
        deleted = bool(facts.get("soft_deleted"))
        version = str(facts.get("latest_version"))
        return KeyDescription(
            kek_uri=self.kek_uri,
            kind=str(facts.get("type")) + ("/exportable" if facts.get("exportable") else ""),
            enabled=not deleted,
            state="SoftDeleted" if deleted else "Enabled",
            region=self._server.endpoint.region,
            current_version=version,
            expires_at=None,
            deletion_at=time.time() if deleted else None,
            tags={},
            authenticates_context=facts.get("type") in AEAD_KINDS,
            usable_kind=_usable(facts),
            call=trace.call(),
        )

    async def close(self) -> None:
        """The endpoint's connections belong to the registry."""

    async def _run(self, trace: Trace, attempt: Callable[[], Awaitable[T]]) -> T:
        return await self._server.gate.run(trace, attempt)

    async def _facts(self, intent: UUID, trace: Trace) -> dict[str, Any]:
        return _data(await self._server.send("GET", f"{self._mount}/keys/{self._key}", None, intent, trace))


def _usable(facts: Mapping[str, Any]) -> bool:
    return facts.get("type") in _GOOD_KINDS and not facts.get("derived") and bool(facts.get("supports_encryption"))


def _data(answer: Mapping[str, Any]) -> dict[str, Any]:
    data = answer.get("data")
    if not isinstance(data, dict):
        raise KmsUnclassified("NoData", "the server's answer holds no data")
    return data


def _version(ciphertext: str) -> str:
    match = _CIPHERTEXT.fullmatch(ciphertext)
    if match is None:
        raise KmsIntegrity("InvalidCiphertext", "not a ciphertext of Transit")
    return match[1]


def _half(text: object) -> SecretKey:
    try:
        raw = bytearray(base64.b64decode(str(text), validate=True))
    except (binascii.Error, ValueError):
        raise KmsUnclassified("BadBase64", "the server's answer isn't base64") from None
    try:
        if len(raw) != HALF_BYTES:
            raise KmsIntegrity("WrongLength", "the unwrapped value isn't a half of a root key")
        return SecretKey.of(raw)
    finally:
        raw[:] = bytes(len(raw))


def _base64(raw: bytes | memoryview) -> str:
    return base64.b64encode(raw).decode("ascii")


def _json(response: httpx2.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def transit_failure(error: httpx2.HTTPError) -> KmsError:
    """No answer at all. A TLS failure is told from a mere refusal to connect by its cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return KmsUnavailable("TlsFailure", alarm=True, endpoint_fault=True)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.TransportError):
        return KmsUnavailable(type(error).__name__, endpoint_fault=True)
    return KmsUnclassified(type(error).__name__)
