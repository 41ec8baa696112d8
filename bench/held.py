"""Keys that customers hold: a tenant's first request with each kind, and how many operations ask a key service.

The key services are emulators on this machine (ministack behind a gate that judges policies, and OpenBao): they answer
within a few milliseconds. What a cloud's answer takes comes on top, once, of each first request.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack
from pathlib import Path

from bench import cell
from bench.cell import Subject
from bench.cold import first_and_second
from bench.http import Http
from bench.measure import run
from bench.processes import HOST
from bench.revocation_peers import CountingProxy, made, ministack, transit
from bench.suite import Bench, body, wait_for_demo
from tests.keys.customers import Customer, World, make_customer
from tests.kms.aws_gate import VENDOR_KEY
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs import REGION, VENDOR_ROLE, VENDOR_SECRET
from tests.kms.servers import Authority

PROVIDERS = ("aws-kms", "vault-transit")
TENANTS = 20
RATE = 10
"""Operations a second of each tenant, reads and writes by halves."""
SECONDS = 90.0
"""Three revalidations at the default lease."""
PAUSE = 1.0
"""Seconds that the key service takes longer to answer, in a second run."""


def held_keys(bench: Bench) -> None:
    folder = made(bench.state / "held")
    with ExitStack() as stack:
        authority = Authority(made(folder / "ca"))
        aws = ministack(stack, made(folder / "ministack"))
        bao, proxy = transit(stack, made(folder / "bao"), authority)
        world = World(aws, bao, FakeAzure(authority), folder / "kek")
        state = made(folder / "cell")
        database = cell.Database(state)
        stack.callback(database.stop)
        env = _environment(world)
        with cell.confide(state, database, folder / "confide.log", env=env) as server:
            wait_for_demo(state)
            operator = cell.demo_values(state)["CONFIDE_OPERATOR_KEY"]
            for provider in PROVIDERS:
                bench.say(f"{TENANTS} tenants with keys at {provider}")
                keys = asyncio.run(_onboard(server.port, operator, world, provider))
                stock = {"sessions": TENANTS * 5, "objects": 5, "body": body()}
                asyncio.run(cell.seed_confide(server.port, keys, folder / f"{provider}.json", **stock))
        with cell.confide(state, database, folder / "confide-cold.log", env=env) as server:
            for provider in PROVIDERS:
                _cold(bench, server.port, provider, folder / f"{provider}.json")
            subject = Subject("confide", server.port, server.pid, folder / "vault-transit.json")
            _share(bench, subject, proxy, database)


def _environment(world: World) -> dict[str, str]:
    """What an operator would set for these key services."""
    world.bao.root("POST", "sys/policies/acl/confide-cell", {"policy": 'path "none" { capabilities = [] }'})
    token = world.bao.root("POST", "auth/token/create", {"policies": ["confide-cell"], "ttl": "1h"})
    endpoint = {
        "name": "bao",
        "url": world.bao.proxy.url,
        "ca": str(world.bao.authority.file),
        "region": REGION,
        "token": token["auth"]["client_token"],
    }
    return {
        "CONFIDE_AWS_ROLE_ARN": VENDOR_ROLE,
        "CONFIDE_AWS_ACCESS_KEY_ID": VENDOR_KEY,
        "CONFIDE_AWS_SECRET_ACCESS_KEY": VENDOR_SECRET,
        "CONFIDE_AWS_KMS_ENDPOINT": world.aws.gate.url,
        "CONFIDE_AWS_STS_ENDPOINT": world.aws.gate.url,
        "CONFIDE_TRANSIT_ENDPOINTS": json.dumps([endpoint]),
    }


async def _onboard(port: int, operator: str, world: World, provider: str) -> list[str]:
    """As customers do it: register a key, paste what is asked for, check, activate. Answers runtime keys."""
    return [await _bind(port, operator, make_customer(world, provider), number) for number in range(TENANTS)]


async def _bind(port: int, operator: str, customer: Customer, number: int) -> str:
    async with Http(HOST, port) as http:
        tenant = await http.json("POST", "/v1/tenants", operator, {"name": f"{customer.provider}-{number}"})
        redeem = {"token": tenant["enrolment"]["token"], "name": "first"}
        admin = (await http.json("POST", "/v1/enrolments/redeem", None, redeem))["secret"]
        await http.json("PATCH", "/v1/keys/policy", admin, {"allowed_kms_regions": [REGION]})
        binding = await http.json("POST", "/v1/keys/bindings", admin, customer.body())
        await asyncio.to_thread(customer.paste, binding["steps"])
        where = f"/v1/keys/bindings/{binding['id']}"
        found = await http.json("POST", f"{where}/check", admin, None)
        assert found["ok"], found
        job = (await http.json("POST", f"{where}/activate", admin, None))["job"]
        await http.done(f"/v1/jobs/{job}", admin)
        runtime = {"name": "runtime", "role": "runtime"}
        return str((await http.json("POST", "/v1/api-keys", admin, runtime))["secret"])


def _cold(bench: Bench, port: int, provider: str, targets: Path) -> None:
    """A worker that has just begun, and each tenant's first request to it."""
    stored = json.loads(targets.read_text())
    stored["sessions"] = list(dict(stored["sessions"]).items())  # one of each tenant
    first, second = asyncio.run(first_and_second(port, stored))
    bench.extra.setdefault("cold_start_held", {})[provider] = {"first": first, "second": second}
    bench.notes.append(
        f"cold start, {provider} (emulator): a tenant's first request p50 {first['p50']:.1f} ms, p99 {first['p99']:.1f}"
        f" ms; its second p50 {second['p50']:.1f} ms"
    )


def _share(bench: Bench, confide: Subject, proxy: CountingProxy, database: cell.Database) -> None:
    """How many calls a worker makes for warm tenants, and that no request waits for one."""
    streams = [{"workload": "get"}, {"workload": "put"}]
    load = {"streams": streams, "rates": [RATE * TENANTS / 2] * 2, "connections": 64, "seconds": SECONDS}
    found = {}
    for name, pause in (("quick", 0.0), ("slow", PAUSE)):
        bench.say(f"{RATE} operations/s of each of {TENANTS} tenants, key service {pause:.0f} s slower")
        proxy.pause, before, began = pause, proxy.seen, time.monotonic()
        measured = run(confide, database.pid, load)
        operations = RATE * TENANTS * (time.monotonic() - began)
        found[name] = {
            "calls": proxy.seen - before,
            "share": (proxy.seen - before) / operations,
            "p99": measured.p99,
            "max": max(each["max"] for each in measured.detail["streams"]),
        }
    proxy.pause = 0.0
    bench.extra["kms_calls"] = found
    quick, slow = found["quick"], found["slow"]
    bench.notes.append(
        f"{RATE} operations/s of each of {TENANTS} tenants at the default lease: {quick['calls']} KMS calls,"
        f" {quick['share']:.2%} of operations; with a key service {PAUSE:.0f} s slower p99 {slow['p99']:.1f} ms (was"
        f" {quick['p99']:.1f}), longest {slow['max']:.0f} ms (was {quick['max']:.0f})"
    )
