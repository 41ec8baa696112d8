"""Writes an audit export (``docs/format-audit.md``). Pure: it turns entries and hashes into chunks for a sink.

    writer = ExportWriter(chunks.append, head)
    for entry, leaf in rows: writer.add(entry, leaf)       # leaf: the hash as stored in the tree, not computed anew
    writer.end()

The writer holds one block of at most ``BLOCK`` events, so a service can hand chunks on between two calls, from a plain
loop as well as from an asynchronous one.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.audit.merkle import HASH_BYTES

MAGIC = "#confide-audit-export/1"
BLOCK = 256
MISSING = b"#missing"
"""In place of an event: the table has no row of that number, or more than one."""
ALTERED = b"#altered"
"""In place of an event: its row is none, or its columns say something else than its entry."""


@dataclass(frozen=True, slots=True)
class ExportHead:
    """What precedes the events. ``checkpoint`` is the signed note that all is proven against.

    ``left`` and ``right`` are ``merkle.range_proof(first, end, size, get)``; ``consistency`` maps sizes of older
    checkpoints to ``merkle.consistency_proof(old, size, get)``, for readers who keep one of those.
    """

    first: int
    end: int
    checkpoint: bytes
    left: Sequence[bytes] = ()
    right: Sequence[bytes] = ()
    consistency: Mapping[int, Sequence[bytes]] = field(default_factory=dict)

    def line(self) -> str:
        fields = {
            "checkpoint": _base64(self.checkpoint),
            "consistency": {str(old): _base64(b"".join(proof)) for old, proof in self.consistency.items()},
            "end": self.end,
            "first": self.first,
            "left": _base64(b"".join(self.left)),
            "right": _base64(b"".join(self.right)),
        }
        return f"{MAGIC} {json.dumps(fields, separators=(',', ':'))}"


class ExportWriter:
    """Raises ValueError where the calls don't add up to the range that the head announced."""

    def __init__(self, sink: Callable[[bytes], object], head: ExportHead) -> None:
        self._sink, self._head, self._next = sink, head, head.first
        self._entries: list[bytes] = []
        self._leaves: list[bytes] = []
        self._nodes: list[bytes] = []
        self._write(head.line())

    def add(self, entry: bytes | None, leaf: bytes, nodes: bytes = b"") -> None:
        """The next event: its leaf entry, its leaf hash as the tree has it, and the stored hashes of the larger
        subtrees that it completes, from small to large.

        The hash must come from the stored tree. A hash made from the row would agree with an altered row, and the
        verifier could no longer say which one it is. ``None`` stands for a row that the table has lost.
        """
        if self._next >= self._head.end:
            raise ValueError("there are more leaves than the export's head announced")
        if len(leaf) != HASH_BYTES or (entry is not None and b"\n" in entry):
            raise ValueError("an entry is one line and a leaf hash has 32 bytes")
        self._entries.append(MISSING if entry is None else entry)
        self._leaves.append(leaf)
        self._nodes.append(nodes)
        self._next += 1
        if len(self._leaves) == BLOCK:
            self._flush()

    def mark(self, note: bytes) -> None:
        """An older signed checkpoint, after the last leaf that it covers: narrows down where a log was rewritten."""
        self._flush()
        self._write(f"#mark {_base64(note)}")

    def surplus(self, entry: bytes) -> None:
        """After the last event: a row that stands where the tree has no leaf. The verifier names its place as bad."""
        self._flush()
        self._sink(entry + b"\n")

    def nodes(self, hashes: bytes) -> None:
        """Stored hashes of subtrees, after the events since the last call of this kind."""
        self._write(f"#nodes {_base64(hashes)}")

    def end(self) -> None:
        if self._next != self._head.end:
            raise ValueError("there are fewer leaves than the export's head announced")
        self._flush()
        self._write(f"#end {self._next}")

    def _flush(self) -> None:
        if self._leaves:
            head = f"#leaves {self._next - len(self._leaves)} {_base64(b''.join(self._leaves))}\n"
            self._sink(head.encode() + b"".join(entry + b"\n" for entry in self._entries))
            nodes = b"".join(self._nodes)
            if nodes:
                self.nodes(nodes)
            self._entries, self._leaves, self._nodes = [], [], []

    def _write(self, line: str) -> None:
        self._sink(f"{line}\n".encode())


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
