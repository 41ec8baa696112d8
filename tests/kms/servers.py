"""Servers for the key providers' tests: real processes on free loopback ports, and a proxy that injects faults.

A process gets a session of its own and dies with the test process (PR_SET_PDEATHSIG on Linux); ``stop`` kills the whole
group. Nothing is left behind, also if pytest is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime as dt
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

START_SECONDS = 120


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A child in its own session. ``ready`` is asked until it doesn't raise."""

    def __init__(
        self, command: list[str], environment: dict[str, str], folder: Path, ready: Callable[[], object]
    ) -> None:
        self.log = folder / "server.log"
        with self.log.open("wb") as out:
            self._child = subprocess.Popen(
                command,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  calls one C function and nothing else
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ready()
            except (OSError, httpx2.HTTPError):
                if self._child.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(self.log.read_text(errors="replace")[-2000:]) from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait(60)


class Authority:
    """A certificate authority for the length of the tests."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Confide tests")])
        self._folder = folder
        self._count = 0
        self.file = folder / "ca.pem"
        certificate = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        certificate = certificate.add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        ).add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        signed = certificate.sign(self._key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=public,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - dt.timedelta(minutes=5),
            not_valid_after=now + dt.timedelta(days=1),
        )

    def server(self, *names: str) -> ssl.SSLContext:
        """A server's TLS context with a certificate for these names and for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        builder = self._builder(subject, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        self._count += 1
        path = self._folder / f"server-{self._count}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@dataclass
class Fault:
    """What the next request gets instead of an answer: a status and a body, silence for a while, or a cut line."""

    status: int = 0
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    silence: float = 0.0
    cut: bool = False

    async def play(self, request: web.Request) -> web.Response:
        if self.silence:
            await asyncio.sleep(self.silence)
        if self.cut or not self.status:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        return web.Response(status=self.status, text=self.body, headers=self.headers, content_type="application/json")


class Served:
    """An aiohttp application on a thread of its own. ``handle`` is what a subclass answers with."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.faults: deque[Fault] = deque()
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _open(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener, ssl_context=self._tls).start()
        await self.opened()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self.closed()
        await asyncio.sleep(0.05)

    async def opened(self) -> None: ...

    async def closed(self) -> None: ...

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.faults and self.faultable(request):
            return await self.faults.popleft().play(request)
        return await self.handle(request, body)

    def faultable(self, request: web.Request) -> bool:
        return True

    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        raise NotImplementedError


class FaultProxy(Served):
    """Passes requests on to a real server, unless a fault is due. ``calls`` are paths with their request headers."""

    def __init__(self, upstream: str, trust: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self._upstream = upstream
        self._trust = trust
        self.calls: list[tuple[str, dict[str, str]]] = []

    async def opened(self) -> None:
        self._web = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._trust or False), auto_decompress=False
        )

    async def closed(self) -> None:
        await self._web.close()

    async def forward(self, request: web.Request, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in {"host", "content-length"}}
        async with self._web.request(
            request.method, self._upstream + request.raw_path, data=body, headers=headers, allow_redirects=False
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in {"content-length", "transfer-encoding"}}
            return answer.status, await answer.read(), kept

    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        self.calls.append((request.raw_path, dict(request.headers)))
        status, content, headers = await self.forward(request, body)
        return web.Response(status=status, body=content, headers=headers)
