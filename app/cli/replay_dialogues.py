"""Reading recorded dialogues: a JSON-lines file, plain or compressed, turned into what a runtime would commit.

One dialogue a line: ``{"dialogue_id", "services", "turns": [{"speaker": "USER"|"SYSTEM", "utterance", "state"}]}``. A
user turn's ``state`` is ``{service: {active_intent, requested_slots, slot_values}}``, any other's null.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import orjson

_GZIP_MAGIC: Final = b"\x1f\x8b"


class UsageError(Exception):
    """What the user must put right before anything can be played. The text is shown; it never holds content."""


class ServiceState(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What the runtime tracks for one service."""

    active_intent: str
    requested_slots: list[str]
    slot_values: dict[str, list[str]]


class RecordedTurn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    speaker: Literal["USER", "SYSTEM"]
    utterance: str
    state: dict[str, ServiceState] | None = None


class RecordedDialogue(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    dialogue_id: str
    turns: list[RecordedTurn]
    services: list[str] = []


@dataclass(frozen=True, slots=True)
class Exchange:
    """One dialogue turn: what the user said, what the system answered, and the state between them.

    ``turns`` are canonical JSON. ``state`` is the whole state afterwards, a canonical JSON text for each service;
    ``dropped`` names the services that the previous state still had.
    """

    turns: tuple[bytes, ...]
    state: Mapping[str, bytes]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    dialogue_id: str
    exchanges: Sequence[Exchange]

    def state_after(self, commits: int) -> Mapping[str, bytes]:
        """What the state collection must hold after so many commits."""
        return self.exchanges[commits - 1].state if commits else {}

    def turns_after(self, commits: int) -> list[bytes]:
        """The turns that must stand after so many commits, oldest first."""
        return [turn for exchange in self.exchanges[:commits] for turn in exchange.turns]


def canonical(value: Any) -> bytes:
    """The JSON text that two equal values share: sorted members, no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def read_dialogues(file: str, limit: int | None) -> list[Dialogue]:
    """All dialogues of ``file`` (``-``: standard input), or its first ``limit``. Raises UsageError."""
    decode = msgspec.json.Decoder(RecordedDialogue).decode
    dialogues: dict[str, Dialogue] = {}
    try:
        with _opened(file) as lines:
            numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            for number, line in islice(numbered, limit):
                dialogue = _dialogue(decode, line, number)
                if dialogue.dialogue_id in dialogues:
                    raise UsageError(f"line {number}: this dialogue_id stands on an earlier line too")
                dialogues[dialogue.dialogue_id] = dialogue
    except (OSError, EOFError, zlib.error) as error:
        # An OSError's text repeats the path; the reason is enough beside it.
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"{file} can't be read: {reason}") from error
    if not dialogues:
        raise UsageError(f"{file} holds no dialogue")
    return list(dialogues.values())


@contextmanager
def _opened(file: str) -> Iterator[Iterable[bytes]]:
    """Compressed or not is known by the first bytes and not by the name, because standard input has none."""
    with ExitStack() as stack:
        raw: Any = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        if raw.peek(2)[:2] == _GZIP_MAGIC:
            yield stack.enter_context(gzip.GzipFile(fileobj=raw))
        else:
            yield raw


def _dialogue(decode: Any, line: bytes, number: int) -> Dialogue:
    """The decoder's own text names a place, but may quote an unexpected member's name: only the line is told."""
    try:
        recorded: RecordedDialogue = decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UsageError(f"line {number} is not a dialogue in the format of docs/replay.md") from None
    exchanges = list(_exchanges(recorded.turns))
    if not exchanges:
        raise UsageError(f"line {number}: the dialogue has no user turn")
    return Dialogue(recorded.dialogue_id, exchanges)


def _exchanges(turns: Sequence[RecordedTurn]) -> Iterator[Exchange]:
    """Each user turn with the system turns up to the next one; a system's opening belongs to the first exchange."""
    users = [index for index, turn in enumerate(turns) if turn.speaker == "USER"]
    starts = [0, *users[1:]]
    ends = [*users[1:], len(turns)]
    state: dict[str, bytes] = {}
    for user, start, end in zip(users, starts, ends, strict=False):
        before = state
        tracked = turns[user].state
        if tracked is not None:
            state = {service: canonical(msgspec.to_builtins(value)) for service, value in tracked.items()}
        said = tuple(canonical({"speaker": turn.speaker, "utterance": turn.utterance}) for turn in turns[start:end])
        yield Exchange(said, state, tuple(service for service in before if service not in state))
