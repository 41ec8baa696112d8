"""Redis and LangGraph's saver, as their users call them."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4


class Redis:
    """SET and GET; whether they wait for the disk is the server's setting."""

    async def open(self, job: dict[str, Any]) -> None:
        from redis.asyncio import Redis as Client  # noqa: PLC0415  only its own run needs it

        self._client = Client(host="127.0.0.1", port=job["port"], max_connections=job["connections"])

    async def write(self, task: int, number: int, body: bytes) -> None:
        await self._client.set(f"object:{number}", body)

    async def read(self, task: int, number: int) -> bytes:
        return await self._client.get(f"object:{number}")

    async def close(self) -> None:
        await self._client.aclose()


class LangGraph:
    """AsyncPostgresSaver on a pool: a write is a checkpoint with the context in a channel, a read is the latest one."""

    def __init__(self, *, encrypted: bool = False) -> None:
        self._encrypted = encrypted

    async def open(self, job: dict[str, Any]) -> None:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415
        from langgraph.checkpoint.serde.encrypted import EncryptedSerializer  # noqa: PLC0415
        from psycopg.rows import dict_row  # noqa: PLC0415
        from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

        kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        size = job["connections"]
        self._pool = AsyncConnectionPool(job["url"], min_size=size, max_size=size, kwargs=kwargs, open=False)
        await self._pool.open(wait=True)
        serde = EncryptedSerializer.from_pycryptodome_aes(key=bytes(range(32))) if self._encrypted else None
        self._saver = AsyncPostgresSaver(self._pool, serde=serde)
        await self._saver.setup()

    async def write(self, task: int, number: int, body: bytes) -> None:
        from langgraph.checkpoint.base import empty_checkpoint  # noqa: PLC0415

        checkpoint = empty_checkpoint()
        version = uuid4().hex
        checkpoint["channel_values"] = {"context": json.loads(body)}
        checkpoint["channel_versions"] = {"context": version}
        config = {"configurable": {"thread_id": str(number), "checkpoint_ns": ""}}
        await self._saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {"context": version})

    async def read(self, task: int, number: int) -> bytes:
        found = await self._saver.aget_tuple({"configurable": {"thread_id": str(number), "checkpoint_ns": ""}})
        return found.checkpoint["channel_values"]["context"]

    async def close(self) -> None:
        await self._pool.close()
