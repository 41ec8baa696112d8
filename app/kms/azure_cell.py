"""Azure on the wire, shared by all keys of a cell: one connection pool, one client per vault and directory.

The SDK's pipeline does the bearer challenge; its retries, redirects and proxies are off. A token is asked for only when
the challenge names the Entra tenant that was registered for the binding, and the SDK has checked that the challenge's
resource is the vault's own domain (``verify_challenge_resource``, which is never switched off here).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.pipeline.policies import AsyncRedirectPolicy, AsyncRetryPolicy
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import AsyncHttpResponse, HttpRequest
from azure.identity.aio import ClientAssertionCredential, ClientSecretCredential
from azure.keyvault.keys._shared import http_challenge_cache
from azure.keyvault.keys.aio import KeyClient

from app.kms.azure_names import vault_host
from app.kms.classify import entra_error
from app.kms.limits import Gate, Limits
from app.kms.provider import KmsError, KmsMisconfigured, KmsOwnCredentials, KmsUnavailable, KmsUnclassified

API_VERSION = "7.6"
_TLS_GOODBYE = 0.1
"""Seconds that asyncio needs to end TLS connections after aiohttp has let go of them."""

Credential = ClientSecretCredential | ClientAssertionCredential
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """``client_id`` is our own multi-tenant application, used where a binding names no application of its own.
    ``assertion`` gives a signed token of our issuer for a subject, for federated credentials; with ``client_secret``
    our own application signs in by secret instead. ``resolver`` and ``ca_file`` exist so that tests can answer for the
    vaults' real names; nothing else can point a vault's name anywhere."""

    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    assertion: Callable[[str], str] | None = field(default=None, repr=False)
    issuer: str = ""
    authority: str = "login.microsoftonline.com"
    ca_file: str | None = None
    resolver: aiohttp.abc.AbstractResolver | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AzureIdentity:
    """Who signs in where: the customer's Entra tenant, an application there, and the subject of our assertion."""

    entra_tenant_id: str
    client_id: str | None
    subject: str | None


class ChallengeRefused(Exception):
    """The vault's challenge names another Entra tenant than the one that was registered."""


