"""One worker process of the revocation benchmark: the real service on a port, with emulators as its key services.

Started by ``bench/revocation.py``, which passes everything in one JSON environment variable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from app.config import Settings
from app.kms.aws_cell import AwsSettings
from app.kms.azure_cell import AzureSettings
from app.kms.binding import LocalBinding
from app.kms.registry import KmsSettings
from app.kms.transit import TokenAuth, TransitEndpoint
from app.main import api_of, assemble
from tests.kms.aws_gate import VENDOR_KEY
from tests.kms.rigs import VENDOR_ROLE, VENDOR_SECRET
from tests.kms.rigs_azure import OUR_CLIENT, OUR_SECRET

VARIABLE = "CONFIDE_BENCH_WORKER"


class Loopback(aiohttp.abc.AbstractResolver):
    """Azure's names, all on the fake's port."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        return [{"hostname": host, "host": "127.0.0.1", "port": self._port, "family": 2, "proto": 0, "flags": 4}]

    async def close(self) -> None: ...


def kms_settings(told: dict[str, Any]) -> KmsSettings:
    aws = AwsSettings(
        role_arn=VENDOR_ROLE,
        access_key_id=VENDOR_KEY,
        secret_access_key=VENDOR_SECRET,
        kms_endpoint=told["aws"],
        sts_endpoint=told["aws"],
    )
    azure = AzureSettings(
        client_id=OUR_CLIENT, client_secret=OUR_SECRET, resolver=Loopback(told["azure_port"]), ca_file=told["ca"]
    )
    bao = TransitEndpoint("bao", told["transit"], told["ca"], TokenAuth(told["token"]), told["region"])
    folder = Path(told["state"]) / "kek"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return KmsSettings(
        told["region"], LocalBinding("vendor"), dev=True, local_folder=folder, aws=aws, azure=azure, transit=(bao,)
    )


def worker_settings(told: dict[str, Any]) -> Settings:
    return Settings(
        env="dev",
        region=told["region"],
        database_url=told["database"],
        state_dir=Path(told["state"]),
        log_level="ERROR",
        log_share=0.0,
    )


def main() -> None:
    told = json.loads(os.environ[VARIABLE])
    parts = assemble(worker_settings(told), kms_settings(told))
    uvicorn.run(
        api_of(parts),
        http="app.api.protocol:Protocol",
        port=told["port"],
        log_level="error",
        access_log=False,
        lifespan="on",
    )


if __name__ == "__main__":
    main()
