"""A row in PostgreSQL: encrypted by pgcrypto, or by OpenBao's Transit engine before it is sent."""

from __future__ import annotations

import base64
import json
from typing import Any

import asyncpg

from bench.http import Http

TABLE = "CREATE TABLE IF NOT EXISTS sealed (id bigint PRIMARY KEY, body bytea NOT NULL)"
UPSERT = "INSERT INTO sealed VALUES ($1, {}) ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body"


async def _pool(job: dict[str, Any], *statements: str) -> asyncpg.Pool[Any]:
    class OwnConnection(asyncpg.Connection):  # type: ignore[misc]
        async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncpg's signature
            return

    size = job["connections"]
    pool = await asyncpg.create_pool(job["url"], min_size=size, max_size=size, connection_class=OwnConnection)
    for statement in (TABLE, *statements):
        await pool.execute(statement)
    return pool


class PgCrypto:
    """pgp_sym_encrypt with AES-256, its key a parameter of the statement."""

    async def open(self, job: dict[str, Any]) -> None:
        self._pool = await _pool(job, "CREATE EXTENSION IF NOT EXISTS pgcrypto")
        self._key = "a passphrase of some length"

    async def write(self, task: int, number: int, body: bytes) -> None:
        seal = "pgp_sym_encrypt_bytea($2, $3, 'cipher-algo=aes256')"
        await self._pool.execute(UPSERT.format(seal), number, body, self._key)

    async def read(self, task: int, number: int) -> bytes:
        sql = "SELECT pgp_sym_decrypt_bytea(body, $2) FROM sealed WHERE id = $1"
        return await self._pool.fetchval(sql, number, self._key)

    async def close(self) -> None:
        await self._pool.close()


class Transit:
    """One request to Transit, with its audit log on, and one statement."""

    async def open(self, job: dict[str, Any]) -> None:
        self._pool = await _pool(job)
        self._token = f"X-Vault-Token: {job['token']}"
        self._http = [Http("127.0.0.1", job["port"]) for _ in range(job["connections"])]
        for http in self._http:
            await http.__aenter__()

    async def _ask(self, task: int, verb: str, body: dict[str, str]) -> str:
        text = json.dumps(body).encode()
        status, answer = await self._http[task].request("POST", f"/v1/transit/{verb}/bench", None, text, self._token)
        assert status == 200, answer
        return json.loads(answer)["data"]["ciphertext" if verb == "encrypt" else "plaintext"]

    async def write(self, task: int, number: int, body: bytes) -> None:
        sealed = await self._ask(task, "encrypt", {"plaintext": base64.b64encode(body).decode()})
        await self._pool.execute(UPSERT.format("$2"), number, sealed.encode())

    async def read(self, task: int, number: int) -> bytes:
        sealed = await self._pool.fetchval("SELECT body FROM sealed WHERE id = $1", number)
        return base64.b64decode(await self._ask(task, "decrypt", {"ciphertext": sealed.decode()}))

    async def close(self) -> None:
        for http in self._http:
            await http.__aexit__()
        await self._pool.close()
