"""Posting to tenants' receivers: HTTPS only, to public addresses only, to the address that was judged and no other.

A receiver's name is resolved for each connection by a resolver that refuses what isn't public, and the connection goes
to what it answered. So a name that changes its mind between check and use (DNS rebinding) gains nothing. Redirects are
not followed and the environment's proxies are not used.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override

from app.errors import InvalidRequest

TIMEOUT_SECONDS: Final = 10.0
MAX_URL: Final = 2048
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)


class NotDelivered(Exception):
    """The receiver didn't take it. The text is a code for the stream's health: it holds nothing of the receiver's."""


# RFC 3986: what may stand in a path and a query, but for brackets.
_REST: Final = re.compile(r"[A-Za-z0-9._~:/?@!$&'()*+,;=%-]*", re.ASCII)


def is_public(address: str) -> bool:
    """Whether a receiver may stand there: no loopback, private, special or link-local one (cloud metadata)."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    parsed = mapped or parsed
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def check_url(url: str, *, private: bool) -> None:
    """Raises InvalidRequest unless ``url`` is https, without credentials, and names no address that isn't public."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidRequest("The receiver's URL is malformed.", "url") from None
    if parts.scheme != "https" or not host or parts.username is not None or parts.fragment or len(url) > MAX_URL:
        raise InvalidRequest("A receiver needs an https URL without credentials and fragment.", "url")
    literal = ":" in host or (re.fullmatch(r"[0-9a-fx.]+", host) is not None and host.rpartition(".")[2][:1].isdigit())
    plain = url.isprintable() and _REST.fullmatch(parts.path + parts.query)  # urlsplit drops line breaks and tabs
    if not plain or not (literal or _HOST.fullmatch(host)):
        raise InvalidRequest("The receiver's URL is malformed.", "url")
    if private:
        return
    if port not in {None, 443, 8443} or (literal and not is_public(host)):
        raise InvalidRequest("A receiver must have a public address, and port 443 or 8443.", "url")
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or ("." not in host and not literal):
        raise InvalidRequest("A receiver must have a public name.", "url")


class _PublicOnly(AbstractResolver):
    """Answers the public addresses of a name, and refuses a name that has others too."""

    def __init__(self, *, private: bool) -> None:
        self._private = private

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        if not self._private and not all(map(is_public, addresses)):
            raise OSError("not a public address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    @override
    async def close(self) -> None:
        return None


class Receivers:
    """One HTTP client for all streams. ``private`` allows private addresses (development); ``authorities``: PEM."""

    def __init__(self, *, private: bool, authorities: Path | None = None) -> None:
        self.private = private
        self._authorities = authorities
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Raises NotDelivered unless the receiver answers 2xx in time."""
        check_url(url, private=self.private)
        try:
            async with self._client().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                if not 200 <= answer.status < 300:
                    raise NotDelivered(f"status-{answer.status}")
        except TimeoutError:
            raise NotDelivered("timeout") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError):
            raise NotDelivered("certificate") from None
        except (aiohttp.ClientError, OSError, UnicodeError):  # the last: a name that no resolver takes
            raise NotDelivered("unreachable") from None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = ssl.create_default_context(cafile=str(self._authorities) if self._authorities else None)
            connector = aiohttp.TCPConnector(
                resolver=_PublicOnly(private=self.private), ssl=tls, use_dns_cache=False, force_close=True, limit=32
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                trust_env=False,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
