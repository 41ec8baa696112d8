"""What goes into the two statements and what comes out: ``confide.read`` and ``confide.write`` (migrations/sql).

A request is one HTTP request's part in a batch; it has targets, one container and one audit event each. Encoding is
column-wise, since the statements unnest arrays. Nothing here is plaintext: bodies are sealed and names are HMACs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Final
from uuid import UUID

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
    " $40, $41, $42)"
)
RECORD: Final = "SELECT confide.record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"


@dataclass(slots=True)
class Selector:
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


@dataclass(slots=True)
class ReadTarget:
    """One container to open. ``want``: WANT_KEYS for its wrapped keys, WANT_META for its sealed names, added up."""

    action: str
    facts: str
    kind: str
    container: UUID
    selectors: Sequence[Selector]
    want: int = 0


@dataclass(slots=True)
class Read:
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


@dataclass(slots=True)
class Operation:
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


@dataclass(slots=True)
class WriteTarget:
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


@dataclass(slots=True)
class Write:
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


@dataclass(slots=True)
class Record:
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


@dataclass(slots=True)
class TargetResult:
    """What the statement says of one target. ``head`` is its 'h' row; the others are in the order they came."""

    head: Any = None
    keys: list[Any] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    turns: list[Any] = field(default_factory=list)
    removed: list[Any] = field(default_factory=list)

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


def encode_read(batch: Sequence[Read], writer: UUID, flush: int, sequences: Sequences) -> tuple[Any, ...]:
    """The arguments of READ, in order."""
    now = datetime.now(UTC)
    requests: list[int] = []
    targets: list[ReadTarget] = []
    owners: list[int] = []
    selectors: list[Selector] = []
    seqs: list[int] = []
    for number, read in enumerate(batch, 1):
        for target in read.targets:
            requests.append(number)
            targets.append(target)
            seqs.append(sequences.draw(read.tenant))
            owners.extend([len(targets)] * len(target.selectors))
            selectors.extend(target.selectors)
    return (
        tenant_list(batch),
        writer,
        flush,
        [read.tenant for read in batch],
        [read.api_key for read in batch],
        [read.epoch for read in batch],
        requests,
        [uuid7() for _ in targets],
        [now] * len(targets),
        seqs,
        [target.action for target in targets],
        [target.facts for target in targets],
        [target.container for target in targets],
        [target.kind for target in targets],
        [target.want for target in targets],
        owners,
        [selector.type for selector in selectors],
        _sparse([selector.id for selector in selectors]),
        _sparse([selector.tag for selector in selectors]),
        _sparse([selector.after for selector in selectors]),
        _sparse([selector.before for selector in selectors]),
        _sparse([selector.version for selector in selectors]),
        [selector.limit for selector in selectors],
        [selector.bytes for selector in selectors],
    )


def encode_write(batch: Sequence[Write], writer: UUID, flush: int, sequences: Sequences) -> tuple[Any, ...]:
    """The arguments of WRITE, in order."""
    now = datetime.now(UTC)
    requests: list[int] = []
    targets: list[WriteTarget] = []
    owners: list[int] = []
    operations: list[Operation] = []
    seqs: list[int] = []
    for number, write in enumerate(batch, 1):
        for target in write.targets:
            requests.append(number)
            targets.append(target)
            seqs.append(sequences.draw(write.tenant))
            owners.extend([len(targets)] * len(target.operations))
            operations.extend(target.operations)
    return (
        tenant_list(batch),
        writer,
        flush,
        [write.tenant for write in batch],
        [write.api_key for write in batch],
        [write.epoch for write in batch],
        [write.guarded for write in batch],
        _sparse([write.idempotency_tag for write in batch]),
        _sparse([write.fingerprint for write in batch]),
        _sparse([write.answer for write in batch]),
        requests,
        [uuid7() for _ in targets],
        [now] * len(targets),
        seqs,
        *_target_columns(targets),
        *_operation_columns(owners, operations),
    )


def _target_columns(targets: Sequence[WriteTarget]) -> tuple[list[Any], ...]:
    return (
        [target.action for target in targets],
        [target.facts for target in targets],
        [target.container for target in targets],
        [target.kind for target in targets],
        _sparse([target.external for target in targets]),
        [target.ck for target in targets],
        _sparse([target.new_key for target in targets]),
        _sparse([target.trk for target in targets]),
        _sparse([target.expected_commit for target in targets]),
        _sparse([target.expected_head for target in targets]),
        _sparse([target.make for target in targets]),
        _sparse([target.change for target in targets]),
        _sparse([target.meta for target in targets]),
    )


def _operation_columns(owners: list[int], operations: Sequence[Operation]) -> tuple[Any, ...]:
    return (
        owners,
        [operation.type for operation in operations],
        [operation.id for operation in operations],
        [operation.version for operation in operations],
        [operation.collection for operation in operations],
        _sparse([operation.tags for operation in operations]),
        _sparse([operation.if_version for operation in operations]),
        [operation.if_none for operation in operations] if any(op.if_none for op in operations) else [],
        _sparse([operation.fingerprint for operation in operations]),
        [operation.content_type for operation in operations],
        [operation.size for operation in operations],
        _sparse([operation.number for operation in operations]),
        *_joined([operation.body or b"" for operation in operations]),
    )


def _joined(bodies: Sequence[bytes]) -> tuple[list[int], list[int], bytes]:
    """Starts (from 1, as SQL counts), lengths and all bodies in one."""
    lengths = [len(body) for body in bodies]
    starts = list(accumulate(lengths, initial=1))
    starts.pop()
    return starts, lengths, b"".join(bodies)


def _sparse(column: list[Any]) -> list[Any]:
    """Nothing at all for a column without a value: ``unnest`` fills up with NULL, and a subscript of nothing is
    NULL.
    """
    return column if column.count(None) < len(column) else []


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
