"""A faithful fake of Azure Key Vault, Managed HSM and Entra's token endpoint, over TLS under their real names.

Faithful: the bearer challenge with resource and tenant; tokens bound to tenant, client and scope; real RSA-OAEP-256 and
RFC 3394 AES wrap; key versions; disabling a version; RBAC and firewall refusals; soft delete, recover and purge; tags;
expiry (an expired key unwraps but doesn't wrap); error bodies with inner codes; throttling with Retry-After; the region
and request-id headers. Its lies are in EMULATORS.md.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import aiohttp
import jwt
from aiohttp import web
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tests.kms.servers import Authority, Served

ENTRA = "login.microsoftonline.com"
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Refusal(Exception):
    def __init__(self, status: int, code: str, inner: str | None = None, message: str = "") -> None:
        super().__init__(code)
        error: dict[str, Any] = {"code": code, "message": message or code}
        if inner:
            error["innererror"] = {"code": inner}
        self.status, self.body = status, {"error": error}


@dataclass
class KeyVersion:
    version: str
    secret: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | bytes
    kty: str
    enabled: bool = True
    expires: float | None = None
    operations: list[str] = field(default_factory=lambda: ["wrapKey", "unwrapKey"])


@dataclass
class Key:
    name: str
    versions: list[KeyVersion]
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Vault:
    name: str
    hsm: bool
    entra: str
    region: str
    keys: dict[str, Key] = field(default_factory=dict)
    deleted: dict[str, Key] = field(default_factory=dict)
    granted: set[str] = field(default_factory=set)
    firewall: bool = False
    challenge_tenant: str | None = None
    challenge_resource: str | None = None

    @property
    def host(self) -> str:
        return f"{self.name}.{'managedhsm' if self.hsm else 'vault'}.azure.net"

    @property
    def resource(self) -> str:
        return "https://managedhsm.azure.net" if self.hsm else "https://vault.azure.net"


@dataclass
class Application:
    """``secret`` for sign-in by secret; ``federated`` are the (issuer, subject) pairs that it trusts."""

    secret: str | None = None
    federated: set[tuple[str, str]] = field(default_factory=set)
    enabled: bool = True


class LoopbackResolver(aiohttp.abc.AbstractResolver):
    """Answers for Azure's names with the fake's address; any other name doesn't exist."""

    def __init__(self, fake: FakeAzure) -> None:
        self._fake = fake
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        self.asked.append(host)
        if host != ENTRA and host not in self._fake.vaults:
            raise OSError(f"no such name: {host}")
        return [{"hostname": host, "host": "127.0.0.1", "port": self._fake.port, "family": 2, "proto": 0, "flags": 4}]

    async def close(self) -> None: ...


