"""One replay from its settings to its report: writing, reading back, and what is remembered between the two."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import msgspec

from app.cli.replay_client import Client, ServiceError
from app.cli.replay_dialogues import Dialogue, UsageError
from app.cli.replay_player import Kept, Player
from app.cli.replay_report import Display, Percentiles, Phase, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command line asked for."""

    url: str
    api_key: str = field(repr=False)
    concurrency: int
    prefix: str
    write: bool = True
    read: bool = True
    state_file: Path | None = None
    retry_for: float = 60.0
    purpose: str | None = None


class KeptFile(msgspec.Struct, forbid_unknown_fields=True):
    """The state file: which session each dialogue went to, and its last commit number."""

    prefix: str
    sessions: dict[str, Kept]


def known_sessions(plan: Plan) -> dict[str, Kept]:
    """What the writing run remembered. Only a run that doesn't write reads it."""
    if plan.state_file is None or plan.write:
        return {}
    try:
        kept = msgspec.json.decode(plan.state_file.read_bytes(), type=KeptFile)
    except OSError as error:
        raise UsageError(f"the state file can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UsageError("the state file is not one of a replay's") from None
    if kept.prefix != plan.prefix:
        raise UsageError("the state file was written with another --prefix")
    return kept.sessions


async def replay(plan: Plan, dialogues: Sequence[Dialogue], known: dict[str, Kept], display: Display) -> Report:
    """Runs the phases that the plan asks for. Failures become part of the report."""
    phases: dict[str, Phase] = {}
    error: str | None = None
    client = Client(
        plan.url,
        plan.api_key,
        plan.concurrency,
        purpose=plan.purpose,
        retry_for=plan.retry_for,
        notice=display.note,
    )
    player = Player(client, plan.prefix, display.advance)
    player.kept |= known
    try:
        async with client:
            if plan.write:
                total = sum(len(dialogue.exchanges) for dialogue in dialogues)
                display.phase("write", "exchanges", total)
                phases["write"] = await _phase(player, dialogues, plan.concurrency, player.write)
            if plan.read:
                intact = [dialogue for dialogue in dialogues if dialogue.dialogue_id not in player.mismatches]
                display.phase("read", "dialogues", len(intact))
                phases["read"] = await _phase(player, intact, plan.concurrency, player.read)
    except* ServiceError as failures:
        error = str(failures.exceptions[0])
    finally:
        if plan.write and plan.state_file is not None:
            _remember(plan.state_file, KeptFile(plan.prefix, player.kept))
    return _report(dialogues, client, player, phases, error)


async def _phase(
    player: Player, dialogues: Sequence[Dialogue], workers: int, do: Callable[[Dialogue], Awaitable[int]]
) -> Phase:
    started = monotonic()
    done = await player.each(dialogues, min(workers, len(dialogues)), do)
    seconds = monotonic() - started
    return Phase(round(seconds, 3), len(dialogues), done, round(done / seconds, 3) if seconds else 0.0)


def _report(
    dialogues: Sequence[Dialogue], client: Client, player: Player, phases: dict[str, Phase], error: str | None
) -> Report:
    """A mismatch outranks a failure: it is certain, while what failed may yet succeed."""
    return Report(
        outcome="mismatch" if player.mismatches else "failed" if error else "ok",
        dialogues=len(dialogues),
        exchanges=sum(len(dialogue.exchanges) for dialogue in dialogues),
        found_before=player.found,
        phases=phases,
        latency_ms={kind: Percentiles.of(seconds) for kind, seconds in sorted(client.latencies.items())},
        retries=dict(client.retries),
        mismatches=[{"dialogue_id": name, "reason": reason} for name, reason in sorted(player.mismatches.items())],
        error=error,
    )


def _remember(file: Path, kept: KeptFile) -> None:
    """Whole or not at all, and for the owner only: dialogue ids may be personal."""
    scratch = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(msgspec.json.encode(kept))
        scratch.replace(file)
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()
