"""Tampers with a log at random, in rows, tree nodes, checkpoints and export files, and asks the verifier each time.

    python -m tests.audit_pure.tamper_programme [--seed N] [--events 20000] [--each 500]

Whoever holds the database can change rows and nodes alike, but not sign. The auditor holds the verifier key and one
older checkpoint. Each mutation says what the verifier must report: that something is wrong, and the first bad leaf
exactly, or a range that holds it where the attacker made rows and tree agree again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.audit import event, merkle
from app.audit.checkpoint import Checkpoint, Signer
from app.audit.export import ExportHead
from tests.audit_pure.made_log import KEY_NAME, MadeLog, check, write


@dataclass
class Case:
    """``leaf``: must be named exactly. ``within``: must lie in the reported range. ``codes``: exit codes."""

    export: bytes
    leaf: int | None = None
    within: int | None = None
    codes: tuple[int, ...] = (1,)


class Programme:
    """Mutations of one log. ``kept`` is the size of the checkpoint that the auditor kept."""

    def __init__(self, seed: int, events: int) -> None:
        self.rng = random.Random(seed)
        self.log, self.stranger = MadeLog.make(seed, events), MadeLog.make(seed + 1, events)
        self.count, self.kept = events, events // 3
        self.leaves = self.log.leaves()
        self.head = ExportHead(0, events, self.log.note())
        self.clean = write(self.head, self.log.rows, self.leaves)
        self.last = self.log.note(self.kept)
        self.lines = self.clean.splitlines(keepends=True)
        self.events = [number for number, line in enumerate(self.lines) if line.startswith(b"{")]
        self.thief = Signer(KEY_NAME, self.rng.randbytes(32))

    # -- helpers

    def rebuilt(self, rows: list[bytes], leaf: int, signer: Signer | None = None) -> Case:
        """The attacker makes the tree agree with his rows; the checkpoint is the old one, or signed with his key."""
        leaves = [merkle.leaf_hash(row) for row in rows]
        head = ExportHead(0, len(rows), self.head.checkpoint)
        if signer is not None:
            head = ExportHead(0, len(rows), Checkpoint(self.log.origin, len(rows), merkle.root(leaves)).sign(signer))
            return Case(write(head, rows, leaves))
        return Case(write(head, rows, leaves), within=leaf, codes=(1,))

    def changed(self, index: int) -> bytes:
        """Another event in place of number ``index``: well-formed, canonical, and not what was signed."""
        made = event.decode(self.log.rows[index])
        made["action"] = "context.read"
        made["detail"] = {"forged": self.rng.randrange(1 << 30)}
        return event.encode(made)

    def flipped(self, data: bytes, at: int) -> bytes:
        wrong = self.rng.choice([c for c in range(32, 127) if c != data[at]])
        return data[:at] + bytes([wrong]) + data[at + 1 :]

    def pick(self) -> int:
        return self.rng.randrange(self.count)

    def file(self, leaf: int, change: Callable[[list[bytes], int], None]) -> Case:
        """Change the export file at the line of an event."""
        lines = list(self.lines)
        change(lines, self.events[leaf])
        return Case(b"".join(lines), leaf=leaf)

    # -- mutations

    def edit(self) -> Case:
        leaf, rows, leaves = self.pick(), list(self.log.rows), list(self.leaves)
        match self.rng.randrange(6):
            case 0:
                rows[leaf] = self.flipped(rows[leaf], self.rng.randrange(len(rows[leaf])))
                return Case(write(self.head, rows, leaves), leaf=leaf)
            case 1:
                rows[leaf] = self.changed(leaf)
                return Case(write(self.head, rows, leaves), leaf=leaf)
            case 2:
                leaves[leaf] = self.rng.randbytes(32)
                return Case(write(self.head, rows, leaves), leaf=leaf)
            case 3:
                rows[leaf] = self.changed(leaf)
                return self.rebuilt(rows, leaf)
            case 4:
                return self.edit_checkpoint()
            case _:
                return self.edit_node()

    def edit_checkpoint(self) -> Case:
        note = self.flipped(self.head.checkpoint, self.rng.randrange(len(self.head.checkpoint) - 1))
        return Case(write(ExportHead(0, self.count, note), self.log.rows, self.leaves), codes=(1, 2))

    def edit_node(self) -> Case:
        """A node beside the range of a partial export is altered."""
        first = self.rng.randrange(1, self.count // 2)
        end = self.rng.randrange(first, self.count)
        left, right = merkle.range_proof(first, end, self.count, self.log.get)
        side = self.rng.choice((left, right))
        side[self.rng.randrange(len(side))] = self.rng.randbytes(32)
        head = ExportHead(first, end, self.head.checkpoint, left, right)
        return Case(write(head, self.log.rows[first:end], self.leaves[first:end]))

    def delete(self) -> Case:
        leaf, rows = self.pick(), list(self.log.rows)
        match self.rng.randrange(3):
            case 0:
                return Case(write(self.head, [*rows[:leaf], None, *rows[leaf + 1 :]], self.leaves), leaf=leaf)
            case 1:
                return self.file(leaf, lambda lines, at: lines.pop(at))
            case _:
                del rows[leaf]
                return self.rebuilt(rows, leaf)

    def insert(self) -> Case:
        leaf, rows = self.pick(), list(self.log.rows)
        if self.rng.randrange(2):
            forged = self.changed(leaf) + b"\n"
            return self.file(leaf, lambda lines, at: lines.insert(at, forged))
        rows.insert(leaf, self.changed(leaf))
        return self.rebuilt(rows[: self.count], leaf)

    def reorder(self) -> Case:
        first, second = sorted(self.rng.sample(range(self.count), 2))
        rows, leaves = list(self.log.rows), list(self.leaves)
        rows[first], rows[second] = rows[second], rows[first]
        match self.rng.randrange(3):
            case 0:
                return Case(write(self.head, rows, leaves), leaf=first)
            case 1:
                leaves[first], leaves[second] = leaves[second], leaves[first]
                return Case(write(self.head, list(self.log.rows), leaves), leaf=first)
            case _:
                return self.rebuilt(rows, first)

    def truncate(self) -> Case:
        size = self.rng.randrange(1, self.count)
        match self.rng.randrange(4):
            case 0:
                return Case(self.clean[: self.rng.randrange(len(self.clean))], codes=(1, 2, 3))
            case 1:
                return Case(b"".join(self.lines[: self.events[size]]), codes=(3,))
            case 2:
                lines = [*self.lines[: self.events[size]], self.lines[-1]]
                return Case(b"".join(lines), leaf=size)
            case _:
                head = ExportHead(0, size, self.head.checkpoint)
                return Case(write(head, self.log.rows[:size], self.leaves[:size]))

    def roll_back(self) -> Case:
        """An older copy of everything, with the checkpoint that was once signed for it."""
        size = self.rng.randrange(1, self.kept)
        return Case(write(ExportHead(0, size, self.log.note(size)), self.log.rows[:size], self.leaves[:size]))

    def resign(self) -> Case:
        """Another key under the same name, over the log as it is or over an altered one."""
        leaf, rows = self.pick(), list(self.log.rows)
        if self.rng.randrange(2):
            rows[leaf] = self.changed(leaf)
            case = self.rebuilt(rows, leaf, self.thief)
            if leaf < self.kept:  # the checkpoint that was kept narrows it down
                case.within = leaf
            return case
        head = ExportHead(0, self.count, self.log.note(signer=self.thief))
        return Case(write(head, rows, self.leaves))

    def swap_tenants(self) -> Case:
        leaf, rows, leaves = self.pick(), list(self.log.rows), list(self.leaves)
        match self.rng.randrange(4):
            case 0:
                rows[leaf] = self.stranger.rows[leaf]
                return Case(write(self.head, rows, leaves), leaf=leaf)
            case 1:
                rows[leaf] = self.stranger.rows[leaf]
                return self.rebuilt(rows, leaf)
            case 2:
                size = self.rng.randrange(self.kept, self.count)
                note = Checkpoint(self.stranger.origin, size, self.stranger.roots[size]).sign(self.log.signer)
                return Case(write(ExportHead(0, size, note), self.stranger.rows[:size], leaves[:size]))
            case _:
                size = self.rng.randrange(self.kept, self.count)
                note = Checkpoint(self.stranger.origin, size, self.stranger.roots[size]).sign(self.log.signer)
                return Case(write(ExportHead(0, size, note), rows[:size], leaves[:size]))

    def kinds(self) -> dict[str, Callable[[], Case]]:
        return {
            "edit": self.edit,
            "delete": self.delete,
            "insert": self.insert,
            "reorder": self.reorder,
            "truncate": self.truncate,
            "roll back": self.roll_back,
            "re-sign": self.resign,
            "swap tenants": self.swap_tenants,
        }

    def judge(self, case: Case, *, contents: bool) -> str | None:
        """None if the verifier's answer is right, else what is wrong with it."""
        try:
            report = check(case.export, self.log, self.last, contents=contents)
        except ValueError:
            return None if 2 in case.codes else "unusable"
        if report.exit_code not in case.codes:
            return f"exit code {report.exit_code}, findings {report.findings}"
        if case.leaf is not None and report.first_bad_leaf != case.leaf:
            return f"first bad leaf {report.first_bad_leaf}, not {case.leaf}: {report.findings}"
        span = report.bad_range
        if case.within is not None and (span is None or not span[0] <= case.within < span[1]):
            return f"range {span} without {case.within}: {report.findings}"
        return None


def run(programme: Programme, each: int, contents_every: int = 1) -> dict[str, list[str]]:
    """What went wrong, by kind of mutation: empty lists are what is hoped for."""
    control = check(programme.clean, programme.log, programme.last)
    if control.exit_code != 0:
        raise AssertionError(f"the untouched log doesn't verify: {control.findings}")
    wrong: dict[str, list[str]] = {}
    for kind, mutate in programme.kinds().items():
        answers = (programme.judge(mutate(), contents=number % contents_every == 0) for number in range(each))
        wrong[kind] = [answer for answer in answers if answer]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=500)
    parser.add_argument("--contents-every", type=int, default=10, help="look into the events in every n-th run")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.events} events, {args.each} mutations of each kind", flush=True)
    began = time.monotonic()
    wrong = run(Programme(args.seed, args.events), args.each, args.contents_every)
    for kind, answers in wrong.items():
        print(f"{kind}: {args.each - len(answers)} of {args.each} found and named rightly")
        for answer in answers[:5]:
            print(f"    {answer[:300]}")
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
