"""Offline verifier of Confide audit exports. One file: needs Python 3.11 and ``cryptography``, nothing of Confide.

    python verify.py EXPORT --key VKEY [--checkpoint LAST] [--origin ORIGIN] [--json]

Written from RFC 9162 section 2.1, C2SP signed-note and tlog-checkpoint, RFC 8785 and ``docs/format-audit.md`` alone.
Exit codes: 0 verified; 1 tampering or a mismatch; 2 usage, or unreadable; 3 incomplete, nothing wrong in what is there.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAGIC = "#confide-audit-export/1"
MAX_LINE, MAX_BLOCK, MAX_FINDINGS, ID_WINDOW = 2 << 20, 1024, 100, 1 << 16
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


class StopReading(Exception):
    """The export can't be followed further. The arguments are those of ``Report.add``."""


@dataclass
class Report:
    """``first_bad_leaf`` is exact. Where only a root is wrong, ``bad_range`` [from, to) holds the first bad leaf."""

    origin: str = ""
    tenant: str = ""
    first: int = 0
    end: int = 0
    size: int = 0
    root: str = ""
    checkpoint: str = ""
    events: int = 0
    marks: int = 0
    exit_code: int = 0
    first_bad_leaf: int | None = None
    bad_range: tuple[int, int] | None = None
    findings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, code: str, message: str, leaf: int | None = None) -> None:
        self.exit_code = 3 if code == "incomplete" and self.exit_code != 1 else 1
        if leaf is not None:
            self.first_bad_leaf = leaf if self.first_bad_leaf is None else min(leaf, self.first_bad_leaf)
        self.findings += [{"code": code, "message": message, "leaf": leaf}][: MAX_FINDINGS - len(self.findings)]


class Edge:
    """A growing tree: the stack of its perfect subtrees, one for each one-bit of its size."""

    def __init__(self, size: int, stack: list[bytes]) -> None:
        if len(stack) != size.bit_count():
            raise ValueError("the hashes to the left of the range don't fit its start")
        self.size, self.stack, self.made = size, list(stack), list[bytes]()  # made: inner hashes, as they come about

    def add(self, hash_: bytes, level: int = 0) -> None:
        while self.size >> level & 1:
            hash_ = sha256(b"\x01" + self.stack.pop() + hash_).digest()
            self.made.append(hash_)
            self.size -= 1 << level
            level += 1
        self.stack.append(hash_)
        self.size += 1 << level

    def root(self) -> bytes:
        hash_ = self.stack[-1] if self.stack else sha256(b"").digest()
        for left in self.stack[-2::-1]:
            hash_ = sha256(b"\x01" + left + hash_).digest()
        return hash_

    def completed(self, size: int, right: list[bytes]) -> bytes | None:
        """The root at ``size``, given the perfect subtrees to the right; None where they don't fit."""
        whole = Edge(self.size, self.stack)
        for hash_ in right:
            if whole.size >= size:
                return None
            fits, aligned = (size - whole.size).bit_length() - 1, (whole.size & -whole.size).bit_length() - 1
            whole.add(hash_, min(fits, aligned) if whole.size else fits)
        return whole.root() if whole.size == size else None


