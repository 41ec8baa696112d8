"""Streams against a TLS receiver on this machine that fails at times."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.audit.event import decode
from app.errors import InvalidRequest
from app.services.audit_receivers import check_url, is_public
from tests.audit.conftest import a_turn, events, sealed
from tests.audit.journal_rows import superuser
from tests.cell import REGION, Cell, Tenant, running_cell


@dataclass
class Receiver:
    """Takes deliveries; ``refusals`` holds the statuses that the next ones get instead, though they were read.
    ``refusals_of_tests``: those of test events.
    """

    url: str = ""
    refusals: list[int] = field(default_factory=list)
    refusals_of_tests: list[int] = field(default_factory=list)
    refused: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        refusals = self.refusals_of_tests if "Confide-Test" in request.headers else self.refusals
        if refusals:
            self.refused.append((dict(request.headers), body))
            return web.Response(status=refusals.pop(0), headers={"Location": "https://example.com/"})
        self.taken.append((dict(request.headers), body))
        return web.Response(status=204)

    def leaves(self) -> list[dict[str, Any]]:
        return [
            decode(line) for headers, body in self.taken if "Confide-Test" not in headers for line in body.splitlines()
        ]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, private


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    app = web.Application()
    app.router.add_post("/events", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    receiver.url = f"https://127.0.0.1:{runner.addresses[0][1]}/events"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def cell(database: str, tmp_path: Path, receiver: Receiver) -> AsyncIterator[Cell]:
    async with running_cell(
        database, tmp_path / "state", audit_private_receivers="yes", audit_receiver_ca=tmp_path / "cert.pem"
    ) as cell:
        yield cell


async def create(tenant: Tenant, receiver: Receiver) -> tuple[str, str]:
    made = await tenant.admin.post("/v1/audit/streams", json={"url": receiver.url, "region": REGION})
    assert made.status_code == 201, made.text
    return made.json()["stream"]["id"], made.json()["secret"]


async def until(check: Any, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_g4_a_stream_delivers_every_event_in_order_signed_though_the_receiver_fails(
    cell: Cell, tenant: Tenant, receiver: Receiver
) -> None:
    await sealed(cell, tenant)
    await tenant.auditor.get("/v1/audit/checkpoint")
    receiver.refusals = [500, 302]  # before the leader can push anything
    stream, secret = await create(tenant, receiver)
    for number in range(6):
        await a_turn(tenant, number)
    await until(
        lambda: sum(event["action"] == "context.commit" and "commit" in event for event in receiver.leaves()) >= 6
    )
    ids = [event["id"] for event in receiver.leaves()]
    async with superuser(cell.url) as admin:
        rows = await admin.fetch("SELECT entry FROM confide_audit.event WHERE tenant_id = $1 ORDER BY leaf", tenant.id)
    stored = [decode(bytes(row["entry"])) for row in rows]
    start = [event["id"] for event in stored].index(ids[0])
    assert [event["id"] for event in stored][start : start + len(ids)] == ids
    for headers, body in receiver.taken:
        moment, signature = headers["Confide-Signature"].removeprefix("t=").split(",v1=")
        signed = f"{moment}.{headers['Confide-Delivery']}.".encode() + body
        assert hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() == signature
    again, body = receiver.taken[0]
    assert len(receiver.refused) == 2
    for headers, refused in receiver.refused:  # had it kept them, it would know the next by its start and drop it
        assert headers["Confide-Delivery"] == again["Confide-Delivery"] == f"{stream}.1.{again['Confide-First-Leaf']}"
        assert body.startswith(refused)
    for (headers, body), (after, _) in pairwise(receiver.taken):
        assert headers["Confide-Next-Leaf"] == after["Confide-First-Leaf"]
        first, beyond = int(headers["Confide-First-Leaf"]), int(headers["Confide-Next-Leaf"])
        assert len(body.splitlines()) == beyond - first
    note = b64decode(receiver.taken[-1][0]["Confide-Checkpoint"])
    assert note.decode().split("\n")[0] == receiver.taken[-1][0]["Confide-Origin"]
    async with asyncio.timeout(60):  # what was taken is noted a moment later
        while "last_ok_at" not in (shown := (await tenant.admin.get(f"/v1/audit/streams/{stream}")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert shown["failures"] == 0
    assert secret not in str(shown)


async def test_a_streams_health_shows_why_it_fails_and_the_test_event_tells_at_once(
    cell: Cell, tenant: Tenant, receiver: Receiver
) -> None:
    stream, _ = await create(tenant, receiver)
    receiver.refusals_of_tests = [503]
    answer = (await tenant.admin.post(f"/v1/audit/streams/{stream}/test")).json()
    assert answer == {"delivered": False, "error": "status-503"}
    answer = (await tenant.admin.post(f"/v1/audit/streams/{stream}/test")).json()
    assert answer == {"delivered": True}
    [(headers, body)] = [one for one in receiver.taken if "Confide-Test" in one[0]]
    assert (headers["Confide-Test"], json.loads(body)) == ("true", {"test": True, "stream": stream})
    assert [event["outcome"] for event in await events(tenant, action="audit.stream")] == ["allowed"] * 3
    receiver.refusals = [500] * 1000
    await a_turn(tenant)

    async def health() -> dict[str, Any]:
        return (await tenant.admin.get(f"/v1/audit/streams/{stream}")).json()

    async with asyncio.timeout(60):
        while (await health())["state"] != "failing":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await health())["last_error"] == "status-500"
    assert (await tenant.admin.delete(f"/v1/audit/streams/{stream}")).status_code == 204
    assert (await tenant.admin.get("/v1/audit/streams")).json() == {"streams": []}
    assert (await tenant.admin.delete(f"/v1/audit/streams/{stream}")).status_code == 404


@pytest.mark.usefixtures("one_day")
async def test_what_is_older_than_seven_days_is_left_out_and_the_log_says_so(
    cell: Cell, tenant: Tenant, receiver: Receiver
) -> None:
    await create(tenant, receiver)
    await sealed(cell, tenant)
    await cell.parts.services.audit.sealer.close()
    async with superuser(cell.url, replica=True) as admin, asyncio.timeout(60):
        size = await admin.fetchval("SELECT size FROM confide_audit.log WHERE tenant_id = $1", tenant.id)

        async def all_delivered() -> None:
            while await admin.fetchval("SELECT min(next_leaf) FROM confide_audit.stream") < size:
                await cell.parts.services.audit.streams.push()  # what the leader does at each poll
                await asyncio.sleep(0.05)

        await all_delivered()  # so that nothing is under way any more
        await admin.execute("SELECT confide_audit.make_event_partitions((now() - interval '9 days')::date)")
        for days in (6, 3):
            receiver.taken.clear()
            await admin.execute("UPDATE confide_audit.event SET sealed_at = sealed_at - $1 * interval '1 day'", days)
            await admin.execute("UPDATE confide_audit.stream SET next_leaf = 0")
            if days == 6:
                await all_delivered()
                assert len(receiver.leaves()) == size
        size = await admin.fetchval("SELECT size FROM confide_audit.log WHERE tenant_id = $1", tenant.id)
    async with asyncio.timeout(60):
        while True:
            await cell.parts.services.audit.streams.push()
            shown = (await tenant.admin.get("/v1/audit/streams")).json()["streams"][0]
            if shown["dropped"] == size:
                break
            await asyncio.sleep(0.05)
    assert receiver.leaves() == []
    said = await events(tenant, action="audit.stream", outcome="failed")
    assert [(event["reason"], event["detail"]["dropped"]) for event in said] == [("buffer", size)]


@pytest.mark.parametrize(
    "url",
    [
        "http://receiver.example.com/",
        "https://user:secret@receiver.example.com/",
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00:ec2::254]/",
        "https://[::ffff:169.254.169.254]/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.1.2.3/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://metadata.google.internal/",
        "https://receiver.example.com:22/",
        "https://receiver/",
        "https://receiver.example.com/a b",
        "https://receiver.example.com/a\nb",
        "https://receiver.example.com/<a>",
        "https://receiver.example.com/ä",
        "https://receiver..example.com/",
        "https://-receiver.example.com/",
        f"https://{'r' * 64}.example.com/",
        f"https://{'r.' * 126}example.com/",
        "ftp://receiver.example.com/",
        "https://",
    ],
)
def test_a_receiver_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(url, private=False)


def test_public_addresses_are_told_from_others() -> None:
    assert is_public("93.184.215.14")
    assert is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    for address in (
        "127.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "::1",
        "fe80::1%eth0",
        "2002:7f00:1::",
        "0.0.0.1",
        "224.0.0.1",
    ):
        assert not is_public(address), address
    check_url("https://receiver.example.com/events?team=a", private=False)


async def test_g9_a_receiver_elsewhere_needs_a_consent(cell: Cell, tenant: Tenant, receiver: Receiver) -> None:
    made = await tenant.admin.post("/v1/audit/streams", json={"url": receiver.url, "region": "us-east-1"})
    assert made.status_code == 403