class _CheckedCredential:
    """Asks for tokens only for the registered Entra tenant, one request at a time, so that waiting callers share it."""

    def __init__(self, inner: Credential, entra_tenant_id: str) -> None:
        self._inner = inner
        self._tenant = entra_tenant_id
        self._one = asyncio.Lock()

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        if (options or {}).get("tenant_id", "").lower() != self._tenant:
            raise ChallengeRefused
        async with self._one:
            return await self._inner.get_token_info(*scopes, options=options)

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **_: Any,
    ) -> AccessToken:
        options = TokenRequestOptions(enable_cae=enable_cae, tenant_id=tenant_id or "")
        if claims:
            options["claims"] = claims
        token = await self.get_token_info(*scopes, options=options)
        return AccessToken(token.token, token.expires_on)

    async def close(self) -> None:
        await self._inner.close()

    async def __aenter__(self) -> _CheckedCredential:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AzureCell:
    """``send`` makes one request to a vault. ``gate(host)`` is that vault's breaker and budget."""

    def __init__(self, settings: AzureSettings, limits: Limits) -> None:
        self.settings = settings
        self._limits = limits
        self._web: aiohttp.ClientSession | None = None
        self._gates: dict[str, Gate] = {}
        self._credentials: dict[AzureIdentity, _CheckedCredential] = {}
        self._clients: dict[tuple[str, AzureIdentity], KeyClient] = {}
        self._closed = False

    def gate(self, host: str) -> Gate:
        return self._gates.setdefault(host, Gate(self._limits))

    def _transport(self) -> AioHttpTransport:
        if self._closed:
            raise KmsUnavailable("Closed", "the provider is shut down")
        if self._web is None:
            trust = ssl.create_default_context(cafile=self.settings.ca_file)
            connector = aiohttp.TCPConnector(
                ssl=trust, resolver=self.settings.resolver, limit=self._limits.concurrency * 2, ttl_dns_cache=30
            )
            self._web = aiohttp.ClientSession(
                connector=connector, trust_env=False, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return AioHttpTransport(
            session=self._web,
            session_owner=False,
            use_env_settings=False,
            connection_timeout=self._limits.connect_timeout,
            read_timeout=self._limits.read_timeout,
        )

    def _credential(self, identity: AzureIdentity) -> _CheckedCredential:
        held = self._credentials.get(identity)
        if held is None:
            held = _CheckedCredential(self._sign_in(identity), identity.entra_tenant_id)
            self._credentials[identity] = held
        return held

    def _sign_in(self, identity: AzureIdentity) -> Credential:
        mine = self.settings
        client_id = identity.client_id or mine.client_id
        if client_id is None:
            raise KmsOwnCredentials("NoCredentials", "this cell has no Azure application of its own")
        options: dict[str, Any] = {
            "authority": mine.authority,
            "transport": self._transport(),
            "retry_total": 0,
            "retry_connect": 0,
            "retry_read": 0,
            "retry_status": 0,
        }
        if mine.assertion is not None and (identity.subject is not None or mine.client_secret is None):
            make, subject = mine.assertion, identity.subject or client_id
            return ClientAssertionCredential(identity.entra_tenant_id, client_id, lambda: make(subject), **options)
        if mine.client_secret is None or identity.client_id not in {None, mine.client_id}:
            raise KmsOwnCredentials("NoCredentials", "this cell can't sign in as that application")
        return ClientSecretCredential(identity.entra_tenant_id, client_id, mine.client_secret, **options)

    def _client(self, host: str, identity: AzureIdentity) -> KeyClient:
        client = self._clients.get((host, identity))
        if client is None:
            client = KeyClient(
                vault_url=f"https://{host}",
                credential=self._credential(identity),
                api_version=API_VERSION,
                verify_challenge_resource=True,
                transport=self._transport(),
                retry_policy=AsyncRetryPolicy.no_retries(),
                redirect_policy=AsyncRedirectPolicy.no_redirects(),
            )
            self._clients[host, identity] = client
        return client

    async def send(
        self, vault_name: str, managed_hsm: bool, identity: AzureIdentity, request: HttpRequest
    ) -> AsyncHttpResponse:
        """The vault's answer, whatever its status. Raises ``KmsError`` where there is none or no token for it."""
        host = vault_host(vault_name, managed_hsm)
        try:
            response: AsyncHttpResponse = await self._client(host, identity).send_request(request)
            await response.read()
        except ChallengeRefused:
            # The SDK keeps a vault's challenge for the whole process: one that we refuse must not stay.
            http_challenge_cache.remove_challenge_for_url(f"https://{host}/")
            raise KmsMisconfigured(
                "ChallengeTenant", "the vault belongs to another Entra tenant than the registered one", alarm=True
            ) from None
        except ClientAuthenticationError as error:
            status = error.response.status_code if error.response is not None else None
            raise entra_error(str(error.message), status) from None
        except AzureError as error:
            raise azure_failure(error) from None
        except ValueError:
            # The SDK's way of saying that the challenge's resource isn't the vault's domain, or isn't a challenge.
            raise KmsUnclassified("ChallengeResource", "the vault's challenge names a foreign resource") from None
        return response

    async def forget(self, identity: AzureIdentity) -> None:
        """Drop the identity's tokens, so that the next call signs in afresh."""
        held = self._credentials.pop(identity, None)
        for key in [key for key in self._clients if key[1] == identity]:
            del self._clients[key]
        if held is not None:
            await held.close()

    async def close(self) -> None:
        self._closed = True
        for credential in self._credentials.values():
            await credential.close()
        self._credentials.clear()
        self._clients.clear()
        if self._web is not None:
            await self._web.close()
            self._web = None
            await asyncio.sleep(_TLS_GOODBYE)


def azure_failure(error: AzureError) -> KmsError:
    """A failure without an answer: no connection, no name, no time, no trust."""
    cause = error.inner_exception or error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | ssl.SSLError):
        return KmsUnavailable("TlsFailure", alarm=True, endpoint_fault=True)
    name = type(error).__name__
    if name.startswith("Service") or isinstance(cause, aiohttp.ClientError | OSError | TimeoutError):
        return KmsUnavailable(name, endpoint_fault=True)
    return KmsUnclassified(name)
