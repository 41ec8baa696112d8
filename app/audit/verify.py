"""Offline verifier of Confide audit exports. One file: needs Python 3.11 and ``cryptography``, nothing of Confide.

    python verify.py EXPORT --key VKEY [--checkpoint LAST] [--origin ORIGIN] [--json]

It is written from the specifications alone (RFC 9162 section 2.1, C2SP signed-note and tlog-checkpoint, RFC 8785 and
``docs/format-audit.md``) and shares no code with the service, so that each checks the other. You trust two things: the
verifier key, and the last checkpoint that you kept yourself.

Exit codes: 0 verified; 1 tampering or a mismatch; 2 usage, or unreadable; 3 incomplete, nothing wrong in what is there.
Memory stays flat: the tree's right edge, one record per writer, one block of hashes and a window of recent event ids.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAGIC = "#confide-audit-export/1"
MAX_LINE, MAX_BLOCK, MAX_FINDINGS, ID_WINDOW = 2 << 20, 1024, 100, 1 << 16
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnusableError(Exception):
    """Nothing can be said: bad usage, or not an export at all."""


class StopReading(Exception):  # noqa: N818 - it ends the reading; what was found stands in the report
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
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append({"code": code, "message": message, "leaf": leaf})


# ---- RFC 9162 section 2.1: hashes, a tree's right edge, consistency


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Edge:
    """A growing tree: the stack of its perfect subtrees, one for each one-bit of its size."""

    def __init__(self, size: int, stack: list[bytes]) -> None:
        if len(stack) != size.bit_count():
            raise ValueError("the hashes to the left of the range don't fit its start")
        self.size, self.stack = size, list(stack)

    def add(self, hash_: bytes, level: int = 0) -> None:
        while self.size >> level & 1:
            hash_ = sha256(b"\x01" + self.stack.pop() + hash_)
            self.size -= 1 << level
            level += 1
        self.stack.append(hash_)
        self.size += 1 << level

    def root(self) -> bytes:
        hash_ = self.stack[-1] if self.stack else sha256(b"")
        for left in self.stack[-2::-1]:
            hash_ = sha256(b"\x01" + left + hash_)
        return hash_

    def completed(self, size: int, right: list[bytes]) -> bytes | None:
        """The root at ``size``, given the perfect subtrees to the right; None where they don't fit."""
        whole = Edge(self.size, self.stack)
        for hash_ in right:
            if whole.size >= size:
                return None
            level = (size - whole.size).bit_length() - 1
            aligned = (whole.size & -whole.size).bit_length() - 1
            whole.add(hash_, min(level, aligned) if whole.size else level)
        return whole.root() if whole.size == size else None


