"""What goes into the two statements and what comes out: ``confide.read`` and ``confide.write`` (migrations/sql).

A request is one HTTP request's part in a batch; it has targets, one container and one audit event each. Encoding is
column-wise, since the statements unnest arrays. Nothing here is plaintext: bodies are sealed and names are HMACs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from uuid_utils import uuid7

WANT_KEYS: Final = 1
WANT_META: Final = 2

READ: Final = (
    "SELECT * FROM confide.read($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
    " $18, $19, $20, $21, $22, $23, $24)"
)
WRITE: Final = (
    "SELECT * FROM confide.write($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
    " $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39,"
    " $40, $41, $42, $43)"
)
RECORD: Final = "SELECT confide.record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"


class Selector(Struct):
    """What to read of a container. ``type``: object (``id``); list (``id`` = collection tag, ``tag``, below
    ``version``);
    turns-before (below ``before``, newest first); turns-after (above ``after``, oldest first). ``bytes`` is a soft
    limit.
    """

    type: str
    id: UUID | None = None
    tag: UUID | None = None
    after: int | None = None
    before: int | None = None
    version: UUID | None = None
    limit: int = 1
    bytes: int = 1 << 62


class ReadTarget(Struct):
    """One container to open. ``want``: WANT_KEYS for its wrapped keys, WANT_META for its sealed names, added up."""

    action: str
    facts: str
    kind: str
    container: UUID
    selectors: Sequence[Selector]
    want: int = 0


class Read(Struct):
    tenant: UUID
    api_key: UUID
    epoch: int
    targets: Sequence[ReadTarget]
    weight: int = 0

    @property
    def events(self) -> int:
        return len(self.targets)

    def containers(self) -> Iterable[UUID]:
        return ()


class Operation(Struct):
    """One change. ``type``: put, delete, delete-many, prune, turn, pop, clear, erase.

    ``if_version``: the version that must be current; the nil UUID: any version, but there must be one.
    ``number``: a turn's number; how many to keep (prune) or to pop.
    """

    type: str
    id: UUID | None = None
    version: UUID | None = None
    collection: UUID | None = None
    tags: bytes | None = None
    if_version: UUID | None = None
    if_none: bool = False
    fingerprint: bytes | None = None
    content_type: str | None = None
    size: int = 0
    number: int | None = None
    body: bytes | None = None


class WriteTarget(Struct):
    """One container to change. ``make`` and ``change`` are JSON for ``confide.write``; ``new_key`` is a sealed CK;
    ``external`` the tag of the name that a new container takes.
    """

    action: str
    facts: str
    kind: str
    container: UUID
    operations: Sequence[Operation]
    ck: int | None = None
    new_key: bytes | None = None
    trk: int | None = None
    expected_commit: int | None = None
    expected_head: int | None = None
    external: UUID | None = None
    make: str | None = None
    change: str | None = None
    meta: bytes | None = None


class Write(Struct):
    tenant: UUID
    api_key: UUID
    epoch: int
    targets: Sequence[WriteTarget]
    guarded: bool = True
    idempotency_tag: bytes | None = None
    fingerprint: bytes | None = None
    answer: bytes | None = None
    weight: int = 0

    @property
    def events(self) -> int:
        return len(self.targets)

    def containers(self) -> Iterable[UUID]:
        return [target.container for target in self.targets]


class Record(Struct):
    """An event without rows: a denial, a KMS intent or outcome, a transition. ``event`` is made here if not given."""

    tenant: UUID
    action: str
    outcome: str
    facts: str
    reason: str | None = None
    container: UUID | None = None
    event: UUID | None = None
    weight: int = 0

    @property
    def events(self) -> int:
        return 1

    def containers(self) -> Iterable[UUID]:
        return ()


class TargetResult(Struct):
    """What the statement says of one target. ``head`` is its 'h' row; the others are in the order they came."""

    head: Any = None
    keys: list[Any] = []
    objects: list[Any] = []
    turns: list[Any] = []
    removed: list[Any] = []

    @property
    def status(self) -> str:
        status: str = self.head["content_type"]
        return status


class Sequences:
    """Gap-free numbers per tenant of one writer: drawn while a statement is made, kept when it has committed."""

    def __init__(self) -> None:
        self._last: dict[UUID, int] = {}
        self._drawn: dict[UUID, int] = {}

    def draw(self, tenant: UUID) -> int:
        number = self._drawn.get(tenant) or self._last.get(tenant, 0)
        self._drawn[tenant] = number + 1
        return number + 1

    def keep(self) -> None:
        self._last.update(self._drawn)
        self._drawn.clear()

    def give_back(self) -> None:
        self._drawn.clear()


def tenant_list(items: Iterable[Read | Write | Record]) -> str:
    """The transaction-local list that row-level policies check, as a PostgreSQL array literal."""
    return "{" + ",".join({str(item.tenant) for item in items}) + "}"


class _Callers:
    """Who stands behind a batch's requests, each once: columns of tenant, API key and epoch, and a number from 1."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[UUID, UUID, int], int] = {}

    def number(self, item: Read | Write) -> int:
        return self._numbers.setdefault((item.tenant, item.api_key, item.epoch), len(self._numbers) + 1)

    def columns(self) -> list[tuple[Any, ...]]:
        return list(zip(*self._numbers, strict=True))