def consistent(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Section 2.1.4.1 read backwards: rebuild both roots from SUBPROOF(old, D[new], true)."""

    def rebuild(m: int, n: int, proof: list[bytes], whole: bool) -> tuple[bytes, bytes]:
        if m == n and len(proof) == (not whole):
            return (old_root, old_root) if whole else (proof[0], proof[0])
        if m == n or not proof:
            return b"", b""  # too long or too short: leads to no root at all
        k = 1 << ((n - 1).bit_length() - 1)
        before, after = rebuild(m, k, proof[:-1], whole) if m <= k else rebuild(m - k, n - k, proof[:-1], False)
        if m <= k:
            return before, sha256(b"\x01" + after + proof[-1]).digest()
        return sha256(b"\x01" + proof[-1] + before).digest(), sha256(b"\x01" + proof[-1] + after).digest()

    return 0 < old <= new and rebuild(old, new, proof, True) == (old_root, new_root)


Key = tuple[str, bytes, bytes]  # (key name, key id, public key)
Checkpoint = NamedTuple("Checkpoint", [("origin", str), ("size", int), ("root", bytes), ("signed", bool)])  # noqa: UP014
NOTE = re.compile(
    "(?P<text>(?P<origin>[^\x00-\x1f]+)\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>\\S+)\n(?:[^\x00-\x1f]+\n)*)\n"
    "(?P<signatures>(?:\u2014 [^\\s+]+ [A-Za-z0-9+/]+=*\n)+)"
)


def unbase64(text: str, unit: int = 1) -> bytes:
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text or len(data) % unit:
        raise ValueError("base64 is not canonical, or not a list of hashes")
    return data


def hashes(text: str) -> list[bytes]:
    data = unbase64(text, 32)
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def parse_key(text: str) -> Key:
    name, key_id, encoded = [*text.strip().split("+", 2), "", ""][:3]
    key = unbase64(encoded)
    if len(key) != 33 or key[0] != 1 or sha256(name.encode() + b"\n" + key).digest()[:4].hex() != key_id:
        raise ValueError("--key is not an Ed25519 verifier key: <name>+<id>+<base64>")
    return name, bytes.fromhex(key_id), key[1:]


def parse_checkpoint(note: bytes, keys: list[Key]) -> Checkpoint:
    """ValueError for a malformed note and for a wrong signature by one of ``keys``; other keys are ignored."""
    match = NOTE.fullmatch(note.decode())
    if not match or len(root := unbase64(match["root"])) != 32:
        raise ValueError("a checkpoint is malformed")
    signed = False
    for line in match["signatures"].split("\n")[:-1]:
        _, name, encoded = line.split(" ")
        data = unbase64(encoded)
        for public in (key[2] for key in keys if key[:2] == (name, data[:4])):
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(data[4:], match["text"].encode())
            except InvalidSignature:
                raise ValueError("a checkpoint's signature by a given key is wrong") from None
            signed = True
    return Checkpoint(match["origin"], int(match["size"]), root, signed)


class Verification:
    """The tree grows from the listed leaf hashes, and once one differs, another one from the events."""

    def __init__(self, keys: list[Key], last: Checkpoint | None, origin: str, tolerance: float | None) -> None:
        self.keys, self.last, self.tolerance, self.report = keys, last, tolerance, Report(origin=origin)
        self.writers, self.ids = dict[str, tuple[int, float]](), dict[str, None]()
        self.tree, self.before, self.other = Edge(0, []), Edge(0, []), Edge(0, [])
        self.want, self.got = list[bytes](), list[bytes]()
        self.differs: int | None = None  # first leaf where the event isn't the listed one
        self.whole: bool | None = None  # whether the listed leaves led to the signed root; None before the end
        self.trusted, self.lost, self.unproven = 0, -1, False  # sizes where a known root matched, and where it didn't
        self.inner = -1  # the size at which a stored inner hash was found to differ

    def run(self, lines: Iterator[bytes]) -> Report:
        try:
            self.header(next(lines, b""))
            if not any(map(self.line, lines)):
                raise StopReading("incomplete", "the export ends before its end line: it was truncated")
            if next(lines, None) is not None:
                raise StopReading("format", "there are lines after the end")
        except StopReading as stop:
            self.verdict()
            self.report.add(*stop.args)
        return self.report

    def header(self, line: bytes) -> None:
        magic, _, text = line.decode("utf-8", "replace").partition(" ")
        if magic != MAGIC:
            raise ValueError(f"this is not a Confide audit export: it doesn't start with {MAGIC}")
        try:
            head, report = json.loads(text), self.report
            note, report.first, report.end = unbase64(head["checkpoint"]), int(head["first"]), int(head["end"])
            self.tree = Edge(report.first, hashes(head["left"]))
            self.before, self.right = Edge(self.tree.size, self.tree.stack), hashes(head["right"])
            proofs = {int(size): hashes(proof) for size, proof in head["consistency"].items()}
            self.checkpoint(note)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StopReading("format", "the header is malformed") from None
        if not 0 <= report.first <= report.end <= report.size:
            raise StopReading("format", "the header's range is not in the signed tree")
        if self.last is not None:
            self.hold_against(self.last, proofs)

    def checkpoint(self, note: bytes) -> None:
        report, now = self.report, parse_checkpoint(note, [])
        try:
            if not parse_checkpoint(note, self.keys).signed:
                report.add("signature", "the checkpoint is not signed by a key that was given")
        except ValueError as error:  # untrusted from here on: what follows only helps to name what differs
            report.add("signature", str(error))
        if report.origin not in ("", now.origin):
            report.add("origin", "the export is of another log than the one asked for")
        report.origin, report.size, report.root, self.root = now.origin, now.size, now.root.hex(), now.root
        report.tenant, report.checkpoint = re.sub(r"/[1-9][0-9]*\Z", "", now.origin).rpartition("/")[2], note.decode()

    def hold_against(self, last: Checkpoint, proofs: dict[int, list[bytes]]) -> None:
        report, size = self.report, last.size
        if last.origin != report.origin:
            report.add("origin", "the checkpoint that was kept is of another log, or of another epoch of it")
        elif size > report.size:
            report.add("rollback", f"the log has {report.size} leaves, but {size} had been signed: it is an older copy")
        elif size not in proofs and size != report.size:
            self.unproven = not report.first <= size <= report.end
        elif not consistent(size, report.size, proofs.get(size, []), last.root, self.root):
            report.add("fork", "the log does not extend the checkpoint that was kept: it was rewritten")
        self.anchor(last)

    def anchor(self, known: Checkpoint | None) -> None:
        """Hold the tree against a trusted root of the size that it has just reached."""
        if known is not None and self.tree.size == known.size:
            if self.tree.root() == known.root:
                self.trusted = known.size
            elif self.lost < 0:
                self.lost = known.size

    def line(self, line: bytes) -> bool:
        """Take one line in; True after the last."""
        keyword, _, rest = line.partition(b" ")
        take = {b"#leaves": self.leaves, b"#nodes": self.nodes, b"#mark": self.mark, b"#end": self.end}.get(keyword)
        if take is None:
            self.event(line)
            return False
        self.close()
        try:
            take(rest.decode())
        except ValueError:
            raise StopReading("format", f"a control line before leaf {self.tree.size} is malformed") from None
        return keyword == b"#end"

    def leaves(self, rest: str) -> None:
        start, _, encoded = rest.partition(" ")
        self.want, size, self.tree.made = hashes(encoded), self.tree.size, []
        if int(start) != size or not 0 < len(self.want) <= min(MAX_BLOCK, self.report.end - size):
            raise StopReading("leaf", f"leaves are missing or surplus from {size} on", size)
        for hash_ in self.want:
            self.tree.add(hash_)
            self.anchor(self.last)

    def nodes(self, rest: str) -> None:
        if hashes(rest) != self.tree.made and self.inner < 0:
            self.inner = self.tree.size

    def event(self, line: bytes) -> None:
        at, hash_ = len(self.got), sha256(b"\x00" + line).digest()
        self.got.append(hash_)
        if self.differs is None and at < len(self.want) and hash_ == self.want[at]:
            self.report.events += 1
            if self.tolerance is not None:
                self.contents(self.before.size + at, line, self.tolerance)
        elif self.differs is None:
            self.differs = self.before.size + at
        elif at > 64 * MAX_BLOCK:
            raise StopReading("format", "there are too many events without a list of leaf hashes")

    def contents(self, leaf: int, line: bytes, tolerance: float) -> None:
        """Canonical form, tenant, writer's sequence, clock and id of an event that is the listed leaf."""
        add = self.report.add
        try:
            event = json.loads(line.decode(), parse_float=set, parse_constant=set)  # a set has no canonical form
            id_, tenant, writer, seq = event["id"], event["tenant"], event["writer"], event["seq"]
            time = datetime.fromisoformat(event["time"]).timestamp()
            drift = abs(time - int(id_.replace("-", "")[:12], 16) / 1000)
            if event["v"] != 1 or event["time"][-1] != "Z" or type(seq) is not int or CANONICAL(event).encode() != line:
                raise ValueError
            start = self.report.first == 0 and self.report.origin.endswith(tenant)  # after a restore writers go on
            before, latest = self.writers.get(writer, (0 if start else seq - 1, time))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            add("event", "not an event in canonical form with the fields that every event has", leaf)
            return
        if tenant != self.report.tenant:
            add("tenant", "the event belongs to another tenant", leaf)
        if id_ in self.ids:
            add("duplicate", "the event's id occurred before", leaf)
        if seq != before + 1:
            add("gap", f"writer {writer}: number {seq} follows {before}", leaf)
        if drift > tolerance or time < latest - tolerance:
            add("clock", "the writer's clock went back, or the event's id and time are of different moments", leaf)
        self.writers[writer], self.ids[id_] = (seq, max(time, latest)), None
        if len(self.ids) > ID_WINDOW:
            del self.ids[next(iter(self.ids))]

    def close(self) -> None:
        """The end of a block of events."""
        if self.differs is None and len(self.got) < len(self.want):
            self.differs = self.before.size + len(self.got)
        if self.differs is not None:
            self.other = self.other if self.other.size else self.before
            for hash_ in self.got:
                self.other.add(hash_)
            self.other.made.clear()
        self.want, self.got, self.before = [], [], Edge(self.tree.size, self.tree.stack)

    def mark(self, rest: str) -> None:
        report, size, self.report.marks = self.report, self.tree.size, self.report.marks + 1
        try:
            mark = parse_checkpoint(unbase64(rest), self.keys)
        except ValueError as error:
            report.add("mark", f"before leaf {size}: {error}")
            return
        if not mark.signed:
            report.add("incomplete", f"none of the given keys signed the checkpoint before leaf {size}")
        elif (mark.origin, mark.size) != (report.origin, size):
            report.add("mark", f"before leaf {size} stands a checkpoint of another log or size")
        else:
            self.anchor(mark)

    def end(self, rest: str) -> None:
        if int(rest) != self.report.end or self.tree.size != int(rest):
            raise StopReading("leaf", f"the leaves from {self.tree.size} on are missing", self.tree.size)
        self.whole = self.tree.completed(self.report.size, self.right) == self.root
        if self.unproven:
            raise StopReading("incomplete", "there is no proof of consistency with the checkpoint that was kept")
        self.verdict()

    def verdict(self) -> None:
        report, leaf, wrong = self.report, self.differs, self.whole is False
        if wrong and leaf is not None and self.other.completed(report.size, self.right) == self.root:
            report.add("leaf-hash", "the event is as signed, but the tree's stored hash of it is not", leaf)
        elif wrong:
            report.add("root", "the leaves do not lead to the signed root")
            report.bad_range = (self.trusted, self.lost if self.lost >= 0 else report.size)
            report.first_bad_leaf = None
        elif leaf is not None:
            report.add("leaf", "the event is not the leaf that was signed: altered, missing, surplus or moved", leaf)
        elif self.inner >= 0 and self.whole:
            report.add("node", f"a stored hash over leaves before {self.inner} is not what they make")
        if self.lost >= 0 and not wrong:
            report.add("fork", "the log was rewritten after a checkpoint was signed or kept")
            report.bad_range = (self.trusted, self.lost)


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        if not line.endswith(b"\n"):
            raise StopReading("incomplete", "the last line is cut off, or too long")
        yield line[:-1]


def verify(
    lines: Iterable[bytes],
    keys: list[str],
    last: bytes | None = None,
    *,
    origin: str = "",
    tolerance: float | None = 10.0,
) -> Report:
    """The report on an export. ``keys`` are verifier keys, ``last`` a signed checkpoint. Without a tolerance events are
    only hashed. Raises ValueError where nothing can be said: a bad key or checkpoint, or no export at all."""
    parsed = [parse_key(key) for key in keys]
    kept = None if last is None else parse_checkpoint(last, parsed)
    if kept is not None and not (kept.signed and kept.size):  # consistency with the empty log means nothing
        raise ValueError("the checkpoint that was kept is empty, or not signed by a key that was given")
    return Verification(parsed, kept, origin, tolerance).run(iter(lines))


def show(report: Report) -> str:
    text = ("VERIFIED", "TAMPERING OR MISMATCH", "", "INCOMPLETE")[report.exit_code]
    text += f": {report.origin}, leaves {report.first} to {report.end} of {report.size}, root {report.root}\n"
    text += "".join("  {code}: {message} (leaf {leaf})\n".format(**finding) for finding in report.findings)
    return text + f"first bad leaf: {report.first_bad_leaf}, or one in {report.bad_range}\n" * (report.exit_code == 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verify", description="Verify a Confide audit export offline.")
    parser.add_argument("export", metavar="EXPORT", help="the export file")
    parser.add_argument("--key", action="append", required=True, metavar="VKEY", help="verifier key; may be repeated")
    parser.add_argument("--checkpoint", metavar="LAST", type=Path, help="file with the last checkpoint that you kept")
    parser.add_argument("--origin", default="", help="the log that you expect")
    parser.add_argument("--clock-tolerance", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    try:
        last = args.checkpoint.read_bytes() if args.checkpoint else None
        with Path(args.export).open("rb") as file:
            report = verify(read_lines(file), args.key, last, origin=args.origin, tolerance=args.clock_tolerance)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"verify: {error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n" if args.json else show(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
