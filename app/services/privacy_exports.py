"""A person's data, or a tenant's, as a machine-readable archive (GDPR Art. 15 and 20): a ZIP made while it is sent.

One JSON file a container, then ``manifest.json``. What is opened is opened page by page through the same statement as
everything else: an event a page, under the purpose that the caller has for it. An archive that was cut off lacks the
ZIP's directory, so no reader takes it for whole.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson
from typing_extensions import override

from app.errors import Forbidden, NotFound, RateLimited
from app.identity import NO_UUID, Kind, Purpose
from app.services import content
from app.services.changes import Call, Container, Found, Opened, Select, Turn, TurnRange, Where
from app.services.control import ControlPlane
from app.services.dialogue import Dialogue, Loading
from app.services.erasure import Erasure, Target
from app.store import privacy as rows
from app.store.ledger import Ledger

PAGE: Final = 500
BATCH: Final = 200
HOUR: Final = 3600
MOST: Final = {"subject": 120, "session": 120, "tenant": 2}
"""Exports that may begin in an hour, by kind, for a tenant: counted in the database, for all workers together."""
FOLDERS: Final = {Kind.SESSION: "sessions", Kind.SUBJECT: "subjects", Kind.APP: "apps"}


class Exports:
    """Subject access and whole tenants."""

    def __init__(self, dialogue: Dialogue, control: ControlPlane, ledger: Ledger, erasure: Erasure) -> None:
        self._dialogue = dialogue
        self._control = control
        self._ledger = ledger
        self._erasure = erasure

    async def begin(self, call: Call, target: Target | None) -> tuple[UUID, AsyncIterator[bytes]]:
        """The export's id and the archive. ``target`` None: the whole tenant, which needs the purpose tenant-export.

        Raises NotFound, InvalidRequest, Forbidden, RateLimited.
        """
        caller = call.caller
        needed = Purpose.TENANT_EXPORT if target is None else Purpose.SUBJECT_ACCESS
        kind, container = ("tenant", NO_UUID) if target is None else await self._erasure.place(caller, target)
        action = "privacy.export"
        async with self._control.act(caller, call.trace, action, kind=str(kind), container=str(container)) as act:
            if call.purpose is not needed:
                raise Forbidden(f"This export needs the purpose {needed}: send Confide-Purpose: {needed}.")
            if target is not None and await rows.exists(act.tx, caller.tenant, container) != kind:
                raise NotFound
            export = await rows.begin_bulk_read(
                act.tx,
                caller.tenant,
                str(kind),
                needed,
                caller.api_key,
                caller.principal,
                most=MOST[kind],
                seconds=HOUR,
            )
            act.detail["granted"] = int(export is not None)
            if export is not None:
                act.detail["export"] = str(export)
        if export is None:
            raise RateLimited("So many exports have begun within an hour already. Wait.", retry_after=600)
        return export, self._archive(call, export, str(kind), container)

    async def _archive(self, call: Call, export: UUID, kind: str, container: UUID) -> AsyncIterator[bytes]:
        sink = _Sink()
        count = 0
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            async for place in self._places(call, kind, container):
                found = await self._whole(call, place)
                if found is None:
                    continue
                count += 1
                archive.writestr(f"{FOLDERS[place.kind]}/{place.id}.json", found)
                yield sink.taken()
            manifest = {
                "format": "confide-export/1",
                "export": str(export),
                "tenant": str(call.caller.tenant),
                "kind": kind,
                "purpose": str(call.purpose),
                "made_at": datetime.now(UTC).isoformat(),
                "containers": count,
            }
            archive.writestr("manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        async with self._ledger.transaction(call.caller.tenant) as tx:
            await rows.end_bulk_read(tx, call.caller.tenant, export, count)
        yield sink.taken()

    async def _places(self, call: Call, kind: str, container: UUID) -> AsyncIterator[Where]:
        """The containers of an export, in batches from the database."""
        tenant = call.caller.tenant
        if kind != "tenant":
            yield Where(Kind(kind), container)
        if kind == Kind.SESSION:
            return
        after = NO_UUID
        while True:
            async with self._ledger.transaction(tenant) as tx:
                if kind == "tenant":
                    found = await rows.any_containers(tx, tenant, after, BATCH)
                else:
                    sessions = await rows.of_subject(tx, tenant, container, after, BATCH)
                    found = [(each, Kind.SESSION.value) for each in sessions]
            for each, its_kind in found:
                yield Where(Kind(its_kind), each)
            if not found:
                return
            after = found[-1][0]

    async def _whole(self, call: Call, place: Where) -> bytes | None:
        """A container as JSON; None where it has expired or was erased meanwhile."""
        objects: list[Found] = []
        turns: list[Turn] = []
        first: Opened | None = None
        while True:
            page = await self._page(call, place, objects[-1].version if objects else None, turns)
            if page is None:
                return None
            first = first or page
            known = {each.id for each in objects}
            fresh = [each for each in page.objects if each.id not in known]
            objects += fresh
            turns += page.turns
            if not fresh and not page.turns:
                return orjson.dumps(_document(first.container, objects, turns), str, orjson.OPT_INDENT_2)

    async def _page(self, call: Call, place: Where, before: UUID | None, turns: list[Turn]) -> Opened | None:
        after = TurnRange(PAGE, after=turns[-1].number if turns else 0) if place.kind is Kind.SESSION else None
        loading = Loading(place, "context.export", [Select(limit=PAGE, before=before)], after, names=True)
        try:
            return (await self._dialogue.load(call, [loading]))[0]
        except NotFound:
            return None


class _Sink(io.RawIOBase):
    """Where the ZIP is written: it can't seek, and hands on what has come."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _document(container: Container, objects: list[Found], turns: list[Turn]) -> dict[str, Any]:
    return {
        "id": container.id,
        "kind": container.kind,
        "external_id": container.external_id,
        "subject_id": container.subject_id,
        "labels": container.labels,
        "created_at": container.created_at,
        "updated_at": container.updated_at,
        "expires_at": container.expires_at,
        "objects": [
            {
                "collection": each.collection,
                "key": each.key,
                "tags": each.tags,
                "version": each.version,
                "created_at": each.created_at,
                "updated_at": each.updated_at,
                **_value(each.content_type, each.body, inline=each.inline),
            }
            for each in objects
        ],
        "turns": [
            {
                "number": each.number,
                "created_at": each.created_at,
                **_value(each.content_type, each.body, inline=each.inline),
            }
            for each in turns
        ],
    }


def _value(content_type: str, body: bytes, *, inline: bool) -> dict[str, Any]:
    """JSON as JSON, everything else byte for byte."""
    if inline:
        return {"content_type": content_type, "json": orjson.Fragment(body)}
    return {"content_type": content_type, "base64": content.to_base64(body)}