class FakeAzure(Served):
    """``log`` has (method, path, status, client request id, client id) for each authorised call."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority.server("*.vault.azure.net", "*.managedhsm.azure.net", ENTRA))
        self.ca_file = str(authority.file)
        self.vaults: dict[str, Vault] = {}
        self.directories: dict[str, dict[str, Application]] = {}
        self.tokens: dict[str, tuple[str, str, str, float]] = {}
        self.token_requests = 0
        self.log: list[tuple[str, str, int, str, str]] = []
        self.issuer = "https://issuer.confide.example"
        self.issuer_key = ec.generate_private_key(ec.SECP256R1())

    # --- set-up ---

    def resolver(self) -> LoopbackResolver:
        return LoopbackResolver(self)

    def assertion(self, subject: str) -> str:
        """What our own issuer signs for a federated credential."""
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": subject, "aud": "api://AzureADTokenExchange", "iat": now, "exp": now + 300}
        return jwt.encode(claims, self.issuer_key, algorithm="ES256")

    def vault(self, name: str, entra: str, *, hsm: bool = False, region: str = "westeurope") -> Vault:
        made = Vault(name, hsm, entra, region)
        self.vaults[made.host] = made
        self.directories.setdefault(entra, {})
        return made

    def new_version(self, vault: Vault, name: str, kind: str = "RSA", bits: int = 2048) -> KeyVersion:
        secret: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | bytes
        if kind == "oct-HSM":
            secret = secrets.token_bytes(32)
        elif kind == "EC":
            secret = ec.generate_private_key(ec.SECP256R1())
        else:
            secret = rsa.generate_private_key(65537, bits)
        version = KeyVersion(secrets.token_hex(16), secret, kind)
        vault.keys.setdefault(name, Key(name, [])).versions.append(version)
        return version

    # --- answering ---

    def faultable(self, request: web.Request) -> bool:
        return request.host.split(":")[0] != ENTRA and "Authorization" in request.headers

    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        host = request.host.split(":")[0]
        request_id = str(uuid4())
        headers = {"x-ms-request-id": request_id, "Cache-Control": "no-cache"}
        try:
            if host == ENTRA:
                answer = self._entra(request, body)
            else:
                vault = self.vaults[host]
                headers["x-ms-keyvault-region"] = vault.region
                answer = self._vault(vault, request, body)
            status = 200
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
            if status == 401 and host != ENTRA:
                tenant = vault.challenge_tenant or vault.entra
                resource = vault.challenge_resource or vault.resource
                headers["WWW-Authenticate"] = f'Bearer authorization="https://{ENTRA}/{tenant}", resource="{resource}"'
        client_request = request.headers.get("x-ms-client-request-id", "")
        if client_request:
            headers["x-ms-client-request-id"] = client_request
        if "Authorization" in request.headers:
            caller = self.tokens.get(request.headers["Authorization"].removeprefix("Bearer "), ("", "", "", 0.0))[1]
            self.log.append((request.method, request.path, status, client_request, caller))
        return web.Response(status=status, text=json.dumps(answer), headers=headers, content_type="application/json")

    def _entra(self, request: web.Request, body: bytes) -> dict[str, Any]:
        self.token_requests += 1
        tenant = request.path.split("/")[1]
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        directory = self.directories.get(tenant)
        if directory is None:
            raise _sign_in("AADSTS90002", f"Tenant '{tenant}' not found.")
        app = directory.get(form["client_id"])
        if app is None:
            raise _sign_in("AADSTS700016", f"Application with identifier '{form['client_id']}' was not found.")
        if not app.enabled:
            raise _sign_in("AADSTS7000112", "Application is disabled.")
        if "client_assertion" in form:
            self._check_assertion(app, form["client_assertion"])
        elif app.secret is None or form.get("client_secret") != app.secret:
            raise _sign_in("AADSTS7000215", "Invalid client secret provided.")
        token = secrets.token_urlsafe(40)
        self.tokens[token] = (tenant, form["client_id"], form["scope"].split(" ")[0], time.time() + 3600)
        return {"token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600, "access_token": token}

    def _check_assertion(self, app: Application, assertion: str) -> None:
        try:
            claims = jwt.decode(
                assertion, self.issuer_key.public_key(), algorithms=["ES256"], audience="api://AzureADTokenExchange"
            )
        except jwt.InvalidTokenError:
            raise _sign_in("AADSTS700027", "Client assertion failed signature validation.") from None
        if (claims["iss"], claims["sub"]) not in app.federated:
            raise _sign_in("AADSTS700213", "No matching federated identity record found.")

    def _vault(self, vault: Vault, request: web.Request, body: bytes) -> dict[str, Any]:
        held = self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if held is None or held[3] < time.time():
            raise Refusal(401, "Unauthorized", message="AKV10000: Request is missing a Bearer or PoP token.")
        tenant, client, scope, _ = held
        if tenant != vault.entra or scope != f"{vault.resource}/.default":
            raise Refusal(401, "Unauthorized", message="AKV10032: Invalid issuer.")
        if vault.firewall:
            raise Refusal(403, "Forbidden", "ForbiddenByFirewall")
        if client not in vault.granted:
            raise Refusal(403, "Forbidden", "ForbiddenByRbac")
        if request.query.get("api-version") is None:
            raise Refusal(400, "BadParameter", message="api-version is missing")
        parts = request.path.strip("/").split("/")
        key = vault.keys.get(parts[1]) if len(parts) > 1 and parts[0] == "keys" else None
        if key is None:
            raise Refusal(404, "KeyNotFound", message="A key with this name was not found in this key vault.")
        wanted = parts[2] if len(parts) > 2 else key.versions[-1].version
        version = next((each for each in key.versions if each.version == wanted), None)
        if version is None:
            raise Refusal(404, "KeyNotFound", message="A key with this version was not found.")
        if request.method == "GET":
            return _bundle(vault, key, version)
        return _operate(vault, key, version, parts[3], json.loads(body))


def _sign_in(code: str, text: str) -> Refusal:
    refusal = Refusal(401 if code in {"AADSTS7000215", "AADSTS700027"} else 400, code)
    refusal.body = {
        "error": "invalid_client",
        "error_description": f"{code}: {text} Trace ID: {uuid4()} Timestamp: 2026-01-01 00:00:00Z",
        "error_codes": [int(code.removeprefix("AADSTS"))],
    }
    return refusal


def _kid(vault: Vault, key: Key, version: KeyVersion) -> str:
    return f"https://{vault.host}/keys/{key.name}/{version.version}"


def _bundle(vault: Vault, key: Key, version: KeyVersion) -> dict[str, Any]:
    jwk: dict[str, Any] = {"kid": _kid(vault, key, version), "kty": version.kty, "key_ops": version.operations}
    if isinstance(version.secret, rsa.RSAPrivateKey):
        numbers = version.secret.public_key().public_numbers()
        jwk["n"], jwk["e"] = b64(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")), "AQAB"
    attributes: dict[str, Any] = {
        "enabled": version.enabled,
        "created": 1,
        "updated": 1,
        "recoveryLevel": "Recoverable",
    }
    if version.expires is not None:
        attributes["exp"] = int(version.expires)
    return {"key": jwk, "attributes": attributes, "tags": key.tags}


def _operate(vault: Vault, key: Key, version: KeyVersion, operation: str, body: dict[str, str]) -> dict[str, Any]:
    if operation not in {"wrapkey", "unwrapkey"}:
        raise Refusal(400, "BadParameter", message="Method is not supported")
    if not version.enabled:
        raise Refusal(403, "Forbidden", "KeyDisabled", "Operation is not allowed on a disabled key.")
    if {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey"}[operation] not in version.operations:
        raise Refusal(403, "Forbidden", "KeyOperationForbidden")
    if operation == "wrapkey" and version.expires is not None and version.expires < time.time():
        raise Refusal(403, "Forbidden", "KeyOperationForbidden", "Operation is not allowed on an expired key.")
    secret, value = version.secret, unb64(body["value"])
    wanted = {"RSA": "RSA-OAEP-256", "RSA-HSM": "RSA-OAEP-256", "oct-HSM": "A256KW"}.get(version.kty)
    if body["alg"] != wanted:
        raise Refusal(400, "BadParameter", message="Key and algorithm don't go together.")
    try:
        if isinstance(secret, bytes):
            result = (
                keywrap.aes_key_wrap(secret, value) if operation == "wrapkey" else keywrap.aes_key_unwrap(secret, value)
            )
        elif isinstance(secret, rsa.RSAPrivateKey):
            public = secret.public_key()
            result = public.encrypt(value, OAEP) if operation == "wrapkey" else secret.decrypt(value, OAEP)
        else:
            raise Refusal(400, "BadParameter")
    except (ValueError, keywrap.InvalidUnwrap):
        raise Refusal(400, "BadParameter", message="Decryption failed.") from None
    return {"kid": _kid(vault, key, version), "value": b64(result)}
