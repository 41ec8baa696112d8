"""Exports and their offline verification: the real writer, the real verifier, its exit codes."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import tracemalloc
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.audit import event, merkle, verify
from app.audit.checkpoint import Checkpoint, Signer
from app.audit.export import BLOCK, ExportHead, ExportWriter
from tests.audit_pure.made_log import KEY_NAME, MadeLog, check, make_events, random_uuid, write

LOG = MadeLog.make(7, 700)


def codes(report: verify.Report) -> set[str]:
    return {finding["code"] for finding in report.findings}


def changed_log(change: Any, count: int = 30) -> MadeLog:
    """A log whose service itself wrote what ``change`` makes of good events: the tree and its signature are right."""
    rng = random.Random(11)
    tenant = random_uuid(rng)
    events = make_events(rng, count, tenant)
    rows = [row if isinstance(row, bytes) else event.encode(row) for row in change(events)]
    return MadeLog(tenant, Signer(KEY_NAME, bytes(32)), rows)


@pytest.mark.parametrize("size", [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 700])
def test_a_whole_export_verifies(size: int) -> None:
    report = check(LOG.export(size=size), LOG)
    assert (report.exit_code, report.events, report.size, report.tenant) == (0, size, size, LOG.tenant)


def test_an_export_of_a_part_verifies() -> None:
    rng = random.Random(3)
    for _ in range(60):
        first, end = sorted(rng.sample(range(701), 2))
        report = check(LOG.export(first, end), LOG)
        assert (report.exit_code, report.events) == (0, end - first), report.findings


def test_an_event_line_is_the_leaf_entry_itself() -> None:
    lines = LOG.export().split(b"\n")
    assert [line for line in lines if line.startswith(b"{")] == LOG.rows


def test_the_kept_checkpoint_is_held_against_every_kind_of_export() -> None:
    for kept in (1, 255, 256, 300, 699, 700):
        last = LOG.note(kept)
        assert check(LOG.export(), LOG, last).exit_code == 0
        assert check(LOG.export(400, 500, kept=[kept]), LOG, last).exit_code == 0
        assert check(LOG.export(kept, 700), LOG, last).exit_code == 0


def test_without_a_proof_from_the_kept_checkpoint_an_export_is_incomplete() -> None:
    report = check(LOG.export(400, 500), LOG, LOG.note(300))
    assert (report.exit_code, codes(report)) == (3, {"incomplete"})


def test_hashes_to_the_right_do_not_stand_in_for_leaves_that_are_there() -> None:
    everything = [LOG.get(*node) for node in merkle.cover(0, 700)]
    report = check(write(ExportHead(0, 300, LOG.note(), (), everything), LOG.rows[:300], LOG.leaves()[:300]), LOG)
    assert (report.exit_code, codes(report), report.first_bad_leaf) == (1, {"root"}, None)


def test_a_wrong_consistency_proof_is_a_fork() -> None:
    left, right = merkle.range_proof(400, 500, 700, LOG.get)
    proof = merkle.consistency_proof(300, 700, LOG.get)
    for wrong in (proof[:-1], [*proof, bytes(32)], [bytes(32), *proof[1:]], []):
        head = ExportHead(400, 500, LOG.note(), left, right, {300: wrong})
        report = check(write(head, LOG.rows[400:500], LOG.leaves()[400:500]), LOG, LOG.note(300))
        assert (report.exit_code, codes(report)) == (1, {"fork"})


def test_a_log_that_was_rewritten_and_signed_again_with_the_real_key_is_a_fork() -> None:
    rows = list(LOG.rows)
    rows[123] = rows[124]
    other = MadeLog(LOG.tenant, LOG.signer, rows)
    report = check(other.export(), LOG, LOG.note(500))
    assert report.exit_code == 1
    assert "fork" in codes(report)
    assert report.bad_range == (0, 500)
    assert check(other.export(), LOG, LOG.note(100)).bad_range is None


def test_older_checkpoints_in_the_export_narrow_down_where_it_was_rewritten() -> None:
    rows = list(LOG.rows)
    rows[333] = rows[334]
    leaves = [merkle.leaf_hash(row) for row in rows]
    marks = {at: LOG.note(at) for at in range(100, 700, 100)}
    report = check(write(ExportHead(0, 700, LOG.note()), rows, leaves, marks), LOG)
    assert (report.exit_code, report.bad_range, report.marks) == (1, (300, 400), 6)
    assert check(LOG.export(marks=50), LOG).marks == 13


def test_a_mark_of_another_place_or_log_is_found_and_one_of_an_unknown_key_is_told() -> None:
    head = ExportHead(0, 700, LOG.note())
    assert check(write(head, LOG.rows, LOG.leaves(), {100: LOG.note(101)}), LOG).exit_code == 1
    stranger = Checkpoint("elsewhere.example/x", 100, LOG.roots[100]).sign(LOG.signer)
    assert check(write(head, LOG.rows, LOG.leaves(), {100: stranger}), LOG).exit_code == 1
    unknown = LOG.note(100, Signer(KEY_NAME, bytes(32)))
    report = check(write(head, LOG.rows, LOG.leaves(), {100: unknown}), LOG)
    assert (report.exit_code, report.marks, report.first_bad_leaf) == (3, 1, None)


def test_a_rotated_signing_key_verifies_with_both_keys_given() -> None:
    new = Signer(KEY_NAME, bytes(32))
    export = write(ExportHead(0, 700, LOG.note(signer=new)), LOG.rows, LOG.leaves())
    lines = [line[:-1] for line in export.splitlines(keepends=True)]
    assert verify.verify(lines, [LOG.key, new.verifier.text()], LOG.note(10)).exit_code == 0
    assert verify.verify(lines, [LOG.key], LOG.note(10)).exit_code == 1


def test_another_log_than_the_one_asked_for_is_found() -> None:
    assert check(LOG.export(), LOG, origin=LOG.origin).exit_code == 0
    report = check(LOG.export(), LOG, origin=LOG.origin + "/2")
    assert (report.exit_code, codes(report)) == (1, {"origin"})


def test_an_epoch_after_a_restore_still_names_its_tenant() -> None:
    note = Checkpoint(LOG.origin + "/2", 700, LOG.roots[700]).sign(LOG.signer)
    export = write(ExportHead(0, 700, note), LOG.rows, LOG.leaves())
    report = check(export, LOG)
    assert (report.exit_code, report.tenant) == (0, LOG.tenant)
    assert codes(check(export, LOG, LOG.note(500))) == {"origin"}


def gap(events: list[Any]) -> list[Any]:
    return [*events[:9], *events[10:]]


def late_start(events: list[Any]) -> list[Any]:
    first = next(at for at, made in enumerate(events) if made["seq"] == 1 and at > 0)
    return [*events[:first], *events[first + 1 :]]


def backwards(events: list[Any]) -> list[Any]:
    last = events[-1]
    return [*events[:-1], {**last, "time": "2026-10-01T00:00:00.000000Z", "id": "019a0000-0000-7000-8000-000000000000"}]


def drifting(events: list[Any]) -> list[Any]:
    return [*events[:-1], {**events[-1], "id": random_uuid(random.Random(1), 7, 1_000)}]


def repeated(events: list[Any]) -> list[Any]:
    return [*events[:-1], {**events[-1], "id": events[-2]["id"]}]


def stranger(events: list[Any]) -> list[Any]:
    return [*events[:-1], {**events[-1], "tenant": random_uuid(random.Random(5))}]


def spaced(events: list[Any]) -> list[Any]:
    return [*events[:-1], json.dumps(events[-1]).encode()]


def broken(events: list[Any]) -> list[Any]:
    return [*events[:-1], b"not JSON"]


def fractional(events: list[Any]) -> list[Any]:
    return [*events[:-1], event.encode(events[-1]).replace(b'"v":1', b'"v":1.5')]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (gap, "gap"),
        (late_start, "gap"),
        (backwards, "clock"),
        (drifting, "clock"),
        (repeated, "duplicate"),
        (stranger, "tenant"),
        (spaced, "event"),
        (broken, "event"),
        (fractional, "event"),
    ],
)
def test_what_was_wrong_before_it_was_signed_is_found_too(change: Any, code: str) -> None:
    log = changed_log(change)
    report = check(log.export(), log)
    assert (report.exit_code, codes(report) >= {code}) == (1, True), report.findings
    if change not in (gap, late_start):
        assert report.first_bad_leaf == 29
    assert check(log.export(), log, contents=False).exit_code == 0


def test_a_lost_row_is_named_and_shifts_nothing() -> None:
    rows: list[bytes | None] = list(LOG.rows)
    rows[410] = None
    report = check(write(ExportHead(0, 700, LOG.note()), rows, LOG.leaves()), LOG)
    assert (report.first_bad_leaf, codes(report)) == (410, {"leaf"})


def test_an_altered_row_and_an_altered_tree_node_are_told_apart() -> None:
    rows, leaves = list(LOG.rows), LOG.leaves()
    rows[5] = rows[6]
    assert codes(check(write(ExportHead(0, 700, LOG.note()), rows, leaves), LOG)) == {"leaf"}
    leaves[9] = bytes(32)
    report = check(write(ExportHead(0, 700, LOG.note()), LOG.rows, leaves), LOG)
    assert (codes(report), report.first_bad_leaf) == ({"leaf-hash"}, 9)


def test_an_export_cut_anywhere_never_verifies() -> None:
    log = MadeLog.make(8, 5)
    export = log.export(marks=2)
    for length in range(len(export)):
        try:
            assert check(export[:length], log).exit_code in (1, 3)
        except ValueError:
            assert length < len(verify.MAGIC) + 2


def test_no_changed_byte_of_an_export_goes_unnoticed_but_in_a_proof_that_nobody_asked_for() -> None:
    log, rng = MadeLog.make(9, 8), random.Random(9)
    export = log.export(3, 6)
    for at in range(len(export)):
        other = export[:at] + bytes([rng.choice([c for c in range(256) if c != export[at]])]) + export[at + 1 :]
        try:
            report = check(other, log)
        except ValueError:
            continue
        assert report.exit_code in (1, 3) or report.checkpoint == log.note().decode(), at
        assert report.exit_code != 0 or report.root == log.roots[8].hex()


@pytest.mark.parametrize("tail", [b"\n", b"x\n", b"#end 700\n", b"#leaves 700 AAAA\n"])
def test_nothing_stands_after_the_end(tail: bytes) -> None:
    assert check(LOG.export() + tail, LOG).exit_code == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}\n",
        b"#confide-audit-export/2 {}\n",
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_export_can_not_be_judged(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a Confide audit export"):
        check(text, LOG)


@pytest.mark.parametrize(
    "header", [b"{}", b"[]", b"null", b"{", b'{"checkpoint":""}', b"[" * 100_000, b'{"checkpoint":"AAAA","first":0}']
)
def test_a_malformed_header_is_found(header: bytes) -> None:
    assert codes(check(b"#confide-audit-export/1 " + header + b"\n#end 0\n", LOG)) == {"format"}


@pytest.mark.parametrize("last", [b"", b"x", LOG.note(0), LOG.note(5, Signer(KEY_NAME, bytes(32)))])
def test_a_kept_checkpoint_that_proves_nothing_is_a_usage_error(last: bytes) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        check(LOG.export(), LOG, last)


def test_the_writer_writes_no_more_and_no_less_than_it_announced() -> None:
    writer = ExportWriter(lambda _: None, ExportHead(0, 1, LOG.note(1)))
    with pytest.raises(ValueError, match="fewer"):
        writer.end()
    with pytest.raises(ValueError, match="one line"):
        writer.add(b"a\nb", bytes(32))
    with pytest.raises(ValueError, match="32 bytes"):
        writer.add(b"a", bytes(31))
    writer.add(b"a", bytes(32))
    with pytest.raises(ValueError, match="more"):
        writer.add(b"a", bytes(32))


def test_memory_stays_flat_however_long_the_export() -> None:
    def peak(count: int) -> int:
        def lines() -> Iterator[bytes]:
            frontier, left = merkle.Frontier(), count
            entry = LOG.rows[0]
            for _ in range(count):
                frontier.append(event.leaf_hash(entry))
            note = Checkpoint(LOG.origin, count, frontier.root()).sign(LOG.signer)
            chunks: list[bytes] = []
            writer = ExportWriter(chunks.append, ExportHead(0, count, note))
            while left:
                left -= 1
                writer.add(entry, event.leaf_hash(entry))
                while chunks:
                    yield from chunks.pop(0).splitlines()
            writer.end()
            for chunk in chunks:
                yield from chunk.splitlines()

        tracemalloc.start()
        report = verify.verify(lines(), [LOG.key], tolerance=None)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (report.exit_code, report.events) == (0, count)
        return highest

    assert peak(20_000) < peak(2_000) * 1.5


def test_the_verifier_is_one_file_that_needs_nothing_of_the_service(tmp_path: Path) -> None:
    source = Path(verify.__file__).read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def run_alone(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """verify.py copied to an empty directory and run by itself."""
    script = directory / "verify.py"
    script.write_bytes(Path(verify.__file__).read_bytes())
    command = [sys.executable, "-I", str(script), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_answers_with_exit_codes(tmp_path: Path) -> None:
    export, last, key = tmp_path / "export", tmp_path / "last", ("--key", LOG.key)
    export.write_bytes(LOG.export())
    last.write_bytes(LOG.note(300))
    good = run_alone(tmp_path, str(export), *key, "--checkpoint", str(last), "--origin", LOG.origin)
    assert (good.returncode, good.stdout.split(":")[0]) == (0, "VERIFIED"), good.stderr
    as_json = run_alone(tmp_path, str(export), *key, "--json")
    assert json.loads(as_json.stdout)["checkpoint"] == LOG.note().decode()
    rows = list(LOG.rows)
    rows[77] = rows[78]
    export.write_bytes(write(ExportHead(0, 700, LOG.note()), rows, LOG.leaves()))
    bad = run_alone(tmp_path, str(export), *key)
    assert (bad.returncode, "first bad leaf: 77" in bad.stdout) == (1, True)
    export.write_bytes(LOG.export()[:-5])
    cut = run_alone(tmp_path, str(export), *key)
    assert (cut.returncode, cut.stdout.split(":")[0]) == (3, "INCOMPLETE")
    for arguments in (["absent", *key], [str(export), "--key", "x"], [str(export)], [str(last), *key]):
        assert run_alone(tmp_path, *arguments).returncode == 2


def test_the_checkpoint_to_keep_can_be_taken_from_the_export() -> None:
    header = LOG.export().split(b"\n", 1)[0].split(b" ", 1)[1]
    assert b64decode(json.loads(header)["checkpoint"]) == LOG.note()
