"""A log as the service would hold it: rows, tree nodes and signed checkpoints, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from uuid import UUID

from app.audit import event, merkle
from app.audit.checkpoint import Checkpoint, Signer
from app.audit.export import ExportHead, ExportWriter
from app.audit.verify import Report, read_lines, verify

START = datetime(2026, 11, 1, tzinfo=UTC)
KEY_NAME = "confide.example/eu-central-1/audit"


def random_uuid(rng: random.Random, version: int = 7, milliseconds: int | None = None) -> str:
    number = rng.getrandbits(128)
    if milliseconds is not None:
        number = milliseconds << 80 | number & (1 << 80) - 1
    number = number & ~(0xF << 76 | 0x3 << 62) | version << 76 | 0x2 << 62
    return str(UUID(int=number))


def make_events(rng: random.Random, count: int, tenant: str) -> list[dict[str, object]]:
    """``count`` events of several writers, a few milliseconds apart."""
    writers = [random_uuid(rng) for _ in range(4)]
    seqs = dict.fromkeys(writers, 0)
    events, now = [], START
    for number in range(count):
        now += timedelta(microseconds=rng.randrange(1, 5000))
        writer = rng.choice(writers)
        seqs[writer] += 1
        events.append(
            {
                "v": 1,
                "id": random_uuid(rng, 7, int(now.timestamp() * 1000)),
                "time": event.format_time(now),
                "tenant": tenant,
                "region": "eu-central-1",
                "writer": writer,
                "seq": seqs[writer],
                "action": rng.choice(("context.load", "context.commit")),
                "outcome": "allowed",
                "principal": writers[0],
                "container": random_uuid(rng),
                "commit": number,
            }
        )
    return events


@dataclass
class MadeLog:
    tenant: str
    signer: Signer
    rows: list[bytes]
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    roots: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grow()

    @classmethod
    def make(cls, seed: int, count: int) -> MadeLog:
        rng = random.Random(seed)
        tenant = random_uuid(rng)
        rows = [event.encode(made) for made in make_events(rng, count, tenant)]
        return cls(tenant, Signer(KEY_NAME, rng.randbytes(32)), rows)

    def grow(self) -> None:
        self.nodes.clear()
        frontier = merkle.Frontier()
        self.roots[:] = [frontier.root()]
        for row in self.rows:
            for level, index, hash_ in frontier.append(event.leaf_hash(row)):
                self.nodes[level, index] = hash_
            self.roots.append(frontier.root())

    def get(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]

    @property
    def origin(self) -> str:
        return f"{KEY_NAME}/{self.tenant}"

    @property
    def key(self) -> str:
        return self.signer.verifier.text()

    def leaves(self) -> list[bytes]:
        return [self.nodes[0, index] for index in range(len(self.rows))]

    def note(self, size: int | None = None, signer: Signer | None = None) -> bytes:
        size = len(self.rows) if size is None else size
        return Checkpoint(self.origin, size, self.roots[size]).sign(signer or self.signer)

    def export(
        self,
        first: int = 0,
        end: int | None = None,
        size: int | None = None,
        *,
        kept: Sequence[int] = (),
        marks: int = 0,
    ) -> bytes:
        size = len(self.rows) if size is None else size
        end = size if end is None else end
        left, right = merkle.range_proof(first, end, size, self.get)
        proofs = {old: merkle.consistency_proof(old, size, self.get) for old in kept}
        marked = {at: self.note(at) for at in range(marks, end, marks)} if marks else {}
        head = ExportHead(first, end, self.note(size), left, right, proofs)
        return write(head, self.rows[first:end], [self.nodes[0, index] for index in range(first, end)], marked)


def write(
    head: ExportHead, rows: Sequence[bytes | None], leaves: Sequence[bytes], marks: Mapping[int, bytes] | None = None
) -> bytes:
    """An export of these rows and stored leaf hashes, whether they fit each other or not."""
    chunks: list[bytes] = []
    writer = ExportWriter(chunks.append, head)
    for index, (row, leaf) in enumerate(zip(rows, leaves, strict=True), head.first + 1):
        writer.add(row, leaf)
        if marks and index in marks:
            writer.mark(marks[index])
    writer.end()
    return b"".join(chunks)


def check(export: bytes, log: MadeLog, last: bytes | None = None, *, contents: bool = True, origin: str = "") -> Report:
    return verify(read_lines(BytesIO(export)), [log.key], last, origin=origin, tolerance=10.0 if contents else None)
