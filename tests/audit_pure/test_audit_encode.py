"""The sealer's quick way to a leaf entry gives the bytes of the plain one, whatever the row holds."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from app.identity import new_id
from app.services.audit_encode import Encoder
from app.services.audit_events import entry_of
from tests.chance import seed as chosen_seed

REGION = "eu-central-1"
ODD: dict[str, tuple[Any, ...]] = {
    "id": (uuid4(),),
    "seq": (0, 1 << 53, -1),
    "action": ("no.such.action", "session.create", 'context.load"'),
    "outcome": ("perhaps", "failed", "denied"),
    "reason": ("scope", "Not A Code", "", 'a"b'),
    "container": (None,),
    "objects": ([], None, [None], [new_id(), new_id()]),
    "versions": ([], None, [None, None], [new_id()]),
    "turns": ([None, None], [5, 2], [-1, 4], [1], [1, 2, 3], [1 << 60, 1 << 60]),
    "commit_number": (-1, 1 << 53, 0),
    "time": (datetime(1, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, 12, tzinfo=UTC)),
}
ODD_FACTS: tuple[str, ...] = (
    "",
    "null",
    "[]",
    '{"trace":"","request":"","source":""}',
    '{,"trace":"","request":"","source":""}',
    '{ ,"trace":"","request":"","source":""}',
    '{"principal":"Jane","trace":"","request":"","source":""}',
    '{"trace":"x","principal":null,"trace":"","request":"","source":""}',
    '{"principal":null,"kek":"a\\"b\\\\c","trk":0,"lease_ms":007,"trace":"","request":"","source":""}',
    '{"kek":"a\\"b\\\\c","trk":0,"lease_ms":7,"grace":true,"trace":"","request":"","source":""}',
    '{"kek":"a b","trk":0,"lease_ms":7,"trace":"","request":"","source":""}',
    '{"trk":true,"trace":"","request":"r","source":""}',
    '{"trk":1.5,"trace":"","request":"r","source":""}',
    '{"detail":{"a":1},"trace":"","request":"r","source":""}',
    '{"kind":"session","trace":"' + "0" * 32 + '","request":"r","source":""}',
    '{"kind":"session","lease_ms":99999999999999999,"trace":"","request":"r","source":""}',
    '{"kind":"session","trace":"","request":"r","source":"' + "B" * 43 + '"}',
    '{"kind":"session","trace":"","request":"r","source":""} ',
    '{"kind":"session","seq":9,"trace":"","request":"r","source":""}',
)


def a_row(rng: random.Random) -> dict[str, Any]:
    """As the statements write them, and in half of the cases with something unusual in it."""
    facts = {"principal": str(new_id()), "api_key": str(new_id()), "role": "runtime", "purpose": "serve"}
    facts |= {"kek": "arn:aws:kms:x:1:key/2", "trk": 1, "ck": 3, "lease_ms": rng.randrange(9999)}
    if rng.random() < 0.3:
        facts["grace"] = True
    for name in list(facts):
        if rng.random() < 0.1:
            del facts[name]
    facts |= {
        "trace": rng.choice(["", f"{rng.getrandbits(128) | 1:032x}"]),
        "request": rng.choice(["", str(new_id())]),
        "source": rng.choice(["", "A" * 43]),
    }
    objects = [new_id() for _ in range(rng.randrange(4))]
    row: dict[str, Any] = {
        "tenant_id": new_id(),
        "id": new_id(),
        "time": datetime(2026, 11, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(1 << 40)),
        "writer": new_id(),
        "seq": rng.randrange(1, 1 << 40),
        "flush": 1,
        "action": rng.choice(["context.load", "context.commit"]),
        "outcome": "allowed",
        "reason": None,
        "container": new_id(),
        "objects": objects or None,
        "versions": [new_id() for _ in objects] or None,
        "turns": rng.choice([None, [1, 5], [3, 3]]),
        "commit_number": rng.choice([None, rng.randrange(1000)]),
        "facts": json.dumps(facts, separators=(",", ":")),
    }
    while rng.random() < 0.5:
        name = rng.choice([*ODD, "facts"])
        row[name] = rng.choice(ODD_FACTS if name == "facts" else ODD[name])
    return row


def as_fetched(row: dict[str, Any]) -> dict[str, Any]:
    """With ids and arrays of ids in PostgreSQL's text form."""

    def array(items: list[UUID | None] | None) -> str | None:
        return None if items is None else "{" + ",".join("NULL" if i is None else str(i) for i in items) + "}"

    return row | {
        "id": str(row["id"]),
        "container": None if row["container"] is None else str(row["container"]),
        "objects": array(row["objects"]),
        "versions": array(row["versions"]),
    }


def without_chance(entry: bytes) -> dict[str, Any]:
    """A replacement for an event with a wrong id draws a new one."""
    event: dict[str, Any] = json.loads(entry)
    if "row_id" in event.get("detail", {}):
        del event["id"]
    return event


def test_g4_the_quick_way_gives_the_same_bytes() -> None:
    seed = chosen_seed()
    rng, encoder, quick = random.Random(seed), Encoder(REGION), 0
    for _ in range(6_000):
        row = a_row(rng)
        event, entry, fault = entry_of(row, REGION)
        fetched = as_fetched(row)
        quick += encoder._hot(fetched) is not None
        found = encoder.encode(fetched)
        assert found.fault == fault, f"seed {seed}: {row}"
        if fault is not None and "row_id" in event["detail"]:
            assert without_chance(found.entry) == without_chance(entry), f"seed {seed}: {row}"
            continue
        assert found.entry == entry, f"seed {seed}: {row}"
        assert (found.id, found.time, found.action, found.outcome) == tuple(
            event[name] for name in ("id", "time", "action", "outcome")
        )
        for name in ("principal", "api_key", "container", "kek", "kms_request_id", "purpose"):
            assert getattr(found, name) == event.get(name), f"seed {seed}: {name}"
        assert list(found.objects) == [item for item, _ in event.get("objects", ())]
    assert quick > 2_000, "the quick way was hardly taken"


def test_a_region_that_is_none_takes_the_plain_way() -> None:
    row = a_row(random.Random(1))
    assert Encoder('x","v":2')._hot(as_fetched(row)) is None
