"""G1, G7: the main job with recorded dialogues: load before each turn, commit after it, and all is there later."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import orjson
import pytest

from app.cli.replay_dialogues import Dialogue, Exchange, canonical, read_dialogues
from tests.cell import running_cell
from tests.dialogue.calls import commit, done, load

DIALOGUES = 20
AT_ONCE = 5


@dataclass
class Played:
    """A dialogue as it must stand, and the session that it became."""

    dialogue: Dialogue
    session: str

    @property
    def external(self) -> str:
        return f"call-{self.dialogue.dialogue_id}"

    @property
    def subject(self) -> str:
        return f"customer-{self.dialogue.dialogue_id}"


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    """Recorded ones where they are (CONFIDE_SGD, else beside the checkout), otherwise a few made up here."""
    named = os.environ.get("CONFIDE_SGD")
    above = Path(__file__).resolve().parents[2:5]
    places = [Path(named)] if named else [folder / "shared" / "data" / "sgd" for folder in above]
    for place in places:
        file = place / "dialogues.jsonl.gz" if place.is_dir() else place
        if file.is_file():
            return read_dialogues(str(file), DIALOGUES)
    return [made_up(number) for number in range(4)]


def made_up(number: int) -> Dialogue:
    exchanges = []
    for turn in range(6):
        texts = (f"Ein Tisch für {turn} in Zürich, {number}? 🍽", f"Gern: {turn} Plätze, \u202eumgekehrt.")
        said = tuple(
            canonical({"speaker": speaker, "utterance": text})
            for speaker, text in zip(("USER", "SYSTEM"), texts, strict=True)
        )
        services = {f"Restaurants_{turn // 2}": canonical({"slot_values": {"seats": [str(turn)]}})}
        dropped = (f"Restaurants_{turn // 2 - 1}",) if turn in {2, 4} else ()
        exchanges.append(Exchange(said, services, dropped))
    return Dialogue(f"made-up-{number}", exchanges)


async def play(runtime: httpx2.AsyncClient, dialogue: Dialogue) -> Played:
    """As a runtime does: what it loads before each turn is what it has committed so far."""
    played = Played(dialogue, "")
    for number, exchange in enumerate(dialogue.exchanges):
        if number:
            loaded = await load(runtime, external_id=played.external, context=[{}], turns={"last": 1000}, subject=True)
            assert_stands(played, loaded, number)
        states = [{"collection": "state", "key": name, "json": orjson.loads(v)} for name, v in exchange.state.items()]
        made = await commit(
            runtime,
            external_id=played.external,
            expected_commit=number,
            put=states,
            delete=[{"collection": "state", "key": name} for name in exchange.dropped],
            turns=[{"json": orjson.loads(turn)} for turn in exchange.turns],
            subject={"put": [{"collection": "profile", "key": "turns", "json": number + 1}]},
            **({} if number else {"create": {"subject": played.subject, "labels": ["recorded"]}}),
        )
        assert made["session"]["commit"] == number + 1
        assert made["session"]["last_turn"] == len(dialogue.turns_after(number + 1))
        played.session = made["session"]["id"]
    return played


def assert_stands(played: Played, loaded: Any, commits: int) -> None:
    """Exactly what so many commits have left: state, turns, their order and numbers, and the subject's part."""
    assert loaded["session"]["id"] == played.session
    assert loaded["session"]["commit"] == commits
    state = {each["key"]: canonical(each["json"]) for each in loaded["session"].get("context", [])}
    assert state == played.dialogue.state_after(commits)
    assert {each["collection"] for each in loaded["session"].get("context", [])} <= {"state"}
    turns = played.dialogue.turns_after(commits)
    assert [canonical(turn["json"]) for turn in loaded["turns"]] == turns
    assert [turn["number"] for turn in loaded["turns"]] == list(range(1, len(turns) + 1))
    assert [each["json"] for each in loaded["subject"]["context"]] == [commits]


async def assert_all_there(runtime: httpx2.AsyncClient, everything: list[Played]) -> None:
    """By name, by id, object by object, and by the subject and the label."""
    for played in everything:
        commits = len(played.dialogue.exchanges)
        for name in ({"external_id": played.external}, {"session": played.session}):
            loaded = await load(runtime, **name, context=[{"collection": "state"}], turns={"last": 1000}, subject=True)
            assert_stands(played, loaded, commits)
        for service, text in played.dialogue.state_after(commits).items():
            one = await runtime.get(f"/v1/sessions/{played.session}/context/state/{service}")
            assert (one.status_code, one.content) == (200, text)
        found = done(await runtime.post("/v1/sessions/lookup", json={"subject": played.subject}))["sessions"]
        assert [(each["id"], each["external_id"]) for each in found] == [(played.session, played.external)]
    labelled = done(await runtime.post("/v1/sessions/lookup", json={"label": "recorded", "limit": 200}))["sessions"]
    assert {each["id"] for each in labelled} == {played.session for played in everything}


async def all_rows(database: str) -> bytes:
    """Every row of the service's tables as text, bytes as hexadecimal digits."""
    connection = await asyncpg.connect(database)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        rows = [row[0] for (table,) in tables for row in await connection.fetch(f"SELECT t::text FROM {table} t")]
    finally:
        await connection.close()
    return "\n".join(rows).encode()


async def test_g7_recorded_dialogues_read_back_equal_at_every_turn_and_after_a_restart(
    database: str, tmp_path: Path, dialogues: list[Dialogue]
) -> None:
    """Turn by turn, several at once; then by the worker that wrote them, and by another that starts with nothing but
    the database and the state directory.
    """
    state = tmp_path / "state"
    free = asyncio.Semaphore(AT_ONCE)
    async with running_cell(database, state) as cell:
        tenant = await cell.tenant()

        async def one(dialogue: Dialogue) -> Played:
            async with free:
                return await play(tenant.runtime, dialogue)

        everything = await asyncio.gather(*(one(dialogue) for dialogue in dialogues))
        assert len({played.session for played in everything}) == len(dialogues)
        await assert_all_there(tenant.runtime, everything)
    async with running_cell(database, state) as restarted:
        runtime = restarted.client(tenant.keys["runtime"])
        await assert_all_there(runtime, everything)
        played = everything[0]
        again = await commit(runtime, session=played.session, turns=[{"json": "goes on"}])
        assert again["session"]["commit"] == len(played.dialogue.exchanges) + 1
        assert again["session"]["last_turn"] == len(played.dialogue.turns_after(len(played.dialogue.exchanges))) + 1


async def test_g1_no_utterance_and_no_name_of_a_recorded_dialogue_is_in_the_database(
    database: str, tmp_path: Path, dialogues: list[Dialogue]
) -> None:
    async with running_cell(database, tmp_path / "state") as cell:
        tenant = await cell.tenant("in-clear-by-design")
        everything = [await play(tenant.runtime, dialogue) for dialogue in dialogues[:3]]
        rows = await all_rows(database)
    assert b"in-clear-by-design" in rows
    said = [
        orjson.loads(turn)["utterance"]
        for played in everything
        for exchange in played.dialogue.exchanges
        for turn in exchange.turns
    ]
    names = [name for played in everything for name in (played.external, played.subject)]
    services = [name for played in everything for name in played.dialogue.state_after(len(played.dialogue.exchanges))]
    for text in {*(each for each in said if len(each) > 11), *names, *services}:
        assert text.encode() not in rows
        assert text.encode().hex().encode() not in rows