def encode_read(batch: Sequence[Read], writer: UUID, flush: int, sequences: Sequences) -> tuple[Any, ...]:
    """The arguments of READ, in order."""
    callers = _Callers()
    targets: list[tuple[Any, ...]] = []
    selectors: list[tuple[Any, ...]] = []
    for read in batch:
        caller = callers.number(read)
        for t in read.targets:
            seq = sequences.draw(read.tenant)
            targets.append((caller, uuid7(), seq, t.action, t.facts, t.container, t.kind, t.want))
            place = len(targets)
            selectors += [
                (place, s.type, s.id, s.tag, s.after, s.before, s.version, s.limit, s.bytes) for s in t.selectors
            ]
    return (
        tenant_list(batch),
        writer,
        flush,
        datetime.now(UTC),
        *callers.columns(),
        *_columns(targets, 8),
        *_columns(selectors, 9),
    )


def encode_write(batch: Sequence[Write], writer: UUID, flush: int, sequences: Sequences) -> tuple[Any, ...]:
    """The arguments of WRITE, in order."""
    callers = _Callers()
    requests: list[tuple[Any, ...]] = []
    targets: list[tuple[Any, ...]] = []
    operations: list[tuple[Any, ...]] = []
    bodies: list[bytes] = []
    start = 1  # as SQL counts
    for number, write in enumerate(batch, 1):
        caller = callers.number(write)
        requests.append((caller, write.guarded, write.idempotency_tag, write.fingerprint, write.answer))
        for t in write.targets:
            targets.append((number, uuid7(), sequences.draw(write.tenant), *_target_values(t)))
            place = len(targets)
            for operation in t.operations:
                body = operation.body or b""
                operations.append((place, *_operation_values(operation), start, len(body)))
                bodies.append(body)
                start += len(body)
    return (
        tenant_list(batch),
        writer,
        flush,
        datetime.now(UTC),
        *callers.columns(),
        *_columns(requests, 5),
        *_columns(targets, 16),
        *_columns(operations, 14),
        b"".join(bodies),
    )


def _target_values(t: WriteTarget) -> tuple[Any, ...]:
    return (
        t.action,
        t.facts,
        t.container,
        t.kind,
        t.external,
        t.ck,
        t.new_key,
        t.trk,
        t.expected_commit,
        t.expected_head,
        t.make,
        t.change,
        t.meta,
    )


def _operation_values(o: Operation) -> tuple[Any, ...]:
    return (
        o.type,
        o.id,
        o.version,
        o.collection,
        o.tags,
        o.if_version,
        o.if_none or None,
        o.fingerprint,
        o.content_type,
        o.size,
        o.number,
    )


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[Sequence[Any]]:
    """Rows turned into columns. One without a value is left empty: ``unnest`` fills up with NULL, and a subscript of
    nothing is NULL.
    """
    if not rows:
        return [()] * width
    return [column if _holds(column) else () for column in zip(*rows, strict=True)]


def _holds(column: Sequence[Any]) -> bool:
    return column[0] is not None or any(value is not None for value in column)


def encode_record(batch: Sequence[Record], writer: UUID, flush: int, sequences: Sequences) -> tuple[Any, ...]:
    """The arguments of RECORD, in order."""
    now = datetime.now(UTC)
    return (
        tenant_list(batch),
        writer,
        flush,
        [record.tenant for record in batch],
        [record.event or uuid7() for record in batch],
        [now] * len(batch),
        [sequences.draw(record.tenant) for record in batch],
        [record.action for record in batch],
        [record.outcome for record in batch],
        [record.reason for record in batch],
        [record.container for record in batch],
        [record.facts for record in batch],
    )


def decode(batch: Sequence[Read | Write], rows: Iterable[Any]) -> list[list[TargetResult]]:
    """The rows of a statement, by request and target, in the batch's order."""
    flat: list[TargetResult] = []
    results: list[list[TargetResult]] = []
    for item in batch:
        own = [TargetResult() for _ in item.targets]
        flat.extend(own)
        results.append(own)
    for row in rows:
        result = flat[row[0] - 1]
        kind = row[1]
        if kind == "h":
            result.head = row
        elif kind == "o":
            result.objects.append(row)
        elif kind == "t":
            result.turns.append(row)
        elif kind == "k":
            result.keys.append(row)
        else:
            result.removed.append(row)
    return results
