"""What the crash programme writes down: what was asked, every byte that came back, and the words that it was about.

Every change writes words that no other change writes, so that whatever is found later tells who wrote it. Every attempt
has a trace of its own, which its audit events carry: so they are found also where no answer ever came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

Ref = tuple[str, str]
"""A container by kind and the client's own name."""
Key = tuple[str, str]
"""An object by collection and key."""
Value = dict[str, str]
"""Fields and the words in them. A put has the one field ``w``; a merge sets others."""

FACTS: Key = ("profile", "facts")
BLOBS = "blob"
BLOB_BYTES = 900_000
APP = "menu"
UNSURE = "urn:confide:problem:outcome-unknown"


BLOB_KEYS = ("b0", "b1", "b2", "b3", "b4", "b5")
"""All of them in one answer are more than the kernel takes from a process at once: what a crash leaves of it is cut."""


def blob(word: str) -> bytes:
    """A large object that begins with its word."""
    line = word.encode() + b"\n"
    return (line * (BLOB_BYTES // len(line) + 1))[:BLOB_BYTES]


@dataclass(slots=True)
class Received:
    """What came back. ``status`` None: not even a head. ``whole``: to the last byte."""

    sent: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    fault: str = ""

    @property
    def document(self) -> Any:
        return orjson.loads(self.body) if self.whole and self.body[:1] in (b"{", b"[") else {}

    @property
    def request(self) -> str:
        return self.headers.get("confide-request-id", "")

    @property
    def decided(self) -> bool:
        """Whether the client now knows what became of its request."""
        return self.whole and self.status is not None and self.status < 500

    @property
    def problem(self) -> str:
        return str(self.document.get("type", "")) if self.status is not None and self.status >= 400 else ""


@dataclass(slots=True)
class Attempt:
    """One request. Times are of the one clock of this process."""

    trace: str
    began: float
    ended: float = 0.0
    got: Received = field(default_factory=Received)


@dataclass(slots=True)
class Change:
    """What one commit does to one container."""

    ref: Ref
    action: str
    puts: dict[Key, str] = field(default_factory=dict)
    merges: dict[Key, Value] = field(default_factory=dict)
    deletes: tuple[Key, ...] = ()
    turns: Sequence[str] = ()
    pop: int = 0
    if_version: str | None = None
    """Of its only put."""
    if_absent: bool = False
    expected_commit: int | None = None
    expected_last: int | None = None


@dataclass(slots=True)
class Showing:
    """What an answer may show of a container. ``collections`` None: single objects only, no snapshot of them."""

    ref: Ref
    action: str
    collections: tuple[str, ...] | None = None
    last: int = 0
    """How many of the last turns."""


@dataclass(slots=True)
class Intent:
    """One intended request and all attempts at it. Each of ``units`` is applied whole or not at all."""

    number: int
    op: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    units: list[list[Change]] = field(default_factory=list)
    shows: list[Showing] = field(default_factory=list)
    key: str | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def document(self) -> Any:
        return orjson.loads(self.body)

    def refs(self) -> set[Ref]:
        """The containers that it is about."""
        return {show.ref for show in self.shows} | {change.ref for unit in self.units for change in unit}

    def __str__(self) -> str:
        return f"{self.op} {self.number} ({self.method} {self.path})"


@dataclass(slots=True)
class Final:
    """A container as it was read when everything had come back."""

    ref: Ref
    id: str
    commit: int
    objects: dict[Key, tuple[str, Value]]
    """Version and value."""
    turns: list[tuple[int, str]]


class Finding(NamedTuple):
    """A promise that was broken. ``kind`` is one of ``KINDS``."""

    kind: str
    text: str


KINDS = {
    "read-without-event": "content was released, but no event tells",
    "write-without-event": "a write was acknowledged, but no event tells it so",
    "gone": "what was written isn't there afterwards",
    "surplus": "something is there that nothing explains",
    "commit-gap": "a container's commit numbers have a gap or a repetition",
    "half": "a commit over several containers was done in part",
    "twice": "one change was applied twice",
    "lost-update": "a precondition held that couldn't",
    "event-differs": "an event tells something else than what was done",
    "other-answer": "a repeated request got another answer than the first",
    "other-status": "a repeated request got the first answer under another status",
    "refused-but-there": "a write was refused as not stored, and is stored",
    "stale": "a read showed what an acknowledged write had replaced before it was asked",
    "torn": "a read showed a state that never was",
    "two-containers": "one name led to two containers",
    "status": "an answer that no crash excuses",
    "content-in-error": "an error's text holds content",
    "sequence": "a writer's numbers have a gap",
    "export": "the exported log doesn't verify",
    "left-behind": "a process outlived its service",
}


@dataclass(slots=True)
class Record:
    """Everything that a run leaves to be judged. ``events``: as exported, in no particular order."""

    intents: list[Intent]
    events: list[dict[str, Any]]
    finals: dict[Ref, Final]