def consistent(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Section 2.1.4.1 read backwards: rebuild both roots from SUBPROOF(old, D[new], true)."""
    rest = list(proof)

    def rebuild(m: int, n: int, whole: bool) -> tuple[bytes, bytes]:
        if m == n:
            hash_ = old_root if whole else rest.pop(0)
            return hash_, hash_
        k = 1 << ((n - 1).bit_length() - 1)
        if m <= k:
            before, after = rebuild(m, k, whole)
            return before, sha256(b"\x01" + after + rest.pop(0))
        before, after = rebuild(m - k, n - k, False)
        left = rest.pop(0)
        return sha256(b"\x01" + left + before), sha256(b"\x01" + left + after)

    try:
        return 0 < old <= new and rebuild(old, new, True) == (old_root, new_root) and not rest
    except IndexError:
        return False


# ---- C2SP signed-note and tlog-checkpoint


Key = tuple[str, bytes, bytes]
"""(key name, key id, public key), or in a signature line (key name, key id, signature)."""


def unbase64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 is not canonical")
    return data


def parse_key(text: str) -> Key:
    """``<name>+<hex id>+<base64(0x01 || public key)>``"""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        key = unbase64(encoded)
        if len(key) != 33 or key[0] != 1 or sha256(name.encode() + b"\n" + key)[:4].hex() != key_id:
            raise ValueError
    except ValueError:
        raise UnusableError("--key is not an Ed25519 verifier key: <name>+<id>+<base64>") from None
    return name, bytes.fromhex(key_id), key[1:]


@dataclass(frozen=True)
class Checkpoint:
    origin: str
    size: int
    root: bytes
    signed: bool

    @classmethod
    def parse(cls, note: bytes, keys: list[Key]) -> Checkpoint:
        """ValueError for a malformed note and for a wrong signature by one of ``keys``; other keys are ignored."""
        text, blank, tail = note.decode().rpartition("\n\n")
        lines = text.split("\n")
        if not blank or not tail.endswith("\n") or re.search(r"[\x00-\x09\x0b-\x1f]", text + tail):
            raise ValueError("a checkpoint is not a signed note")
        if len(lines) < 3 or not all(lines) or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise ValueError("a checkpoint has malformed lines")
        root = unbase64(lines[2])
        if len(root) != 32:
            raise ValueError("a checkpoint has a malformed root")
        signed = [cls._signature(line, text.encode() + b"\n", keys) for line in tail[:-1].split("\n")]
        return cls(lines[0], int(lines[1]), root, any(signed))

    @staticmethod
    def _signature(line: str, text: bytes, keys: list[Key]) -> bool:
        match = re.fullmatch("\u2014 ([^\\s+]+) ([A-Za-z0-9+/]+=*)", line)
        if not match:
            raise ValueError("a checkpoint has a malformed signature line")
        data = unbase64(match[2])
        known = [key[2] for key in keys if key[:2] == (match[1], data[:4])]
        try:
            for public in known:
                Ed25519PublicKey.from_public_bytes(public).verify(data[4:], text)
        except InvalidSignature:
            raise ValueError("a checkpoint's signature by a given key is wrong") from None
        return bool(known)


# ---- what events say


class Contents:
    """Canonical form, tenant, writers' sequences, clocks and ids of authenticated leaves, one after another."""

    def __init__(self, report: Report, tolerance: float) -> None:
        self.report, self.tolerance = report, timedelta(seconds=tolerance)
        self.writers: dict[str, tuple[int, datetime]] = {}
        self.ids: dict[str, None] = {}
        self.canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode

    def check(self, leaf: int, line: bytes) -> None:
        try:
            event = json.loads(line.decode(), parse_float=_refuse, parse_constant=_refuse)
            if self.canonical(event).encode() != line:
                raise ValueError
            id_, tenant, writer, seq = event["id"], event["tenant"], event["writer"], event["seq"]
            time = datetime.fromisoformat(event["time"])
            drift = abs(time - EPOCH - timedelta(milliseconds=int(id_.replace("-", "")[:12], 16)))
            if event["v"] != 1 or type(seq) is not int or not isinstance(writer, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.report.add("event", "not an event in canonical form with the fields that every event has", leaf)
            return
        if tenant != self.report.tenant:
            self.report.add("tenant", "the event belongs to another tenant", leaf)
        if drift > self.tolerance:
            self.report.add("clock", "the event's id and its time were not made at the same moment", leaf)
        if id_ in self.ids:
            self.report.add("duplicate", "the event's id occurred before", leaf)
        self.ids[id_] = None
        if len(self.ids) > ID_WINDOW:
            del self.ids[next(iter(self.ids))]
        self._sequence(leaf, writer, seq, time)

    def _sequence(self, leaf: int, writer: str, seq: int, time: datetime) -> None:
        before, latest = self.writers.get(writer, (0 if self.report.first == 0 else seq - 1, time))
        if seq != before + 1:
            self.report.add("gap", f"writer {writer}: number {seq} follows {before}", leaf)
        if time < latest - self.tolerance:
            self.report.add("clock", f"writer {writer}: its clock went back", leaf)
        self.writers[writer] = (seq, max(time, latest))


def _refuse(_text: str) -> Any:
    raise ValueError


# ---- the export


def hashes(text: str) -> list[bytes]:
    data = unbase64(text)
    if len(data) % 32:
        raise ValueError("a list of hashes has a wrong length")
    return [data[at : at + 32] for at in range(0, len(data), 32)]


class Verification:
    """Reads an export line by line. The tree grows from the listed leaf hashes; each event is held against its own.

    Once an event differs, a second tree grows from the events, because either may be what was altered.
    """

    def __init__(self, keys: list[Key], last: Checkpoint | None, report: Report, contents: Contents | None) -> None:
        self.keys, self.last, self.report, self.contents = keys, last, report, contents
        self.tree = self.before = Edge(0, [])
        self.other: Edge | None = None
        self.want: list[bytes] = []
        self.got: list[bytes] = []
        self.differs: int | None = None  # first leaf where the event isn't the listed one
        self.whole: bool | None = None  # whether the listed leaves led to the signed root; None before the end
        self.trusted, self.lost = 0, -1  # sizes up to which a signed root matched, and from which one didn't
        self.unproven = False

    def run(self, lines: Iterator[bytes]) -> Report:
        try:
            self.header(next(lines, b""))
            while not self.line(next(lines, None)):
                pass
            if next(lines, None) is not None:
                raise StopReading("format", "there are lines after the end")
        except StopReading as stop:
            self.verdict()
            self.report.add(*stop.args)
        return self.report

    def header(self, line: bytes) -> None:
        magic, _, text = line.decode("utf-8", "replace").partition(" ")
        if magic != MAGIC:
            raise UnusableError(f"this is not a Confide audit export: it doesn't start with {MAGIC}")
        try:
            head, report = json.loads(text), self.report
            note, report.first, report.end = unbase64(head["checkpoint"]), int(head["first"]), int(head["end"])
            report.checkpoint = note.decode()
            self.tree = Edge(report.first, hashes(head["left"]))
            self.before, self.right = Edge(self.tree.size, self.tree.stack), hashes(head["right"])
            proofs = {int(size): hashes(proof) for size, proof in head["consistency"].items()}
            self.root = self.checkpoint(note)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StopReading("format", "the header is malformed") from None
        if not 0 <= report.first <= report.end <= report.size:
            raise StopReading("format", "the header's range is not in the signed tree")
        if self.last is not None:
            self.hold_against(self.last, proofs)

    def checkpoint(self, note: bytes) -> bytes:
        report = self.report
        try:
            now = Checkpoint.parse(note, self.keys)
            if not now.signed:
                report.add("signature", "the checkpoint is not signed by a key that was given")
        except ValueError as error:
            report.add("signature", str(error))
            now = Checkpoint.parse(note, [])  # untrusted from here on: what follows only helps to name what differs
        parts = now.origin.split("/")
        report.tenant = parts[-2] if len(parts) > 1 and re.fullmatch(r"[1-9][0-9]*", parts[-1]) else parts[-1]
        if report.origin not in ("", now.origin):
            report.add("origin", "the export is of another log than the one asked for")
        report.origin, report.size, report.root = now.origin, now.size, now.root.hex()
        return now.root

    def hold_against(self, last: Checkpoint, proofs: dict[int, list[bytes]]) -> None:
        report, size = self.report, last.size
        if last.origin != report.origin:
            report.add("origin", "the checkpoint that was kept is of another log, or of another epoch of it")
        elif size > report.size:
            report.add("rollback", f"the log has {report.size} leaves, but {size} had been signed: it is an older copy")
        elif size in proofs or size == report.size:
            if not consistent(size, report.size, proofs.get(size, []), last.root, self.root):
                report.add("fork", "the log does not extend the checkpoint that was kept: it was rewritten")
        else:
            self.unproven = not report.first <= size <= report.end
        self.anchor(last)

    def anchor(self, known: Checkpoint | None) -> None:
        """Hold the tree against a trusted root of the size that it has just reached."""
        if known is not None and self.tree.size == known.size:
            if self.tree.root() == known.root:
                self.trusted = known.size
            elif self.lost < 0:
                self.lost = known.size

    def line(self, line: bytes | None) -> bool:
        """Take one line in; True after the last."""
        if line is None:
            raise StopReading("incomplete", "the export ends before its end line: it was truncated")
        keyword, _, rest = line.partition(b" ")
        control = keyword in (b"#leaves", b"#mark", b"#end")
        if not control and (line[:1] != b"#" or len(self.got) < len(self.want)):
            self.event(line)
            return False
        self.close()
        try:
            if keyword == b"#leaves":
                start, _, encoded = rest.decode().partition(" ")
                self.leaves(int(start), hashes(encoded))
            elif keyword == b"#mark":
                self.mark(Checkpoint.parse(unbase64(rest.decode()), self.keys))
            elif keyword == b"#end":
                self.end(int(rest))
            else:
                raise ValueError
        except ValueError:
            raise StopReading("format", f"a control line before leaf {self.tree.size} is malformed") from None
        return keyword == b"#end"

    def leaves(self, start: int, want: list[bytes]) -> None:
        if start != self.tree.size or not 0 < len(want) <= MAX_BLOCK or start + len(want) > self.report.end:
            raise StopReading("leaf", f"leaves are missing or surplus from {self.tree.size} on", self.tree.size)
        self.want = want
        for hash_ in want:
            self.tree.add(hash_)
            self.anchor(self.last)

    def event(self, line: bytes) -> None:
        at, hash_ = len(self.got), sha256(b"\x00" + line)
        self.got.append(hash_)
        if self.differs is None and at < len(self.want) and hash_ == self.want[at]:
            self.report.events += 1
            if self.contents:
                self.contents.check(self.before.size + at, line)
        elif self.differs is None:
            self.differs = self.before.size + at
        elif at > 64 * MAX_BLOCK:
            raise StopReading("format", "there are too many events without a list of leaf hashes")

    def close(self) -> None:
        """The end of a block of events."""
        if self.differs is None and len(self.got) < len(self.want):
            self.differs = self.before.size + len(self.got)
        if self.differs is not None:
            self.other = self.other or self.before
            for hash_ in self.got:
                self.other.add(hash_)
        self.want, self.got, self.before = [], [], Edge(self.tree.size, self.tree.stack)

    def mark(self, mark: Checkpoint) -> None:
        if mark.signed:
            if (mark.origin, mark.size) != (self.report.origin, self.tree.size):
                self.report.add("mark", f"before leaf {self.tree.size} stands a checkpoint of another log or size")
            self.anchor(mark)
            self.report.marks += 1

    def end(self, end: int) -> None:
        if end != self.report.end or self.tree.size != end:
            raise StopReading("leaf", f"the leaves from {self.tree.size} on are missing", self.tree.size)
        self.whole = self.tree.completed(self.report.size, self.right) == self.root
        if self.unproven:
            raise StopReading("incomplete", "there is no proof of consistency with the checkpoint that was kept")
        self.verdict()

    def verdict(self) -> None:
        report, leaf, wrong = self.report, self.differs, self.whole is False
        if wrong and self.other and self.other.completed(report.size, self.right) == self.root:
            report.add("leaf-hash", "the event is as signed, but the tree's stored hash of it is not", leaf)
        elif wrong:
            report.add("root", "the leaves do not lead to the signed root")
            report.bad_range = (self.trusted, self.lost if self.lost >= 0 else report.size)
            report.first_bad_leaf = None
        elif leaf is not None:
            report.add("leaf", "the event is not the leaf that was signed: altered, missing, surplus or moved", leaf)
        if self.lost >= 0 and not wrong:
            report.add("fork", "the log was rewritten after a checkpoint was signed or kept")
            report.bad_range = (self.trusted, self.lost)


# ---- command line


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines without their newline. A last line that has none was cut off."""
    while line := file.readline(MAX_LINE):
        if not line.endswith(b"\n"):
            code = "format" if len(line) == MAX_LINE else "incomplete"
            raise StopReading(code, "a line is too long" if code == "format" else "the last line is cut off")
        yield line[:-1]


def verify(
    lines: Iterable[bytes],
    keys: Iterable[str],
    last: bytes | None = None,
    *,
    origin: str = "",
    tolerance: float = 10.0,
    contents: bool = True,
) -> Report:
    """The report on an export. ``keys`` are verifier keys, ``last`` a signed checkpoint. Raises UnusableError."""
    parsed, report, kept = [parse_key(key) for key in keys], Report(origin=origin), None
    if last is not None:
        try:
            kept = Checkpoint.parse(last, parsed)
        except ValueError as error:
            raise UnusableError(f"the checkpoint that was kept can't be used: {error}") from None
        if not kept.signed or not kept.size:
            raise UnusableError("the checkpoint that was kept is empty, or not signed by a key that was given")
    return Verification(parsed, kept, report, Contents(report, tolerance) if contents else None).run(iter(lines))


def show(report: Report) -> str:
    verdict = {0: "VERIFIED", 1: "TAMPERING OR MISMATCH", 3: "INCOMPLETE"}[report.exit_code]
    text = f"{verdict}: {report.origin}, leaves {report.first} to {report.end} of {report.size}, root {report.root}\n"
    for finding in report.findings:
        text += "  {code}: {message}".format(**finding)
        text += "\n" if finding["leaf"] is None else f" (leaf {finding['leaf']})\n"
    if report.bad_range is not None:
        text += "the first bad leaf is in [{}, {})\n".format(*report.bad_range)
    return text + (f"first bad leaf: {report.first_bad_leaf}\n" if report.first_bad_leaf is not None else "")


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
            options = {"origin": args.origin, "tolerance": args.clock_tolerance}
            report = verify(read_lines(file), args.key, last, **options)
    except (UnusableError, OSError) as error:
        sys.stderr.write(f"verify: {error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n" if args.json else show(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
